"""The curves: second moments by layer, log scale, forward left and backward right."""

import base64
import io
from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from layerwise.report.report import VarianceReport


# Okabe & Ito's palette: told apart under every common colour blindness.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}
_LABELS = {
    "forward": ("Forward", r"pre-activations, $q_\ell = E[u_\ell^2]$"),
    "backward": (
        "Backward",
        r"cotangents, $r_\ell = E[(\partial E/\partial z_\ell)^2]$",
    ),
}


def new_figure() -> tuple[Figure, tuple[Axes, Axes]]:
    """Returns a figure with a forward and a backward panel, without pyplot's state."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(11, 5.0), layout="constrained")
        left, right = figure.subplots(1, 2)
    return figure, (left, right)


def draw(
    reports: Mapping[str, VarianceReport], axes: tuple[Axes, Axes] | None = None
) -> tuple[Axes, Axes]:
    """Draws reports over each other: see `layerwise.plot_comparison`."""
    if axes is None:
        _, axes = new_figure()
    for ax, direction in zip(axes, _LABELS, strict=True):
        draw_one(reports, ax, direction)
    _legend(axes, reports)
    return axes


def draw_one(reports: Mapping[str, VarianceReport], ax: Axes, direction: str) -> Axes:
    """Draws one direction of reports over each other, without a legend."""
    with mpl.rc_context(_STYLE):
        for i, report in enumerate(reports.values()):
            _curve(ax, report, direction, PALETTE[i % len(PALETTE)])
        _decorate(ax, direction)
    return ax


def _curve(ax: Axes, report: VarianceReport, direction: str, color: str) -> None:
    s = report.summary(direction)
    layer = np.arange(s.mean.size)
    ax.fill_between(layer, s.low, s.high, color=color, alpha=0.18, linewidth=0)
    ax.plot(layer, s.mean, color=color, linewidth=1.8)
    if report.predicted:
        ax.plot(layer, report.predicted[direction], "--", color=color, linewidth=1.2)
    given = report.given(direction)
    if given is not None:
        ax.plot(layer, given, ".-", color=color, linewidth=0.6, markersize=3)


def _decorate(ax: Axes, direction: str) -> None:
    title, label = _LABELS[direction]
    ax.set_yscale("log")
    ax.set_title(title, loc="left", fontweight="bold")
    ax.set_xlabel(r"layer $\ell$  (0 is the input)")
    ax.set_ylabel(label)
    low, high = ax.get_ylim()
    if high / low < 100:  # a flat curve would otherwise fill the panel with its noise
        middle = np.sqrt(low * high)
        ax.set_ylim(min(low, middle / 10), max(high, middle * 10))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_locator(LogLocator(numticks=9))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.margins(x=0.01)


def _legend(axes: tuple[Axes, Axes], reports: Mapping[str, VarianceReport]) -> None:
    """Puts one legend below both panels, where it covers no curve."""
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=PALETTE[i % len(PALETTE)], linewidth=2.5, label=name)
        for i, name in enumerate(reports)
    ]
    grey = "0.35"
    handles.append(Line2D([], [], color=grey, linewidth=1.8, label="measured mean"))
    handles.append(Patch(color=grey, alpha=0.25, label="16-84 % of networks"))
    if any(r.predicted for r in reports.values()):
        handles.append(
            Line2D([], [], color=grey, linestyle="--", label="predicted, eq. (4), (5)")
        )
    if any(r.given("forward") is not None for r in reports.values()):
        handles.append(
            Line2D([], [], color=grey, marker=".", lw=0.6, label="this network")
        )
    figure = axes[0].get_figure()
    assert figure is not None
    with mpl.rc_context(_STYLE):
        figure.legend(
            handles=handles,
            loc="outside lower center"
            if figure.get_layout_engine() is not None
            else "lower center",
            ncols=len(handles) if len(handles) < 6 else 4,
            fontsize=9,
        )


def png_of(report: VarianceReport, dpi: int = 90) -> str:
    """Returns the report's figure as base64 PNG."""
    axes = draw({report.title: report})
    stream = io.BytesIO()
    figure = axes[0].get_figure()
    assert isinstance(figure, Figure)
    figure.savefig(stream, format="png", dpi=dpi)
    return base64.b64encode(stream.getvalue()).decode()
