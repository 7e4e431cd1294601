"""The report in a notebook: verdict, figure, and a table with its curves inside."""

import html
import math
from collections.abc import Sequence

from layerwise.report.diagnosis import diagnose
from layerwise.report.page import diagnosis_html
from layerwise.report.report import SYMBOL, VarianceReport
from layerwise.report.rows import Point, Row, rows
from layerwise.report.table import number


_WIDTH, _HEIGHT = 96, 22
_CELL = 'style="padding:0 10px;white-space:nowrap;text-align:{}"'


def to_html(report: VarianceReport) -> str:
    """Returns what a notebook shows; needs nothing from a network."""
    from layerwise.report.plots import png_of

    shown = rows(report)
    notes = " · ".join(html.escape(n) for n in report.notes())
    return (
        f"<b>{html.escape(report.title)}</b> <span style='color:#5b6570'>{notes}</span>"
        f"{diagnosis_html(diagnose(report), limit=3)}"
        f'<img src="data:image/png;base64,{png_of(report)}" style="max-width:100%">'
        '<div style="max-height:24em;overflow:auto">' + _table(shown) + "</div>"
    )


def _table(shown: Sequence[Row]) -> str:
    predicts = any(r.forward.grade or r.backward.grade for r in shown)
    curves = {d: _cells([getattr(r, d) for r in shown]) for d in SYMBOL}
    names = ["layer", "path"]
    for symbol in SYMBOL.values():
        names += [f"{symbol} mean", "± s.e.", ""]
        names += [f"{symbol} predicted"] * predicts
    aligned = [(n, "left" if n == "path" else "right") for n in names]
    head = "".join(f"<th {_CELL.format(a)}>{n}</th>" for n, a in aligned)
    head += f"<th {_CELL.format('left')}>changed by</th>"
    body = []
    for i, row in enumerate(shown):
        cells = [_td(str(row.layer)), _td(html.escape(row.path), "left")]
        for direction in SYMBOL:
            point: Point = getattr(row, direction)
            cells += [_td(number(point.mean)), _td(number(point.sem))]
            cells.append(f'<td style="padding:0">{curves[direction][i]}</td>')
            if predicts:
                cells.append(_td(_foretold(point)))
        factors = ", ".join(f"{k} ×{number(v)}" for k, v in row.changed.items())
        cells.append(_td(html.escape(factors), "left"))
        body.append(f'<tr style="line-height:{_HEIGHT - 2}px">{"".join(cells)}</tr>')
    return (
        '<table style="border-collapse:collapse;font-size:13px;'
        'font-variant-numeric:tabular-nums">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    )


def _foretold(point: Point) -> str:
    if not point.grade:
        return "-"
    return f'{number(point.predicted)} <span style="color:#5b6570">{point.trust}</span>'


def _td(text: str, align: str = "right") -> str:
    return f"<td {_CELL.format(align)}>{text}</td>"


def _cells(points: Sequence[Point]) -> list[str]:
    """Returns one SVG a row, which together make one curve that runs down the table.

    Across: the second moment, log scale, the same in every row; the band is the 16-84 %
    of networks, the orange tick the prediction.
    """
    known = [v for p in points for v in (p.mean, p.low, p.high, p.predicted) if v > 0]
    finite = [math.log10(v) for v in known if math.isfinite(v)]
    if not finite:
        return ["" for _ in points]
    middle = (min(finite) + max(finite)) / 2
    half = max((max(finite) - min(finite)) / 2, 1.0)

    def x(value: float) -> float | None:
        if not (value > 0 and math.isfinite(value)):
            return None
        share = (math.log10(value) - middle) / half
        return _WIDTH / 2 + share * (_WIDTH / 2 - 6)

    means = [x(p.mean) for p in points]
    return [_cell(p, x, means, i) for i, p in enumerate(points)]


def _cell(p: Point, x, means: Sequence[float | None], i: int) -> str:  # type: ignore[no-untyped-def]
    low, high, at, predicted = x(p.low), x(p.high), means[i], x(p.predicted)
    parts, middle = [], _HEIGHT / 2
    if low is not None and high is not None:
        parts.append(
            f'<rect x="{low:.1f}" y="{middle - 4}" width="{max(high - low, 1):.1f}" '
            'height="8" fill="#0072B2" opacity=".22"/>'
        )
    for j, y in ((i - 1, 0), (i + 1, _HEIGHT)):
        if at is not None and 0 <= j < len(means) and (other := means[j]) is not None:
            parts.append(
                f'<line x1="{at:.1f}" y1="{middle}" x2="{(at + other) / 2:.1f}" '
                f'y2="{y}" stroke="#0072B2" stroke-width="1.5"/>'
            )
    if at is not None:
        parts.append(f'<circle cx="{at:.1f}" cy="{middle}" r="2.5" fill="#0072B2"/>')
    if predicted is not None:
        parts.append(
            f'<line x1="{predicted:.1f}" x2="{predicted:.1f}" y1="{middle - 6}" '
            f'y2="{middle + 6}" stroke="#D55E00" stroke-width="2"/>'
        )
    return (
        # Notebooks confine images to the width of what holds them: here, to nothing.
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" style="display:block;max-width:none;'
        f'width:{_WIDTH}px;height:{_HEIGHT}px">'
        f"{''.join(parts)}</svg>"
    )
