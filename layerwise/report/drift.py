"""Does the signal vanish or explode along the trunk, forward or back, and why?"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from layerwise.report.evidence import Estimate, Evidence, Series, is_normalized
from layerwise.report.factors import changes
from layerwise.report.finding import Finding
from layerwise.report.remedies import (
    INPUT_FIX,
    NORMALIZE_MORE_FIX,
    SPREAD_FIX,
    WIDEN_FIX,
    depth_fix,
    scale_fix,
)
from layerwise.tracing.sites import LayerRun


DRIFT = ("vanishing", "exploding")

BORNE = 3
"""Power of the tolerance by which gradients may explode before normalizations.

Batch normalization does so by pi / (pi - 1) = 1.467 a layer behind ReLU [Yang2019]: by
2e3 in 20 layers, which train, and by 5e5 in 34, which train worse than 18 do [He2016].
"""

MAY_DIE = 0.05
"""Share of networks that may be dead before that is the network's state."""


def drift(evidence: Evidence, tolerance: float) -> Iterator[Finding]:
    """Yields vanishing and exploding signals, and spreads that hide them."""
    moved: list[Finding] = []
    for direction in ("forward", "backward"):
        series = evidence.hidden(direction)
        if series.samples.shape[1] < 2:
            continue
        if not series.mean[-1]:
            yield from _blocked(evidence, series, direction)
            continue
        live = series.at_places(series.mean > 0)  # a state may start at zero
        if live.samples.shape[1] > 1:
            moved += _moved(evidence, live, direction, tolerance)
    yield from _with_fixes(evidence, moved)
    yield from _output(evidence, tolerance)


def _with_fixes(evidence: Evidence, moved: list[Finding]) -> Iterator[Finding]:
    """Yields findings with the fix that holds for both directions together."""
    sick = [f for f in moved if f.severity == "sick"]
    narrow = any(f.kind == "dead_networks" for f in sick)
    both = {f.direction for f in sick} == {"forward", "backward"}
    for f in moved:
        if f.kind == "vanishing" and narrow:
            yield dataclasses.replace(f, fix=SPREAD_FIX)
        elif f.kind in DRIFT and both and f.fix != SPREAD_FIX:
            yield dataclasses.replace(f, fix=depth_fix(evidence, "both"))
        else:
            yield f


def _moved(
    evidence: Evidence, series: Series, direction: str, tolerance: float
) -> Iterator[Finding]:
    steps = series.samples.shape[1] - 1
    limit = math.log(tolerance)
    if evidence.on_sums:
        # What a sum adds at every block grows as a power of depth, and training bears
        # it (pre-norm stacks of a hundred layers); what multiplies, it does not.
        limit = max(limit, 2 * math.log(steps + 1))
    dead = (series.samples == 0).any(axis=1)
    if dead.any():
        yield _dead(evidence, series, direction, dead)
        if np.count_nonzero(~dead) < 2:
            return
        series = Series(series.columns, series.samples[~dead])
    mean, typical = (x - x[0] for x in (series.log, series.typical))
    grows = direction == "backward" and evidence.normalized and mean.max() > -mean.min()
    final = BORNE * limit if grows else limit

    def surely(bound: float) -> tuple[np.ndarray, bool]:
        by_mean = np.abs(mean) - series.log_error > bound
        by_typical = np.abs(typical) - series.typical_error > bound
        return (by_mean, True) if by_mean.any() else (by_typical, False)

    for bound in (final, limit):
        out, by_mean = surely(bound)
        if out.any():
            borne = bound < final
            yield _finding(evidence, series, direction, out, by_mean, limit, borne)
            return
        if (np.abs(mean) + series.log_error > bound).any() and bound == final:
            yield _unsure(evidence, series, direction, final)
            return


def _unsure(
    evidence: Evidence, series: Series, direction: str, limit: float
) -> Finding:
    place = int(np.argmax(np.abs(series.log - series.log[0]) + series.log_error))
    column = int(series.columns[place])
    return Finding(
        "evidence",
        "undecided",
        direction,
        evidence.sites[column].layer,
        evidence.place(column),
        {"factor": _factor(series, place), "networks": Estimate(evidence.count)},
        f"the change up to here is within x{math.exp(limit):.3g} or not, and "
        f"{evidence.count} networks cannot tell which.",
        f"lw.propagate_variance(..., draws={4 * max(evidence.count, 4)})",
    )


def _dead(
    evidence: Evidence, series: Series, direction: str, dead: np.ndarray
) -> Finding:
    """Some of the networks pass nothing at all."""
    place = int(np.argmax((series.samples == 0).any(axis=0)))
    column = int(series.columns[place])
    share = float(np.mean(dead))
    return Finding(
        "dead_networks",
        "sick" if share > MAY_DIE else "warning",
        direction,
        evidence.sites[column].layer,
        evidence.place(column),
        {
            "share of networks": Estimate(
                share, math.sqrt(share * (1 - share) / dead.size)
            )
        },
        f"in {int(dead.sum())} of {dead.size} networks the signal is exactly zero from "
        "here on.",
        WIDEN_FIX,
    )


def _finding(
    evidence: Evidence,
    series: Series,
    direction: str,
    out: np.ndarray,
    by_mean: bool,
    limit: float,
    borne: bool,
) -> Finding:
    logs = series.log if by_mean else series.typical
    moved = logs - logs[0]
    worst = int(np.argmax(np.where(out, np.abs(moved), 0)))
    first = int(np.flatnonzero(out)[0])
    kind = "vanishing" if moved[worst] < 0 else "exploding"
    severity = "sick"
    restored = direction == "forward" and _restored(evidence, series, limit)
    if restored or borne:
        severity = "warning"
    column = int(series.columns[first])
    if kind == "vanishing" and direction == "backward" and evidence.recurrent:
        return _memory(evidence, series, column)
    steps = np.diff(logs)
    jump = int(np.argmax(np.abs(steps)))
    numbers = {"factor": _factor(series, worst, by_mean), "per layer": series.rate()}
    if abs(steps[jump]) > 0.7 * abs(moved[worst]) and len(steps) > 2:
        column = int(series.columns[jump + 1])
        how = f"nearly all of it in one step, at {evidence.place(column)}"
    else:
        how = f"x{series.rate().value:.3g} at each of {len(steps)} steps"
    what = (
        "the signal's second moment"
        if direction == "forward"
        else "the energy of the cotangents"
    )
    whose = "" if by_mean else " in a typical network (the mean hides it)"
    why = blame(evidence, moved[worst]) if direction == "forward" else ""
    reason = f"{what} changes by {_times(moved[worst])}{whose}, {how}{why}."
    if restored:
        reason = reason[:-1] + "; a normalization restores it before the last layer."
    if borne:
        reason = (
            reason[:-1] + "; before normalizations, steps adapt to it by themselves."
        )
    return Finding(
        kind,
        severity,
        direction,
        evidence.sites[column].layer,
        evidence.place(column),
        numbers,
        reason,
        SPREAD_FIX
        if _by_scatter(series, worst, moved[worst])
        else depth_fix(evidence, direction),
    )


def _by_scatter(series: Series, place: int, moved: float) -> bool:
    """Whether networks scatter so much that a typical one vanishes at any scale.

    The logarithm of a second moment is near normal over networks, so that with the mean
    kept a typical one lies half the variance of the logarithm below it.
    """
    if moved > 0 or len(series.samples) < 2:
        return False
    relative = np.log(series.samples[:, place] / series.samples[:, 0])
    return bool(relative.var(ddof=1) / 2 > 0.5 * -moved)


def _memory(evidence: Evidence, series: Series, column: int) -> Finding:
    """The weights are those of every step, so they learn, but not from long ago."""
    rate = series.rate()
    steps = math.log(0.01) / math.log(rate.value) if 0 < rate.value < 1 else math.nan
    return Finding(
        "short_memory",
        "sick" if steps < 2 else "warning",
        "backward",
        evidence.sites[column].layer,
        evidence.place(column),
        {"per step": rate, "steps to 1/100": Estimate(steps)},
        f"the cotangents' energy changes by x{rate.value:.3g} a step: what happened "
        f"more than {steps:.2g} steps ago is hardly learned from.",
        "start the state's gate open (a bias of the update or forget gate of log(steps)"
        "), or use recurrent weights of gain 1 (nn.initializers.orthogonal())",
    )


def _times(log: float) -> str:
    return f"x{math.exp(log):.3g}" if abs(log) < 700 else f"x10^{log / 2.302585:.0f}"


def _factor(series: Series, place: int, by_mean: bool = True) -> Estimate:
    """Second moment at a place over the first, with the error of the former."""
    if not by_mean:
        value = math.exp(float(series.typical[place] - series.typical[0]))
        return Estimate(value, value * float(series.typical_error[place]) / 2)
    base = series.mean[0]
    at = series.at(place)
    return Estimate(at.value / base, at.sem / base)


def read_by_head(evidence: Evidence) -> float | None:
    """Returns the second moment that the last layer reads, from what it makes of it."""
    head = evidence.head
    if head is None or ("u", head.number) not in evidence.index:
        return None
    gain = evidence.gain(head.number)
    made = evidence.second["forward"][:, evidence.index["u", head.number]].mean()
    return float(made / gain) if gain > 0 else None


def _restored(evidence: Evidence, series: Series, limit: float) -> bool:
    """Whether the last layer reads a signal of the first one's size after all."""
    read = read_by_head(evidence)
    if read is None or read <= 0:
        return False
    last, first = series.mean[-1], series.mean[0]
    inside = abs(math.log(read / first)) < limit or abs(math.log(read)) < limit
    return inside and not 0.2 < read / last < 5


def _blocked(evidence: Evidence, series: Series, direction: str) -> Iterator[Finding]:
    site = evidence.sites[series.columns[_end(series)]]
    zero = [
        run for run in evidence.runs if not evidence.weight_variance(run.number).any()
    ]
    if zero and direction == "backward":
        run = zero[-1]
        yield Finding(
            "zero_weights",
            "undecided",
            direction,
            run.number,
            run.path,
            {"weight variance": Estimate(0.0)},
            "its weights are all zero, so that nothing comes back through it and what "
            "lies before it was not tested.",
            f"measure with {run.path} drawn: lw.propagate_variance(..., "
            'scheme="kaiming_fan_in")',
        )
        return
    yield Finding(
        "vanishing",
        "sick",
        direction,
        site.layer,
        site.path,
        {"second moment": Estimate(0.0, 0.0)},
        "the signal is exactly zero "
        + ("in every network " if evidence.count > 1 else "")
        + "from here on.",
        _unblock_fix(evidence, site.layer),
    )


def _unblock_fix(evidence: Evidence, number: int) -> str:
    """What revives a layer that hands on nothing: by what kills it."""
    ahead = evidence.hidden("forward")
    if not ahead.mean[-1]:  # then it is also why nothing comes back
        number = evidence.sites[ahead.columns[_end(ahead)]].layer
    made = evidence.index.get(("u", number))
    if made is not None and not evidence.second["forward"][:, made].any():
        return scale_fix()  # weights of zero, or a number format that ends
    if is_normalized(evidence.layer(number)):
        return NORMALIZE_MORE_FIX
    biased = evidence.biased(number)
    return scale_fix() if biased else WIDEN_FIX  # schemes draw no biases


def _end(series: Series) -> int:
    """Returns the first place from which on all is zero."""
    return int(np.flatnonzero(series.mean)[-1]) + 1 if series.mean.any() else 0


def _output(evidence: Evidence, tolerance: float) -> Iterator[Finding]:
    head = evidence.head
    if head is None or ("u", head.number) not in evidence.index:
        return
    column = evidence.index["u", head.number]
    series = Series(np.array([column]), evidence.second["forward"][:, [column]])
    if series.log[0] - series.log_error[0] > math.log(tolerance):
        made, gain = series.at(0), evidence.gain(head.number)
        numbers = {"E[u^2]": made, "gain of the weights": Estimate(gain)}
        at = evidence.index.get(("input", 0))
        inputs = 1.0
        if at is not None:
            inputs = float(evidence.second["forward"][:, at].mean())
            numbers["E[x^2] of the inputs"] = Estimate(inputs)
        yield Finding(
            "output_scale",
            "sick",
            "forward",
            head.number,
            head.path,
            numbers,
            f"the outputs start at a root mean square of {made.value**0.5:.3g}: as "
            "logits they are certain of a random answer.",
            _output_fix(evidence, head, made.value, gain, inputs),
        )


def _output_fix(
    evidence: Evidence, head: LayerRun, made: float, gain: float, inputs: float
) -> str:
    """By which is the largest: the inputs, the last weights, or what lies between."""
    between = made / (gain * inputs) if gain * inputs else 0.0
    if inputs >= max(gain, between):
        return INPUT_FIX
    if gain < between:
        return depth_fix(evidence, "forward")
    own = set(head.layer.weight_leaves)
    if any(own & set(x.leaves) for x in evidence.measurement.traced.lookups):
        return "multiply the logits by width ** -0.5: the embeddings are shared"
    return scale_fix()


def blame(evidence: Evidence, moved: float) -> str:
    """Names what a layer of the trunk multiplies by, in the geometric mean."""
    numbers = [
        n
        for n in sorted({evidence.sites[i].layer for i in evidence.trunk})
        if ("u", n) in evidence.index
        and evidence.index["u", n] in evidence.trunk
        and not (evidence.head and n == evidence.head.number)
    ]
    if len(numbers) < 2:
        return ""
    logs: dict[str, list[float]] = {}
    for n in numbers:
        for name, factor in changes(evidence, n).items():
            if factor > 0:
                logs.setdefault(name, []).append(math.log(factor))
    parts = [
        f"{name} x{math.exp(sum(some) / len(numbers)):.3g}"
        for name, some in logs.items()
        if abs(sum(some)) > 0.05 * abs(moved)
    ]
    return f" (a layer multiplies by: {', '.join(parts)})" if parts else ""
