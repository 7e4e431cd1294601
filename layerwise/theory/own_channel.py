r"""A value beside what a depthwise convolution makes of it: both are large together.

In :math:`x + f(u)`, u a convolution of few channels r of x, unit by unit, the weights
have random signs and the mean of f is that of a normal value of variance
:math:`s^2 \propto \sum_t x_t^2` over the taps. So where x is skewed it has in common
with f

.. math:: \operatorname{Cov}(x_p, f_{p'}) = \frac{1}{r} \sum_t
    \operatorname{Cov}\bigl(x_p, F(x_{p' + t})\bigr), \qquad
    F(x) = E\, f\bigl(s \sqrt{1 + (x^2 / E[x^2] - 1) / T}\, z\bigr)

with T taps, to first order in what one of them does to :math:`s^2`. A normalization of
f takes out of it what the covariance has in the mean over a set. For wide convolutions
that is of order 1/width, and left out. By lag, averaged over positions.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from layerwise.moments.activations import Numeric, cached_float64, two_slopes
from layerwise.theory import (
    fluctuation,
    lags as lagging,
    marginal,
    profile as profiles,
)
from layerwise.theory.context import Node, RuleContext
from layerwise.theory.normalization import Extent, extent_of
from layerwise.theory.parts import aligned
from layerwise.theory.resolution import is_bent
from layerwise.theory.state import Field, Grade, State
from layerwise.tracing.connections import Axis, conv_axes


def beside(
    ctx: RuleContext,
    node: Node,
    states: Sequence[State],
    sums: tuple[tuple[int, Field], ...],
    sign: float,
) -> tuple[tuple[tuple[int, Field], ...], float]:
    """Returns sums of a value and a function of it, and the error of what they gain.

    Args:
        ctx: The context.
        node: The sum.
        states: Its terms.
        sums: What the sum is of terms that are independent, run by run.
        sign: That of the second term.
    """
    for skip, branch in ((0, 1), (1, 0)):
        between = ctx.between(node.inputs[skip], node.inputs[branch])
        if between:
            wide = any(n.name == "conv_general_dilated" for n in between)
            function = own_branch(ctx, node.inputs[skip], between)
            parts, error = [], 0.0
            for (n, total), (_, *both) in zip(sums, aligned(*states), strict=True):
                own = fluctuation.beside_own_branch(
                    states[skip], both[branch], both[skip], wide
                )
                got = total.replace(mixture=total.mixture + own)
                if function is not None:
                    common = sign * function.in_common(both[skip], both[branch])
                    scale = both[skip].log_scale + both[branch].log_scale
                    got = _with(got, common, 0.5 * scale)
                    gained = float(np.mean(got.second)) / float(np.mean(total.second))
                    error = max(error, 0.5 * abs(math.log(gained)))
                parts.append((n, got))
            # Units that the first such sum makes large pass from the second on.
            if any(f.mixture for _, f in states[skip].parts):
                error += _persisting(ctx, node, states, skip)
            return tuple(parts), error
    return sums, 0.0


def _persisting(
    ctx: RuleContext, node: Node, states: Sequence[State], skip: int
) -> float:
    """Returns what a term and a function of it may gain from units that stay."""
    start, end = node.inputs[skip], node.inputs[1 - skip]
    between = ctx.between(start, end)
    reads = [n for n in between if n.inputs == (start,) and n.name == "pointwise"]
    if not reads or any(n.name == "normalization" for n in between):
        return 0.0
    phi, _ = cached_float64(reads[0].data)
    wide = any(n.name == "conv_general_dilated" for n in between)
    value, made = states[skip].average(), states[1 - skip].average()
    return fluctuation.persisting(value, made, phi, wide) / states[skip].channels


def gone_with(
    ctx: RuleContext, node: Node, states: Sequence[State], i: int, cotangent: State
) -> State:
    r"""Returns a sum's cotangent at a term, with what a branch of that sends back.

    What comes back through the branch has :math:`g_p \sum_t g_{p - t} F'(x_p)` in
    common with the sum's cotangent g, where that is alike at the positions p.
    """
    term, other = node.inputs[i], node.inputs[1 - i]
    stays = _persisting(ctx, node, states, i)
    if stays:
        cotangent = dataclasses.replace(
            cotangent,
            tolerance=cotangent.tolerance + stays,
            grade=Grade(max(cotangent.grade, Grade.APPROXIMATE)),
        )
    branch = own_branch(ctx, term, ctx.between(term, other))
    if branch is None:
        return cotangent
    sign = -1.0 if node.name == "sub" else 1.0
    parts, error = [], 0.0
    for (n, *both), (_, ct) in zip(aligned(*states), cotangent.parts, strict=True):
        share = sign * branch.sent_back(both[i], both[1 - i], ct)
        power = np.maximum(1.0 + 2.0 * share, LEAST)
        whole = float(marginal.weights() @ power)
        error = max(error, 0.5 * abs(math.log(whole)))
        parts.append((n, profiles.times(ct.scaled(whole), power)))
    return dataclasses.replace(
        cotangent, parts=tuple(parts), tolerance=cotangent.tolerance + error
    )


LEAST = 0.01
"""Of a cotangent's power, what a branch leaves at least."""


def own_branch(
    ctx: RuleContext, start: int, between: Sequence[Node]
) -> "OwnBranch | None":
    """Returns what the nodes between a value and a function of it make of a channel.

    None where they are not one convolution of some channels, a function, and what
    scales and shifts units.
    """
    order = sorted(between, key=lambda n: n.output)
    convolutions = [n for n in order if n.name == "conv_general_dilated"]
    if convolutions != order[:1] or sum(map(is_bent, order)) != 1:
        return None
    at = start
    for node in order:
        if node.name not in _ALONE or node.inputs != (at,):
            return None
        at = node.output
    equation = order[0].equations[0]
    before, after = ctx.shape(start), ctx.shape(order[0].output)
    if equation.params["feature_group_count"] == 1 or before != after:
        return None
    axes_in_order = np.argsort(equation.params["dimension_numbers"].lhs_spec[2:])
    kernel = ctx.shape(equation.inputs[1])  # type: ignore[arg-type]
    read = kernel[equation.params["dimension_numbers"].rhs_spec[1]]
    axes = [conv_axes(equation, before, kernel)[a] for a in axes_in_order]
    (function,) = filter(is_bent, order)
    entry, made = (
        ctx.state_of(v).average() for v in (*function.inputs, function.output)
    )
    sets = [
        extent_of(ctx, n, ctx.state_of(n.inputs[0]))
        for n in order
        if n.name == "normalization" and n.data.centred
    ]
    phi, _ = cached_float64(function.data)
    return OwnBranch(tuple(axes), read, phi, entry, made, tuple(sets))


_ALONE = ("conv_general_dilated", "pointwise", "normalization", "add", "sub", "mul")


@dataclasses.dataclass(frozen=True, eq=False)
class OwnBranch:
    """What makes a function of few of a value's channels.

    Attributes:
        axes: Those of its convolution.
        read: Channels that one output reads.
        phi: Its function.
        entry: What that is applied to.
        made: What that makes.
        sets: What is centred in it.
    """

    axes: tuple[Axis, ...]
    read: int
    phi: Numeric
    entry: Field
    made: Field
    sets: tuple[Extent, ...]

    def means(self, x: np.ndarray, branch: Field, step: float = 0.0) -> np.ndarray:
        """Returns ``(node,)``: scaled means of what is made, given one x that it reads.

        Args:
            x: ``(node,)``: x at the nodes.
            branch: What is made.
            step: By how much of its size each x is moved.
        """
        w = marginal.weights()
        terms = self.read * math.prod(a.connections / a.n_outputs for a in self.axes)
        u = fluctuation.typical(self.entry.replace(shape=None))
        if two_slopes(self.phi) is None:  # those do the same at any scale
            u = u * np.exp(0.5 * self.entry.log_scale)
        power = float(w @ np.square(x))
        factor = 1.0 + (np.square(x + step * np.sqrt(power)) / power - 1.0) / terms
        means = self.phi(np.sqrt(np.maximum(factor, 0.0))[:, None] * u) @ w
        size = float(np.mean(branch.second)) * _roughness(branch)
        size /= _roughness(self.made) * float(w @ np.square(self.phi(u)))
        return means * math.sqrt(size)

    def in_common(self, skip: Field, branch: Field) -> np.ndarray:
        """Returns ``(class, *lags)``: scaled covariances of x with f at a lag."""
        table = _pairs(skip, self.means(fluctuation.typical(skip), branch))
        return self._over_outputs(table, skip)

    def sent_back(self, skip: Field, branch: Field, cotangent: Field) -> np.ndarray:
        """Returns ``(node,)``: what a cotangent of x + f has in common with f's share.

        Relative to its power, given x.
        """
        x = fluctuation.typical(skip)
        rise = self.means(x, branch, STEP) - self.means(x, branch, -STEP)
        rise = rise / (2.0 * STEP * np.sqrt(float(marginal.weights() @ np.square(x))))
        scale = 0.5 * (branch.log_scale - skip.log_scale)
        rise = rise * np.exp(np.clip(scale, -700, 700))
        alike = cotangent.table.mean(axis=tuple(range(-cotangent.rank, 0)))
        alike = alike / alike[(0, *lagging.zero(cotangent.lags))]
        together = self._over_outputs(alike, cotangent)
        return rise * float(together[(0, *lagging.zero(cotangent.lags))])

    def _over_outputs(self, table: np.ndarray, held: Field) -> np.ndarray:
        """Returns the sums over what outputs at p + lag read, centred, by lag."""
        table = _over_taps(table, held.lags, self.axes)
        for extent in self.sets:
            table = table - _over_set(table, held, extent)
        return table


STEP = 1e-3


def _roughness(f: Field) -> float:
    """Returns the mean squared difference of two positions, relative.

    No shift of a unit changes it, and what scales all units alike. Where no pairs are
    held, that from the mean.
    """
    if all(len(v) == 1 for v in f.lags):
        return float(np.mean(f.second - np.square(f.mean))) / float(np.mean(f.second))
    inside = lagging.inside(f.lags, f.sizes)
    apart = float(np.sum(inside * f.second) - np.sum(f.table[0] * inside))
    return apart / float(np.sum(inside)) / float(np.mean(f.second))


def _pairs(x: Field, values: np.ndarray) -> np.ndarray:
    """Returns ``(class, *lags)``: covariances of x with a function of another x."""
    h = marginal.hermite()
    law = marginal.nodes() if x.shape is None else x.shape
    a, b = law @ h, values @ h
    series = np.concatenate([[0.0], (a * b)[1:]])
    pairs = np.polynomial.polynomial.polyval(marginal.latent_correlation(x), series)
    inside = lagging.inside(x.lags, x.sizes)
    over = tuple(range(-x.rank, 0)) if x.rank else ()
    mean = np.sum(pairs * inside, axis=over) / np.maximum(inside.sum(axis=over), 1)
    return mean * math.sqrt(float(np.mean(x.second - np.square(x.mean))))


def _over_taps(
    table: np.ndarray, lags: Sequence[tuple[int, ...]], axes: Sequence[Axis]
) -> np.ndarray:
    """Returns the sums over what outputs at p + lag read, by lag."""
    for a, (held, axis) in enumerate(zip(lags, axes, strict=True)):
        steps, counts = np.unique(
            (axis.sources - np.arange(axis.n_outputs)[:, None])[axis.sources >= 0],
            return_counts=True,
        )
        matrix = np.zeros((len(held), len(held)))
        for step, count in zip(steps, counts / axis.n_outputs, strict=True):
            for row, lag in zip(matrix, held, strict=True):
                row += count * _at(held, lag + int(step))
        table = lagging.along(table, [matrix], 1 + a)
    return table


def _at(held: tuple[int, ...], lag: int) -> np.ndarray:
    """Returns the weights of the lags held that make another; none without pairs."""
    if len(held) == 1:
        return np.full(1, float(lag == held[0]))
    return fluctuation.between(held, float(lag))


def _over_set(table: np.ndarray, x: Field, extent: Extent) -> float:
    """Returns the mean of covariances over a set that a normalization centres."""
    if not extent.positions:
        return float(table[(0, *lagging.zero(x.lags))]) / extent.channels
    means = table
    for held, n in reversed(list(zip(x.lags, x.sizes, strict=True))):
        pairs = [(n - abs(v)) / n**2 * _at(held, v) for v in range(1 - n, n)]
        means = means @ np.sum(pairs, axis=0)
    within = means[0] / extent.examples
    if extent.examples > 1:
        within += means[1] * (1.0 - 1.0 / extent.examples)
    return float(within) / extent.channels


def _with(total: Field, common: np.ndarray, log_scale: float) -> Field:
    """Returns a sum whose terms have covariances by lag, `common`, scaled."""
    flipped = common[(slice(None), *[slice(None, None, -1)] * total.rank)]
    both = (common + flipped) * math.exp(log_scale - total.log_scale)
    both = both.reshape(both.shape + (1,) * total.rank)
    inside = lagging.inside(total.lags, total.sizes)
    return total.replace(table=total.table + both * inside).normalized()
