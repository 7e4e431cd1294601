"""Gaussian mathematics, without programs: quadrature and pooling constants."""
