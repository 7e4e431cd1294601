"""Scalar functions of one signal, sums of signals, and biases."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from layerwise.moments.activations import Numeric, cached_float64, two_slopes
from layerwise.theory import (
    data,
    few_weights,
    lags as lagging,
    marginal,
    own_channel,
    pointwise,
    profile as profiles,
    turning,
)
from layerwise.theory.coherence import Coherence
from layerwise.theory.context import Node, RuleContext
from layerwise.theory.parts import aligned, fit_parts
from layerwise.theory.registry import NoSoundRule, rule
from layerwise.theory.response import Response
from layerwise.theory.rules.parameters import add_parameter, parameter
from layerwise.theory.state import (
    UNKNOWN,
    Field,
    Grade,
    State,
    average_amplitude,
    average_profile,
    comb_error,
    common,
)
from layerwise.tracing.graph import evaluate


ROUNDING = 0.002
"""Quadrature, and the second order of 1/width."""
NOT_NORMAL = 0.02
"""An activation of a value that is not normal, at the law that its rule gives it."""


def worst(*grades: Grade) -> Grade:
    """Returns the worst of some grades."""
    return Grade(max(grades))


@rule("pointwise", family="elementwise")
class Pointwise:
    """Any run of elementwise equations with one random source, under quadrature."""

    @staticmethod
    def forward(ctx: RuleContext, node: Node, states: Sequence[State]) -> State:
        """Exact for two slopes (ReLU) of a symmetric law, else to order 1/width.

        States half of what the fluctuation of the second moment moves as its error.
        """
        (state,) = states
        phi, slope = cached_float64(node.data)
        slopes = two_slopes(phi)
        linear = slopes is not None and slopes[0] == slopes[1]
        symmetric = all(f.symmetric for _, f in state.parts)
        exact = linear or (slopes is not None and symmetric)
        runs = [(n, _run(f, slopes)) for n, f in state.parts]
        out = dataclasses.replace(
            state, parts=tuple((n, r.apply(phi)) for n, r in runs)
        )
        if not exact:
            normal = all(f.shape is None for _, f in state.parts)
            shift = max(abs(r.shift) for _, r in runs)
            places = [r.local(phi, slope) for _, r in runs]
            off = max(v.off_by(phi, v.growth, state.tolerance) for v in places)
            own = 0.5 * shift + (ROUNDING if normal else NOT_NORMAL)
            if slopes is None:
                own += max(r.unlike(phi) for _, r in runs)
            out = dataclasses.replace(out, tolerance=off + own)
        if not linear:
            kept = max(r.carried(slopes) for _, r in runs) * state.pair_tolerance
            out = dataclasses.replace(out, pair_tolerance=kept + pair_error(state))
        second = state.grade if exact else worst(state.grade, Grade.APPROXIMATE)
        mean = state.mean_grade if linear else worst(state.grade, Grade.APPROXIMATE)
        terms: tuple[tuple[int, float], ...] = ()
        if linear:
            assert slopes is not None
            terms = tuple((v, c * slopes[0]) for v, c in _terms(state, node.inputs[0]))
        return dataclasses.replace(out, grade=second, mean_grade=mean, terms=terms)

    @staticmethod
    def backward(
        ctx: RuleContext,
        node: Node,
        states: Sequence[State],
        out: State,
        cotangent: State,
    ) -> Sequence[State | None]:
        """Multiplies by the pair moments of the derivative."""
        phi, slope = cached_float64(node.data)
        if any(_has_zeros(f) for _, f in states[0].parts):
            slope = _with_zero(slope, _slope_at_zero(ctx, node))
        slopes = two_slopes(phi)
        linear = slopes is not None and slopes[0] == slopes[1]
        unclear = max(_unclear(ct, slopes) for _, ct in cotangent.parts)
        if not linear and unclear > UNCLEAR:
            raise NoSoundRule("a derivative that depends on the cotangent")
        normal = all(f.shape is None for _, f in states[0].parts)
        symmetric = all(f.symmetric for _, f in states[0].parts)
        filled = not any(f.empty for _, f in states[0].parts)
        sound = linear or (slopes is not None and symmetric and filled)
        parts, shift, off, unlike = [], 0.0, 0.0, 0.0
        for (n, f), (_, ct) in zip(states[0].parts, cotangent.parts, strict=True):
            if ct.through is not None:
                got = ct.replace(
                    table=ct.through,
                    through=None,
                    joint=None,
                    profile=UNKNOWN,
                    amplitude=None,
                )
            else:
                run = _run(f, slopes)
                # What has two slopes needs no scale, but at zero.
                centred = f.is_centred_normal and np.any(f.second)
                x = marginal.nodes() if slopes and centred else run.typical()
                given = ct.profile
                if given is not None:
                    given = profiles.in_front(given, phi(x))
                got = run.pull_back(ct.replace(profile=given), phi, slope, ctx.joint)
                got = got.replace(
                    profile=profiles.behind(given, slope(x)),
                    amplitude=profiles.amplitude_behind(ct, phi(x), slope(x)),
                    coherence=turning.in_front(ct, f, phi, slope),
                )
                shift = max(shift, abs(run.shift))
                if not sound:
                    unlike = max(unlike, 0.0 if slopes else run.unlike(slope))
                    at, error = run.local(phi, slope), states[0].tolerance
                    off = max(off, at.off_by(slope, at.gradient_growth, error))
            parts.append((n, got))
        # The factor phi' is a moment of the forward value: its grade enters.
        grade = cotangent.grade if linear else worst(cotangent.grade, states[0].grade)
        grade = grade if sound else worst(grade, Grade.APPROXIMATE)
        sources = cotangent.sources | (frozenset() if sound else states[0].sources)
        tolerance = cotangent.tolerance + 0.5 * shift
        if not sound:
            tolerance += off + unlike
            tolerance += ROUNDING if normal else NOT_NORMAL
        if not linear:
            tolerance += unclear
        return [
            dataclasses.replace(
                cotangent,
                parts=tuple(parts),
                grade=grade,
                sources=sources,
                tolerance=tolerance,
                pair_tolerance=cotangent.pair_tolerance
                + (0.0 if linear else pair_error(states[0])),
            )
        ]


def _run(f: Field, slopes: tuple[float, float] | None) -> pointwise.Pointwise:
    """Returns what functions of a field share: all that two slopes see is its size."""
    return pointwise.Pointwise(f if slopes else few_weights.with_law(f))


UNCLEAR = 0.1
"""Stated error up to which a cotangent may depend on the value in a way unknown."""


def _unclear(cotangent: Field, slopes: tuple[float, float] | None) -> float:
    """Returns how far off the way a cotangent goes with the value may bring it.

    Behind a maximum that depends on the cotangent, only where the activation stops the
    maximum itself: never more than that share, at twice the average power.
    """
    profile = cotangent.profile
    if cotangent.through is None:
        return np.inf if profiles.is_unknown(profile) else 0.0
    if profile is None:
        return 0.0
    if slopes is None or slopes[1] != 0.0:
        return np.inf
    passed = float(np.mean(cotangent.replace(table=cotangent.through).second))
    whole = slopes[0] ** 2 * float(np.mean(cotangent.second))
    return 2.0 * (1.0 - passed / whole) if whole > 0 else 0.0


def pair_error(state: State) -> float:
    """Returns how far an activation's pair moments may be off, as a logarithm.

    The correlation of a pair fluctuates, as far as the second moments of its positions
    do not fluctuate together, and the dual activation is not linear in it.
    """
    return PAIRS * max(f.apart for _, f in state.parts)


PAIRS = 0.1


def _terms(state: State, value: int) -> tuple[tuple[int, float], ...]:
    return state.terms or ((value, 1.0),)


def add_fields(f: Field, g: Field, sign: float = 1.0) -> Field:
    """Returns the field of a sum of independent values (given their means)."""
    if f.lags != g.lags or f.sizes != g.sizes:
        raise NoSoundRule("operands with different positions")
    scale = max(f.log_scale, g.log_scale)
    if not np.any(f.table):
        scale = g.log_scale
    elif not np.any(g.table):
        scale = f.log_scale
    f, g = f.rescaled(scale), g.rescaled(scale)
    power = [float(np.mean(x.second)) for x in (f, g)]
    shares = [p / sum(power) if sum(power) > 0 else 0.5 for p in power]
    table = f.table + g.table
    if np.any(f.mean) and np.any(g.mean):
        table = table + sign * (
            f.mean * lagging.shifted(g.mean, f.lags)
            + g.mean * lagging.shifted(f.mean, f.lags)
        )
    var_f, var_g = (float(np.mean(x.second - x.mean**2)) for x in (f, g))
    return Field(
        f.mean + sign * g.mean,
        table,
        f.lags,
        scale,
        shape=marginal.convolve(f.shape, var_f, marginal.signed(g.shape, sign), var_g),
        symmetric=f.symmetric and g.symmetric,
        comb=tuple(int(np.gcd(x, y)) for x, y in zip(f.combs, g.combs, strict=True)),
        weights=f.weights + g.weights,
        spread=common(shares, [f.spread, g.spread]),
        peaked=_peaked_sum((f, var_f), (g, var_g)),
        mixture=shares[0] ** 2 * f.mixture + shares[1] ** 2 * g.mixture,
        powers=_common_powers(f.powers, g.powers, shares),
        response=Response.average([f.response, g.response], shares),
        coherence=Coherence.average([f.coherence, g.coherence], shares),
        profile=average_profile([f.profile, g.profile], shares),
        amplitude=average_amplitude([f, g], shares),
    ).normalized()


def _peaked_sum(*terms: tuple[Field, float]) -> float:
    """Returns the excess kurtosis of a sum of nearly normal (value, its variance)."""
    total = sum(variance for _, variance in terms)
    if not total > 0 or any(f.shape is not None for f, _ in terms):
        return 0.0
    return sum(f.peaked * (variance / total) ** 2 for f, variance in terms)


def _common_powers(
    f: np.ndarray | None, g: np.ndarray | None, shares: Sequence[float]
) -> np.ndarray | None:
    """Returns the powers of a sum of what rises and falls with the same data."""
    if f is None or g is None or len(f) != len(g):
        return None
    return shares[0] * f + shares[1] * g


@rule("add", "sub", family="elementwise")
class Sum:
    """Residual sum, difference, bias: independent terms and their means."""

    @staticmethod
    def forward(ctx: RuleContext, node: Node, states: Sequence[State]) -> State:
        """Exact where one term is fresh of zero mean; shared terms are collected."""
        equation = node.equations[0]
        sign = -1.0 if node.name == "sub" else 1.0
        if len(node.inputs) == 1:
            if equation.inputs[0] == equation.inputs[1]:
                raise NoSoundRule("a value added to itself")
            return add_parameter(ctx, node, states[0], sign)
        a, b = states
        if a.axes != b.axes:
            raise NoSoundRule("operands whose axes have different roles")
        terms: dict[int, float] = dict(_terms(a, node.inputs[0]))
        for v, c in _terms(b, node.inputs[1]):
            terms[v] = terms.get(v, 0.0) + sign * c
        grade, own = worst(a.grade, b.grade), 0.0
        zero_mean = [not any(np.any(f.mean) for _, f in x.parts) for x in (a, b)]
        if not any(zero_mean):
            grade = worst(grade, Grade.APPROXIMATE)
        if a.roots & b.roots:
            parts = _collected(ctx, terms)
        else:
            laws = [
                data.with_law(ctx, v, s)
                for v, s in zip(node.inputs, states, strict=True)
            ]
            parts = tuple((n, add_fields(f, g, sign)) for n, f, g in aligned(*laws))
            parts, own = own_channel.beside(ctx, node, states, parts, sign)
            grade = worst(grade, Grade.APPROXIMATE) if own else grade
        return State(
            a.axes,
            parts,
            worst(a.mean_grade, b.mean_grade),
            grade,
            a.sources | b.sources,
            a.roots | b.roots,
            tuple(terms.items()) if len(terms) <= 64 else (),
            tolerance=max(a.tolerance, b.tolerance)
            + (0.0 if any(zero_mean) else MEANS)
            + own,
            pair_tolerance=max(a.pair_tolerance, b.pair_tolerance)
            + own
            + comb_error([f for s in (a, b) for _, f in s.parts]),
        )

    @staticmethod
    def backward(
        ctx: RuleContext,
        node: Node,
        states: Sequence[State],
        out: State,
        cotangent: State,
    ) -> Sequence[State | None]:
        """Copies the cotangent to both terms."""
        heeds = max(profiles.heeds(ct) for _, ct in cotangent.parts)
        if heeds > cotangent.heeds:
            cotangent = dataclasses.replace(cotangent, heeds=heeds)
        back = [cotangent] * len(states)
        if len(states) == 2:
            back = [_given_term(node, states, i, out, cotangent) for i in (0, 1)]
            back = [
                own_channel.gone_with(ctx, node, states, i, back[i]) for i in (0, 1)
            ]
        else:
            back = [_given_bias(ctx, node, states[0], out, cotangent)]
        found = [
            _of_term(fit_parts(ct, s), s, out)
            for ct, s in zip(back, states, strict=True)
        ]
        return turning.in_sum(ctx, node, states, found)


def _given_term(
    node: Node, states: Sequence[State], i: int, out: State, cotangent: State
) -> State:
    """Returns the cotangent with its profile by the term's z, not the sum's."""
    if all(f.profile is None for _, f in cotangent.parts):
        return cotangent
    if states[0].roots & states[1].roots:  # what the terms share is not followed
        return cotangent.map(lambda f: f.replace(profile=UNKNOWN))
    signs = (1.0, -1.0 if node.name == "sub" else 1.0)
    order = (signs[i], signs[1 - i])
    parts = []
    for (n, *terms), (_, s), (_, ct) in zip(
        aligned(*states), out.parts, cotangent.parts, strict=True
    ):
        parts.append((n, profiles.of_term(ct, s, terms[i], terms[1 - i], order)))
    return dataclasses.replace(cotangent, parts=tuple(parts))


def _given_bias(
    ctx: RuleContext, node: Node, mine: State, out: State, cotangent: State
) -> State:
    """Returns the cotangent with its profile by z of what a parameter was added to."""
    moments, _, mean, second = parameter(ctx, node)
    if moments.value is not None or all(f.profile is None for _, f in cotangent.parts):
        return cotangent
    other = Field(np.asarray(mean), np.asarray([second]), ())
    equation = node.equations[0]
    flips = [-1.0 if node.name == "sub" and i else 1.0 for i in (0, 1)]
    if equation.inputs[0] != node.inputs[0]:
        flips.reverse()
    parts = [
        (n, profiles.of_term(ct, s, f, other, (flips[0], flips[1])))
        for (n, f), (_, s), (_, ct) in zip(
            mine.parts, out.parts, cotangent.parts, strict=True
        )
    ]
    return dataclasses.replace(cotangent, parts=tuple(parts))


def _of_term(cotangent: State, term: State, total: State) -> State:
    """Returns a sum's cotangent as a term's: of the sum's power it has a share."""
    with np.errstate(under="ignore", invalid="ignore"):
        share = float(np.exp(min(term.moments()[1] - total.moments()[1], 0.0)))
    if not np.isfinite(share):
        return cotangent
    return cotangent.map(lambda f: f.replace(response=f.response.scaled(share)))


MEANS = 0.01
"""A sum of two values neither of which has zero mean: their means' fluctuations."""


def _collected(
    ctx: RuleContext, terms: dict[int, float]
) -> tuple[tuple[int, Field], ...]:
    """Adds up values that are independent of each other, with coefficients."""
    live = [(v, c) for v, c in terms.items() if c != 0.0]
    seen: frozenset[int] = frozenset()
    total: State | None = None
    for v, c in live:
        state = ctx.state_of(v)
        if seen & state.roots:
            raise NoSoundRule("a sum of functions of the same signal")
        seen |= state.roots
        part = state.map(
            lambda f, c=c: f.scaled(c * c).replace(
                mean=f.mean * np.sign(c),
                shape=f.shape if c > 0 or f.shape is None else -f.shape[::-1],
            )
        )
        if total is None:
            total = part
        else:
            runs = tuple((n, add_fields(f, g)) for n, f, g in aligned(total, part))
            total = dataclasses.replace(total, parts=runs)
    if total is None:
        raise NoSoundRule("a sum that cancels")
    return total.parts


def _has_zeros(f: Field) -> bool:
    """Whether some entries are zero, exactly."""
    made = f.shape is not None and not np.all(profiles.entries(f))
    return bool(f.empty or made or np.any(f.second == 0))


def _slope_at_zero(ctx: RuleContext, node: Node) -> float:
    """Returns the derivative at zero as the program has it: kinks are there."""
    graph, (source,) = ctx.traced.graph, node.inputs
    made = {v for e in node.equations for v in e.outputs} | {source}
    read = [v for e in node.equations for v in e.values_in if v not in made]
    part = dataclasses.replace(
        graph,
        inputs=(source, *read),
        equations=node.equations,
        outputs=(node.output,),
    )
    arrays = [jnp.asarray(ctx.weight(v).value) for v in read]
    aval = graph.avals[source]
    x = jnp.zeros(aval.shape, aval.dtype)
    _, slope = jax.jvp(
        lambda x: evaluate(part, [x, *arrays])[0], (x,), (jnp.ones_like(x),)
    )
    return float(jnp.mean(slope))


def _with_zero(slope: Numeric, zero: float) -> Numeric:
    return lambda x: np.where(x == 0.0, zero, slope(x))
