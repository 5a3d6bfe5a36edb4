"""sciopt: scientific design by gradient-based bi-level optimization."""
