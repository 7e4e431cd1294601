"""Outer products, whose derivatives are products of a matrix with a vector.

The derivative of a product sums over the axes that its other operand alone has. Where
that operand is broadcast, as a layer norm's scale is, XLA's CPU backend first writes it
out in full. In the product of a matrix with a vector it is read as it lies.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from layerwise.tracing.graph import Equation


def outer_product(equation: Equation, operands: list[Any]) -> list[Any] | None:
    """Returns a ``mul`` of two arrays that share no axis as their outer product.

    None where an axis is shared, or where an operand has axes before and behind those
    of the other one. By `jnp.tensordot`, not `jnp.outer`: that multiplies, as `mul`
    does, and has its derivative.
    """
    del equation
    axes = [[i for i, n in enumerate(np.shape(x)) if n != 1] for x in operands]
    if not all(axes) or not jnp.issubdtype(operands[0].dtype, jnp.floating):
        return None
    first, last = sorted((0, 1), key=lambda i: axes[i])
    if axes[first][-1] >= axes[last][0]:
        return None
    product = jnp.tensordot(operands[first].ravel(), operands[last].ravel(), 0)
    return [product.reshape(np.broadcast_shapes(*(x.shape for x in operands)))]
