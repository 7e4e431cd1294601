"""Parameters beside a signal: their moments, and what adding them makes of it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from layerwise.theory import data, lags as lagging, marginal
from layerwise.theory.context import Node, RuleContext
from layerwise.theory.registry import NoSoundRule
from layerwise.theory.settled import UNSETTLED
from layerwise.theory.state import Field, State


def variation(array: np.ndarray, roles: Sequence[str], role: str) -> bool:
    """Whether an array differs along any axis of a role."""
    lead = len(roles) - array.ndim
    for a, r in enumerate(roles):
        if r == role and a >= lead and array.shape[a - lead] > 1:
            moved = np.moveaxis(array, a - lead, 0)
            if np.any(moved != moved[:1]):
                return True
    return False


def parameter(ctx: RuleContext, node: Node) -> tuple[Any, np.ndarray, float, float]:
    """Returns (its moments, one sample of it, mean, second moment) of the parameter."""
    flow = ctx.traced.flow
    (atom,) = [a for a in node.equations[0].inputs if not flow.is_signal(a)]
    moments = ctx.weight(atom)
    if moments.value is not None:
        array = moments.value
        return moments, array, float(array.mean()), float(np.mean(array**2))
    return moments, ctx.sample(atom), moments.mean, moments.second


def _add_constant(
    ctx: RuleContext, state: State, array: np.ndarray, shape: Sequence[int], flip: float
) -> State:
    """Returns the state plus a fixed array, known at every position."""
    parts = []
    constants = data.constant(ctx, array, state, shape)
    for (n, f), g in zip(state.parts, constants, strict=True):
        scale = max(f.log_scale, g.log_scale) if np.any(f.table) else g.log_scale
        f, g = f.rescaled(scale), g.rescaled(scale)
        old = flip * f.mean
        cross = old * lagging.shifted(g.mean, f.lags)
        cross = cross + g.mean * lagging.shifted(old, f.lags)
        got = f.replace(
            mean=old + g.mean,
            table=f.table + cross + g.table,
            shape=_law_of_sum(f, flip, g.shape, _variance(g)),
            settled=UNSETTLED,
            symmetric=False,
        )
        parts.append((n, got))
    return dataclasses.replace(state, parts=tuple(parts), terms=())


def _variance(f: Field) -> float:
    return float(np.mean(f.second - np.square(f.mean)))


def _law_of_sum(
    f: Field, sign: float, shape: np.ndarray | None, variance: float
) -> np.ndarray | None:
    """Returns the law of a field, or its negative, plus what has a law of its own."""
    return marginal.convolve(
        marginal.signed(f.shape, sign), _variance(f), shape, variance
    )


def _diluted(before: Field, after: Field) -> Field:
    """Returns a field to which something was added that does not fluctuate."""
    power, total = (float(np.mean(f.second)) for f in (before, after))
    share = min(power / total, 1.0) if total > 0 else 0.0
    powers = before.powers
    return after.replace(
        spread=share**2 * np.asarray(before.spread),
        empty=before.empty if share == 1.0 else 0.0,
        settled=before.settled if share == 1.0 else UNSETTLED,
        powers=None if powers is None else share * powers + (1.0 - share),
    )


def add_parameter(ctx: RuleContext, node: Node, state: State, sign: float) -> State:
    """Returns the state plus a parameter, or what `sign` makes of it."""
    moments, array, mean, second = parameter(ctx, node)
    out = [f for _, f in state.parts]
    shape = ctx.shape(node.output)
    if ctx.shape(node.inputs[0]) != shape:
        raise NoSoundRule("a signal broadcast against a parameter")
    if variation(array, state.axes, "b"):
        raise NoSoundRule("a parameter that differs by example")
    by_position = variation(array, state.axes, "s")
    if moments.value is not None and by_position:
        mine = node.equations[0].inputs.index(node.inputs[0])
        if mine == 0:
            return _add_constant(ctx, state, sign * array, shape, 1.0)
        return _add_constant(ctx, state, array, shape, sign)
    flip = -1.0 if sign < 0 and node.equations[0].inputs[1] == node.inputs[0] else 1.0
    parts = []
    for (n, _), f in zip(state.parts, out, strict=True):
        with np.errstate(under="ignore", over="ignore"):
            unit = float(np.exp(-f.log_scale)) if f.log_scale < 700 else 0.0
        if not np.isfinite(unit) or not np.any(f.table):
            f, unit = f.rescaled(0.0), 1.0
        shift = sign * flip * mean * np.sqrt(unit) * np.ones(f.sizes)
        old = f.mean * flip
        table = f.table + (
            old * lagging.shifted(shift, f.lags) + shift * lagging.shifted(old, f.lags)
        )
        inside = lagging.inside(f.lags, f.sizes)
        spread = (second - mean**2) * unit
        table = table + mean**2 * unit * inside
        if by_position:
            table[(0, *lagging.zero(f.lags))] += spread
            if f.table.shape[0] == 2:
                table[(1, *lagging.zero(f.lags))] += spread
        else:
            table = table + spread * inside
        keeps = f.symmetric and mean == 0.0
        got = f.replace(
            mean=old + shift,
            table=table,
            shape=_law_of_sum(
                f, flip, marginal.signed(moments.shape, sign * flip), spread
            ),
            symmetric=keeps,
        )
        parts.append((n, _diluted(f, got)))
    return dataclasses.replace(state, parts=tuple(parts), terms=())
