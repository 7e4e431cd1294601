"""Products with an array that is the same in every network, over positions: resizing.

Not weights: the result has the roots of the signal, and each of its positions is a sum
of the signal's.
"""

from collections.abc import Sequence

import numpy as np

from layerwise.theory.context import Node, RuleContext
from layerwise.theory.registry import NoSoundRule, rule
from layerwise.theory.rules.positions import mapped, mapped_back
from layerwise.theory.rules.shape import permuted
from layerwise.theory.state import State


@rule("fixed_product", family="shape")
class FixedProduct:
    """Product with a fixed vector or matrix over one axis of positions; exact."""

    @staticmethod
    def forward(ctx: RuleContext, node: Node, states: Sequence[State]) -> State:
        """``A K A^T``, the new axis where the product puts it."""
        (state,) = states
        axis, matrix, dropped, order = _read(ctx, node, state)
        return permuted(mapped(ctx, state, {axis: matrix}, dropped), order)

    @staticmethod
    def backward(
        ctx: RuleContext,
        node: Node,
        states: Sequence[State],
        out: State,
        cotangent: State,
    ) -> Sequence[State | None]:
        """``A^T K A``."""
        (state,) = states
        axis, matrix, dropped, order = _read(ctx, node, state)
        back = np.argsort(order).tolist()
        out, cotangent = permuted(out, back), permuted(cotangent, back)
        return [mapped_back(ctx, state, out, cotangent, {axis: matrix}, dropped)]


def _read(
    ctx: RuleContext, node: Node, state: State
) -> tuple[int, np.ndarray, list[int], list[int]]:
    """Returns the axis, its matrix, the axes dropped, and the order of those left."""
    equation = node.equations[0]
    (side,) = [i for i, a in enumerate(equation.inputs) if a not in node.inputs]
    contract, batched = equation.params["dimension_numbers"]
    array = ctx.weight(equation.inputs[side]).value
    if array is None or array.ndim > 2 or batched[0] or len(contract[0]) != 1:
        raise NoSoundRule("a product with a fixed array over several axes")
    axis = contract[1 - side][0]
    if state.axes[axis] != "s":
        role = {"b": "examples", "c": "channels"}[state.axes[axis]]
        raise NoSoundRule(f"a product with a fixed array over {role}")
    matrix = np.moveaxis(np.asarray(array, np.float64), contract[side][0], -1)
    others = [a for a in range(len(state.axes)) if a != axis]
    if matrix.ndim == 1:
        return axis, matrix[None], [axis], list(range(len(others)))
    order = [axis, *others] if side == 0 else [*others, axis]
    return axis, matrix, [], order
