"""Rearrangements and fixed linear maps of positions: reshape, pad, slice, sums, ...

A fixed linear map A of one spatial axis takes the pair moments K of that axis to
``A K A^T``, and cotangents by the transpose. Exact.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from layerwise.theory import lags as lagging
from layerwise.theory.context import Node, RuleContext
from layerwise.theory.registry import NoSoundRule, rule
from layerwise.theory.rules.elementwise import fit_parts
from layerwise.theory.state import Field, Grade, State


def map_axis(ctx: RuleContext, field: Field, axis: int, matrix: np.ndarray) -> Field:
    """Returns the field after a linear map of one spatial axis, ``(new, old)``."""
    rank = field.rank
    if field.sizes[axis] == matrix.shape[0] == matrix.shape[1]:
        if np.array_equal(matrix, np.eye(len(matrix))):
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
    comb = tuple(1 if a == axis else c for a, c in enumerate(field.combs))
    return Field(
        mean,
        table,
        lags,
        field.log_scale,
        shape=field.shape if selects else None,
        symmetric=field.symmetric,
        comb=comb,
    )


def squeeze(field: Field, axis: int) -> Field:
    """Removes a spatial axis of one position."""
    rank = field.rank
    table = np.squeeze(field.table, axis=(1 + axis, 1 + rank + axis))
    keep = [a for a in range(rank) if a != axis]
    return field.replace(
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
    return field.replace(
        mean=np.expand_dims(field.mean, axis),
        table=table,
        lags=tuple(lags),
        comb=tuple(comb),
        joint=None,
        through=None,
    )


def flatten(field: Field) -> Field:
    """Averages over positions: what a channel of the flattened map has."""
    at = tuple(v.index(0) for v in field.lags)
    diagonal = field.table[(slice(None), *at)]
    table = diagonal.reshape(len(diagonal), -1).mean(axis=1)
    return Field(
        np.asarray(field.mean.mean()),
        table,
        (),
        field.log_scale,
        shape=field.shape,
        symmetric=field.symmetric,
    )


def unflatten(ctx: RuleContext, flat: Field, sizes: tuple[int, ...]) -> Field:
    """Returns independent positions that are all alike (the transpose of `flatten`)."""
    lags = tuple(lagging.lag_values(n, ctx.level) for n in sizes)
    table = np.zeros((len(flat.table), *map(len, lags), *sizes))
    spread = flat.table.reshape((-1,) + (1,) * len(sizes))
    table[(slice(None), *(v.index(0) for v in lags))] = spread
    return Field(np.zeros(sizes), table, lags, flat.log_scale, symmetric=True)


_Step = tuple[str, int]


def _reshape_steps(
    old: Sequence[int], roles: Sequence[str], new: Sequence[int]
) -> tuple[list[_Step], tuple[str, ...]]:
    """Returns what a reshape does to spatial axes, and the new roles."""
    steps: list[_Step] = []
    start = 0
    out: list[str] = []
    if roles[:1] == ("b",) and old[:1] == tuple(new[:1]):
        out, start = ["b"], 1
    i, j, spatial, placed = start, start, 0, 0
    while i < len(old) or j < len(new):
        if i < len(old) and j < len(new) and old[i] == new[j]:
            out.append(roles[i])
            if roles[i] == "s":
                placed += 1
            i, j = i + 1, j + 1
            continue
        if i < len(old) and old[i] == 1:
            if roles[i] == "s":
                steps.append(("squeeze", placed))
            i += 1
            continue
        if j < len(new) and new[j] == 1:
            steps.append(("expand", placed))
            out.append("s")
            placed += 1
            j += 1
            continue
        a, b = [i], [j]
        while math.prod(old[k] for k in a) != math.prod(new[k] for k in b):
            if math.prod(old[k] for k in a) < math.prod(new[k] for k in b):
                a.append(a[-1] + 1)
            else:
                b.append(b[-1] + 1)
            if a[-1] >= len(old) or b[-1] >= len(new):
                raise NoSoundRule("a reshape that mixes axes of different roles")
        mine = [roles[k] for k in a if old[k] != 1]
        ones = sum(roles[k] == "s" for k in a if old[k] == 1)
        steps += [("squeeze", placed)] * ones
        if all(r == "c" for r in mine):
            out += ["c"] * len(b)
        elif len(b) == 1 and mine[-1] == "c" and set(mine[:-1]) == {"s"} and not spatial:
            if placed:
                raise NoSoundRule("a reshape that flattens some positions only")
            steps.append(("flatten", len(mine) - 1))
            spatial = 1
            out.append("c")
        else:
            raise NoSoundRule("a reshape that mixes axes of different roles")
        i, j = a[-1] + 1, b[-1] + 1
    return steps, tuple(out)


@rule("reshape", family="shape")
class Reshape:
    """Flatten, split or merge channels, insert or drop axes of one position."""

    @staticmethod
    def forward(ctx: RuleContext, node: Node, states: Sequence[State]) -> State:
        """Exact; flattened positions are averaged."""
        (state,) = states
        old, new = ctx.shape(node.inputs[0]), ctx.shape(node.output)
        steps, roles = _reshape_steps(old, state.axes, new)
        parts = list(state.parts)
        grade = state.grade
        for what, axis in steps:
            if what == "squeeze":
                parts = [(n, squeeze(f, axis)) for n, f in parts]
            elif what == "expand":
                parts = [(n, expand(f, axis)) for n, f in parts]
            else:
                count = math.prod(parts[0][1].sizes)
                average = dataclasses.replace(state, parts=tuple(parts)).average()
                parts = [(state.channels * count, flatten(average))]
        if roles.count("c") > 1 and len(parts) > 1:
            average = dataclasses.replace(state, parts=tuple(parts)).average()
            parts = [(state.channels, average)]
        terms = () if state.terms == () else ()
        return dataclasses.replace(
            state, axes=roles, parts=tuple(parts), grade=grade, terms=terms
        )

    @staticmethod
    def backward(
        ctx: RuleContext,
        node: Node,
        states: Sequence[State],
        out: State,
        cotangent: State,
    ) -> Sequence[State | None]:
        """The inverse rearrangement."""
        (state,) = states
        old, new = ctx.shape(node.inputs[0]), ctx.shape(node.output)
        steps, _ = _reshape_steps(old, state.axes, new)
        parts = list(cotangent.parts)
        sizes = state.parts[0][1].sizes
        for what, axis in reversed(steps):
            if what == "squeeze":
                parts = [(n, expand(f, axis)) for n, f in parts]
            elif what == "expand":
                parts = [(n, squeeze(f, axis)) for n, f in parts]
            else:
                kept = tuple(n for n in sizes if n != 1)
                sizes_now = sizes if len(kept) != axis else kept
                flat = dataclasses.replace(cotangent, parts=tuple(parts)).average()
                got = unflatten(ctx, flat, sizes_now)
                parts = [(n, got) for n, _ in state.parts]
        if [n for n, _ in parts] != [n for n, _ in state.parts]:
            average = dataclasses.replace(cotangent, parts=tuple(parts)).average()
            parts = [(n, average) for n, _ in state.parts]
        return [dataclasses.replace(cotangent, axes=state.axes, parts=tuple(parts))]


@rule("squeeze", "expand_dims", family="shape")
class Squeeze(Reshape):
    """Drops or inserts axes of one position: a reshape."""


@rule("copy", "copy_p", "optimization_barrier", "reduce_precision", family="shape")
class Copy:
    """Leaves the value as it is."""

    @staticmethod
    def forward(ctx: RuleContext, node: Node, states: Sequence[State]) -> State:
        """Exact."""
        return states[0]

    @staticmethod
    def backward(
        ctx: RuleContext,
        node: Node,
        states: Sequence[State],
        out: State,
        cotangent: State,
    ) -> Sequence[State | None]:
        """Exact."""
        return [cotangent]


@rule("transpose", family="shape")
class Transpose:
    """Permutes axes; positions may change their order too."""

    @staticmethod
    def forward(ctx: RuleContext, node: Node, states: Sequence[State]) -> State:
        """Exact."""
        (state,) = states
        order = node.equations[0].params["permutation"]
        return _permuted(state, order)

    @staticmethod
    def backward(
        ctx: RuleContext,
        node: Node,
        states: Sequence[State],
        out: State,
        cotangent: State,
    ) -> Sequence[State | None]:
        """The inverse permutation."""
        order = node.equations[0].params["permutation"]
        return [_permuted(cotangent, tuple(int(i) for i in np.argsort(order)))]


def _permuted(state: State, order: Sequence[int]) -> State:
    spatial = [a for a, r in enumerate(state.axes) if r == "s"]
    new = [spatial.index(a) for a in order if state.axes[a] == "s"]
    rank = len(spatial)

    def permute(f: Field) -> Field:
        if new == list(range(rank)):
            return f
        axes = [0, *(1 + a for a in new), *(1 + rank + a for a in new)]
        return f.replace(
            mean=f.mean.transpose(new),
            table=f.table.transpose(axes),
            lags=tuple(f.lags[a] for a in new),
            comb=tuple(f.combs[a] for a in new),
            joint=None,
            through=None,
        )

    return state.map(permute, axes=tuple(state.axes[a] for a in order), terms=())


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


@rule("reduce_sum", "reduce_window_sum", "cumsum", "rev", "pad", "slice", family="shape")
class Positions:
    """Sum, average pooling, padding, slicing, reversing of positions; exact."""

    @staticmethod
    def forward(ctx: RuleContext, node: Node, states: Sequence[State]) -> State:
        """``A K A^T`` per axis; needs the pairs wherever positions are summed."""
        (state,) = states
        channels = _channel_cut(ctx, node, state)
        if channels is not None:
            return _cut(state, *channels)
        found, dropped = matrices(ctx, node, state)
        if node.name == "pad" and not _pads_with_zero(ctx, node):
            raise NoSoundRule("padding with something other than zero")
        parts = tuple((n, _mapped(ctx, f, state, found, dropped)) for n, f in state.parts)
        axes = tuple(r for a, r in enumerate(state.axes) if a not in dropped)
        sums = any(np.any(np.count_nonzero(m, axis=1) > 1) for m in found.values())
        grade = state.grade
        if sums:  # pairs of positions enter, and they are right for wide layers only
            grade = max(grade, Grade.APPROXIMATE)
        return dataclasses.replace(
            state, axes=axes, parts=parts, grade=grade, terms=()
        )

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
        channels = _channel_cut(ctx, node, state)
        if channels is not None:
            return [_uncut(state, cotangent, *channels)]
        found, dropped = matrices(ctx, node, state)
        parts = []
        for (n, _), (_, ct) in zip(
            state.parts, fit_parts(cotangent, out).parts, strict=True
        ):
            field = ct
            for a in sorted(dropped):
                field = expand(field, _spatial_index(state, a))
            for a, m in found.items():
                field = map_axis(ctx, field, _spatial_index(state, a), m.T)
            parts.append((n, field.normalized()))
        sums = any(np.any(np.count_nonzero(m, axis=0) > 1) for m in found.values())
        grade = max(cotangent.grade, Grade.APPROXIMATE) if sums else cotangent.grade
        return [
            dataclasses.replace(
                cotangent, axes=state.axes, parts=tuple(parts), grade=grade
            )
        ]


def _mapped(
    ctx: RuleContext,
    field: Field,
    state: State,
    found: dict[int, np.ndarray],
    dropped: list[int],
) -> Field:
    for a, m in found.items():
        field = map_axis(ctx, field, _spatial_index(state, a), m)
    for a in sorted(dropped, reverse=True):
        field = squeeze(field, _spatial_index(state, a))
    return field.normalized()


def _pads_with_zero(ctx: RuleContext, node: Node) -> bool:
    value = ctx.weight(node.equations[0].inputs[1]).value
    return value is not None and not np.any(value)


def _channel_cut(
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
        if not _pads_with_zero(ctx, node):
            raise NoSoundRule("padding with something other than zero")
        return low, 0, n
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


def _cut(state: State, low: int, start: int, stop: int) -> State:
    if low >= 0:
        raise NoSoundRule("zero channels")
    parts, at = [], 0
    for n, f in state.parts:
        inside = min(stop, at + n) - max(start, at)
        if inside > 0:
            parts.append((inside, f))
        at += n
    return dataclasses.replace(state, parts=tuple(parts), terms=())


def _uncut(state: State, cotangent: State, low: int, start: int, stop: int) -> State:
    parts, at = [], 0
    source = list(cotangent.parts)
    average = cotangent.average()
    same = len(source) == sum(
        min(stop, a + n) > max(start, a)
        for a, n in zip(np.cumsum([0] + [n for n, _ in state.parts]), [n for n, _ in state.parts])
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

        def gather(f: Field) -> Field:
            for axis, new, size in reversed(steps):
                f = map_axis(ctx, f, axis, np.ones((1, size)))
                f = squeeze(f, axis) if new else f
            return f.normalized()

        grade = max(cotangent.grade, Grade.APPROXIMATE)
        return [cotangent.map(gather, axes=state.axes, grade=grade)]


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


@rule("split", family="shape")
class Split:
    """Cuts the channels into pieces; exact."""

    @staticmethod
    def forward(ctx: RuleContext, node: Node, states: Sequence[State]) -> State:
        """Exact."""
        return _cut(states[0], -1, *_piece(ctx, node, states[0]))

    @staticmethod
    def backward(
        ctx: RuleContext,
        node: Node,
        states: Sequence[State],
        out: State,
        cotangent: State,
    ) -> Sequence[State | None]:
        """Zero for the other pieces."""
        return [_uncut(states[0], cotangent, -1, *_piece(ctx, node, states[0]))]


def _piece(ctx: RuleContext, node: Node, state: State) -> tuple[int, int]:
    equation = node.equations[0]
    if state.axes[equation.params["axis"]] != "c":
        raise NoSoundRule("a split of examples or positions")
    i = equation.outputs.index(node.output)
    edges = np.cumsum([0, *equation.params["sizes"]])
    return int(edges[i]), int(edges[i + 1])


@rule("concatenate", family="shape")
class Concatenate:
    """Puts channels side by side, each run with moments of its own; exact."""

    @staticmethod
    def forward(ctx: RuleContext, node: Node, states: Sequence[State]) -> State:
        """Exact."""
        _check_channels(ctx, node, states)
        first = states[0]
        if len({s.axes for s in states}) > 1:
            raise NoSoundRule("operands whose axes have different roles")
        return State(
            first.axes,
            tuple(p for s in states for p in s.parts),
            Grade(max(s.mean_grade for s in states)),
            Grade(max(s.grade for s in states)),
            frozenset().union(*(s.sources for s in states)),
            frozenset().union(*(s.roots for s in states)),
        )

    @staticmethod
    def backward(
        ctx: RuleContext,
        node: Node,
        states: Sequence[State],
        out: State,
        cotangent: State,
    ) -> Sequence[State | None]:
        """Each operand's own channels."""
        fitted = list(fit_parts(cotangent, out).parts)
        back: list[State | None] = []
        for s in states:
            mine = tuple(fitted[: len(s.parts)])
            del fitted[: len(s.parts)]
            back.append(dataclasses.replace(cotangent, parts=mine))
        return back


def _check_channels(ctx: RuleContext, node: Node, states: Sequence[State]) -> None:
    axis = node.equations[0].params["dimension"]
    if len(states) != len(node.equations[0].inputs):
        raise NoSoundRule("a parameter or constant put beside a signal")
    if any(s.axes[axis] != "c" for s in states):
        raise NoSoundRule("positions or examples put side by side")
