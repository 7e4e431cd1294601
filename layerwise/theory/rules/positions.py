"""Fixed linear maps of positions: sum, pad, slice, reverse, average pooling, broadcast.

A fixed linear map A of one spatial axis takes the pair moments K of that axis to
``A K A^T``, and cotangents by the transpose. Exact.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from layerwise.theory import fluctuation, lags as lagging
from layerwise.theory.context import Node, RuleContext
from layerwise.theory.parts import fit_parts
from layerwise.theory.registry import NoSoundRule, rule
from layerwise.theory.rules.channels import (
    beside_zeros,
    channel_cut,
    cut,
    pads_with_zero,
    uncut,
)
from layerwise.theory.state import Field, Grade, State


def map_axis(ctx: RuleContext, field: Field, axis: int, matrix: np.ndarray) -> Field:
    """Returns the field after a linear map of one spatial axis, ``(new, old)``."""
    rank = field.rank
    if np.array_equal(matrix, np.eye(field.sizes[axis])):
        return field
    pairs = lagging.to_pairs(field.table, field.lags, axis, field.combs[axis])
    for _ in range(2):  # one large product each, not many small ones
        flat = pairs.reshape(-1, pairs.shape[-1]) @ matrix.T
        pairs = np.swapaxes(flat.reshape(*pairs.shape[:-1], -1), -1, -2)
    held = lagging.lag_values(matrix.shape[0], ctx.level)
    table = lagging.from_pairs(pairs, held, rank, axis)
    mean = np.moveaxis(np.tensordot(field.mean, matrix, (axis, 1)), -1, axis)
    lags = tuple(held if a == axis else v for a, v in enumerate(field.lags))
    selects = np.all(np.count_nonzero(matrix, axis=1) <= 1)

    def by_lag(values: np.ndarray) -> np.ndarray:
        return fluctuation.mapped(values, field.lags[axis], axis, matrix, held)

    moved = fluctuation.renumbered(field, by_lag)
    comb = tuple(1 if a == axis else c for a, c in enumerate(field.combs))
    return Field(
        mean,
        table,
        lags,
        field.log_scale,
        shape=field.shape if selects else None,
        symmetric=field.symmetric,
        comb=comb,
        spread=moved.spread,
        response=moved.response,
    )


def squeeze(field: Field, axis: int) -> Field:
    """Removes a spatial axis of one position."""
    rank = field.rank
    table = np.squeeze(field.table, axis=(1 + axis, 1 + rank + axis))
    keep = [a for a in range(rank) if a != axis]
    moved = fluctuation.renumbered(field, lambda v: np.squeeze(v, axis=axis))
    return moved.replace(
        mean=np.squeeze(field.mean, axis=axis),
        table=table,
        lags=tuple(field.lags[a] for a in keep),
        comb=tuple(field.combs[a] for a in keep),
        joint=None,
        through=None,
    )


def expand(field: Field, axis: int) -> Field:
    """Inserts a spatial axis of one position."""
    table = np.expand_dims(field.table, (1 + axis, 2 + field.rank + axis))
    lags, comb = list(field.lags), list(field.combs)
    lags.insert(axis, (0,))
    comb.insert(axis, 1)
    moved = fluctuation.renumbered(field, lambda v: np.expand_dims(v, axis))
    return moved.replace(
        mean=np.expand_dims(field.mean, axis),
        table=table,
        lags=tuple(lags),
        comb=tuple(comb),
        joint=None,
        through=None,
    )


def _spatial_index(state: State, axis: int) -> int:
    return sum(r == "s" for r in state.axes[:axis])


def matrices(
    ctx: RuleContext, node: Node, state: State
) -> tuple[dict[int, np.ndarray], list[int]]:
    """Returns array axis -> its matrix, and the array axes that are dropped after.

    Raises:
        NoSoundRule: If examples or channels are mapped.
    """
    equation = node.equations[0]
    p, shape = equation.params, ctx.shape(node.inputs[0])
    out_shape = ctx.shape(node.output)
    found: dict[int, np.ndarray] = {}
    dropped: list[int] = []
    match node.name:
        case "reduce_sum":
            for a in p["axes"]:
                found[a] = np.ones((1, shape[a]))
                dropped.append(a)
        case "rev":
            found = {a: np.eye(shape[a])[::-1] for a in p["dimensions"]}
        case "slice":
            strides = p["strides"] or (1,) * len(shape)
            for a, (i, j, s) in enumerate(
                zip(p["start_indices"], p["limit_indices"], strides, strict=True)
            ):
                if (i, j, s) != (0, shape[a], 1):
                    found[a] = np.eye(shape[a])[i:j:s]
        case "pad":
            for a, (low, high, inner) in enumerate(p["padding_config"]):
                if (low, high, inner) != (0, 0, 0):
                    place = np.arange(shape[a]) * (inner + 1) + low
                    keep = (place >= 0) & (place < out_shape[a])
                    m = np.zeros((out_shape[a], shape[a]))
                    m[place[keep], np.flatnonzero(keep)] = 1.0
                    found[a] = m
        case "cumsum":
            m = np.tril(np.ones((shape[p["axis"]],) * 2))
            found[p["axis"]] = m.T if p["reverse"] else m
        case "reduce_window_sum":
            for a, k in enumerate(p["window_dimensions"]):
                low = p["padding"][a][0]
                stride, dil = p["window_strides"][a], p["window_dilation"][a]
                base = p["base_dilation"][a]
                m = np.zeros((out_shape[a], shape[a]))
                for o in range(out_shape[a]):
                    for j in range(k):
                        at, rest = divmod(o * stride + j * dil - low, base)
                        if rest == 0 and 0 <= at < shape[a]:
                            m[o, at] += 1.0
                if k != 1 or m.shape[0] != m.shape[1]:
                    found[a] = m
    for a in found:
        if state.axes[a] != "s":
            role = {"b": "examples", "c": "channels"}[state.axes[a]]
            raise NoSoundRule(f"{node.name} over {role}")
    return found, dropped


@rule(
    "reduce_sum", "reduce_window_sum", "cumsum", "rev", "pad", "slice", family="shape"
)
class Positions:
    """Sum, average pooling, padding, slicing, reversing of positions; exact."""

    @staticmethod
    def forward(ctx: RuleContext, node: Node, states: Sequence[State]) -> State:
        """``A K A^T`` per axis; needs the pairs wherever positions are summed."""
        (state,) = states
        channels = channel_cut(ctx, node, state)
        if channels is not None and node.name == "pad":
            return beside_zeros(ctx, node, state, channels[0])
        if channels is not None:
            return cut(state, *channels)
        found, dropped = matrices(ctx, node, state)
        if node.name == "pad" and not pads_with_zero(ctx, node):
            raise NoSoundRule("padding with something other than zero")
        return mapped(ctx, state, found, dropped)

    @staticmethod
    def backward(
        ctx: RuleContext,
        node: Node,
        states: Sequence[State],
        out: State,
        cotangent: State,
    ) -> Sequence[State | None]:
        """``A^T K A`` per axis."""
        (state,) = states
        channels = channel_cut(ctx, node, state)
        if channels is not None and node.name == "pad":
            fitted = fit_parts(cotangent, out).parts
            first = int(channels[0] > 0)
            kept = fitted[first : first + len(state.parts)]
            return [dataclasses.replace(cotangent, parts=kept)]
        if channels is not None:
            return [uncut(state, cotangent, *channels)]
        found, dropped = matrices(ctx, node, state)
        return [mapped_back(ctx, state, out, cotangent, found, dropped)]


Matrices = Mapping[int, np.ndarray]
"""Array axis -> the matrix ``(new, old)`` that it is multiplied by."""


def mapped(
    ctx: RuleContext, state: State, found: Matrices, dropped: Sequence[int]
) -> State:
    """Returns the state behind linear maps of its positions, some axes dropped."""
    parts = tuple((n, _mapped(ctx, f, state, found, dropped)) for n, f in state.parts)
    axes = tuple(r for a, r in enumerate(state.axes) if a not in dropped)
    sums = any(np.any(np.count_nonzero(m, axis=1) > 1) for m in found.values())
    grade, tolerance = state.grade, state.tolerance
    if sums:  # pairs of positions enter, and they are right for wide layers only
        grade = max(grade, Grade.APPROXIMATE)
        tolerance += state.pair_tolerance
        tolerance += _between_lags(ctx, state, parts, found, dropped)
    return dataclasses.replace(
        state, axes=axes, parts=parts, grade=grade, terms=(), tolerance=tolerance
    )


def _between_lags(
    ctx: RuleContext,
    before: State,
    after: Sequence[tuple[int, Field]],
    found: Matrices,
    dropped: Sequence[int],
) -> float:
    """Returns what lags that are interpolated may cost a sum over positions.

    That is what it changes to leave out every other of the long ones.

    Raises:
        NoSoundRule: If that is not small: pairs of positions cancel each other.
    """
    worst = 0.0
    for (_, f), (_, got) in zip(before.parts, after, strict=True):
        table, lags = lagging.thinned(f.table, f.lags)
        if lags == f.lags:
            continue
        fewer = f.replace(table=table, lags=lags, spread=f.own_spread)
        other = _mapped(ctx, fewer, before, found, dropped).rescaled(got.log_scale)
        whole, change = got.levels[1], abs(got.levels[1] - other.levels[1])
        if not change < CANCELS * whole:
            raise NoSoundRule("positions that cancel each other, at lags not held")
        worst = max(worst, change / whole if whole > 0 else 0.0)
    return worst


CANCELS = 0.3
"""Relative change of a sum's second moment above which no number is given."""


def mapped_back(
    ctx: RuleContext,
    state: State,
    out: State,
    cotangent: State,
    found: Matrices,
    dropped: Sequence[int],
) -> State:
    """Returns the cotangent in front of what `mapped` does to `state`."""
    summed = any(np.any(np.count_nonzero(m, axis=1) > 1) for m in found.values())
    sums = any(np.any(np.count_nonzero(m, axis=0) > 1) for m in found.values())
    parts = []
    for (n, _), (_, ct) in zip(
        state.parts, fit_parts(cotangent, out).parts, strict=True
    ):
        field = ct
        for a in sorted(dropped):
            field = expand(field, _spatial_index(state, a))
        for a, m in found.items():
            field = map_axis(ctx, field, _spatial_index(state, a), m.T)
        if not summed and not sums:  # entries are those of the result, or none
            field = field.replace(profile=ct.profile)
        parts.append((n, field.normalized()))
    return dataclasses.replace(
        cotangent,
        axes=state.axes,
        parts=tuple(parts),
        grade=max(cotangent.grade, Grade.APPROXIMATE) if sums else cotangent.grade,
        coherent=cotangent.coherent or summed,
        tolerance=cotangent.tolerance + (cotangent.pair_tolerance if sums else 0.0),
    )


def _mapped(
    ctx: RuleContext,
    field: Field,
    state: State,
    found: Matrices,
    dropped: Sequence[int],
) -> Field:
    for a, m in found.items():
        field = map_axis(ctx, field, _spatial_index(state, a), m)
    for a in sorted(dropped, reverse=True):
        field = squeeze(field, _spatial_index(state, a))
    return field.normalized()


@rule("broadcast_in_dim", family="shape")
class Broadcast:
    """Repeats a value along new positions: perfectly correlated copies; exact."""

    @staticmethod
    def forward(ctx: RuleContext, node: Node, states: Sequence[State]) -> State:
        """Exact."""
        (state,) = states
        steps, roles = _broadcast_steps(ctx, node, state)

        def repeat(f: Field) -> Field:
            for axis, new, size in steps:
                f = expand(f, axis) if new else f
                f = map_axis(ctx, f, axis, np.ones((size, 1)))
            return f

        return state.map(repeat, axes=roles, terms=())

    @staticmethod
    def backward(
        ctx: RuleContext,
        node: Node,
        states: Sequence[State],
        out: State,
        cotangent: State,
    ) -> Sequence[State | None]:
        """Sums over the copies."""
        (state,) = states
        steps, _ = _broadcast_steps(ctx, node, state)

        def gather(ct: Field) -> Field:
            f = ct
            for axis, new, size in reversed(steps):
                f = map_axis(ctx, f, axis, np.ones((1, size)))
                f = squeeze(f, axis) if new else f
            return f.normalized().replace(profile=ct.profile)  # copies of one value

        grade = max(cotangent.grade, Grade.APPROXIMATE)
        tolerance = cotangent.tolerance + cotangent.pair_tolerance
        return [
            cotangent.map(gather, axes=state.axes, grade=grade, tolerance=tolerance)
        ]


def _broadcast_steps(
    ctx: RuleContext, node: Node, state: State
) -> tuple[list[tuple[int, bool, int]], tuple[str, ...]]:
    old, new = ctx.shape(node.inputs[0]), ctx.shape(node.output)
    dims = node.equations[0].params["broadcast_dimensions"]
    steps, roles, placed = [], [], 0
    for a, size in enumerate(new):
        if a not in dims:
            roles.append("s")
            steps.append((placed, True, size))
            placed += 1
            continue
        role = state.axes[dims.index(a)]
        if old[dims.index(a)] != size:
            if role != "s":
                raise NoSoundRule("a broadcast of examples or channels")
            steps.append((placed, False, size))
        roles.append(role)
        placed += role == "s"
    return steps, tuple(roles)
