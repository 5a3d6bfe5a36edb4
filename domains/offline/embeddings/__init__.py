"""Vectors of sequences: one-hot, k-mers, physical properties, and any model of the user's, by name."""
