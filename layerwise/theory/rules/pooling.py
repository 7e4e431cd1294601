"""Max pooling: overlapping, padded, of correlated entries, forward and backward.

Forward, the window's maximum is integrated over the joint normal law of its entries at
their correlations (`layerwise.theory.window`), averaged over the map; each position is
scaled by its own window's second moment, and windows cut by padding have constants of
their own. Entries of unequal size are drawn (`layerwise.theory.unequal`). Backward,
each entry of a window is the maximum as often as in such draws (where sizes are equal,
equally often, border included), and is active, together with the activation in front,
as often as a maximum is.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri

from layerwise.moments.activations import Numeric, cached_float64
from layerwise.theory import fluctuation, lags as lagging, marginal
from layerwise.theory.context import Node, RuleContext
from layerwise.theory.in_front import Passed
from layerwise.theory.parts import fit_parts
from layerwise.theory.registry import NoSoundRule, rule
from layerwise.theory.rules.elementwise import worst
from layerwise.theory.rules.positions import expand, map_axis, squeeze
from layerwise.theory.state import Field, Grade, State
from layerwise.theory.unequal import Unequal
from layerwise.theory.window import Window
from layerwise.tracing.connections import Axis


MAX_WINDOW = 100
MOST_CHOSEN = 1.0
"""Logarithm by which the power may be above its average where a maximum sits."""
FORWARD, BACKWARD = 0.02, 0.05
"""Stated errors where the correlations are the same all over the map."""


def _axes(ctx: RuleContext, node: Node, state: State) -> tuple[list[Axis], list[int]]:
    """Returns the window along each spatial axis, and the array axes dropped after."""
    p, shape = node.equations[0].params, ctx.shape(node.inputs[0])
    spatial = [a for a, r in enumerate(state.axes) if r == "s"]
    if node.name == "reduce_max":
        if any(state.axes[a] != "s" for a in p["axes"]):
            raise NoSoundRule("a maximum over examples or channels")
        axes = [Axis(shape[a], shape[a] if a in p["axes"] else 1) for a in spatial]
        return axes, sorted(p["axes"])
    for a, k in enumerate(p["window_dimensions"]):
        if a not in spatial and k != 1:
            raise NoSoundRule("a window over examples or channels")
    if any(v != 1 for v in p["base_dilation"]):
        raise NoSoundRule("pooling of a dilated map")
    return [
        Axis(
            shape[a],
            p["window_dimensions"][a],
            p["window_strides"][a],
            tuple(p["padding"][a]),
            p["window_dilation"][a],
        )
        for a in spatial
    ], []


class _Pool:
    """One field's pooling."""

    def __init__(self, ctx: RuleContext, field: Field, axes: Sequence[Axis]):
        self.ctx, self.field, self.axes = ctx, field, axes
        self.reach = [a.reach for a in axes]
        self.counts = lagging.along(np.ones(field.sizes), self.reach)
        if not np.all(self.counts > 0):
            raise NoSoundRule("a window of padding alone")
        taps = [[t * a.kernel_dilation for t in range(a.taps)] for a in axes]
        self.offsets = list(itertools.product(*taps))
        if len(self.offsets) > MAX_WINDOW:
            raise NoSoundRule(f"a window of {len(self.offsets)} entries")
        if ctx.level == lagging.NONE:
            raise NoSoundRule("pooling without pairs")
        if any(a.taps > 1 and v == (0,) for a, v in zip(axes, field.lags, strict=True)):
            raise NoSoundRule("pooling of a map whose pairs were given up")
        self.rho = marginal.latent_correlation(field)
        self.inside = lagging.inside(field.lags, field.sizes)
        self.base = float(field.second.mean())
        if not self.base > 0 or not np.all(field.second > 0):
            raise NoSoundRule("pooling of zeros")
        # One law for all positions, at the mean's typical share of the second moment.
        mean = float(np.mean(field.mean / np.sqrt(field.second))) * math.sqrt(self.base)
        sd = math.sqrt(max(self.base - mean**2, 0.0))
        self.window = Window(
            self.offsets,
            lambda lag: self.average(0, lag),
            mean,
            sd,
            field.shape,
        )
        own, pairs = (field.mean, field.second), self.pairs
        if ctx.white:  # alike, as in the table that `sitewise` refines
            ones = np.ones_like(field.second)
            own, pairs = (ones * mean / self.window.unit, ones), None
        elif not lagging.is_complete(field.lags, field.sizes):
            pairs = None
        self.unequal = Unequal(self.window, *own, axes, pairs)

    def pairs(self, one: np.ndarray, other: np.ndarray, which: int) -> np.ndarray:
        """Returns the correlations of the normals at places of the map."""
        first = np.unravel_index(one, self.field.sizes)
        second = np.unravel_index(other, self.field.sizes)
        lag = tuple(
            q[None, :] - p[:, None] + n - 1
            for p, q, n in zip(first, second, self.field.sizes, strict=True)
        )
        at = tuple(p[:, None] for p in first)
        found = self.rho[(which, *lag, *at)]
        if which == 0:
            found = np.where(one[:, None] == other, 1.0, found)
        return found

    @functools.cached_property
    def averages(self) -> np.ndarray:
        """``(class, *lags)``: mean correlation at each held lag, over the map."""
        over = tuple(range(-len(self.axes), 0)) if self.axes else ()
        total = (self.rho * self.inside).sum(axis=over)
        return total / np.maximum(self.inside.sum(axis=over), 1)

    def average(self, which: int, lag: tuple[int, ...]) -> float:
        """Mean correlation at any lag, interpolated between those held."""
        if which == 0 and not any(lag):
            return 1.0
        values = self.averages[which]
        for a, held in enumerate(self.field.lags):
            found = lagging.around(held, lag[a], self.field.combs[a])
            if found is None:
                return 0.0
            near, far, weight = found
            at_near, at_far = (values[held.index(v)] for v in (near, far))
            values = (1 - weight) * at_near + weight * at_far
        return float(values)

    @property
    def unevenness(self) -> float:
        """How much the correlation of neighbours differs over the map (sd)."""
        near = lagging.nearest(self.field.lags)
        rho, inside = self.rho[0][near], self.inside[near]
        over = tuple(range(-len(self.axes), 0))
        count = np.maximum(inside.sum(axis=over), 1)
        mean = (rho * inside).sum(axis=over) / count
        square = (rho**2 * inside).sum(axis=over) / count
        return float(np.sqrt(np.max(np.maximum(square - mean**2, 0.0))))

    def kept(self) -> dict[tuple[bool, ...], np.ndarray]:
        """Which entries of the window exist -> mask of the outputs where that is so."""
        per_axis = [a.sources >= 0 for a in self.axes]
        kinds = []
        for rows in per_axis:
            unique, back = np.unique(rows, axis=0, return_inverse=True)
            kinds.append([(u, back.ravel() == i) for i, u in enumerate(unique)])
        found = {}
        for choice in itertools.product(*kinds):
            keep = choice[0][0] if choice else np.ones(1, bool)
            mask = choice[0][1] if choice else np.ones(1, bool)
            for u, m in choice[1:]:
                keep, mask = np.multiply.outer(keep, u), np.multiply.outer(mask, m)
            found[tuple(bool(v) for v in np.ravel(keep))] = mask
        return found

    def per_output(self, function: Numeric) -> np.ndarray:
        """Returns E[function(z of the maximum)] at every output."""
        out = np.zeros(self.counts.shape)
        for keep, mask in self.kept().items():
            out[mask] = self.window.expect(function, np.array(keep))
        return out

    def alone(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Returns 1 and E[max^2] at every output, and E[x^2] of any entry."""
        chosen = self.per_output(lambda z: self.window.law(z) ** 2)
        return np.ones_like(chosen), chosen, self.base

    def forward(self) -> Field:
        law = self.window.law
        first, squared = self.unequal.more(1), self.unequal.more(2)
        second_factor = self.per_output(lambda z: law(z) ** 2) / self.base + squared
        mean_factor = self.per_output(law) / math.sqrt(self.base) + first
        local = lagging.along(self.field.second, self.reach) / self.counts
        second, root = second_factor * local, np.sqrt(local)
        mean = mean_factor * root
        lags = tuple(lagging.lag_values(a.n_outputs, self.ctx.level) for a in self.axes)
        if self.unequal.pairs is None:
            spread = np.sqrt(np.maximum(second - mean**2, 0.0))
            table = self._by_lag(lags) * spread * lagging.shifted(spread, lags)
        else:
            table = self._by_pair(lags) * root * lagging.shifted(root, lags)
        table = table + mean * lagging.shifted(mean, lags)
        table = table * lagging.inside(lags, second.shape)
        table[(0, *lagging.zero(lags))] = second
        z = marginal.nodes()
        u = np.clip(np.cumsum(marginal.weights()), 1e-12, 1 - 1e-12)
        # The maximum's law: that of independent entries, at the effective number.
        shape = marginal.standardize(law(ndtri(u ** (1 / self.window.count))) + 0 * z)
        spread = self.field.spread
        if np.ndim(spread):
            for a, held in enumerate(self.field.lags):
                spread = fluctuation.mapped(spread, held, a, self.reach[a], lags[a])
        return Field(mean, table, lags, self.field.log_scale, shape, spread=spread)

    def _by_pair(self, lags: tuple[tuple[int, ...], ...]) -> np.ndarray:
        """``(class, *lags, *outputs)``: covariances of maxima, in units of windows."""
        sizes = tuple(a.n_outputs for a in self.axes)
        table = np.zeros((len(self.field.table), *map(len, lags), *sizes))
        for which in range(len(table)):
            covariance = self.unequal.covariances(which)
            for i, j in np.ndindex(covariance.shape):
                one, other = (np.unravel_index(k, sizes) for k in (i, j))
                lag = [q - p for p, q in zip(one, other, strict=True)]
                if all(v in held for v, held in zip(lag, lags, strict=True)):
                    at = [held.index(v) for v, held in zip(lag, lags, strict=True)]
                    table[(which, *at, *one)] = covariance[i, j]
        return table

    def _by_lag(self, lags: tuple[tuple[int, ...], ...]) -> np.ndarray:
        """``(class, *lags, 1...)``: correlations of maxima, as on average over the map.

        Those of windows at the border as well.
        """
        covariance = self._covariances(lags)
        full = np.array([True] * self.window.count)
        typical = self.window.expect(lambda z: self.window.law(z) ** 2, full)
        typical -= self.window.expect(self.window.law, full) ** 2
        lead = covariance.reshape(covariance.shape + (1,) * len(lags))
        return lead / max(typical, 1e-300)

    def _covariances(self, lags: tuple[tuple[int, ...], ...]) -> np.ndarray:
        """``(class, *lags)``: covariance of two windows' maxima."""
        out = np.zeros((len(self.field.table), *map(len, lags)))
        strides = [a.stride for a in self.axes]
        span = [(a.taps - 1) * a.kernel_dilation for a in self.axes]
        for which in range(len(out)):
            for index in itertools.product(*(range(len(v)) for v in lags)):
                lag = tuple(
                    v[i] * s for v, i, s in zip(lags, index, strides, strict=True)
                )
                if which == 0 and not any(lag):
                    continue
                close = all(abs(d) <= s + 1 for d, s in zip(lag, span, strict=True))
                if which == 0 and close:
                    value = self.window.near(max(lag, tuple(-d for d in lag)))
                else:
                    common = self._common(which, lag)
                    value = float(self.window.far(np.array(max(common, 0.0))))
                out[(which, *index)] = value
        return out

    def _common(self, which: int, lag: tuple[int, ...]) -> float:
        corners = {
            tuple(d + e for d, e in zip(lag, o, strict=True)) for o in self._differences
        }
        inside = [
            c
            for c in corners
            if all(abs(v) < n for v, n in zip(c, self.field.sizes, strict=True))
        ]
        return float(np.mean([self.average(which, c) for c in inside] or [0.0]))

    @property
    def _differences(self) -> list[tuple[int, ...]]:
        """The differences of offsets that an average over pairs is taken over."""
        ends = [{-(a.taps - 1), 0, a.taps - 1} for a in self.axes]
        return list(itertools.product(*(sorted(e) for e in ends)))


@rule("reduce_window_max", "reduce_max", family="pooling")
class MaxPool:
    """Max pooling over positions, overlap and padding included."""

    @staticmethod
    def forward(ctx: RuleContext, node: Node, states: Sequence[State]) -> State:
        """Exact for independent entries; near 0.5 % for correlated normal ones."""
        (state,) = states
        axes, dropped = _axes(ctx, node, state)
        parts, own = [], 0.0
        for n, f in state.parts:
            pool = _Pool(ctx, f, axes)
            own = max(own, FORWARD + pool.unevenness + state.pair_tolerance / 2)
            got = pool.forward()
            for a in sorted(dropped, reverse=True):
                got = squeeze(got, sum(r == "s" for r in state.axes[:a]))
            parts.append((n, got.normalized()))
        return dataclasses.replace(
            state,
            axes=tuple(r for a, r in enumerate(state.axes) if a not in dropped),
            parts=tuple(parts),
            grade=worst(state.grade, Grade.APPROXIMATE),
            mean_grade=worst(state.grade, Grade.APPROXIMATE),
            terms=(),
            tolerance=state.tolerance + own,
            pair_tolerance=state.pair_tolerance + own,
        )

    @staticmethod
    def backward(
        ctx: RuleContext,
        node: Node,
        states: Sequence[State],
        out: State,
        cotangent: State,
    ) -> Sequence[State | None]:
        """Each window hands its cotangent to its maximum."""
        (state,) = states
        axes, dropped = _axes(ctx, node, state)
        before = ctx.producer(node.inputs[0])
        parts, own, most = [], 0.0, 0.0
        fitted = fit_parts(cotangent, out)
        for i, ((n, f), (_, ct)) in enumerate(
            zip(state.parts, fitted.parts, strict=True)
        ):
            for a in dropped:
                ct = expand(ct, sum(r == "s" for r in state.axes[:a]))
            direct = before is not None and before.name == "pointwise"
            if f.shape is not None and not direct:
                raise NoSoundRule("a maximum of entries that an activation cut off")
            pool = _Pool(ctx, f, axes)
            # A maximum of N sits where the power is high: E[q | u] at u^2 = 2 q log N.
            chosen = f.own_spread * max(math.log(pool.window.count) - 0.5, 0.5)
            if chosen > MOST_CHOSEN:
                raise NoSoundRule("a maximum of what differs much between networks")
            most = max(most, chosen)
            own = max(
                own, BACKWARD + pool.unevenness + state.pair_tolerance / 2 + chosen
            )
            source = None
            if before is not None and direct:
                source = ctx.state_of(before.inputs[0]).parts[i][1]
            parts.append((n, _handed(pool, ct, before, source)))
        return [
            dataclasses.replace(
                cotangent,
                axes=state.axes,
                parts=tuple(parts),
                grade=worst(cotangent.grade, Grade.APPROXIMATE),
                tolerance=cotangent.tolerance + own,
                pair_tolerance=cotangent.pair_tolerance + own,
                chosen=cotangent.chosen + most,
            )
        ]


def _handed(pool: _Pool, ct: Field, before: Node | None, source: Field | None) -> Field:
    """Returns the cotangent at the entries, with what passes the activation in front.

    Where an entry is chosen it is large, and so are the weights that made it.

    Args:
        pool: The pooling.
        ct: The cotangent of its result.
        before: What made the entries.
        source: Of what, if it is an activation.
    """
    wins = pool.unequal.wins
    got = _scatter(pool, ct, np.ones_like(pool.counts), wins)
    active, times_power, base = pool.alone()
    if before is not None and source is not None:
        slopes = Passed(pool, *cached_float64(before.data), source)
        active, times_power, base = slopes.mean(0), slopes.mean(2), slopes.second
        through = _scatter(pool, ct, active, slopes.wins)
        got = got.replace(through=through.rescaled(got.log_scale).table)
    passed, turn = _share(active, ct), 0.0
    if passed > 0:
        turn = _share(times_power, ct) / base / passed - 1.0
    response = dataclasses.replace(ct.response, turn=turn, bend=0.0, curl=0.0)
    return got.replace(response=response)


def _share(values: np.ndarray, ct: Field) -> float:
    """Returns the mean over outputs, by the power of their cotangents."""
    total = float(ct.second.sum())
    return float((values * ct.second).sum()) / total if total > 0 else 0.0


def _scatter(pool: _Pool, ct: Field, active: np.ndarray, wins: np.ndarray) -> Field:
    """Returns the cotangent at the entries.

    Two windows' cotangents that meet in one entry add up as the pair table has them.

    Args:
        pool: The pooling.
        ct: The cotangent of its result.
        active: E[s^2] where a maximum is.
        wins: ``(output, entry)``: each entry's share of it.
    """
    ctx, axes = pool.ctx, pool.axes
    back = [m.T for m in pool.reach]
    second = pool.unequal.handed(ct.second * active, wins)
    sizes = pool.field.sizes
    lags = tuple(lagging.lag_values(n, ctx.level) for n in sizes)
    # Entries of two windows: taken for independent choices, each as often as others.
    share = active / pool.counts
    pair = ct.table * share * lagging.shifted(share, ct.lags)
    pair[(0, *lagging.zero(ct.lags))] = 0.0
    both = _meeting(pool, ct, active) if np.any(pair) else 0.0
    table = np.zeros((len(ct.table), *map(len, lags), *sizes))
    zero = (0, *lagging.zero(lags))
    if np.any(pair) and not ctx.single_back:
        field = Field(np.zeros(ct.sizes), pair, ct.lags, 0.0, comb=ct.comb)
        for a in range(len(axes)):
            field = map_axis(ctx, field, a, back[a])
        table = field.table
    table[zero] = second + both
    return Field(
        np.zeros(sizes),
        table,
        lags,
        ct.log_scale,
        symmetric=True,
        response=ct.response,
    )


def _meeting(pool: _Pool, ct: Field, active: np.ndarray) -> np.ndarray:
    """What pairs of windows that share an entry bring to its second moment.

    The entry is the maximum of both, one time in as many as both have entries.
    """
    out = np.zeros(pool.field.sizes)
    lags = ct.lags
    counts = lagging.shifted(pool.counts, lags)
    roots = np.sqrt(active) * lagging.shifted(np.sqrt(active), lags)
    for index in itertools.product(*(range(len(v)) for v in lags)):
        both = []
        for a, i in enumerate(index):
            reach, lag = pool.reach[a], lags[a][i]
            n = len(reach)
            other = np.zeros_like(reach)
            low, high = max(0, -lag), min(n, n - lag)
            if low < high:
                other[low:high] = reach[low + lag : high + lag]
            both.append((reach * other).T)
        if not any(v[i] for v, i in zip(lags, index, strict=True)):
            continue
        if all(m.any() for m in both):
            shared = functools.reduce(np.multiply.outer, [m.sum(axis=0) for m in both])
            union = pool.counts + counts[index] - shared
            pair = ct.table[(0, *index)] * roots[index] / np.maximum(union, 1.0)
            out += lagging.along(pair, both)
    return out
