"""Pictures of linear regions, of their numbers, and of residual paths.

Functions take and return matplotlib `Axes`. They draw plain arrays, so that this file
needs nothing of how the numbers were found.
"""

import os
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from layerwise.report.plots import ShownFigure
from layerwise.report.style import PALETTE, STYLE


def new_axes(
    columns: int, rows: int = 1, *, width: float = 4.6, height: float = 4.2
) -> list[Axes]:
    """Returns axes in one figure, row by row, in the project's style.

    Args:
        columns: How many side by side.
        rows: How many below each other.
        width: Inches of each.
        height: Inches of each.
    """
    with mpl.rc_context(STYLE):
        size = (width * columns, height * rows)
        figure = ShownFigure(figsize=size, layout="constrained")
        return [figure.add_subplot(rows, columns, i + 1) for i in range(columns * rows)]


def save(axes: Axes, path: str | os.PathLike[str]) -> None:
    """Writes the figure that `axes` belong to."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.savefig(path, dpi=120)


def draw_mosaic(
    axes: Axes,
    polygons: Sequence[np.ndarray],
    gradients: np.ndarray,
    *,
    edge_width: float = 0.25,
) -> Axes:
    """Draws regions, coloured by affine map: equal maps have equal colours.

    Hue is the direction of the gradient on a cyclic colour map, and saturation its
    length by rank; where the network is constant it is white.

    Args:
        axes: Where.
        polygons: Vertices (m, 2) of each region.
        gradients: Gradient of one output on each region, (n, 2).
        edge_width: Line width of the boundaries, in points.
    """
    angle = np.arctan2(gradients[:, 1], gradients[:, 0])
    length = np.linalg.norm(gradients, axis=1).round(9)
    order = np.unique(length[length > 0], return_inverse=True)
    rank = np.zeros(len(length))
    if len(order[0]):
        rank[length > 0] = 0.35 + 0.65 * (order[1] + 1) / len(order[0])
    hue = mpl.colormaps["twilight"](0.5 + angle / (2 * np.pi))[:, :3]
    face = 1.0 - rank[:, None] * (1.0 - hue)
    axes.add_collection(
        PolyCollection(
            list(polygons), facecolors=face, edgecolors="black", linewidths=edge_width
        )
    )
    corners = np.concatenate(list(polygons))
    axes.set_xlim(corners[:, 0].min(), corners[:, 0].max())
    axes.set_ylim(corners[:, 1].min(), corners[:, 1].max())
    axes.set_aspect("equal")
    return axes


def draw_counts(
    axes: Axes,
    x: np.ndarray,
    series: Mapping[str, tuple[np.ndarray, np.ndarray | None]],
    *,
    lines_only: Sequence[str] = (),
) -> Axes:
    """Draws numbers of regions on a log scale, with standard errors where given.

    Args:
        axes: Where.
        x: Abscissae.
        series: Label -> values, and standard errors or None. NaN is left out.
        lines_only: Labels that are bounds, drawn dashed without markers.
    """
    for i, (label, (values, errors)) in enumerate(series.items()):
        bound = label in lines_only
        axes.errorbar(
            x,
            values,
            yerr=errors,
            color=PALETTE[i],
            marker=None if bound else "osD^v"[i % 5],
            markersize=5,
            linestyle="--" if bound else "-",
            linewidth=1.4,
            capsize=3,
            label=label,
        )
    axes.set_yscale("log")
    axes.set_xticks(x)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8.5, frameon=False)
    return axes


def draw_line_counts(
    axes: Axes,
    neurons: np.ndarray,
    mean: np.ndarray,
    sem: np.ndarray,
    depth: np.ndarray,
) -> Axes:
    """Draws pieces along a line against neurons, by depth, beside the diagonal.

    Args:
        axes: Where.
        neurons: Number of neurons of each architecture.
        mean: Mean number of pieces.
        sem: Its standard error.
        depth: Hidden layers, which decide colour and marker.
    """
    limits = np.array([neurons.min() / 1.3, neurons.max() * 1.3])
    axes.plot(limits, limits, color="0.6", linewidth=1.2, label="pieces = neurons")
    for i, d in enumerate(np.unique(depth)):
        at = depth == d
        axes.errorbar(
            neurons[at],
            mean[at],
            yerr=sem[at],
            color=PALETTE[i],
            marker="osD^v"[i % 5],
            linestyle="none",
            capsize=3,
            label=f"{d:.0f} hidden layer{'s' if d > 1 else ''}",
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xlabel("neurons")
    axes.set_ylabel("linear pieces along a line")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8.5, frameon=False)
    return axes


def draw_path_norms(
    axes: Axes, series: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> Axes:
    """Draws the gradient's norm along one path against the path's length.

    Args:
        axes: Where.
        series: Label -> branches taken, mean norm over sampled paths, standard error.
    """
    for i, (label, (lengths, mean, sem)) in enumerate(series.items()):
        axes.errorbar(
            lengths,
            mean,
            yerr=sem,
            color=PALETTE[i],
            marker="os^"[i % 3],
            markersize=4,
            capsize=2,
            label=label,
        )
    axes.set_yscale("log")
    axes.set_xlabel("path length (residual branches taken)")
    axes.set_ylabel("norm of the gradient along one path")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8.5, frameon=False)
    return axes


def draw_path_shares(
    axes: Axes,
    law: np.ndarray,
    shares: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> Axes:
    """Draws the share of all paths by length, and the share of the gradient they carry.

    Args:
        axes: Where.
        law: Share of paths of each length 0..n.
        shares: Label -> lengths and shares that add up to one over them.
    """
    axes.bar(
        np.arange(len(law)), law, color="0.8", width=0.9, label="paths: Bin(n, 1/2)"
    )
    for i, (label, (lengths, share)) in enumerate(shares.items()):
        step = np.gradient(lengths.astype(float)) if len(lengths) > 1 else 1.0
        axes.plot(  # per unit of length, where lengths were skipped
            lengths,
            share / step,
            color=PALETTE[i],
            marker="os^"[i % 3],
            markersize=4,
            label=label,
        )
    axes.set_xlabel("path length (residual branches taken)")
    axes.set_ylabel("share")
    axes.set_xlim(-1, len(law))
    axes.set_ylim(0.0, 1.4 * axes.get_ylim()[1])  # room for the legend
    axes.legend(fontsize=8.5, frameon=False)
    return axes
