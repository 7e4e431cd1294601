"""Sums and products that enter a squashing function where it is flat."""

import math
from collections.abc import Iterator

import numpy as np

from layerwise.report.evidence import Evidence, Series
from layerwise.report.finding import Finding
from layerwise.report.places import short_line
from layerwise.report.remedies import recurrent_fix, scale_fix
from layerwise.tracing import Loop, TracedModel
from layerwise.tracing.dataflow import constant_value
from layerwise.tracing.graph import Atom, Equation


ATTENTION_FIX = (
    "divide the scores by the square root of the head's width, and draw the kernels of "
    "queries and keys with variance 1 / fan_in (nn.initializers.lecun_normal())"
)

_KEEP = frozenset(
    ("broadcast_in_dim", "convert_element_type", "reshape", "squeeze", "transpose")
)


def squashing(evidence: Evidence) -> Iterator[Finding]:
    """Yields attention that is saturated, and gates that are."""
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
            factor = _factor(part, equation, root)
            if factor is None:
                continue
            found = _flat(evidence, part, column, equation, factor)
            if found is not None and found.kind not in reported:
                reported.add(found.kind)
                yield found


def _factor(
    part: TracedModel | Loop, equation: Equation, root: int | None
) -> float | None:
    """What a root is multiplied by before an equation reads it.

    None where more happens to it than layout, constant factors and, before a softmax,
    which is blind to what all scores share, masks and additive constants.
    """
    producers, flow = part.graph.producers(), part.flow
    softmax = equation.name == "exp"
    at, factor = equation.values_in[0], 1.0
    while at != root:
        made = producers.get(at)
        if made is None:
            return None
        signals = [v for v in made.values_in if flow.is_signal(v)]
        first = made.inputs[0]
        if made.name in ("mul", "div") and len(signals) == 1:
            (other,) = (a for a in made.inputs if a != signals[0])
            by = _constant(part, other)
            if not by or (made.name == "div" and first != signals[0]):
                return None
            factor = factor * by if made.name == "mul" else factor / by
        elif made.name == "sub" and softmax and first in signals:
            signals = signals[:1]  # the second is the maximum
        elif made.name not in _KEEP and not (
            softmax and made.name in ("add", "select_n")
        ):
            return None
        if len(signals) != 1:
            return None
        at = signals[0]
    return factor


def _constant(part: TracedModel | Loop, atom: Atom) -> float | None:
    """The one number that an operand consists of, if it does."""
    known = (
        constant_value(part.graph, atom, part.flow)
        if isinstance(atom, int)
        else np.asarray(atom.val)
    )
    if known is None or known.size == 0 or np.ptp(known):
        return None
    return float(known.flat[0])


def _flat(
    evidence: Evidence,
    part: TracedModel | Loop,
    column: int,
    equation: Equation,
    factor: float,
) -> Finding | None:
    site = evidence.sites[column]
    samples = evidence.second["forward"][:, [column]] * factor**2
    scores = Series(np.array([column]), samples).at(0)
    if equation.name == "exp":
        # Scores of variance s^2 over n entries: above 2 log n a few of them hold all of
        # the weight (Derrida's random energy model freezes there).
        n = (part.graph.avals[equation.values_in[0]].shape or (1,))[-1]
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
        line = short_line(equation.source)
        at = f" at {line}" if line else ""
        kind = "saturation"
        fix = recurrent_fix(evidence) if evidence.recurrent else scale_fix()
        reason = (
            f"{equation.name}{at} sees inputs of second moment "
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
