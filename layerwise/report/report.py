"""The report: what was measured, what theory says, side by side."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from layerwise.measurement.ensemble import GIVEN
from layerwise.measurement.result import Measurement, Summary, summarize


if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

DIRECTIONS = ("forward", "backward")
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
        predicted: ``{"forward": q, "backward": r}`` by eq. (4), (5), or empty.
        unpredicted: Why there is no prediction; empty where there is one.
        title: What the report is of.
    """

    measurement: Measurement
    predicted: dict[str, np.ndarray]
    unpredicted: str
    title: str

    def summary(self, direction: str) -> Summary:
        """Returns statistics over the ensemble of a direction's curve."""
        m = self.measurement
        return summarize(m.curve(direction)[m.ensemble])

    def given(self, direction: str) -> np.ndarray | None:
        """Returns the curve of the network whose parameters were passed, if any."""
        m = self.measurement
        rows = np.flatnonzero(m.draws == GIVEN)
        return m.curve(direction)[rows[0]] if rows.size else None

    def table(self) -> "pandas.DataFrame":
        """Returns one row per layer: measured, predicted and their ratio.

        For q and for r: the mean over draws, its standard error, the median, the
        prediction, and mean / prediction.
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
            if self.predicted:
                columns[f"{name}_predicted"] = self.predicted[direction]
                columns[f"{name}_ratio"] = s.mean / self.predicted[direction]
        return pd.DataFrame(columns)

    def to_frame(self) -> "pandas.DataFrame":
        """Returns the tidy long table, predictions included.

        Columns: layer, path, kind (the site: input, u, v, z, merge), direction, draw,
        statistic, value. Draw -1 is the network that was passed in; rows of statistic
        ``predicted_second_moment`` have draw -2, as they belong to no draw.
        """
        import pandas as pd

        frame = self.measurement.to_frame()
        if not self.predicted:
            return frame
        paths = ("input", *self.measurement.layer_paths)
        parts = [frame]
        for direction in DIRECTIONS:
            kind = "u" if direction == "forward" else "z"
            parts.append(
                pd.DataFrame(
                    {
                        "layer": np.arange(len(paths)),
                        "path": paths,
                        "kind": ["input"] + [kind] * (len(paths) - 1),
                        "direction": direction,
                        "draw": -2,
                        "statistic": "predicted_second_moment",
                        "value": self.predicted[direction],
                    }
                )
            )
        return pd.concat(parts, ignore_index=True)

    def to_json(self) -> str:
        """Returns the tidy table with the facts of the run, as JSON."""
        return json.dumps(
            {
                "title": self.title,
                "notes": self.notes(),
                "rows": json.loads(self.to_frame().to_json(orient="records")),
            }
        )

    def notes(self) -> list[str]:
        """Returns what a reader must know to read the numbers."""
        m = self.measurement
        notes = [f"{m.draws_done} networks, {m.law}"]
        if m.draws_done < m.requested:
            notes.append(f"interrupted: {m.requested} were asked for")
        broken = m.nonfinite()
        if broken:
            number, place = next(iter(broken.items()))
            notes.append(
                f"{len(broken)} of {len(m.draws)} networks left the finite numbers and "
                f"are not in the statistics (network {number}: {place})"
            )
        if m.untapped:
            notes.append("not looked into: " + "; ".join(m.untapped))
        notes.append(
            "predicted by eq. (4), (5)"
            if self.predicted
            else f"no prediction: {self.unpredicted.splitlines()[0]}"
        )
        return notes

    def plot(self, axes: "tuple[Axes, Axes] | None" = None) -> "tuple[Axes, Axes]":
        """Draws the curves: forward left, backward right.

        Args:
            axes: Two axes to draw on; new ones if None.

        Returns:
            The two axes.
        """
        return plot_comparison({self.title: self}, axes)

    def __str__(self) -> str:
        from layerwise.report.table import to_text

        return to_text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from layerwise.report.table import to_html

        return to_html(self)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from layerwise.report.table import rich_tables

        yield from rich_tables(self, options.max_width)
        yield from self.notes()


def plot_comparison(
    reports: Mapping[str, VarianceReport], axes: "tuple[Axes, Axes] | None" = None
) -> "tuple[Axes, Axes]":
    """Draws several reports over each other, a colour each.

    Solid: mean over networks, with the band between its 16 % and 84 % quantiles over
    networks. Dashed: predicted. Thin with dots: the network that was passed in.

    Args:
        reports: Name -> report.
        axes: Two axes to draw on, forward and backward; new ones if None.

    Returns:
        The two axes; ``axes[0].figure.savefig(...)`` writes the figure.
    """
    from layerwise.report.plots import draw

    return draw(reports, axes)
