"""One row per layer: what tables, pages and figures show of a report."""

import dataclasses
import fnmatch
import math

import numpy as np

from layerwise.measurement.coverage import Select
from layerwise.report.evidence import Evidence
from layerwise.report.factors import changes
from layerwise.report.places import short_line
from layerwise.report.report import DIRECTIONS, VarianceReport


def chosen(path: str, select: Select | None) -> bool:
    """Returns whether a layer of that path is selected."""
    if select is None:
        return True
    if callable(select):
        return bool(select(path))
    globs = (select,) if isinstance(select, str) else select
    return any(fnmatch.fnmatchcase(path, g) for g in globs)


@dataclasses.dataclass(frozen=True)
class Point:
    """A second moment at one layer, over networks.

    Attributes:
        mean: Mean over networks.
        sem: Its standard error.
        median: A typical network.
        low: 16 % quantile.
        high: 84 % quantile.
        predicted: What theory says, NaN where it says nothing.
        grade: How far that is to be trusted: "exact", "approximate"; "" for nothing.
        tolerance: Bound on the error of its logarithm, NaN where none is stated.
        given: That of the network that was passed in, NaN if there was none.
    """

    mean: float
    sem: float
    median: float
    low: float
    high: float
    predicted: float
    grade: str
    tolerance: float
    given: float

    @property
    def trust(self) -> str:
        """The grade with its tolerance: "exact", "approx. ±6 %", or ""."""
        return trust(self.grade, self.tolerance)


@dataclasses.dataclass(frozen=True)
class Row:
    """One layer; the input is layer 0.

    Attributes:
        layer: Its number.
        path: Its path.
        source: The user's line that makes it, as folder/file.py:12 (function).
        shape: Shape of its pre-activation, batch included.
        forward: q, second moment of the pre-activation.
        backward: r, second moment of the cotangent behind activation and pooling.
        changed: Name -> factor: what multiplies the signal on its way through.
    """

    layer: int
    path: str
    source: str
    shape: tuple[int, ...]
    forward: Point
    backward: Point
    changed: dict[str, float]


def rows(report: VarianceReport, select: Select | None = None) -> list[Row]:
    """Returns the rows of a report, the input first."""
    m = report.measurement
    evidence = Evidence(m)
    points = {d: _points(report, d) for d in DIRECTIONS}
    found = []
    for number, path in enumerate(("input", *m.layer_paths)):
        if not chosen(path, select):
            continue
        at = evidence.index.get(("u" if number else "input", number))
        site = m.sites[at] if at is not None else None
        found.append(
            Row(
                number,
                path,
                short_line(site.source) if site else "",
                site.shape if site else (),
                points["forward"][number],
                points["backward"][number],
                changes(evidence, number) if number and evidence.count else {},
            )
        )
    return found


def _points(report: VarianceReport, direction: str) -> list[Point]:
    s = report.summary(direction)
    nothing = np.full(s.mean.size, math.nan)
    given = report.given(direction)
    columns = {
        **{n: getattr(s, n) for n in ("mean", "sem", "median", "low", "high")},
        "predicted": report.predicted.get(direction, nothing),
        "tolerance": report.tolerances.get(direction, nothing),
        "given": nothing if given is None else given,
    }
    grades = report.grades.get(direction, ("",) * s.mean.size)
    return [
        Point(**{n: float(c[i]) for n, c in columns.items()}, grade=grade)
        for i, grade in enumerate(grades)
    ]


def trust(grade: str, tolerance: float) -> str:
    """Returns a grade and a tolerance in a few characters.

    >>> trust("exact", 0.0), trust("approximate", 0.06), trust("approximate", 5.0)
    ('exact', 'approx. ±6.2 %', 'approx. ×÷148')
    """
    name = {"approximate": "approx."}.get(grade, grade)
    if not tolerance >= 5e-4:  # or none is stated
        return name
    if tolerance < math.log(2):
        return f"{name} ±{100 * math.expm1(tolerance):.2g} %"
    factor = math.exp(min(tolerance, 700.0))
    if factor >= 1000:
        return f"{name} ×÷>1000"
    return f"{name} ×÷{factor:.2g}" if factor < 100 else f"{name} ×÷{factor:.0f}"
