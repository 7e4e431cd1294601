"""Products: of two signals (gates), with a parameter (scales), with a fixed mask."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from layerwise.moments.activations import Numeric, cached_float64
from layerwise.theory import (
    data,
    fluctuation,
    lags as lagging,
    marginal,
    profile as profiles,
)
from layerwise.theory.context import Node, RuleContext, WeightMoments
from layerwise.theory.local import times
from layerwise.theory.parts import aligned, fit_parts
from layerwise.theory.registry import NoSoundRule, rule
from layerwise.theory.rules.elementwise import worst
from layerwise.theory.rules.parameters import parameter, variation
from layerwise.theory.settled import UNSETTLED
from layerwise.theory.state import Field, Grade, State, common
from layerwise.tracing import primitives


def scale_parts(state: State, array: np.ndarray, gains: Field) -> State:
    """Returns the state times a parameter.

    Args:
        state: The state.
        array: One sample of the parameter, to see along what it varies.
        gains: The law of its entries.
    """
    mean, second = float(gains.mean), float(gains.table[0])
    varies = second - mean**2 > 1e-12 * second
    by_position = variation(array, state.axes, "s")
    by_example = variation(array, state.axes, "b")

    def scale(f: Field) -> Field:
        table = f.table * second
        if by_position:
            table = f.table * mean**2
            at = (0, *lagging.zero(f.lags))
            table[at] = f.table[at] * second
        if by_example and f.table.shape[0] == 2:
            table[1] = f.table[1] * mean**2
        shape = _product_shape(f, gains) if varies else f.shape
        own_law = f.own_law or (f.shape,) if varies and not by_position else f.own_law
        return f.replace(
            mean=f.mean * mean,
            table=table,
            joint=None,
            shape=shape,
            own_law=own_law,
            settled=UNSETTLED if varies else f.settled,
        )

    out = state.map(scale, terms=())
    if not varies:
        return out
    return dataclasses.replace(
        out,
        grade=worst(state.grade, Grade.APPROXIMATE),
        pair_tolerance=state.pair_tolerance + (0.0 if by_position else _alike(gains)),
    )


def _alike(gains: Field) -> float:
    """Returns how far pairs that share their gain are from pairs that do not.

    The pairs of a product are taken for those of its law; of two slopes' functions,
    E[g^2] is what a pair has, and E[|g|]^2 what is taken for it.
    """
    sizes = np.abs(profiles.entries(gains)) @ marginal.weights()
    return float(np.log(float(gains.table[0]) / sizes**2))


def _gains(
    moments: WeightMoments, array: np.ndarray, mean: float, second: float
) -> Field:
    """Returns the law of the entries of a parameter."""
    law = moments.shape
    if moments.value is not None or moments.draws is not None:
        entries = array if moments.draws is None else moments.draws
        law = marginal.of_samples(entries.ravel()[:: max(1, entries.size // 4096)])
    return Field(np.asarray(mean), np.asarray([second]), (), shape=law)


def _placed(array: np.ndarray, state: State) -> bool:
    """Whether a fixed array differs by position or by example."""
    return any(variation(array, state.axes, role) for role in "sb")


def _times_constant(
    ctx: RuleContext, state: State, array: np.ndarray, shape: Sequence[int]
) -> State:
    """Returns the state times a fixed array, known at every position."""
    if variation(array, state.axes, "b"):
        raise NoSoundRule("a fixed array that differs by example (a mask of lengths?)")
    alike = not variation(array, state.axes, "c")
    parts = []
    for (n, f), g in zip(
        state.parts, data.constant(ctx, array, state, shape), strict=True
    ):
        got = f.replace(
            mean=f.mean * g.mean,
            table=f.table * g.table,
            log_scale=f.log_scale + g.log_scale,
            joint=None,
            shape=f.shape if alike else None,
            settled=f.settled if alike else UNSETTLED,
            spread=common([1.0, 1.0], [f.spread, g.spread]),
        )
        parts.append((n, got.normalized()))
    grade = Grade.EXACT if alike else Grade.APPROXIMATE
    grade = worst(state.grade, grade)
    return dataclasses.replace(state, parts=tuple(parts), grade=grade, terms=())


def _times_parameter(
    ctx: RuleContext,
    node: Node,
    state: State,
    given: Callable[[State, Field], State] = lambda state, _: state,
) -> State:
    """Returns the state times a parameter, `given` what it was with this law of it."""
    moments, array, mean, second = parameter(ctx, node)
    if node.name == "div":
        if moments.value is None or np.any(array == 0):
            raise NoSoundRule("division by a random parameter, or by zero")
        array = 1.0 / array
        mean, second = float(array.mean()), float(np.mean(array**2))
    if moments.value is not None and _placed(array, state):
        return _times_constant(ctx, state, array, ctx.shape(node.output))
    gains = _gains(moments, array, mean, second)
    return scale_parts(given(state, gains), array, gains)


@rule("mul", "div", family="elementwise")
class Multiply:
    """Gate (two independent signals), or scale by a parameter or a fixed array."""

    @staticmethod
    def forward(ctx: RuleContext, node: Node, states: Sequence[State]) -> State:
        """Second moments and means multiply; wide limit."""
        if len(node.inputs) == 1:
            if ctx.shape(node.inputs[0]) != ctx.shape(node.output):
                raise NoSoundRule("a signal broadcast against a parameter")
            if node.equations[0].inputs[0] != node.inputs[0] and node.name == "div":
                raise NoSoundRule("division by the signal")
            return _times_parameter(ctx, node, states[0])
        if node.name == "div":
            raise NoSoundRule("division by the signal")
        a, b = states
        if a.roots & b.roots or a.axes != b.axes:
            raise NoSoundRule("a product of functions of the same signal")
        own = _of_own_unit(ctx, node)
        together = _together(a, b) + own
        parts = tuple((n, _product(f, g, together)) for n, f, g in aligned(a, b))
        return State(
            a.axes,
            parts,
            worst(a.mean_grade, b.mean_grade, Grade.APPROXIMATE),
            worst(a.grade, b.grade, Grade.APPROXIMATE),
            a.sources | b.sources,
            a.roots | b.roots,
            tolerance=a.tolerance + b.tolerance + PRODUCT + (together + abs(own)) / 2,
            pair_tolerance=a.pair_tolerance + b.pair_tolerance,
        )

    @staticmethod
    def backward(
        ctx: RuleContext,
        node: Node,
        states: Sequence[State],
        out: State,
        cotangent: State,
    ) -> Sequence[State | None]:
        """Multiplies by the other factor."""
        if len(node.inputs) == 1:
            given = functools.partial(_given_gains, states[0], out)
            return [_times_parameter(ctx, node, cotangent, given)]
        a, b = states
        back = []
        together = _together(a, b)
        for mine, other in ((a, b), (b, a)):
            runs, shift = [], 0.0
            given = _given_factor(cotangent, mine, other, out)
            moved = 0.0
            pairs = _pairs_given(cotangent, mine, other, out)
            for (n, f, g), table in zip(aligned(given, other), pairs, strict=True):
                gain, response = times(f.response, mine.average(), g, together)
                run = _product(f, g, gain)
                run = run.replace(profile=f.profile, response=response)
                shift = max(shift, abs(gain))
                if table is not None:
                    run, change = _with_pairs(run, table)
                    moved = max(moved, change)
                runs.append((n, run))
            got = dataclasses.replace(
                cotangent,
                parts=tuple(runs),
                grade=worst(cotangent.grade, other.grade, Grade.APPROXIMATE),
                sources=cotangent.sources | other.sources,
                tolerance=cotangent.tolerance
                + other.tolerance
                + PRODUCT
                + cotangent.chosen
                + max(f.own_spread for s in (a, b) for _, f in s.parts) / 2
                + shift / 2,
                pair_tolerance=cotangent.pair_tolerance + moved / 2,
            )
            back.append(fit_parts(got, mine))
        return back


def _given_gains(mine: State, out: State, cotangent: State, gains: Field) -> State:
    """Returns the cotangent with its profile by z of what was multiplied by gains."""
    parts = [
        (n, profiles.of_factor(ct, total, f, gains))
        for (n, f), (_, total), (_, ct) in zip(
            mine.parts, out.parts, cotangent.parts, strict=True
        )
    ]
    return dataclasses.replace(cotangent, parts=tuple(parts))


def _given_factor(cotangent: State, mine: State, other: State, out: State) -> State:
    """Returns the cotangent with its profile by the factor's z, not the product's."""
    if all(f.profile is None for _, f in cotangent.parts):
        return fit_parts(cotangent, mine)
    parts = [
        (n, profiles.of_factor(ct, total, f, g))
        for (n, f, g), (_, total), (_, ct) in zip(
            aligned(mine, other), out.parts, cotangent.parts, strict=True
        )
    ]
    return fit_parts(dataclasses.replace(cotangent, parts=tuple(parts)), mine)


def _pairs_given(
    cotangent: State, mine: State, other: State, out: State
) -> Sequence[Field | None]:
    """Returns, of each run of channels, the pairs of what goes with a factor."""
    runs = aligned(fit_parts(cotangent, mine), other)
    if not len(runs) == len(out.parts) == len(cotangent.parts):
        return [None] * len(runs)
    return [
        profiles.pairs_of_factor(ct, total, f, g)
        for (_, f, g), (_, total), (_, ct) in zip(
            aligned(mine, other), out.parts, cotangent.parts, strict=True
        )
    ]


def _with_pairs(run: Field, pairs: Field) -> tuple[Field, float]:
    """Returns a field with the pairs of another, and by how much their sum is moved."""
    table = pairs.rescaled(run.log_scale).table.copy()
    at = (0, *lagging.zero(run.lags))
    table[at] = run.table[at]
    before, after = (float(np.sum(t[0])) for t in (run.table, table))
    moved = abs(np.log(after / before)) if min(before, after) > 0 else np.inf
    return run.replace(table=table), float(moved)


PRODUCT = 0.02


def _together(a: State, b: State) -> float:
    """Returns what powers that rise and fall together add to the logarithm."""
    covariance = np.sqrt(max(f.own_spread for _, f in a.parts)) * np.sqrt(
        max(f.own_spread for _, f in b.parts)
    )
    return float(np.log1p(covariance))


def _of_own_unit(ctx: RuleContext, node: Node) -> float:
    """Returns what a value gains times what weights make of it, as a logarithm.

    Of the units that the weights read, one is that which is multiplied: where it is
    large, so is what they make.
    """
    for made, beside in (node.inputs, node.inputs[::-1]):
        by = ctx.producer(made)
        if by is None or by.name not in primitives.WEIGHT_OPERATIONS:
            continue
        groups = by.equations[0].params.get("feature_group_count", 1)
        if len(by.inputs) != 1 or groups > 1:
            continue
        read, phi = _function(ctx, by.inputs[0])
        value, gate = _function(ctx, beside)
        state = ctx.state_of(read)
        if read != value or state.channels != ctx.state_of(made).channels:
            continue
        field, w = state.average(), marginal.weights()
        with np.errstate(over="ignore", under="ignore"):
            x = profiles.entries(field) * np.exp(0.5 * field.log_scale)
        first, second = np.square(phi(x)), np.square(gate(x))
        apart = float((w @ first) * (w @ second))
        if not 0.0 < apart < np.inf:
            continue
        gain = float(w @ (first * second)) / apart - 1.0
        if by.name == "conv_general_dilated":
            near = lagging.nearest(field.lags)
            gain *= float(np.mean(fluctuation.correlation_of_squares(field)[near]))
        return float(np.log1p(gain / state.channels))
    return 0.0


def _function(ctx: RuleContext, value: int) -> tuple[int, Numeric]:
    """Returns the value that a value is a scalar function of, and which."""
    by = ctx.producer(value)
    if by is None or by.name != "pointwise":
        return value, lambda x: x
    return by.inputs[0], cached_float64(by.data)[0]


def _product(f: Field, g: Field, together: float = 0.0) -> Field:
    if f.lags != g.lags or f.sizes != g.sizes:
        raise NoSoundRule("operands with different positions")
    return Field(
        f.mean * g.mean,
        f.table * g.table,
        f.lags,
        f.log_scale + g.log_scale + together,
        shape=_product_shape(f, g),
        symmetric=f.symmetric or g.symmetric,
        spread=common([1.0, 1.0], [f.spread, g.spread]),
    ).normalized()


def _product_shape(f: Field, g: Field) -> np.ndarray | None:
    p, mass = (np.arange(256) + 0.5) / 256, np.cumsum(marginal.weights())
    values = []
    for field in (f, g):
        sd = np.sqrt(max(float(np.mean(field.second - field.mean**2)), 0.0))
        law = marginal.entries(field.shape, np.mean(field.mean), sd)
        values.append(np.interp(p, mass, law))
    products = np.sort(np.multiply.outer(*values).ravel())
    mids = (np.arange(products.size) + 0.5) / products.size
    target = np.cumsum(marginal.weights()) - 0.5 * marginal.weights()
    law = np.interp(target, mids, products)
    if any(h.symmetric or h.is_centred_normal for h in (f, g)):
        law = 0.5 * (law - law[::-1])
    return marginal.standardize(law)


@rule("select_n", family="elementwise")
class Mask:
    """Dropout, or a fixed mask: chooses between the signal and zero."""

    @staticmethod
    def forward(ctx: RuleContext, node: Node, states: Sequence[State]) -> State:
        """A product with the mask."""
        return _masked(ctx, node, states[0], lambda state, _: state)

    @staticmethod
    def backward(
        ctx: RuleContext,
        node: Node,
        states: Sequence[State],
        out: State,
        cotangent: State,
    ) -> Sequence[State | None]:
        """The same product."""
        given = functools.partial(_given_gains, states[0], out)
        return [_masked(ctx, node, cotangent, given)]


def _masked(
    ctx: RuleContext,
    node: Node,
    state: State,
    given: Callable[[State, Field], State],
) -> State:
    mask = _mask(ctx, node)
    if not ctx.is_random(node.equations[0].inputs[0]) and _placed(mask, state):
        return _times_constant(ctx, state, mask, ctx.shape(node.output))
    share = float(mask.mean())
    law = marginal.of_samples(mask.ravel()[:: max(1, mask.size // 4096)])
    kept = Field(np.asarray(share), np.asarray([share]), (), shape=law)
    out = scale_parts(given(state, kept), mask, kept)
    unlike = 1.0 + max(f.own_spread for _, f in state.parts)
    noise = math.sqrt((1.0 - share) / share * unlike / mask.size) if share else 0.0
    return dataclasses.replace(out, tolerance=out.tolerance + CHANCE * noise)


CHANCE = 3.0
"""Per standard deviation of the share of a drawn mask: what it happens to keep."""


def _mask(ctx: RuleContext, node: Node) -> np.ndarray:
    equation = node.equations[0]
    which, off, on = equation.inputs[:3]
    flow = ctx.traced.flow
    if flow.is_signal(which) or len(equation.inputs) != 3 or len(node.inputs) != 1:
        raise NoSoundRule("a choice that depends on the signal")
    chosen = ctx.weight(which).value
    other = off if flow.is_signal(on) else on
    if chosen is None or np.any(ctx.weight(other).value != 0):  # type: ignore[arg-type]
        raise NoSoundRule("a choice between the signal and something random")
    return np.asarray(chosen == (1 if flow.is_signal(on) else 0), np.float64)
