"""Implicit layers: equilibrium networks, neural ODEs, stiff systems and optimization layers, on one differentiable core."""
