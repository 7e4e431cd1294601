"""The report as one HTML file that needs no network, and the verdict as HTML."""

import dataclasses
import html
import importlib.resources
import json
import math
from typing import Any

from layerwise.measurement.coverage import Select
from layerwise.report.diagnosis import diagnose
from layerwise.report.finding import Diagnosis
from layerwise.report.report import DIRECTIONS, VarianceReport
from layerwise.report.rows import Row, rows


def page(report: VarianceReport, *, select: Select | None = None) -> str:
    """Returns the page: verdict, curves and layers, with its script and data inside.

    Args:
        report: The report.
        select: Layers to show: globs on their paths, or a predicate; all if None.
    """
    found = diagnose(report)
    data = {
        "title": report.title,
        "notes": report.notes(),
        "method": report.prediction.method if report.prediction else "",
        "verdict": found.verdict,
        "basis": found.basis,
        "findings": [
            {
                "kind": f.kind,
                "severity": f.severity,
                "direction": f.direction,
                "layer": f.layer,
                "path": f.path,
                "reason": f.reason,
                "fix": f.fix,
                "code": f.fix_is_code,
                "evidence": ", ".join(f"{k} = {v}" for k, v in f.evidence.items()),
            }
            for f in found
        ],
        "rows": [_record(r) for r in rows(report, select)],
    }
    template = importlib.resources.files("layerwise.report").joinpath("page.html")
    # A "</script>" or "<!--" in a path or a title would end the data.
    text = json.dumps(_finite(data), separators=(",", ":")).replace("<", "\\u003c")
    return template.read_text(encoding="utf-8").replace("/*DATA*/", text)


def _record(row: Row) -> dict[str, Any]:
    record = dataclasses.asdict(row)
    for direction in DIRECTIONS:
        record[direction]["trust"] = getattr(row, direction).trust
    return record


def _finite(tree: Any) -> Any:
    """Rounds numbers to six digits; those that JSON does not know become null."""
    if isinstance(tree, dict):
        return {k: _finite(v) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(v) for v in tree]
    if isinstance(tree, float):
        return float(f"{tree:.6g}") if math.isfinite(tree) else None
    return tree


_COLOUR = {"healthy": "#00795A", "sick": "#B33A00", "undecided": "#8A6100"}


def diagnosis_html(found: Diagnosis, limit: int = 8) -> str:
    """Returns the verdict and the worst findings, for a notebook."""
    color = _COLOUR[found.verdict]
    parts = [
        f'<div style="border-left:5px solid {color};padding:4px 12px;margin:6px 0">'
        f'<b style="color:{color}">{found.verdict.upper()}</b> '
        f"({html.escape(found.basis)})"
    ]
    for f in found.findings[:limit]:
        where = f" at <code>{html.escape(f.path)}</code>" if f.path else ""
        tag = "code" if f.fix_is_code else "i"
        fix = f"<br>fix: <{tag}>{html.escape(f.fix)}</{tag}>" if f.fix else ""
        parts.append(
            f"<div style='margin-top:6px'><b>{f.severity}: "
            f"{html.escape(f.kind.replace('_', ' '))} {f.direction}</b>{where}: "
            f"{html.escape(f.reason)}{fix}</div>"
        )
    if len(found) > limit:
        parts.append(f"<div>... and {len(found) - limit} more</div>")
    return "".join(parts) + "</div>"
