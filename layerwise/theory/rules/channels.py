"""Channels cut, or padded with zeros; exact."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from layerwise.theory.context import Node, RuleContext
from layerwise.theory.registry import NoSoundRule, rule
from layerwise.theory.settled import UNSETTLED
from layerwise.theory.state import Field, State


def pads_with_zero(ctx: RuleContext, node: Node) -> bool:
    """Returns whether a `pad` fills with zeros."""
    value = ctx.weight(node.equations[0].inputs[1]).value
    return value is not None and not np.any(value)


def channel_cut(
    ctx: RuleContext, node: Node, state: State
) -> tuple[int, int, int] | None:
    """Returns (zeros before, first, last) where channels alone are padded or sliced."""
    if node.name not in ("slice", "pad") or "c" not in state.axes:
        return None
    c = state.axes.index("c")
    n = ctx.shape(node.inputs[0])[c]
    p = node.equations[0].params
    if node.name == "pad":
        config = p["padding_config"]
        low, high, inner = config[c]
        others = [v for a, v in enumerate(config) if a != c]
        if (low, high, inner) == (0, 0, 0):
            return None
        if inner or low < 0 or high < 0 or any(v != (0, 0, 0) for v in others):
            raise NoSoundRule("padding of channels and positions in one equation")
        if not pads_with_zero(ctx, node):
            raise NoSoundRule("padding with something other than zero")
        return int(low), 0, n
    start, stop = p["start_indices"][c], p["limit_indices"][c]
    strides = p["strides"]
    if (start, stop) == (0, n) and (strides is None or strides[c] == 1):
        return None
    shape = ctx.shape(node.inputs[0])
    same = all(
        (i, j) == (0, shape[a])
        for a, (i, j) in enumerate(
            zip(p["start_indices"], p["limit_indices"], strict=True)
        )
        if a != c
    )
    if not same or (strides is not None and any(s != 1 for s in strides)):
        raise NoSoundRule("a slice of channels and positions in one equation")
    return -1, start, stop


def _zero(field: Field) -> Field:
    return field.replace(
        mean=0 * field.mean, table=0 * field.table, shape=None, joint=None, through=None
    )


def cut(state: State, low: int, start: int, stop: int) -> State:
    """Returns channels `start` to `stop` of a state."""
    parts, at = [], 0
    for n, f in state.parts:
        inside = min(stop, at + n) - max(start, at)
        if inside > 0:
            parts.append((inside, f.replace(settled=UNSETTLED) if inside < n else f))
        at += n
    return dataclasses.replace(state, parts=tuple(parts), terms=())


def beside_zeros(ctx: RuleContext, node: Node, state: State, low: int) -> State:
    """Returns the state with zero channels put before and behind it."""
    total = ctx.shape(node.output)[state.axes.index("c")]
    high = total - low - state.channels
    zero = _zero(state.parts[0][1])
    parts = tuple(p for p in ((low, zero), *state.parts, (high, zero)) if p[0])
    return dataclasses.replace(state, parts=parts, terms=())


def uncut(state: State, cotangent: State, low: int, start: int, stop: int) -> State:
    """Returns the cotangent of what was cut: zero for the other channels."""
    parts, at = [], 0
    source = list(cotangent.parts)
    average = cotangent.average()
    same = len(source) == sum(
        min(stop, a + n) > max(start, a)
        for a, n in zip(
            np.cumsum([0] + [n for n, _ in state.parts]), [n for n, _ in state.parts]
        )
    )
    for n, _ in state.parts:
        inside = min(stop, at + n) - max(start, at)
        field = _zero(average)
        if inside > 0:
            got = source.pop(0)[1] if same else average
            field = got.scaled_safe(inside / n) if inside < n else got
        parts.append((n, field))
        at += n
    return dataclasses.replace(cotangent, axes=state.axes, parts=tuple(parts))


@rule("split", family="shape")
class Split:
    """Cuts the channels into pieces; exact."""

    @staticmethod
    def forward(ctx: RuleContext, node: Node, states: Sequence[State]) -> State:
        """Exact."""
        return cut(states[0], -1, *_piece(ctx, node, states[0]))

    @staticmethod
    def backward(
        ctx: RuleContext,
        node: Node,
        states: Sequence[State],
        out: State,
        cotangent: State,
    ) -> Sequence[State | None]:
        """Zero for the other pieces."""
        return [uncut(states[0], cotangent, -1, *_piece(ctx, node, states[0]))]


def _piece(ctx: RuleContext, node: Node, state: State) -> tuple[int, int]:
    equation = node.equations[0]
    if state.axes[equation.params["axis"]] != "c":
        raise NoSoundRule("a split of examples or positions")
    i = equation.outputs.index(node.output)
    edges = np.cumsum([0, *equation.params["sizes"]])
    return int(edges[i]), int(edges[i + 1])
