"""Rearrangements: reshape, flatten, squeeze, transpose; exact."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from layerwise.theory import fluctuation, lags as lagging, raster
from layerwise.theory.context import Node, RuleContext
from layerwise.theory.registry import NoSoundRule, rule
from layerwise.theory.rules.positions import expand, squeeze
from layerwise.theory.state import Field, State


def flatten(field: Field) -> Field:
    """Averages over positions: what a channel of the flattened map has."""
    at = lagging.zero(field.lags)
    diagonal = field.table[(slice(None), *at)]
    table = diagonal.reshape(len(diagonal), -1).mean(axis=1)
    spread = field.spread
    if np.ndim(spread):
        for n, held in zip(field.sizes, field.lags, strict=True):
            ones = np.ones((1, n))
            spread = fluctuation.mapped(spread, held, 0, ones, (0,))[0]
    return Field(
        np.asarray(field.mean.mean()),
        table,
        (),
        field.log_scale,
        shape=field.shape,
        symmetric=field.symmetric,
        spread=spread,
        response=field.response,
    )


def unflatten(ctx: RuleContext, flat: Field, sizes: tuple[int, ...]) -> Field:
    """Returns independent positions that are all alike (the transpose of `flatten`)."""
    lags = tuple(lagging.lag_values(n, ctx.level) for n in sizes)
    table = np.zeros((len(flat.table), *map(len, lags), *sizes))
    spread = flat.table.reshape((-1,) + (1,) * len(sizes))
    table[(slice(None), *lagging.zero(lags))] = spread
    return Field(
        np.zeros(sizes),
        table,
        lags,
        flat.log_scale,
        symmetric=True,
        response=flat.response,
    )


_Step = tuple[str, int, int]
"""What is done, at which spatial axis, and how many columns where rows are merged."""


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
                steps.append(("squeeze", placed, 0))
            i += 1
            continue
        if j < len(new) and new[j] == 1:
            steps.append(("expand", placed, 0))
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
        steps += [("squeeze", placed, 0)] * ones
        sizes = [old[k] for k in a if old[k] != 1]
        if all(r == "c" for r in mine):
            out += ["c"] * len(b)
        elif set(mine) == {"s"} and len(b) == 1:
            steps += [("merge", placed, n) for n in sizes[1:]]
            out.append("s")
            placed += 1
        elif mine == ["s"] and len(b) > 1:
            for k in range(len(b) - 1):
                columns = math.prod(new[m] for m in b[k + 1 :])
                steps.append(("split", placed + k, columns))
            out += ["s"] * len(b)
            placed += len(b)
        elif (
            len(b) == 1
            and mine.count("c") == 1
            and set(mine) == {"s", "c"}
            and not spatial
        ):
            if placed:
                raise NoSoundRule("a reshape that flattens some positions only")
            steps.append(("flatten", len(mine) - 1, 0))
            spatial = 1
            out.append("c")
        else:
            raise NoSoundRule("a reshape that mixes axes of different roles")
        i, j = a[-1] + 1, b[-1] + 1
    return steps, tuple(out)


_CHANGES: dict[str, Callable[[RuleContext, Field, int, int], Field]] = {
    "squeeze": lambda ctx, f, axis, columns: squeeze(f, axis),
    "expand": lambda ctx, f, axis, columns: expand(f, axis),
    "merge": lambda ctx, f, axis, columns: raster.merge(ctx, f, axis),
    "split": raster.split,
}
_INVERSE = {
    "squeeze": "expand",
    "expand": "squeeze",
    "merge": "split",
    "split": "merge",
}


UNLIKE_CHANNELS = 0.1
"""Relative difference of second moments from which channels are unlike."""


@rule("reshape", family="shape")
class Reshape:
    """Flatten, split or merge channels or positions, insert or drop axes of one."""

    @staticmethod
    def forward(ctx: RuleContext, node: Node, states: Sequence[State]) -> State:
        """Exact; flattened positions are averaged."""
        (state,) = states
        old, new = ctx.shape(node.inputs[0]), ctx.shape(node.output)
        steps, roles = _reshape_steps(old, state.axes, new)
        parts = list(state.parts)
        grade = state.grade
        for what, axis, columns in steps:
            if what != "flatten":
                change = _CHANGES[what]
                parts = [(n, change(ctx, f, axis, columns)) for n, f in parts]
            else:
                count = math.prod(parts[0][1].sizes)
                average = dataclasses.replace(state, parts=tuple(parts)).average()
                parts = [(state.channels * count, flatten(average))]
        if roles.count("c") > 1 and len(parts) > 1:
            whole = dataclasses.replace(state, parts=tuple(parts))
            shares = zip(fluctuation.shares(whole), parts, strict=True)
            power = [share / n for share, (n, _) in shares]
            if max(power) > (1.0 + UNLIKE_CHANNELS) * min(power):
                raise NoSoundRule("groups of unlike channels")
            parts = [(state.channels, whole.average())]
        return dataclasses.replace(
            state, axes=roles, parts=tuple(parts), grade=grade, terms=()
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
        for what, axis, columns in reversed(steps):
            if what != "flatten":
                change = _CHANGES[_INVERSE[what]]
                parts = [(n, change(ctx, f, axis, columns)) for n, f in parts]
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


@rule("squeeze", family="shape")
class Squeeze(Reshape):
    """Drops axes of one position: a reshape."""


@rule("optimization_barrier", family="shape")
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
        return permuted(state, order)

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
        return [permuted(cotangent, tuple(int(i) for i in np.argsort(order)))]


def permuted(state: State, order: Sequence[int]) -> State:
    """Returns the state of a value whose array axes change their order."""
    spatial = [a for a, r in enumerate(state.axes) if r == "s"]
    new = [spatial.index(a) for a in order if state.axes[a] == "s"]
    rank = len(spatial)

    def permute(f: Field) -> Field:
        if new == list(range(rank)):
            return f
        axes = [0, *(1 + a for a in new), *(1 + rank + a for a in new)]
        return fluctuation.renumbered(f, lambda v: v.transpose(new)).replace(
            mean=f.mean.transpose(new),
            table=f.table.transpose(axes),
            lags=tuple(f.lags[a] for a in new),
            comb=tuple(f.combs[a] for a in new),
            joint=None,
            through=None,
        )

    return state.map(permute, axes=tuple(state.axes[a] for a in order), terms=())
