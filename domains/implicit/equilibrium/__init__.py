"""Deep equilibrium layers: the output is the fixed point of a network, differentiated by the implicit function theorem."""
