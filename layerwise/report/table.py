"""The report's table: for a terminal, in Markdown."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from layerwise.measurement.coverage import Select
from layerwise.report.console import fitted, natural_width, table_of
from layerwise.report.diagnosis import diagnose
from layerwise.report.finding import Diagnosis
from layerwise.report.report import DIRECTIONS, SYMBOL, VarianceReport
from layerwise.report.rows import chosen, trust


def number(value: float) -> str:
    """Returns three significant digits, without an exponent where that is shorter."""
    if not np.isfinite(value):
        return "-" if np.isnan(value) else str(value)
    if value == 0 or 1e-2 <= abs(value) < 1e4:
        return f"{value:.3g}" if abs(value) < 1e3 else f"{value:.0f}"
    return f"{value:.2e}"


def cells(
    report: VarianceReport, directions: Sequence[str] = DIRECTIONS
) -> tuple[list[str], list[list[str]]]:
    """Returns the column names and the formatted rows."""
    header = ["layer", "path"]
    columns: list[list[str]] = []
    for direction in directions:
        symbol = SYMBOL[direction]
        s = report.summary(direction)
        header += [f"{symbol} mean", "± s.e.", "median"]
        columns += [list(map(number, v)) for v in (s.mean, s.sem, s.median)]
        if report.prediction is not None:
            header += [f"{symbol} predicted", "grade", "ratio"]
            predicted = report.predicted[direction]
            columns.append(list(map(number, predicted)))
            known = (report.grades[direction], report.tolerances[direction])
            columns.append(list(map(trust, *known)))
            ratios = list(map(number, s.mean / predicted))
            wide = report.scatter(direction) > 0
            columns.append(
                [f"({r})" if w else r for r, w in zip(ratios, wide, strict=True)]
            )
    paths = ("input", *report.measurement.layer_paths)
    rows = [
        [str(i), path, *values]
        for i, (path, *values) in enumerate(zip(paths, *columns, strict=True))
    ]
    return header, rows


def rich_tables(report: VarianceReport, width: int) -> list[Any]:
    """Returns the table for a terminal: one, or one a direction where it is narrow."""
    left = ("path", "grade")
    whole = table_of(*cells(report), left=left, title=report.title)
    if natural_width(whole) <= width:
        return [whole]
    parts = {f"{report.title}, {d}": cells(report, (d,)) for d in DIRECTIONS}
    return fitted(
        lambda left_out: [
            table_of(*part, left_out, left=left, title=title)
            for title, part in parts.items()
        ],
        ("median", "± s.e."),
        report.measurement.layer_paths,
        width,
    )


_COLOUR = {
    "healthy": "green",
    "sick": "bold red",
    "undecided": "yellow",
    "warning": "yellow",
    "note": "dim",
}


def rich_verdict(found: Diagnosis, limit: int = 6) -> Iterator[Any]:
    """Yields the verdict and the worst findings, for a terminal."""
    from rich.text import Text

    yield Text.assemble(
        (found.verdict.upper(), _COLOUR[found.verdict]), f" ({found.basis})"
    )
    for finding in found.findings[:limit]:
        head, _, rest = str(finding).partition("] ")
        yield Text.assemble((f"{head}] ", _COLOUR[finding.severity]), rest)
    if len(found) > limit:
        yield Text(f"... and {len(found) - limit} more: report.diagnose()")


def to_markdown(report: VarianceReport, select: Select | None = None) -> str:
    """Returns the table as Markdown, with title, verdict and notes above it."""
    found = diagnose(report)
    header, body = cells(report)
    lines = [f"**{report.title}: {found.verdict}** ({found.basis})", ""]
    lines += [
        f"- **{f.severity}: {f.kind.replace('_', ' ')} {f.direction}".rstrip()
        + f"**{f' at `{f.path}`' if f.path else ''}: {f.reason}"
        + (f" Fix: {f'`{f.fix}`' if f.fix_is_code else f.fix}" if f.fix else "")
        for f in found
    ]
    lines += ["", "; ".join(report.notes()), ""]
    lines.append("| " + " | ".join(header) + " |")
    lines.append(
        "|" + "|".join(":--" if h in ("path", "grade") else "--:" for h in header) + "|"
    )
    for row in body:
        if chosen(row[1], select):
            lines.append("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |")
    return "\n".join(lines) + "\n"
