"""Initializers: the classics, the paper's, and one call for a whole model.

Schemes that need a shape only are functions here, ``(key, shape, dtype) -> array`` as
in `jax.nn.initializers`, for ``nn.Dense(kernel_init=lw.initializers.lecun())``. All of
them, and those that need more, are names for `initialize`.
"""

from layerwise.initializers import asv, automatic, learned, lsuv, residual
from layerwise.initializers.initialize import initialize, scheme_law
from layerwise.initializers.law import Law
from layerwise.initializers.orthogonality import delta_orthogonal, identity, orthogonal
from layerwise.initializers.registry import scheme_names
from layerwise.initializers.variance_scaling import (
    glorot,
    kaiming_fan_avg,
    kaiming_fan_in,
    kaiming_fan_out,
    lecun,
)


_FAMILIES = (asv, residual, automatic, lsuv, learned)  # imported to register them

__all__ = [
    "Law",
    "delta_orthogonal",
    "glorot",
    "identity",
    "initialize",
    "kaiming_fan_avg",
    "kaiming_fan_in",
    "kaiming_fan_out",
    "lecun",
    "orthogonal",
    "scheme_law",
    "scheme_names",
]
