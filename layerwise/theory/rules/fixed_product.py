"""Products with an array that is the same in every network, over positions: resizing.

Reading positions at fixed places (nearest neighbours) is such a product.
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
    """Fixed array times, or fixed choice of, one axis of positions; exact."""

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
    if node.equations[0].name == "gather":
        axis, matrix, order = _chosen(ctx, node)
        _check(state, axis)
        return axis, matrix, [], order
    equation = node.equations[0]
    (side,) = [i for i, a in enumerate(equation.inputs) if a not in node.inputs]
    contract, batched = equation.params["dimension_numbers"]
    array = ctx.weight(equation.inputs[side]).value
    if array is None or array.ndim > 2 or batched[0] or len(contract[0]) != 1:
        raise NoSoundRule("a product with a fixed array over several axes")
    axis = contract[1 - side][0]
    _check(state, axis)
    matrix = np.moveaxis(np.asarray(array, np.float64), contract[side][0], -1)
    others = [a for a in range(len(state.axes)) if a != axis]
    if matrix.ndim == 1:
        return axis, matrix[None], [axis], list(range(len(others)))
    order = [axis, *others] if side == 0 else [*others, axis]
    return axis, matrix, [], order


def _check(state: State, axis: int) -> None:
    if state.axes[axis] != "s":
        role = {"b": "examples", "c": "channels"}[state.axes[axis]]
        raise NoSoundRule(f"a product with a fixed array over {role}")


def _chosen(ctx: RuleContext, node: Node) -> tuple[int, np.ndarray, list[int]]:
    """Returns the same for reading one axis at fixed places, the others whole."""
    equation = node.equations[0]
    p, shape = equation.params, ctx.shape(node.inputs[0])
    dims = p["dimension_numbers"]
    places = ctx.weight(equation.inputs[1]).value
    if equation.inputs[0] != node.inputs[0] or places is None or places.ndim != 2:
        raise NoSoundRule("a look-up in a signal")
    read = [a for a in dims.start_index_map if shape[a] != 1]
    if len(dims.start_index_map) != 1 or len(read) != 1 or dims.operand_batching_dims:
        raise NoSoundRule("a look-up in a signal over several axes")
    whole = tuple(1 if a == read[0] else n for a, n in enumerate(shape))
    if (dims.collapsed_slice_dims, p["slice_sizes"]) != ((read[0],), whole):
        raise NoSoundRule("a look-up in a signal of anything but whole slices")
    index = np.asarray(places)[:, 0].astype(int)
    if np.any((index < 0) | (index >= shape[read[0]])):
        raise NoSoundRule("a look-up outside of a signal")
    matrix = np.zeros((len(index), shape[read[0]]))
    matrix[np.arange(len(index)), index] = 1.0
    kept = iter(a for a in range(len(shape)) if a != read[0])
    order = [
        next(kept) if a in dims.offset_dims else read[0] for a in range(len(shape))
    ]
    return read[0], matrix, order
