"""The verdict: what is wrong with a network, worst first, and whether it is well."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from layerwise.errors import InvalidArgumentError, UnhealthyError, message
from layerwise.measurement.ensemble import GIVEN
from layerwise.measurement.result import Measurement
from layerwise.measurement.statistics import REGISTRY
from layerwise.report.drift import drift
from layerwise.report.evidence import Evidence
from layerwise.report.finding import Diagnosis, Finding, worst_first
from layerwise.report.propagate import propagate_variance
from layerwise.report.remedies import GIVEN_FIX
from layerwise.report.report import TOLERANCE, VarianceReport
from layerwise.report.squashing import squashing
from layerwise.report.surroundings import nonfinite, surroundings
from layerwise.report.units import units


def diagnose(
    report: VarianceReport | Measurement, *, tolerance: float | None = None
) -> Diagnosis:
    """Says what is wrong with a network at initialization, worst first.

    What must hold is that the second moment of the signal, at the places that all of it
    passes through, changes by less than `tolerance` from the first hidden layer to the
    last, and the energy of the cotangents going back likewise; in the mean over
    networks and in a typical one. A finding rests on two standard errors, and so does
    the lack of one: where an estimate could be on either side, the verdict is
    "undecided". Beyond that: units that are dead or saturated, scores that saturate a
    softmax, outputs that are large, values outside of half precision, NaN and infinity;
    and where ``statistics=("zeros", "cosine_examples")`` were measured, dead channels
    and examples that all point the same way.

    Args:
        report: A report or a measurement.
        tolerance: The factor by which a second moment may change over the network; if
            None that of the report, or 100.

    Returns:
        The findings, worst first; `Diagnosis.verdict` is "healthy", "sick" or
        "undecided".

    Raises:
        InvalidArgumentError: If ``tolerance <= 1``.

    Example:
        >>> deep = lw.zoo.mlp(input_shape=(32,), widths=(32,) * 12,
        ...                   kernel_init=jax.nn.initializers.lecun_normal())
        >>> found = diagnose(lw.propagate_variance(deep, draws=8))
        >>> found.verdict, found[0].kind
        ('sick', 'vanishing')
    """
    if tolerance is None:
        tolerance = getattr(report, "tolerance", TOLERANCE)
    if not tolerance > 1:
        raise InvalidArgumentError(
            message(
                f"tolerance={tolerance!r}.",
                "It is the factor by which a second moment may change, up or down.",
                "Pass tolerance=100.",
            )
        )
    if isinstance(report, VarianceReport):
        measurement, title = report.measurement, report.title
    else:
        measurement, title = report, report.traced.model.name
    found = worst_first(_findings(measurement, tolerance))
    count = measurement.draws_done
    whose = f"{count} networks" if count else "this network alone"
    basis = f"{whose}, tolerance x{tolerance:g}"
    unmeasured = [w for n, w in EXTRA.items() if not _measured(measurement, n)]
    if unmeasured:
        basis += f"; not looked for: {', '.join(unmeasured)}"
    return Diagnosis(found, title, tolerance, basis)


EXTRA = {"zeros": "dead channels", "cosine_examples": "rank collapse"}
"""Statistics by which `diagnose` finds more, and what it finds by them."""


def _measured(measurement: Measurement, name: str) -> bool:
    return all(n in measurement.statistic_names for n in REGISTRY[name].outputs)


def _findings(measurement: Measurement, tolerance: float) -> Iterator[Finding]:
    evidence = Evidence(measurement)
    found = list(surroundings(evidence, tolerance))
    if evidence.count:
        found += _of_signal(evidence, tolerance)
    yield from found
    yield from _of_given(measurement, tolerance, {(f.kind, f.direction) for f in found})


def _of_signal(evidence: Evidence, tolerance: float) -> list[Finding]:
    return [*drift(evidence, tolerance), *units(evidence), *squashing(evidence)]


def _of_given(
    measurement: Measurement, tolerance: float, known: set[tuple[str, str]]
) -> Iterator[Finding]:
    """What the network that was passed in has, and the ensemble has not."""
    rows = measurement.draws == GIVEN
    if not rows.any() or rows.all():
        return
    own = Evidence(measurement, rows)
    found = _of_signal(own, tolerance) if own.count else [*nonfinite(own)]
    for finding in found:
        if (finding.kind, finding.direction) not in known:
            reason = f"in the network that was passed in, {finding.reason}"
            fix = finding.fix if finding.fix_is_code else GIVEN_FIX
            yield dataclasses.replace(finding, reason=reason, fix=fix)


def assert_healthy(
    report: Any,
    params: Any = None,
    inputs: Any = None,
    *,
    tolerance: float | None = None,
    **options: Any,
) -> Diagnosis:
    """Raises unless a network is healthy; for tests.

    Args:
        report: A report, a measurement, or a model to measure.
        params: With a model: as for `layerwise.propagate_variance`.
        inputs: With a model: as for `layerwise.propagate_variance`.
        tolerance: As for `layerwise.diagnose`.
        **options: With a model: options of `layerwise.propagate_variance`.

    Returns:
        The diagnosis, with warnings and notes if there are any.

    Raises:
        UnhealthyError: If the network is sick, or if the evidence could not have shown
            that it is; an `AssertionError`.

    Example:
        >>> deep = lw.zoo.mlp(input_shape=(32,), widths=(64,) * 6)
        >>> assert_healthy(deep, draws=8).verdict
        'healthy'
    """
    if not isinstance(report, VarianceReport | Measurement):
        options.setdefault("method", None)  # a verdict rests on measurement alone
        report = propagate_variance(report, params, inputs, **options)
    found = diagnose(report, tolerance=tolerance)
    if found.healthy:
        return found
    decisive = [f for f in found if f.severity in ("sick", "undecided")]
    shown = "\n".join(map(str, decisive[:5]))
    more = f"\n... and {len(decisive) - 5} more" if len(decisive) > 5 else ""
    raise UnhealthyError(
        message(
            f"{found.title} is {found.verdict.upper()} ({found.basis}).",
            shown + more,
            f"Begin with: {decisive[0].fix}",
        )
    )
