"""Products of tensors as products of matrices.

Derivatives of a product sum over the axes that its other operand alone has. Where
several axes are summed over at once, as in the input gradient of Flax's
``DenseGeneral``, XLA's CPU backend first writes the weights in another order. Where the
other operand is broadcast, as a layer norm's scale is, it first writes that out in
full. Of a product of matrices the derivative is one too: operands are read as they lie.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from layerwise.tracing.graph import Equation


def matrix_product(equation: Equation, operands: list[Any]) -> list[Any] | None:
    """Returns a ``dot_general`` as a product of matrices.

    None where the weights are a matrix as they are, and where one cannot be read off
    without moving entries: with batch axes, or where what is summed over are not an
    operand's first or last axes, in the order of the other's.
    """
    contracted, batch = equation.params["dimension_numbers"]
    summed = len(contracted[0])
    if batch[0] or not summed or (summed == 1 and min(x.ndim for x in operands) < 3):
        return None
    pairs = sorted(zip(*contracted, strict=True))
    lhs, rhs = map(_matrix, operands, zip(*pairs, strict=True))
    if lhs is None or rhs is None:
        return None
    (x, i), (y, j) = lhs, rhs
    product = jax.lax.dot_general(
        x,
        y,
        (((i,), (j,)), ((), ())),
        precision=equation.params["precision"],
        preferred_element_type=equation.params["preferred_element_type"],
    )
    free = [
        n
        for x, axes in zip(operands, contracted, strict=True)
        for axis, n in enumerate(x.shape)
        if axis not in axes
    ]
    return [product.reshape(free)]


def _matrix(x: Any, summed: Sequence[int]) -> tuple[Any, int] | None:
    """Returns `x` as a matrix, and which of its axes holds what is summed over."""
    for axis, split in ((0, len(summed)), (1, x.ndim - len(summed))):
        parts = range(split), range(split, x.ndim)
        if tuple(summed) == tuple(parts[axis]):
            shape = [math.prod(x.shape[i] for i in part) for part in parts]
            return x.reshape(shape), axis
    return None


def outer_product(equation: Equation, operands: list[Any]) -> list[Any] | None:
    """Returns a ``mul`` of two arrays that share no axis as their outer product.

    None where an axis is shared, or where an operand has axes before and behind those
    of the other one.
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
