"""Are the units alive: dead, saturated, drifted, identical?"""

import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from layerwise.report.evidence import Estimate, Evidence, Series
from layerwise.report.finding import Finding
from layerwise.report.remedies import scale_fix
from layerwise.tracing import Loop, TracedModel
from layerwise.tracing.graph import Equation, Graph
from layerwise.tracing.layers import Layer
from layerwise.types import Activation


ALIKE = (1e-2, 1e-3)
"""One minus the cosine between examples: below the first a warning, the second sick."""

FEW = 0.05
"""Share of the slope that may pass before units count as dead or saturated."""


ATTENTION_FIX = "divide the scores by the square root of the head's width"
LIVE_FIX = "start its bias at 0 (bias_init=nn.initializers.zeros), center its input"


def units(evidence: Evidence) -> Iterator[Finding]:
    """Yields activations that pass nothing back, and means that swamp the signal."""
    for run in evidence.runs:
        yield from _passing(evidence, run.number, run.path)
        yield from _mean(evidence, run.number, run.path)
    yield from _squashed(evidence)
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
    numbers = {"E[phi'^2] / max phi'^2": passing, "E[u^2]": second}
    if flat == "below":
        kind, fix = "dead_units", LIVE_FIX
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
        f"{100 * share:.2g} % of the pre-activations' second moment is a constant "
        "mean, the same in every network: units hardly tell inputs apart.",
        "use zero-mean weights and zero biases, or normalize before the activation",
    )


def _squashed(evidence: Evidence) -> Iterator[Finding]:
    """Sums and products that enter a squashing function where it is flat."""
    reported: set[str] = set()
    parts: list[TracedModel | Loop] = [evidence.measurement.traced]
    largest: dict[int, int] = {}  # of the iterations of a loop
    size = evidence.second["forward"].mean(axis=0)
    for i, site in enumerate(evidence.sites):
        held = largest.get(site.value)
        if held is None or size[i] > size[held]:
            largest[site.value] = i
    while parts:
        part = parts.pop()
        parts += part.loops
        for equation in part.graph.equations:
            if equation.name not in ("exp", "logistic", "tanh"):
                continue
            (value,) = equation.values_in[:1] or (None,)
            root = part.flow.root.get(value) if value is not None else None
            column = largest.get(root) if root is not None else None
            if column is None or evidence.sites[column].kind != "merge":
                continue
            softmax = equation.name == "exp"
            if not softmax and not _is_direct(part.graph, root, equation):
                continue
            found = _flat(evidence, column, equation, softmax)
            if found is not None and found.kind not in reported:
                reported.add(found.kind)
                yield found


def _is_direct(graph: Graph, root: int | None, equation: Equation) -> bool:
    """Whether an equation reads a value itself, a reshaping of it at most."""
    producers = graph.producers()
    at = equation.values_in[0]
    while at != root:
        made = producers.get(at)
        if made is None or made.name not in (
            "reshape",
            "convert_element_type",
            "transpose",
            "squeeze",
        ):
            return False
        at = made.values_in[0]
    return True


def _flat(
    evidence: Evidence, column: int, equation: Equation, softmax: bool
) -> Finding | None:
    site = evidence.sites[column]
    samples = evidence.second["forward"][:, [column]]
    scores = Series(np.array([column]), samples).at(0)
    if softmax:
        # Scores of variance s^2 over n entries: above 2 log n a few of them hold all of
        # the weight (Derrida's random energy model freezes there).
        n = site.shape[-1]
        limit = 2 * math.log(max(n, 2))
        kind, fix = "attention_saturation", ATTENTION_FIX
        reason = (
            f"softmax over {n} entries sees scores of second moment "
            f"{scores.value:.3g}, above 2 log {n} = {limit:.3g}: one entry takes all "
            "of the weight, and no gradient comes back to the scores."
        )
    else:
        # E[phi'^2] of a Gaussian of scale s falls as 1/s: below 5 % at s^2 = 113 for
        # tanh, at four times that for the logistic function.
        limit = 113.0 if equation.name == "tanh" else 4 * 113.0
        kind, fix = "saturation", scale_fix()
        reason = (
            f"{equation.name} at {equation.source} sees inputs of second moment "
            f"{scores.value:.3g}: it is flat there, and its gate neither learns nor "
            "forgets."
        )
    if not scores.value - 2 * np.nan_to_num(scores.sem) > limit:
        return None
    return Finding(
        kind,
        "sick",
        "backward",
        site.layer,
        evidence.place(column),
        {"E[x^2]": scores},
        reason,
        fix,
    )


def _off(evidence: Evidence) -> Iterator[Finding]:
    """Channels that are zero for every example and position, where measured."""
    share = evidence.statistic("dead_fraction")
    if share is None:
        return
    for run in evidence.runs:
        at = evidence.index.get(("v", run.number))
        if at is None:
            continue
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
            LIVE_FIX,
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
