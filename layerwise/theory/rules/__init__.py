"""One file per mathematical family; importing this package registers every rule."""

from layerwise.theory.registry import rule
from layerwise.theory.rules import (
    attention,
    beside,
    channels,
    elementwise,
    fixed_product,
    linear,
    lookup,
    normalization,
    pooling,
    positions,
    products,
    shape,
)


__all__ = [
    "attention",
    "beside",
    "channels",
    "elementwise",
    "fixed_product",
    "linear",
    "lookup",
    "normalization",
    "pooling",
    "positions",
    "products",
    "rule",
    "shape",
]
