"""The report: what was measured, what theory says, side by side."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from layerwise.measurement.ensemble import GIVEN
from layerwise.measurement.result import Measurement, Summary, summarize
from layerwise.report.console import as_text
from layerwise.report.places import short


if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

    from layerwise.measurement.coverage import Select
    from layerwise.report.finding import Diagnosis
    from layerwise.report.plots import Panels
    from layerwise.theory.prediction import Prediction

DIRECTIONS = ("forward", "backward")
TOLERANCE = 100.0
"""The factor by which a verdict lets a second moment change by default."""
SYMBOL = {"forward": "q", "backward": "r"}


@dataclasses.dataclass(frozen=True, eq=False)
class VarianceReport:
    """Per-layer second moments of one model: measured, and predicted beside them.

    Curves have L + 1 points. Forward: q_0 at the input and q_l = E[u_l^2] of layer l's
    pre-activation, after the bias. Backward: r_l = E[(dE/dz_l)^2] behind layer l's
    activation and pooling, down to r_0 at the input. "Mean" is over networks, and is
    what theory predicts; deep ensembles are log-normal, so that the median, what one
    sees in a single network, can lie well below it.

    Attributes:
        measurement: All that was measured.
        prediction: What theory says of the same networks on the same inputs, or None.
        unpredicted: Why there is no prediction; empty where there is one.
        title: What the report is of.
        tolerance: The factor by which its verdict lets a second moment change.
    """

    measurement: Measurement
    prediction: "Prediction | None"
    unpredicted: str
    title: str
    tolerance: float = TOLERANCE

    @property
    def predicted(self) -> dict[str, np.ndarray]:
        """``{"forward": q, "backward": r}`` as predicted, or empty; NaN: nothing is."""
        p = self.prediction
        return {} if p is None else {d: p.curve(d) for d in DIRECTIONS}

    @property
    def grades(self) -> dict[str, tuple[str, ...]]:
        """The grades of `predicted`, "" where nothing is predicted; or empty."""
        p = self.prediction
        return {} if p is None else {d: p.curve_grade(d) for d in DIRECTIONS}

    @property
    def tolerances(self) -> dict[str, np.ndarray]:
        """Bounds on the error of the logarithm of `predicted`, NaN unstated."""
        p = self.prediction
        return {} if p is None else {d: p.curve_tolerance(d) for d in DIRECTIONS}

    def summary(self, direction: str) -> Summary:
        """Returns statistics over the ensemble of a direction's curve."""
        m = self.measurement
        return summarize(m.curve(direction)[m.ensemble])

    def given(self, direction: str) -> np.ndarray | None:
        """Returns the curve of the network whose parameters were passed, if any."""
        m = self.measurement
        rows = np.flatnonzero(m.draws == GIVEN)
        return m.curve(direction)[rows[0]] if rows.size else None

    def table(self, select: "Select | None" = None) -> "pandas.DataFrame":
        """Returns one row per layer: measured, predicted and their ratio.

        For q and for r: the mean over draws, its standard error, the median; the
        prediction with its grade and tolerance, and mean / prediction.

        Args:
            select: A glob on paths (``"block_*/Conv_0"``), several, or a predicate.
        """
        import pandas as pd

        paths = ("input", *self.measurement.layer_paths)
        columns: dict[str, Any] = {"layer": np.arange(len(paths)), "path": paths}
        for direction in DIRECTIONS:
            s = self.summary(direction)
            name = SYMBOL[direction]
            columns[f"{name}_mean"] = s.mean
            columns[f"{name}_sem"] = s.sem
            columns[f"{name}_median"] = s.median
            if self.prediction is not None:
                predicted = self.predicted[direction]
                columns[f"{name}_predicted"] = predicted
                columns[f"{name}_grade"] = self.grades[direction]
                columns[f"{name}_tolerance"] = self.tolerances[direction]
                columns[f"{name}_ratio"] = s.mean / predicted
        return _selected(pd.DataFrame(columns), select)

    def to_frame(self, select: "Select | None" = None) -> "pandas.DataFrame":
        """Returns the tidy long table, predictions included.

        Columns: layer, path, kind (the site: input, u, v, z, merge), direction, draw,
        statistic, value, grade. Draw -1 is the network that was passed in; rows of the
        statistics ``predicted_second_moment`` and ``predicted_tolerance`` have draw -2,
        as they belong to no draw, and their grade; that of all others is "measured".

        Args:
            select: A glob on paths (``"block_*/Conv_0"``), several, or a predicate.
        """
        import pandas as pd

        from layerwise.theory.prediction import PREDICTED

        parts = [self.measurement.to_frame().assign(grade="measured")]
        paths = ("input", *self.measurement.layer_paths)
        for direction in DIRECTIONS if self.prediction is not None else ():
            kind = "u" if direction == "forward" else "z"
            for statistic, values in (
                ("predicted_second_moment", self.predicted[direction]),
                ("predicted_tolerance", self.tolerances[direction]),
            ):
                columns = {
                    "layer": np.arange(len(paths)),
                    "path": paths,
                    "kind": ["input"] + [kind] * (len(paths) - 1),
                    "direction": direction,
                    "draw": PREDICTED,
                    "statistic": statistic,
                    "value": values,
                    "grade": self.grades[direction],
                }
                parts.append(pd.DataFrame(columns).dropna(subset=["value"]))
        return _selected(pd.concat(parts, ignore_index=True), select)

    def to_json(self) -> str:
        """Returns the tidy table with the verdict and the facts of the run, as JSON.

        Numbers that are not finite are null.
        """
        found = self.diagnose()
        return json.dumps(
            {
                "title": self.title,
                "verdict": found.verdict,
                "findings": [f.as_record() for f in found],
                "notes": self.notes(),
                "rows": json.loads(self.to_frame().to_json(orient="records")),
            }
        )

    def to_markdown(self, select: "Select | None" = None) -> str:
        """Returns verdict and table as Markdown; `select` as for `table`."""
        from layerwise.report.table import to_markdown

        return to_markdown(self, select)

    def to_html(
        self, path: "str | os.PathLike[str]", *, select: "Select | None" = None
    ) -> None:
        """Writes one HTML file that needs no network: verdict, curves, layers.

        Curves say at each layer what it is and what changed the signal; the table of
        layers can be sorted and filtered.

        Args:
            path: Where.
            select: As for `table`.
        """
        from layerwise.report.page import page

        pathlib.Path(path).write_text(page(self, select=select), encoding="utf-8")

    def notes(self) -> list[str]:
        """Returns what a reader must know to read the numbers."""
        m = self.measurement
        broken = m.nonfinite()
        if not m.draws_done:
            notes = [f"one network, {m.law}"]
            notes += [f"not finite, first {place}" for place in broken.values()]
            return notes + self._caveats()
        notes = [f"{m.draws_done} networks, {m.law}"]
        if m.draws_done < m.requested:
            notes.append(f"interrupted: {m.requested} were asked for")
        if broken:
            number, place = next(iter(broken.items()))
            notes.append(
                f"{len(broken)} of {len(m.draws)} networks left the finite numbers and "
                f"are not in the statistics (network {number}: {place})"
            )
        notes += self._caveats()
        scatter = max(float(self.scatter(d).max()) for d in DIRECTIONS)
        if self.prediction is not None and scatter:
            notes.append(
                f"networks scatter by a factor of {np.exp(scatter):.2g}, and rare "
                f"large ones carry the mean: {m.draws_done} are likely to average "
                "below what is predicted (ratios in parentheses)"
            )
        return notes

    def _caveats(self) -> list[str]:
        m = self.measurement
        unseen = ["not looked into: " + "; ".join(m.untapped)] if m.untapped else []
        return [*map(short, unseen), short(self._theory())]

    def scatter(self, direction: str) -> np.ndarray:
        """Returns the standard deviation over networks of log q or log r.

        It is 0 where it is not surely above 1: below, a few networks average to the
        mean of all of them.
        """
        m = self.measurement
        curve = m.curve(direction)[m.ensemble]
        logs = np.log(np.where(np.isfinite(curve) & (curve > 0), curve, np.nan))
        found = np.zeros(curve.shape[1])
        for i in np.flatnonzero(np.isfinite(logs).sum(axis=0) > 1):
            found[i] = np.nanstd(logs[:, i], ddof=1)
        surely = 1 - np.sqrt(2 / max(m.draws_done - 1, 2))  # two standard errors off
        return np.where(found * surely > 1, found, 0.0)

    def _theory(self) -> str:
        p = self.prediction
        if p is None:
            return f"no prediction: {self.unpredicted.splitlines()[0]}"
        if p.method == "recursion":
            return "predicted by eq. (4), (5) of Henmi & Kato, of unknown tolerance"
        missing = [d for d in DIRECTIONS if not any(p.curve_grade(d))]
        left_out = "; ".join(
            [f"nothing {d}" for d in missing] + [p.coverage] * bool(p.sampled)
        )
        return f"predicted by {p.method}" + (f" ({left_out})" if left_out else "")

    def diagnose(self, *, tolerance: float | None = None) -> "Diagnosis":
        """Returns what is wrong, worst first: see `layerwise.diagnose`."""
        from layerwise.report.diagnosis import diagnose

        return diagnose(self, tolerance=tolerance)

    def assert_healthy(self, *, tolerance: float | None = None) -> "Diagnosis":
        """Raises unless the network is healthy: see `layerwise.assert_healthy`."""
        from layerwise.report.diagnosis import assert_healthy

        return assert_healthy(self, tolerance=tolerance)

    @overload
    def plot(self, axes: "tuple[Axes, Axes] | None" = None) -> "Panels": ...

    @overload
    def plot(
        self, axes: None = None, *, ax: "Axes", direction: str = ...
    ) -> "Axes": ...

    def plot(
        self,
        axes: "tuple[Axes, Axes] | None" = None,
        *,
        ax: "Axes | None" = None,
        direction: str = "forward",
    ) -> "Panels | Axes":
        """Draws the curves: forward left, backward right; or one of them.

        Args:
            axes: Two axes to draw on; new ones if None.
            ax: One axes to draw one direction on, without a legend.
            direction: Which one, with `ax`: "forward" or "backward".

        Returns:
            The two axes, a tuple that a notebook shows as its figure, with that as
            `figure`; or `ax`.
        """
        if ax is not None:
            from layerwise.report.plots import draw_one

            return draw_one({self.title: self}, ax, direction)
        return plot_comparison({self.title: self}, axes)

    def __str__(self) -> str:
        return as_text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from layerwise.report.notebook import to_html

        return to_html(self)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from layerwise.report.table import rich_tables, rich_verdict

        yield from rich_tables(self, options.max_width)
        yield from self.notes()
        yield from rich_verdict(self.diagnose())


def _selected(frame: "pandas.DataFrame", select: "Select | None") -> Any:
    from layerwise.report.rows import chosen

    if select is None:
        return frame
    kept = {p: chosen(p, select) for p in frame["path"].unique()}
    return frame[frame["path"].map(kept)].reset_index(drop=True)


def plot_comparison(
    reports: Mapping[str, VarianceReport], axes: "tuple[Axes, Axes] | None" = None
) -> "Panels":
    """Draws several reports over each other, a colour each.

    Solid: mean over networks, with the band between its 16 % and 84 % quantiles over
    networks. Dashed: predicted; the legend says how, and with which grades. Thin with
    dots: the network that was passed in.

    Args:
        reports: Name -> report.
        axes: Two axes to draw on, forward and backward; new ones if None.

    Returns:
        The two axes, a tuple that a notebook shows as its figure;
        ``.figure.savefig("schemes.pdf")`` writes it.
    """
    from layerwise.report.plots import draw

    return draw(reports, axes)
