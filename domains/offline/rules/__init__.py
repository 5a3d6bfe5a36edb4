"""Patterns and rules of good designs, and searches that use them as a prior."""
