"""Designs distilled from data by matching gradients, distributions and trajectories; reverse mapping."""
