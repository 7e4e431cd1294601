"""The report's table: for a terminal, for a notebook."""

import html
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from layerwise.report.report import DIRECTIONS, SYMBOL, VarianceReport


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
        if report.predicted:
            header += [f"{symbol} predicted", "ratio"]
            predicted = report.predicted[direction]
            columns.append(list(map(number, predicted)))
            columns.append(list(map(number, s.mean / predicted)))
    paths = ("input", *report.measurement.layer_paths)
    rows = [
        [str(i), path, *values]
        for i, (path, *values) in enumerate(zip(paths, *columns, strict=True))
    ]
    return header, rows


def rich_tables(report: VarianceReport, width: int) -> list[Any]:
    """Returns the table for a terminal: one, or one a direction where it is narrow."""
    from rich.console import Console
    from rich.measure import Measurement

    whole = _rich_table(report, DIRECTIONS)
    console = Console(width=10_000)
    if Measurement.get(console, console.options, whole).maximum <= width:
        return [whole]
    return [_rich_table(report, (d,)) for d in DIRECTIONS]


def _rich_table(report: VarianceReport, directions: Sequence[str]) -> Any:
    from rich.table import Table

    header, rows = cells(report, directions)
    table = Table(title=report.title, title_justify="left")
    for i, name in enumerate(header):
        table.add_column(
            name,
            justify="left" if i == 1 else "right",
            no_wrap=True,
            overflow="fold",
            style="bold" if name.endswith("mean") else None,
        )
    for row in rows:
        table.add_row(*row)
    return table


def to_text(report: VarianceReport, width: int = 140) -> str:
    """Returns the table as plain text."""
    from rich.console import Console

    stream = io.StringIO()
    Console(file=stream, width=width, no_color=True).print(report)
    return stream.getvalue()


def to_html(report: VarianceReport) -> str:
    """Returns the table and the figure for a notebook; needs nothing from a network."""
    from layerwise.report.plots import png_of

    header, rows = cells(report)
    head = "".join(f"<th>{html.escape(h)}</th>" for h in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>"
        for row in rows
    )
    notes = "".join(f"<li>{html.escape(n)}</li>" for n in report.notes())
    return (
        f"<b>{html.escape(report.title)}</b><ul>{notes}</ul>"
        f'<img src="data:image/png;base64,{png_of(report)}" style="max-width:100%">'
        '<div style="max-height:24em;overflow:auto">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
