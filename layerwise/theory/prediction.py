"""What was predicted: the table, the grades, the reasons."""

import dataclasses
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


@dataclasses.dataclass(frozen=True, eq=False)
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
        sampled: Label of each sampled equation -> why it was.
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
    equations: int
    factors: Mapping[str, Mapping[str, float]]
    layer_paths: tuple[str, ...]
    log_spread: np.ndarray
    method: str
    resolution: str
    traced: TracedModel = dataclasses.field(repr=False)

    @property
    def coverage(self) -> str:
        """One line: how many equations have a rule, and which were sampled."""
        n = len(self.sampled)
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
            for i, site in enumerate(self.sites):
                if (site.kind, site.layer) == (k, layer):
                    return i
        raise KeyError(f"no site {kind!r} at layer {layer}")

    def curve(self, direction: str, *, log: bool = False) -> np.ndarray:
        """Returns the curve of the papers: q_0, q_1 ... q_L, or r_0 ... r_L.

        Args:
            direction: "forward" or "backward".
            log: Return natural logarithms.
        """
        source = self.log_second if log else self.second
        kind = "u" if direction == "forward" else "z"
        out = np.full(len(self.layer_paths) + 1, np.nan)
        for layer in range(len(out)):
            try:
                out[layer] = source[direction][
                    self.find(kind if layer else "input", layer)
                ]
            except KeyError:
                continue
        return out

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
        """Returns which factors moved the signal at a layer, in words."""
        parts = [f"{k} x{v:.3g}" for k, v in self.factors.get(path, {}).items()]
        return f"{path}: " + (", ".join(parts) or "nothing")

    def to_frame(self) -> "pandas.DataFrame":
        """Returns one row per site, direction and statistic."""
        import pandas as pd

        rows = []
        for direction in DIRECTIONS:
            for i, site in enumerate(self.sites):
                where = {
                    "layer": site.layer,
                    "path": site.path,
                    "kind": site.kind,
                    "direction": direction,
                }
                for statistic, values, grades in (
                    ("mean", self.mean, self.mean_grade),
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

    def __str__(self) -> str:
        """The curve as a table, with grades and the coverage line."""
        lines = [f"{self.method}: {self.coverage}", self.resolution]
        lines.append(f"{'layer':>5} {'E[u^2]':>11} {'':3} {'E[dz^2]':>11} {'':3} path")
        q, r = (self.curve(d) for d in DIRECTIONS)
        for layer in range(len(q)):
            path = "input" if layer == 0 else self.layer_paths[layer - 1]
            marks = []
            for kind, direction in (("u", "forward"), ("z", "backward")):
                try:
                    at = self.find(kind if layer else "input", layer)
                    grade = self.grade[direction][at]
                except KeyError:
                    grade = None
                marks.append("" if grade is None else grade.label[:3])
            lines.append(
                f"{layer:>5} {q[layer]:>11.4g} {marks[0]:3} {r[layer]:>11.4g} "
                f"{marks[1]:3} {path}"
            )
        return "\n".join(lines)
