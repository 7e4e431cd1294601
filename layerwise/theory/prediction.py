"""What was predicted: the table, the grades, the reasons."""

import dataclasses
import functools
import html
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from layerwise.theory.state import Grade
from layerwise.tracing import TracedModel
from layerwise.tracing.sites import NamedValue


if TYPE_CHECKING:
    import pandas

DIRECTIONS = ("forward", "backward")
_RANGES = {  # smallest normal and largest number
    "float16": (6.1e-5, 65504.0),
    "bfloat16": (1.2e-38, 3.4e38),
    "float32": (1.2e-38, 3.4e38),
}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """Moments at every site of a network, predicted.

    Arrays have one entry per site; NaN where nothing is predicted.

    Attributes:
        sites: Where, in program order: the same places as a measurement's.
        mean: ``{"forward": ..., "backward": ...}``, of values and of cotangents.
        second: The same, E[x^2].
        log_second: Its natural logarithm, right also beyond the range of float64.
        grade: The same, a `Grade` for each second moment.
        mean_grade: The same, for each mean.
        tolerance: Bound on the error of `log_second`, stated by the rules on the way
            there and added up; NaN for what is `measured`, and with "recursion".
        sampled: Label of each equation without a sound rule -> why it has none.
        draws: Networks that those were sampled on; with 0, what depends on them is left
            out.
        equations: Number of equations interpreted.
        factors: Layer path -> factor name -> by what it multiplied the second moment.
        layer_paths: Path of each layer, numbers 1, 2, ...
        log_spread: Per layer: variance of log q over networks, from finite width.
        method: "kernel", "sitewise" or "recursion".
        resolution: How pairs of positions were carried, in words.
        traced: The model as it was traced.
    """

    sites: tuple[NamedValue, ...]
    mean: dict[str, np.ndarray]
    second: dict[str, np.ndarray]
    log_second: dict[str, np.ndarray]
    grade: dict[str, tuple[Grade | None, ...]]
    mean_grade: dict[str, tuple[Grade | None, ...]]
    tolerance: dict[str, np.ndarray]
    sampled: Mapping[str, str]
    draws: int
    equations: int
    factors: Mapping[str, Mapping[str, float]]
    layer_paths: tuple[str, ...]
    log_spread: np.ndarray
    method: str
    resolution: str
    traced: TracedModel = dataclasses.field(repr=False)

    @property
    def coverage(self) -> str:
        """One line: how many equations have a rule, and what of the others."""
        n = len(self.sampled)
        if n and not self.draws:
            label, reason = next(iter(self.sampled.items()))
            return (
                f"Left out: what depends on {label}: {reason}. "
                "lw.predict(..., draws=48) samples it."
            )
        line = (
            f"{self.equations - n} of {self.equations} equations exact or approximate"
        )
        if n:
            listed = list(self.sampled)
            more = f" and {n - 3} more" if n > 3 else ""
            line += f"; {n} sampled: {', '.join(listed[:3])}{more}"
        return line + "."

    def find(self, kind: str, layer: int) -> int:
        """Returns the index of a site; `z` falls back to `v`, and `v` to `u`.

        Raises:
            KeyError: If the layer has no such site.
        """
        for k in {"z": ("z", "v", "u"), "v": ("v", "u")}.get(kind, (kind,)):
            if (k, layer) in self._index:
                return self._index[k, layer]
        raise KeyError(f"no site {kind!r} at layer {layer}")

    @functools.cached_property
    def _index(self) -> dict[tuple[str, int], int]:
        sites = list(enumerate(self.sites))
        return {(s.kind, s.layer): i for i, s in reversed(sites)}

    def curve(self, direction: str, *, log: bool = False) -> np.ndarray:
        """Returns the curve of the papers: q_0, q_1 ... q_L, or r_0 ... r_L.

        Args:
            direction: "forward" or "backward".
            log: Return natural logarithms.
        """
        source = self.log_second if log else self.second
        return self._along(source[direction], direction)

    def curve_tolerance(self, direction: str) -> np.ndarray:
        """Returns `tolerance` at the points of `curve`."""
        return self._along(self.tolerance[direction], direction)

    def curve_grade(self, direction: str) -> tuple[str, ...]:
        """Returns the label of `grade` at the points of `curve`; "" for none."""
        found = []
        for i in self._points(direction):
            grade = None if i is None else self.grade[direction][i]
            found.append("" if grade is None else grade.label)
        return tuple(found)

    def _along(self, values: np.ndarray, direction: str) -> np.ndarray:
        points = self._points(direction)
        return np.array([np.nan if i is None else values[i] for i in points])

    def _points(self, direction: str) -> list[int | None]:
        """Returns the site of each point of `curve`; None where there is none."""
        kind = "u" if direction == "forward" else "z"
        found: list[int | None] = []
        for layer in range(len(self.layer_paths) + 1):
            try:
                found.append(self.find(kind if layer else "input", layer))
            except KeyError:
                found.append(None)
        return found

    def out_of_range(self, dtype: str = "float32") -> dict[str, str]:
        """Returns site -> "overflow" or "underflow" where 1 sd leaves `dtype`."""
        low, high = (2 * np.log(v) for v in _RANGES[dtype])
        found = {}
        for direction in DIRECTIONS:
            for site, value in zip(self.sites, self.log_second[direction], strict=True):
                if value > high or value < low:
                    name = f"{direction} at {site.path} ({site.kind})"
                    found[name] = "overflow" if value > high else "underflow"
        return found

    def reason(self, path: str) -> str:
        """Returns which factors moved the signal at a layer, as a sentence.

        Example:
            >>> p = lw.predict(lw.zoo.f34(width=4, image_size=32), method="sitewise")
            >>> p.reason("Conv_1")[:54]
            'Conv_1: weights multiply by 2, zero padding loses 9.68'
        """
        row = self.factors.get(path, {})
        parts = [_moved(_NOUNS.get(k, k), v) for k, v in row.items()]
        return f"{path}: " + (", ".join(parts) or "nothing moves the signal") + "."

    def to_frame(self) -> "pandas.DataFrame":
        """Returns one row per site, direction and statistic.

        Columns: layer, path, kind, direction, draw (-2: a prediction belongs to none),
        statistic and value, as a measurement's, and the grade.
        """
        import pandas as pd

        rows = []
        variance = {d: self.second[d] - np.square(self.mean[d]) for d in DIRECTIONS}
        for direction in DIRECTIONS:
            for i, site in enumerate(self.sites):
                where = {
                    "layer": site.layer,
                    "path": site.path,
                    "kind": site.kind,
                    "direction": direction,
                    "draw": PREDICTED,
                }
                for statistic, values, grades in (
                    ("mean", self.mean, self.mean_grade),
                    ("variance", variance, self.grade),
                    ("second_moment", self.second, self.grade),
                    ("log_second_moment", self.log_second, self.grade),
                ):
                    grade = grades[direction][i]
                    rows.append(
                        {
                            **where,
                            "statistic": statistic,
                            "value": values[direction][i],
                            "grade": None if grade is None else grade.label,
                        }
                    )
        return pd.DataFrame(rows)

    def rows(self) -> list[tuple[int, str, float, str, float, str]]:
        """Returns layer, path, E[u^2] and its grade, E[dz^2] and its grade."""
        paths = ("input", *self.layer_paths)
        columns = [f(d) for d in DIRECTIONS for f in (self.curve, self.curve_grade)]
        return list(zip(range(len(paths)), paths, *columns, strict=True))

    def notes(self) -> list[str]:
        """Returns what a reader must know to read the numbers."""
        lines = [f"{self.method}: {self.coverage}", self.resolution]
        if self.draws:
            lines += [f"Sampled: {k}: {v}." for k, v in list(self.sampled.items())[:3]]
        for dtype in ("float16", "bfloat16", "float32"):
            crossed = self.out_of_range(dtype)
            if crossed:
                place, how = next(iter(crossed.items()))
                lines.append(f"{dtype}: {how} {place} and {len(crossed) - 1} more.")
        return lines

    def __str__(self) -> str:
        """The curve as a table, with grades and the coverage line."""
        lines = self.notes()
        lines.append(f"{'layer':>5} {'E[u^2]':>11} {'':3} {'E[dz^2]':>11} {'':3} path")
        rows = self.rows()
        shown = rows if len(rows) <= 2 * SHOWN else [*rows[:SHOWN], *rows[-SHOWN:]]
        for layer, path, q, mark, r, back in shown:
            if len(shown) < len(rows) and layer == rows[-SHOWN][0]:
                lines.append(f"  ... {len(rows) - 2 * SHOWN} more, in to_frame()")
            lines.append(
                f"{layer:>5} {q:>11.4g} {mark[:3]:3} {r:>11.4g} {back[:3]:3} {path}"
            )
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "<tr><th>" + "</th><th>".join(_HEADINGS) + "</th></tr>"
        body = "".join(
            f"<tr><td>{layer}</td><td>{html.escape(path)}</td><td>{q:.4g}</td>"
            f"<td>{mark}</td><td>{r:.4g}</td><td>{back}</td></tr>"
            for layer, path, q, mark, r, back in self.rows()
        )
        notes = "".join(f"<p>{html.escape(n)}</p>" for n in self.notes())
        return f"{notes}<table>{head}{body}</table>"


PREDICTED = -2
"""The draw that a prediction is listed under."""
SHOWN = 40
_HEADINGS = ("layer", "path", "E[u²]", "grade", "E[dz²]", "grade")
_NOUNS = {"fan": "weights", "padding": "zero padding", "activation": "the activation"}


def _moved(noun: str, factor: float) -> str:
    many = noun == "weights"
    if factor < 1:
        return f"{noun} lose{'' if many else 's'} {100 * (1 - factor):.3g} %"
    return f"{noun} multipl{'y' if many else 'ies'} by {factor:.3g}"
