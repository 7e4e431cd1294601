"""The curves: second moments by layer, log scale, forward left and backward right."""

import base64
import io
from collections.abc import Mapping
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from layerwise.report.report import VarianceReport
from layerwise.report.style import PALETTE, STYLE


_LABELS = {
    "forward": ("Forward", r"pre-activations, $q_\ell = E[u_\ell^2]$"),
    "backward": (
        "Backward",
        r"cotangents, $r_\ell = E[(\partial E/\partial z_\ell)^2]$",
    ),
}


class ShownFigure(Figure):
    """A figure that a notebook shows, without pyplot and its state."""

    def _repr_png_(self) -> bytes:
        stream = io.BytesIO()
        self.savefig(stream, format="png", dpi=90)
        return stream.getvalue()


class Panels(NamedTuple):
    """The axes of both directions; a notebook shows their figure.

    Attributes:
        forward: The panel of the signal.
        backward: The panel of the cotangents.
    """

    forward: Axes
    backward: Axes

    @property
    def figure(self) -> Figure:
        """The figure that holds them: ``.figure.savefig("curves.pdf")``."""
        figure = self.forward.get_figure(root=True)
        assert figure is not None
        return figure

    def __repr__(self) -> str:
        titles = (ax.get_title(loc="left") for ax in self)
        return f"<Panels of {self.figure!r}: {', '.join(titles)}>"

    def _repr_png_(self) -> bytes | None:
        # pyplot shows the figures that it made by itself.
        figure = self.figure
        return figure._repr_png_() if isinstance(figure, ShownFigure) else None


def new_panels() -> Panels:
    """Returns a forward and a backward panel of a figure, without pyplot's state."""
    with mpl.rc_context(STYLE):
        figure = ShownFigure(figsize=(11, 5.0), layout="constrained")
        return Panels(*figure.subplots(1, 2))


def draw(
    reports: Mapping[str, VarianceReport], axes: tuple[Axes, Axes] | None = None
) -> Panels:
    """Draws reports over each other: see `layerwise.plot_comparison`."""
    if axes is None:
        axes = new_panels()
    panels = axes if isinstance(axes, Panels) else Panels(*axes)
    figure = panels.figure
    if figure.get_layout_engine() is None and {*figure.axes} == {*panels}:
        figure.set_layout_engine("constrained")  # or the legend lies on the labels
    for ax, direction in zip(panels, _LABELS, strict=True):
        draw_one(reports, ax, direction)
    _legend(panels, reports)
    return panels


def draw_one(reports: Mapping[str, VarianceReport], ax: Axes, direction: str) -> Axes:
    """Draws one direction of reports over each other, without a legend."""
    with mpl.rc_context(STYLE):
        for i, report in enumerate(reports.values()):
            _curve(ax, report, direction, PALETTE[i % len(PALETTE)])
        _decorate(ax, direction)
    return ax


def _curve(ax: Axes, report: VarianceReport, direction: str, color: str) -> None:
    s = report.summary(direction)
    layer = np.arange(s.mean.size)
    wide = _font_size(ax) / 10
    ax.fill_between(layer, s.low, s.high, color=color, alpha=0.18, linewidth=0)
    mean = _on_log_axis(s.mean)
    ax.plot(layer, mean, color=color, linewidth=1.8 * wide)
    there = np.isfinite(np.r_[np.nan, mean, np.nan])
    lone = there[1:-1] & ~there[:-2] & ~there[2:]
    ax.plot(layer[lone], mean[lone], ".", color=color, markersize=4 * wide)
    if report.prediction is not None:
        predicted = _on_log_axis(report.predicted[direction])
        darker = tuple(0.55 * np.array(to_rgb(color)))  # seen on the line that it meets
        ax.plot(layer, predicted, "--", color=darker, linewidth=1.2 * wide)
    given = report.given(direction)
    if given is not None:
        given = _on_log_axis(given)
        ax.plot(layer, given, ".-", color=color, linewidth=0.6, markersize=3)


def _on_log_axis(values: np.ndarray) -> np.ndarray:
    """Leaves gaps where a log axis has no place: zeros would be lines to its end."""
    return np.where(values > 0, values, np.nan)


def _decorate(ax: Axes, direction: str) -> None:
    title, label = _LABELS[direction]
    size = _font_size(ax)
    ax.set_yscale("log")
    ax.set_title(title, loc="left", fontweight="bold", fontsize=size + 1)
    ax.set_xlabel(r"layer $\ell$  (0 is the input)", fontsize=size)
    ax.set_ylabel(label if _high(ax) else label.split(", ")[1], fontsize=size)
    ax.tick_params(labelsize=size - 1)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25)
    low, high = ax.get_ylim()
    if high / low < 100:  # a flat curve would otherwise fill the panel with its noise
        middle = np.sqrt(low * high)
        ax.set_ylim(min(low, middle / 10), max(high, middle * 10))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_locator(LogLocator(numticks=9))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.margins(x=0.01)


def _high(ax: Axes) -> bool:
    """Whether a panel is high enough for a label in words beside it."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    return bool(ax.get_position().height * figure.get_figheight() > 1.9)


def _font_size(ax: Axes) -> float:
    """Points that suit the width of the panel: 10 in a notebook, 8 in a paper."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    inches = ax.get_position().width * figure.get_figwidth()
    return float(np.clip(6.5 + 0.7 * inches, 7, 10))


def _legend(axes: Panels, reports: Mapping[str, VarianceReport]) -> None:
    """Puts one legend below both panels, where it covers no curve."""
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=PALETTE[i % len(PALETTE)], linewidth=2.5, label=name)
        for i, name in enumerate(reports)
    ]
    grey = "0.35"
    handles.append(Line2D([], [], color=grey, linewidth=1.8, label="measured mean"))
    handles.append(Patch(color=grey, alpha=0.25, label="16-84 % of networks"))
    for label in dict.fromkeys(filter(None, map(_foretold, reports.values()))):
        handles.append(Line2D([], [], color=grey, linestyle="--", label=label))
    if any(r.given("forward") is not None for r in reports.values()):
        handles.append(
            Line2D([], [], color=grey, marker=".", lw=0.6, label="this network")
        )
    figure = axes.figure
    size = _font_size(axes[0]) - 1
    # A label of thirty letters at this size, with its handle.
    columns = int(figure.get_figwidth() / (0.23 * size))
    placed = figure.get_layout_engine() is not None
    with mpl.rc_context(STYLE):
        figure.legend(
            handles=handles,
            loc="outside lower center" if placed else "lower center",
            ncols=max(1, min(columns, len(handles))),
            fontsize=size,
        )


def _foretold(report: VarianceReport) -> str:
    """Says how a report's dashed line was come by, and its grades."""
    p = report.prediction
    if p is None:
        return ""
    if p.method == "recursion":
        return "predicted, eq. (4), (5)"
    found = {g for grades in report.grades.values() for g in grades} - {""}
    return f"predicted, {p.method} ({', '.join(sorted(found, reverse=True))})"


def png_of(report: VarianceReport) -> str:
    """Returns the report's figure as base64 PNG."""
    shown = draw({report.title: report})._repr_png_()
    assert shown is not None
    return base64.b64encode(shown).decode()
