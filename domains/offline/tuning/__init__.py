"""Tuning parameters chosen by validation: sample weights, pseudo-labels, importance weights, smoothness."""
