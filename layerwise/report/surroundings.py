"""Number formats, pooling, padding, spread, and what was not looked at."""

import math
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from layerwise.measurement.result import Measurement
from layerwise.report.evidence import Estimate, Evidence
from layerwise.report.finding import Finding
from layerwise.report.places import short
from layerwise.report.remedies import INPUT_FIX, SPREAD_FIX, scale_fix
from layerwise.tracing import Loop, TracedModel
from layerwise.tracing.primitives import LOOKUPS
from layerwise.tracing.sites import NamedValue


FEWEST = 4
"""Networks below which no ensemble mean is trusted."""

# Largest number, smallest that keeps all of its digits.
_RANGE = {"float16": (65504.0, 6.1e-5), "bfloat16": (3.39e38, 1.18e-38)}


def surroundings(evidence: Evidence, tolerance: float) -> Iterator[Finding]:
    """Yields all that is not a signal's drift or a unit's state."""
    yield from nonfinite(evidence)
    yield from _proof(evidence)
    if evidence.count:
        yield from _formats(evidence)
        yield from _windows(evidence)
        yield from _spread(evidence)
        yield from _conflict(evidence, tolerance)
        yield from _unscaled(evidence)


def nonfinite(evidence: Evidence) -> Iterator[Finding]:
    """Yields where the networks that are not finite ceased to be."""
    m = evidence.measurement
    lost = evidence.lost
    if not lost.any():
        return
    row = int(np.flatnonzero(lost)[0])
    for direction in ("forward", "backward"):
        values = m.second_moment(direction)[row]
        bad = np.flatnonzero(~np.isfinite(values) & m.read[direction][row])
        if not bad.size:
            continue
        site = m.sites[bad[0] if direction == "forward" else bad[-1]]
        dtype = _dtypes(m.traced).get(site.value, "float32")
        share = np.count_nonzero(lost) / (evidence.count + np.count_nonzero(lost))
        if site.kind == "embedding" and (found := _beyond(m, site)):
            yield found
            return
        fix = scale_fix()
        if dtype == "float16":
            fix += "  # or bfloat16 in place of float16"
        if direction == "forward" and _inputs_leave(m, dtype):
            fix = INPUT_FIX
        yield Finding(
            "nonfinite",
            "sick",
            direction,
            site.layer,
            site.path,
            {"share of networks": Estimate(float(share))},
            f"values leave the finite numbers of {dtype} here first ({site.kind}).",
            fix,
        )
        return


def _beyond(m: Measurement, site: NamedValue) -> Finding | None:
    """Integers that ask an embedding for rows that it does not have."""
    table = next((x for x in m.traced.lookups if x.root == site.value), None)
    integers = [x for x in m.inputs if jnp.issubdtype(x.dtype, jnp.integer)]
    if table is None or not integers:
        return None
    leaf = m.traced.graph.avals[m.traced.leaf_values[table.leaves[0]]]
    largest = max(int(jnp.max(x)) for x in integers)
    if largest < leaf.shape[0]:
        return None
    return Finding(
        "lookup",
        "sick",
        "forward",
        site.layer,
        site.path,
        {"rows": Estimate(leaf.shape[0]), "largest input": Estimate(largest)},
        f"the inputs ask for row {largest}, and its table has {leaf.shape[0]} of them: "
        "beyond the last one it reads NaN.",
        f"pass numbers from 0 to {leaf.shape[0] - 1}",
    )


def _proof(evidence: Evidence) -> Iterator[Finding]:
    """What would have to be there for a clean bill to mean anything."""
    m = evidence.measurement
    n = evidence.count

    def missing(reason: str, fix: str, **numbers: int) -> Finding:
        estimates = {k: Estimate(v) for k, v in numbers.items()}
        return Finding("evidence", "undecided", "", 0, "", estimates, reason, fix)

    if n < FEWEST and m.draws_done and not evidence.lost.any():
        yield missing(
            f"{n} finite networks say little about the mean of all of them.",
            "lw.propagate_variance(..., draws=16)",
            networks=n,
        )
    if len(evidence.runs) < 2:
        yield missing(
            "with a single layer nothing is propagated.",
            "pass the whole model, not one layer of it",
            layers=len(evidence.runs),
        )
    elif (
        n and evidence.hidden("forward").samples.shape[1] < 2 and len(evidence.runs) > 2
    ):
        yield missing(
            "no two places of the model carry all of its signal, nor are two blocks "
            "alike: there is nothing to compare.",
            "measure its parts one by one",
        )
    unseen = [u for u in m.untapped if u.split()[0] not in LOOKUPS]
    if unseen:
        yield missing(
            f"weights were not looked into: {short(unseen[0])}.",
            "use jax.lax.scan in place of while_loop and cond around layers",
        )


def _dtypes(part: TracedModel | Loop) -> dict[int, str]:
    found = {v: str(getattr(a, "dtype", "")) for v, a in part.graph.avals.items()}
    for loop in part.loops:
        found |= _dtypes(loop)
    return found


def _formats(evidence: Evidence) -> Iterator[Finding]:
    """Values of the model's own half-precision formats that lie outside of them."""
    dtypes = _dtypes(evidence.measurement.traced)
    for direction in ("forward", "backward"):
        rms = np.sqrt(evidence.second[direction].mean(axis=0))
        for end, what in (("high", "overflow"), ("low", "lose their digits")):
            out = []
            for i, site in enumerate(evidence.sites):
                high, low = _RANGE.get(dtypes.get(site.value, ""), (math.inf, 0.0))
                # The largest of a million normal numbers is five deviations out.
                leaves = 5 * rms[i] > high if end == "high" else 0 < rms[i] < low
                if leaves:
                    out.append(i)
            if not out:
                continue
            first = out[0] if direction == "forward" else out[-1]
            site = evidence.sites[first]
            name = dtypes[site.value]
            yield Finding(
                "precision",
                "sick",
                direction,
                site.layer,
                site.path,
                {
                    "root mean square": Estimate(float(rms[first])),
                    "places": Estimate(len(out)),
                },
                f"values {what} in {name} (range {_RANGE[name][1]:.2g} to "
                f"{_RANGE[name][0]:.3g}).",
                _format_fix(evidence.measurement, direction, name),
            )


def _format_fix(m: Measurement, direction: str, dtype: str) -> str:
    if direction == "backward":
        return "use bfloat16, or scale the loss (flax.training.dynamic_scale)"
    if _inputs_leave(m, dtype):
        return INPUT_FIX
    return scale_fix() + f"  # or bfloat16 in place of {dtype}"


def _inputs_leave(m: Measurement, dtype: str) -> bool:
    """Whether the inputs lie outside of what a number format holds."""
    if m.sites[0].kind != "input" or dtype not in _RANGE:
        return False
    high, low = _RANGE[dtype]
    rms = math.sqrt(m.second_moment("forward")[0, 0])
    return not low <= rms <= high / 5


def _windows(evidence: Evidence) -> Iterator[Finding]:
    """Padding and pooling, which the usual initializers know nothing of."""
    if evidence.normalized:
        return
    ahead = evidence.hidden("forward")
    logs = ahead.log[ahead.mean > 0]
    moved = logs[-1] - logs[0] if len(logs) else 0.0
    kept, gained = 0.0, 0.0
    worst, most = (0.0, 0), (0.0, 0)
    sites = [evidence.sites[i] for i in evidence.trunk]
    on_trunk = {s.layer for s in sites if s.kind == "u"}
    for run in evidence.runs:
        if run.number not in on_trunk:
            continue
        c = run.layer.connections
        if c.axes and c.total:
            share = math.log(c.total / (c.n_out * c.fan_in))
            kept += share
            worst = min(worst, (share, run.number))
        if any(s.kind == "max_pool" for s in run.layer.steps):
            ratio = evidence.step(("v", "z"), "forward", run.number) or 1.0
            gained += math.log(ratio)
            most = max(most, (math.log(ratio), run.number))
    if kept < math.log(0.1) and moved < 0.5 * kept:  # nothing makes up for it
        yield Finding(
            "padding_loss",
            "warning",
            "forward",
            worst[1],
            evidence.runs[worst[1] - 1].path,
            {"connections inside the map": Estimate(math.exp(kept))},
            "the shares of connections that zero padding leaves multiply to "
            f"x{math.exp(kept):.2g} over all layers; fan-in counts them all.",
            scale_fix(),
        )
    if gained > math.log(10) and moved > 0.5 * gained:
        yield Finding(
            "pooling_gain",
            "warning",
            "forward",
            most[1],
            evidence.runs[most[1] - 1].path,
            {"gain of max pooling": Estimate(math.exp(gained))},
            f"max pooling multiplies the signal by {math.exp(gained):.3g} in all, "
            "which the usual initializers do not know.",
            scale_fix(),
        )


def _spread(evidence: Evidence) -> Iterator[Finding]:
    if evidence.count < FEWEST:
        return
    for direction in ("forward", "backward"):
        series = evidence.hidden(direction)
        if series.samples.shape[1] < 2 or not (series.samples > 0).all():
            continue
        deviation = np.log(series.samples).std(axis=0, ddof=1)
        place = int(np.argmax(deviation))
        s = float(deviation[place])
        if s - 2 * s / math.sqrt(2 * evidence.count) < 1.0:
            continue
        column = int(series.columns[place])
        site = evidence.sites[column]
        yield Finding(
            "spread",
            "warning",
            direction,
            site.layer,
            evidence.place(column),
            {
                "standard deviation of log": Estimate(
                    s, s / math.sqrt(2 * evidence.count)
                ),
                "median / mean": Estimate(
                    float(np.median(series.samples[:, place]) / series.mean[place])
                ),
            },
            f"networks differ by a factor of {math.exp(s):.3g} up or down: depth over "
            "width is large, and one seed says little about the next.",
            SPREAD_FIX,
        )


def _conflict(evidence: Evidence, tolerance: float) -> Iterator[Finding]:
    """One scale moves both directions alike: their difference is out of its reach."""
    ahead, back = (evidence.hidden(d) for d in ("forward", "backward"))
    steps = ahead.samples.shape[1] - 1
    if steps < 2 or not (ahead.mean.all() and back.mean.all()):
        return
    # Every step of time brings an input of its own, and before a normalization the
    # weights' scale moves nothing.
    if evidence.recurrent or evidence.normalized:
        return
    difference = (ahead.log[-1] - ahead.log[0]) - (back.log[-1] - back.log[0])
    error = ahead.log_error.max() + back.log_error.max()
    if abs(difference) - error < 2 * math.log(tolerance):
        return
    column = int(ahead.columns[0])
    yield Finding(
        "one_scale_conflict",
        "warning",
        "",
        evidence.sites[column].layer,
        evidence.place(column),
        {"forward per layer": ahead.rate(), "backward per layer": back.rate()},
        "forward and backward need different scales: while the activations' slopes are "
        "what they are, whatever the weights' variance, one of the two moves by at "
        f"least {math.exp(abs(difference) / 2):.3g}.",
        "normalize the layers (nn.LayerNorm), or replace what acts on one direction "
        "only: overlapping pooling, padding, changing widths",
    )


def _unscaled(evidence: Evidence) -> Iterator[Finding]:
    traced = evidence.measurement.traced
    known: set[str] = set()
    for layer in traced.all_layers():
        known.update(layer.weight_leaves, layer.bias_leaves)
    steps = ("scale", "bias", "mean", "var")
    others = [
        n
        for n in traced.leaf_values
        if n not in known and n.rpartition("/")[2] not in steps
    ]
    if others:
        yield Finding(
            "unscaled",
            "note",
            "",
            0,
            "",
            {"leaves": Estimate(len(others))},
            ", ".join(others[:3])
            + (" ..." if len(others) > 3 else "")
            + " belong to no layer: most schemes leave them as the model's own init "
            "makes them.",
            "",
        )
