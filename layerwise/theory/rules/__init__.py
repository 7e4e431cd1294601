"""One file per mathematical family; importing this package registers every rule."""

from layerwise.theory.rules import elementwise, linear, normalization, pooling, shape


__all__ = ["elementwise", "linear", "normalization", "pooling", "shape"]
