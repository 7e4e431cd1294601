"""Weight operations: convolution and matrix product with fresh random weights.

With zero-mean weights of variance v, independent of the signal and of each other, the
outputs of different channels are uncorrelated, and for two positions

    K_out(o, o') = v C_in sum_t K_in(src(o, t), src(o', t)),

where t runs over the taps that reach a real input at both. Exact at any width, stride,
padding, dilation and number of groups. Backward the same sum is read the other way.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from layerwise.theory import (
    data,
    few_channels,
    few_weights,
    fluctuation,
    lags as lagging,
    turning,
    weight_mean,
)
from layerwise.theory.context import Node, RuleContext
from layerwise.theory.registry import NoSoundRule, rule
from layerwise.theory.rules import groups
from layerwise.theory.state import Field, Grade, State, comb_error
from layerwise.theory.taps import convolve, over_taps
from layerwise.theory.weights import Pattern
from layerwise.tracing.connections import Axis, conv_axes


def fresh(ctx: RuleContext, node: Node) -> int:
    """Returns the position of the weight operand, if it is one.

    Raises:
        NoSoundRule: If there is no weight, its mean is not near zero, or it is fixed.
    """
    equation = node.equations[0]
    flow = ctx.traced.flow
    side = [i for i in (0, 1) if not flow.is_signal(equation.inputs[i])]
    if not side:
        raise NoSoundRule("a product of two signals")
    moments = ctx.weight(equation.inputs[side[0]])
    if moments.value is not None and moments.second > 0:
        raise NoSoundRule("the weight is the same in every network")
    shape = ctx.shape(equation.inputs[side[0]])  # type: ignore[arg-type]
    weight_mean.check(moments, shape)
    return side[0]


def kernel_of(ctx: RuleContext, node: Node) -> tuple[Pattern, tuple[Axis, ...], int]:
    """Returns the pattern of a convolution's kernel, its axes, and its channels read.

    The axes are in the order of the signal's, and have the taps of the support alone.
    """
    if fresh(ctx, node) != 1:
        raise NoSoundRule("a weight convolved with the signal as its kernel")
    equation = node.equations[0]
    roles = ctx.state_of(node.inputs[0]).axes
    first, second = equation.params["dimension_numbers"].lhs_spec[:2]
    if (roles[first], roles[second]) != ("b", "c"):
        raise NoSoundRule("a map that does not say which axis holds the examples")
    if any(roles[a] != "s" for a in equation.params["dimension_numbers"].lhs_spec[2:]):
        raise NoSoundRule("a convolution along channels")
    shapes = [ctx.shape(v) for v in equation.inputs[:2]]  # type: ignore[arg-type]
    spec = equation.params["dimension_numbers"]
    order = np.argsort(spec.lhs_spec[2:])
    taps = [spec.rhs_spec[2:][i] for i in order]
    pattern = ctx.pattern(equation.inputs[1], [spec.rhs_spec[1]], taps)
    axes = conv_axes(equation, *shapes)
    axes = pattern.crop([axes[i] for i in order])
    return pattern, axes, shapes[1][spec.rhs_spec[1]]


def _read(ctx: RuleContext, node: Node) -> int:
    """Returns the channels that one output of a convolution reads."""
    equation = node.equations[0]
    kernel = ctx.shape(equation.inputs[1])  # type: ignore[arg-type]
    return int(kernel[equation.params["dimension_numbers"].rhs_spec[1]])


@rule("conv_general_dilated", family="linear")
class Convolution:
    """Convolution with fresh weights: any stride, padding, dilation, groups; exact."""

    @staticmethod
    def forward(ctx: RuleContext, node: Node, states: Sequence[State]) -> State:
        """Sums the second moments under each output's taps, lag by lag."""
        equation = node.equations[0]
        if equation.params["batch_group_count"] != 1:
            raise NoSoundRule("batch groups")
        source = node.inputs[0]
        if source in ctx.data:
            _, axes, _ = kernel_of(ctx, node)
            wanted = tuple(_wanted(ctx, a) for a in axes)
            return Convolution._of_run(ctx, node, data.state(ctx, source, wanted))
        found = groups.runs(states[0], _read(ctx, node))
        return groups.beside([Convolution._of_run(ctx, node, run) for run in found])

    @staticmethod
    def _of_run(ctx: RuleContext, node: Node, state: State) -> State:
        """Returns the outputs that read one run of alike channels, or all of them."""
        equation = node.equations[0]
        pattern, axes, fan = kernel_of(ctx, node)
        spec = equation.params["dimension_numbers"]
        source = node.inputs[0]
        got = convolve(ctx, state.average(), axes)
        if pattern.centred:
            got = _centred(ctx, source, state, got, axes, fan)
        got = got.scaled_safe(pattern.second * fan)
        roles = ["s"] * len(spec.out_spec)
        roles[spec.out_spec[0]], roles[spec.out_spec[1]] = "b", "c"
        channels = ctx.shape(node.output)[spec.out_spec[1]] * state.channels
        channels //= fan * equation.params["feature_group_count"]
        taps = int(np.prod([a.taps for a in axes]))
        if source in ctx.data:
            spread, powers, uneven = _spread_of_data(ctx, source, axes, got.lags)
        else:
            spread = fluctuation.contracted(state, axes, got.lags)
            powers = state.average().powers if all(a.taps == 1 for a in axes) else None
            uneven = 0.0
        law, peaked = few_weights.law_of_output(
            ctx, pattern, source, state, axes, fan * taps
        )
        got = got.replace(
            weights=float(fan * taps),
            spread=spread,
            powers=powers,
            uneven=uneven,
            shape=law,
            peaked=peaked,
            empty=_emptiness(ctx, source, state, axes, fan),
        )
        if fan < state.channels:
            units = few_channels.of_units(state, axes, fan)
            got = got.replace(
                shape=few_channels.mixed(got.shape, *units),
                scatter=few_channels.between_pairs(state, axes, fan),
            )
        total = pattern.mean * fan * over_taps(state.average().mean, axes, 0)
        got = weight_mean.moved(got, total, state.average().log_scale)
        out = _output(state, tuple(roles), channels, got)
        return _graded(out, pattern, fan)

    @staticmethod
    def backward(
        ctx: RuleContext,
        node: Node,
        states: Sequence[State],
        out: State,
        cotangent: State,
    ) -> Sequence[State | None]:
        """Sums the cotangents of the outputs that each input reached."""
        rule = functools.partial(Convolution._pulled_back, ctx, node)
        return [groups.each(states[0], _read(ctx, node), out, cotangent, rule)]

    @staticmethod
    def _pulled_back(
        ctx: RuleContext, node: Node, value: State, out: State, cotangent: State
    ) -> State:
        """Returns the cotangent of one run of alike channels, or of all of them."""
        equation = node.equations[0]
        pattern, axes, read = kernel_of(ctx, node)
        kernel = ctx.shape(equation.inputs[1])  # type: ignore[arg-type]
        spec = equation.params["dimension_numbers"]
        fan = kernel[spec.rhs_spec[0]] // equation.params["feature_group_count"]
        ct = cotangent.average()
        got = convolve(ctx, ct, axes, transpose=True)
        whole = _around(ctx, node.inputs[0], value, axes)
        peaked = few_weights.excess_kurtosis(pattern.shape)
        response, own, omitted = _pulled(ctx, cotangent, ct, whole, axes, read, peaked)
        got = got.scaled_safe(pattern.second * fan * fluctuation.checked(own))
        got = got.replace(response=response, lost=ct.lost)
        got, turned = turning.in_front_of_weights(got, ct, value, out, read)
        like = _like(value, cotangent, got)
        tolerance = cotangent.tolerance + (abs(own) + turned) / 2 + omitted
        like = dataclasses.replace(like, tolerance=tolerance)
        return _graded(like, pattern, min(read, fan))


def _pulled(
    ctx: RuleContext,
    cotangent: State,
    ct: Field,
    value: State,
    axes: Sequence[Axis],
    channels: int,
    peaked: float,
) -> tuple[fluctuation.Response, float, float]:
    """Returns the response, what it adds to the logarithm, and what is left out.

    Slopes and weights at two positions, and a maximum and the weights that made it, are
    taken for independent in `sitewise`, as in the recursions that it refines; what that
    leaves out is of order 1/width. Some is left out wherever pixels are alike.
    """
    shared = (cotangent.coherent and any(a.taps > 1 for a in axes)) / channels
    pull = functools.partial(
        fluctuation.pulled_through,
        state=value,
        axes=axes,
        channels=channels,
        coherent=cotangent.coherent,
        peaked=peaked,
    )
    response, own = pull(ct)
    if not ctx.white:
        return response, own, SHARED * shared
    zero = lagging.zero(ct.lags)
    alone = dataclasses.replace(ct.response.apart(zero), turn=0.0)
    response, apart = pull(ct.replace(response=alone), coherent=False)
    return response, apart, abs(own - apart) + SHARED_APART * shared


SHARED, SHARED_APART = 0.3, 1.0
"""Per channel read: weights and masks depend on each other where pixels are alike.

The first of what is followed, the second where they are taken for independent.
"""


def _around(ctx: RuleContext, value: int, state: State, axes: Sequence[Axis]) -> State:
    """Returns the state of a convolution's input, data at the lags within its taps."""
    if value not in ctx.data:
        return state
    lags = []
    for a in axes:
        # Those between two taps, and twice those.
        reach = (a.taps - 1) * a.kernel_dilation // a.input_dilation
        near = range(-reach, reach + 1)
        held = {v for d in near for v in (d, 2 * d) if abs(v) < a.size}
        lags.append(tuple(sorted(held)))
    return data.state(ctx, value, tuple(lags))


def _spread_of_data(
    ctx: RuleContext,
    source: int,
    axes: Sequence[Axis],
    lags: Sequence[tuple[int, ...]],
) -> tuple[Any, np.ndarray | None, float]:
    """Relative variance and law over examples of the squares under the taps. Exact.

    And the largest variance at one position.
    """
    x = np.asarray(ctx.data[source], np.float64)
    if ctx.white or x.shape[0] != ctx.batch or ctx.batch == 1:
        return 0.0, None, 0.0
    squares = over_taps(np.square(x).mean(axis=-1), axes, 1)
    spread = fluctuation.of_batch(squares, lags)
    return spread, fluctuation.powers_of(squares), fluctuation.unevenness(squares)


def _wanted(ctx: RuleContext, axis: Axis) -> tuple[int, ...]:
    """Lags of the input that the held lags of the output are made of."""
    held = lagging.lag_values(axis.n_outputs, ctx.level)
    return tuple(
        sorted(
            {
                v * axis.stride // axis.input_dilation
                for v in held
                if v * axis.stride % axis.input_dilation == 0
            }
        )
    )


def _output(state: State, axes: tuple[str, ...], channels: int, field: Field) -> State:
    measured = state.grade is Grade.MEASURED
    return State(
        axes,
        ((channels, field),),
        mean_grade=state.grade if measured else Grade.EXACT,
        grade=state.grade,
        sources=state.sources,
        tolerance=state.tolerance,
        pair_tolerance=state.pair_tolerance + comb_error([f for _, f in state.parts]),
    )


def _like(value: State, cotangent: State, field: Field) -> State:
    """Returns the cotangent of `value`: the same for all of its channels."""
    parts = tuple((n, field) for n, _ in value.parts)
    return State(
        value.axes,
        parts,
        cotangent.mean_grade,
        cotangent.grade,
        cotangent.sources,
        tolerance=cotangent.tolerance,
        pair_tolerance=cotangent.pair_tolerance,
        chosen=cotangent.chosen,
        heeds=cotangent.heeds,
        coherent=cotangent.coherent,
    )


@rule("dot_general", family="linear")
class Product:
    """Matrix product with a fresh weight (dense, DenseGeneral, einsum); exact."""

    @staticmethod
    def forward(ctx: RuleContext, node: Node, states: Sequence[State]) -> State:
        """Sums over the contracted channels; positions stay."""
        side = fresh(ctx, node)
        fan, roles, channels = _geometry(ctx, node, side, states)
        pattern = _matrix(ctx, node, side)
        state = states[0]
        got = state.average()
        if pattern.centred:
            got = _centred(ctx, node.inputs[0], state, got, None, fan)
        got = got.scaled_safe(pattern.second * fan)
        law, peaked = few_weights.law_of_output(
            ctx, pattern, node.inputs[0], state, (), fan
        )
        field = Field(
            np.zeros(got.sizes),
            got.table,
            got.lags,
            got.log_scale,
            symmetric=True,
            comb=got.comb,
            weights=float(fan),
            spread=fluctuation.contracted(
                state, _ones(state), got.lags, fixed=node.inputs[0] in ctx.data
            ),
            powers=got.powers,
            uneven=got.uneven,
            shape=law,
            peaked=peaked,
            empty=_emptiness(ctx, node.inputs[0], state, _ones(state), fan),
        )
        seen = state.average()
        field = weight_mean.moved(field, pattern.mean * fan * seen.mean, seen.log_scale)
        out = _output(state, roles, channels, field.normalized())
        return _graded(out, pattern, fan)

    @staticmethod
    def backward(
        ctx: RuleContext,
        node: Node,
        states: Sequence[State],
        out: State,
        cotangent: State,
    ) -> Sequence[State | None]:
        """Sums over the output channels."""
        side = fresh(ctx, node)
        pattern = _matrix(ctx, node, side)
        equation = node.equations[0]
        (contract, batched) = equation.params["dimension_numbers"]
        shape = ctx.shape(equation.inputs[side])  # type: ignore[arg-type]
        used = {*contract[side], *batched[side]}
        fan = int(np.prod([n for a, n in enumerate(shape) if a not in used]))
        ct = cotangent.average()
        whole = ctx.state_of(node.inputs[0])
        response, own = fluctuation.pulled_through(
            ct,
            whole,
            _ones(whole),
            whole.channels,
            peaked=few_weights.excess_kurtosis(pattern.shape),
        )
        got = ct.scaled_safe(pattern.second * fan * fluctuation.checked(own))
        read = int(np.prod([shape[a] for a in contract[side]]))
        field = got.replace(joint=None, response=response)
        field, turned = turning.in_front_of_weights(field, ct, states[0], out, read)
        like = _like(states[0], cotangent, field)
        tolerance = cotangent.tolerance + (abs(own) + turned) / 2
        like = dataclasses.replace(like, tolerance=tolerance)
        return [_graded(like, pattern, min(read, fan))]


def _matrix(ctx: RuleContext, node: Node, side: int) -> Pattern:
    equation = node.equations[0]
    contract, _ = equation.params["dimension_numbers"]
    return ctx.pattern(equation.inputs[side], contract[side])


def _graded(state: State, pattern: Pattern, width: int) -> State:
    """Returns a product of weights that are not quite independent and of zero mean."""
    if pattern.independent and not pattern.mean:
        return state
    own = DEPENDENT / width * (not pattern.independent) + weight_mean.left_out(pattern)
    return dataclasses.replace(
        state,
        grade=Grade(max(state.grade, Grade.APPROXIMATE)),
        tolerance=state.tolerance + own,
        pair_tolerance=state.pair_tolerance + own,
    )


DEPENDENT = 1.0
"""Per channel: uncorrelated entries that depend on each other (orthogonal weights)."""


def _centred(
    ctx: RuleContext,
    source: int,
    state: State,
    got: Field,
    axes: Sequence[Axis] | None,
    fan: int,
) -> Field:
    """Takes out of a contraction what weights that sum to zero do not see.

    Args:
        ctx: The context.
        source: The value that is contracted.
        state: Its moments.
        got: Its pair moments summed over the taps, averaged over channels.
        axes: The convolution's, or None for a matrix product.
        fan: Channels read.
    """
    taps = int(np.prod([a.taps for a in axes or ()]))
    if source not in ctx.data:
        mean = over_taps(np.asarray(state.average().mean), axes, 0)
        unit = np.exp(state.average().log_scale - got.log_scale) / taps
        seen = mean * lagging.shifted(mean, got.lags) * unit
        return got.replace(table=got.table - seen, mean=0.0 * got.mean)
    if ctx.white:
        return got
    x = np.asarray(ctx.data[source], np.float64).sum(axis=-1, keepdims=True)
    total = fan * taps
    sums = data.of_array(ctx, over_taps(x, axes, 1) / np.sqrt(total * fan), got.lags)
    (field,) = [f.rescaled(got.log_scale) for _, f in sums.parts]
    whole = total / max(total - 1, 1)
    return got.replace(table=whole * (got.table - field.table), mean=0.0 * got.mean)


def _emptiness(
    ctx: RuleContext, source: int, state: State, axes: Sequence[Axis], fan: int
) -> float:
    """Returns how often all that an output reads is zero; data are known."""
    return 0.0 if source in ctx.data else few_channels.emptiness(state, axes, fan)


def _ones(state: State) -> list[Axis]:
    """The axes of a matrix product, which reads one position each."""
    return [Axis(size=n, taps=1) for n in state.parts[0][1].sizes]


def _geometry(
    ctx: RuleContext, node: Node, side: int, states: Sequence[State]
) -> tuple[int, tuple[str, ...], int]:
    """Returns fan-in, roles of the output's axes, and its channels."""
    equation = node.equations[0]
    contract, batched = equation.params["dimension_numbers"]
    signal = 1 - side
    shape = ctx.shape(equation.inputs[signal])  # type: ignore[arg-type]
    weight_shape = ctx.shape(equation.inputs[side])  # type: ignore[arg-type]
    roles = states[0].axes
    if any(roles[a] != "c" for a in contract[signal]):
        raise NoSoundRule("weights contracted with positions or examples")
    if any(roles[a] != "c" for a in batched[signal]):
        raise NoSoundRule("weights that differ by position")
    n_batched = len(batched[signal])
    kept = [
        a for a in range(len(shape)) if a not in (*contract[signal], *batched[signal])
    ]
    free = len(weight_shape) - len(contract[side]) - n_batched
    mine = tuple(roles[a] for a in kept)
    if any(r == "c" for r in mine):
        raise NoSoundRule("channels that are not contracted share the weight")
    out = ("c",) * n_batched + (
        mine + ("c",) * free if side == 1 else ("c",) * free + mine
    )
    fan = int(np.prod([shape[a] for a in contract[signal]]))
    dims = ctx.shape(node.output)
    channels = int(np.prod([n for n, r in zip(dims, out, strict=True) if r == "c"]))
    return fan, out, channels
