"""Are the units alive: dead, saturated, drifted, identical?"""

import dataclasses
import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from layerwise.report.evidence import Estimate, Evidence, Series
from layerwise.report.finding import Finding
from layerwise.report.remedies import CENTER_FIX, scale_fix
from layerwise.tracing.layers import Layer
from layerwise.tracing.model import leaf_name
from layerwise.types import Activation


ALIKE = (1e-2, 1e-3)
"""One minus the cosine between examples: below the first a warning, the second sick."""

FEW = 0.05
"""Share of the slope that may pass before units count as dead or saturated."""


def units(evidence: Evidence) -> Iterator[Finding]:
    """Yields activations that pass nothing back, and means that swamp the signal."""
    found: dict[str, list[Finding]] = {}
    for run in evidence.runs:
        for look in (_passing, _mean):
            for finding in look(evidence, run.number, run.path):
                found.setdefault(finding.kind, []).append(finding)
    for some in found.values():
        layers = {"layers": Estimate(len(some))} if len(some) > 1 else {}
        yield dataclasses.replace(some[0], evidence={**some[0].evidence, **layers})
    yield from _same(evidence)
    yield from _off(evidence)
    yield from _alike(evidence)


def _passing(evidence: Evidence, number: int, path: str) -> Iterator[Finding]:
    """E[phi'^2] as measured: the cotangents' second moment at u over that at v."""
    phi = _activation(evidence.layer(number))
    at = [evidence.index.get((k, number)) for k in "uv"]
    if phi is None or at[0] is None or at[1] is None:
        return
    below, above = (evidence.second["backward"][:, i] for i in at)
    kept = above > 0
    if not kept.any():
        return
    steepest, flat = _slopes(phi)
    share = Series(np.array(at[:1]), (below[kept] / above[kept] / steepest)[:, None])
    passing = share.at(0)
    if not passing.value + 2 * np.nan_to_num(passing.sem) < FEW:
        return
    second = Estimate(float(evidence.second["forward"][:, at[0]].mean()))
    if not second.value:  # nothing comes in: that is what is wrong, not these units
        return
    numbers = {"E[phi'^2] / max phi'^2": passing, "E[u^2]": second}
    if flat == "below":
        kind, fix = "dead_units", _live_fix(evidence, number)
        why = "nearly all units are off for nearly all examples."
    else:
        kind, fix = "saturation", scale_fix()
        why = "its pre-activations lie where it is flat."
    yield Finding(
        kind,
        "sick",
        "backward",
        number,
        path,
        numbers,
        f"only {100 * passing.value:.2g} % of the slope of its activation is left: "
        f"{why}",
        fix,
    )


def _live_fix(evidence: Evidence, number: int) -> str:
    if evidence.biased(number):
        return "start its bias at 0 (bias_init=nn.initializers.zeros)"
    return CENTER_FIX


def _activated(layer: Layer) -> bool:
    """Whether an activation is among what takes u to v."""
    return any(s.kind == "pointwise" and s.value <= layer.v for s in layer.steps)


def _activation(layer: Layer) -> Activation | None:
    """The one function of a real variable that takes u to v, if there is one."""
    steps = []
    for step in layer.steps:
        if step.value > layer.v:
            break
        if step.kind != "layout":
            steps.append(step)
    return steps[0].phi if len(steps) == 1 and steps[0].kind == "pointwise" else None


@functools.lru_cache(maxsize=256)
def _slopes(phi: Activation) -> tuple[float, str]:
    """Returns the largest phi'^2, and where phi is flat: "below", "both" or ""."""
    x = jnp.linspace(-12.0, 12.0, 481)
    slope = np.square(np.asarray(jax.vmap(jax.grad(phi))(x)))
    steepest = float(np.nanmax(slope)) or 1.0
    ends = slope[0] < 1e-3 * steepest, slope[-1] < 1e-3 * steepest
    return steepest, {(True, False): "below", (True, True): "both"}.get(ends, "")


def _mean(evidence: Evidence, number: int, path: str) -> Iterator[Finding]:
    """A mean that is the same in every network is not the randomness of one."""
    at = evidence.index.get(("u", number))
    if at is None or evidence.count < 2:
        return
    mean = evidence.mean["forward"][:, at]
    second = evidence.second["forward"][:, at].mean()
    sem = mean.std(ddof=1) / math.sqrt(len(mean))
    share = (mean.mean() ** 2 - sem**2) / second if second else 0.0
    if share < 0.5 or abs(mean.mean()) < 4 * sem:
        return
    yield Finding(
        "mean_drift",
        "warning",
        "forward",
        number,
        path,
        {
            "E[u]": Estimate(float(mean.mean()), float(sem)),
            "E[u]^2 / E[u^2]": Estimate(float(share)),
        },
        f"{100 * share:.3g} % of the pre-activations' second moment is a constant "
        "mean, the same in every network: units hardly tell inputs apart.",
        "use zero-mean weights and zero biases, or normalize before the activation",
    )


def _same(evidence: Evidence) -> Iterator[Finding]:
    """Weights that are one number: units of one layer that stay equal for ever."""
    weights = {n: evidence.weight_variance(n) for n in range(1, 1 + len(evidence.runs))}
    fixed = [n for n, w in weights.items() if w[0] > 0 and not np.ptp(w)]
    m = evidence.measurement
    if not fixed or m.draw is None or len(m.draws) < 2:
        return
    leaves = {
        leaf_name(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(m.draw(jax.random.key(0)))
    }
    for number in fixed:
        layer = evidence.layer(number)
        c = layer.connections
        units = c.fan_out // math.prod(a.taps for a in c.axes)
        own = [np.asarray(leaves[n]) for n in layer.weight_leaves if n in leaves]
        if units < 2 or not own or any(np.ptp(x) for x in own):
            continue
        yield Finding(
            "symmetric_units",
            "sick",
            "",
            number,
            evidence.runs[number - 1].path,
            {"weight": Estimate(float(own[0].flat[0]))},
            f"all of its weights are equal, so that {units} units compute the same, "
            "have the same gradients, and never learn to differ.",
            scale_fix(),
        )
        return


def _off(evidence: Evidence) -> Iterator[Finding]:
    """Channels that are zero for every example and position, where measured."""
    share = evidence.statistic("dead_fraction")
    if share is None:
        return
    for run in evidence.runs:
        made, at = (evidence.index.get((k, run.number)) for k in "uv")
        if at is None or not _activated(run.layer):
            continue  # a branch that is multiplied by zero at the start is no unit
        if made is not None and not evidence.second["forward"][:, made].any():
            continue  # nothing comes in, as from weights that start at zero
        dead = Series(np.array([at]), share[:, [at]]).at(0)
        if dead.value - 2 * np.nan_to_num(dead.sem) < 0.5:
            continue
        yield Finding(
            "dead_units",
            "sick" if dead.value > 0.9 else "warning",
            "forward",
            run.number,
            run.path,
            {"share of channels": dead},
            f"{100 * dead.value:.2g} % of its channels are zero for every example.",
            _live_fix(evidence, run.number),
        )
        return


def _alike(evidence: Evidence) -> Iterator[Finding]:
    """Rank collapse: the cosine between examples goes to 1 along the trunk."""
    cosine = evidence.statistic("cosine_examples")
    columns = evidence.hidden("forward").columns
    if cosine is None or len(columns) < 2:
        return
    series = Series(columns, 1 - cosine[:, columns])
    first, last = series.at(0), series.at(len(columns) - 1)
    upper = last.value + 2 * np.nan_to_num(last.sem)
    if not upper < ALIKE[0] or not last.value < first.value / 10:
        return
    below = np.flatnonzero(series.mean < ALIKE[0])
    column = int(columns[below[0]])
    yield Finding(
        "rank_collapse",
        "sick" if upper < ALIKE[1] else "warning",
        "forward",
        evidence.sites[column].layer,
        evidence.place(column),
        {"1 - cosine between examples": last, "at the first layer": first},
        f"all examples point the same way (cosine {1 - last.value:.6g} at the end): "
        "the last layers cannot tell them apart.",
        "use skip connections or batch normalization, or an activation with a smaller "
        "mean (nn.leaky_relu, nn.tanh)",
    )
