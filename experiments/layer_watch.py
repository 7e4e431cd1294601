"""The layers of a classifier while it trains: measured, written down, drawn.

The measurement is `layerwise.monitor`'s: a second compiled program, of the parameters
and the batch of a step, forward and back from the loss itself. Every snapshot is a line
of ``layers.jsonl`` beside the metrics of its run.
"""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd

import layerwise as lw
from experiments.training import Images, Sgd, split
from experiments.workdir import append_line, replace_file, whole_lines
from layerwise.report import regions_plot


FILE = "layers.jsonl"


class LayerWatch:
    """Measures networks in training at every `every`-th step.

    Args:
        sgd: How they train.
        images: What they train on.
        every: Steps from one snapshot to the next.

    Attributes:
        seconds: What the snapshots took so far, compilation left out.
    """

    def __init__(self, sgd: Sgd, images: Images, every: int) -> None:
        self.every, self.seconds = every, 0.0
        self._images, self._compiled = images, False
        # As a closure: a monitor takes functions, whose arguments are arrays.
        self._monitor = lw.monitor(lambda *given: sgd.loss(*given)[0], every=every)

    def __call__(
        self,
        step: int,
        states: Sequence[dict[str, Any]],
        chosen: Sequence[jax.Array],
        folders: Sequence[Path],
    ) -> None:
        """Writes a line for each network, if it is time to.

        Args:
            step: Updates that were made before.
            states: Of the networks, from `Sgd.start` or `Sgd.step`.
            chosen: Their next batches.
            folders: Where each one's file is.
        """
        jax.block_until_ready(states)  # or the steps under way would count
        began = time.perf_counter()
        for state, rows, folder in zip(states, chosen, folders, strict=True):
            self._monitor.step = step
            batch = self._images.take(rows)
            seen = self._monitor.look(*split(state["variables"]), *batch)
            self._monitor.snapshots.clear()
            append_line(folder / FILE, seen.as_record())
        if self._compiled:
            self.seconds += time.perf_counter() - began
        self._compiled = True


def cut(folder: Path, steps: int) -> None:
    """Leaves the snapshots before a step: those after it will be made again."""
    if (folder / FILE).exists():
        kept = [y for y in whole_lines(folder / FILE) if json.loads(y)["step"] < steps]
        replace_file(folder / FILE, "".join(kept))


def snapshots(folder: Path) -> Iterator[dict[str, Any]]:
    """Yields a row for every snapshot of a run, direction, layer and place there.

    ``rms`` is the root mean square; NaN where it was not finite.
    """
    for line in whole_lines(folder / FILE):
        record = json.loads(line)
        for name, rms in record["root_mean_square"].items():
            direction, _, place = name.partition("/")
            layer, _, rest = place.partition(" ")
            path, _, kind = rest.rpartition("/")
            yield {
                "step": record["step"],
                "direction": direction,
                "layer": int(layer),
                "path": path,
                "kind": kind,
                "rms": np.nan if rms is None else rms,
            }


def draw(frame: pd.DataFrame, path: Path, *, curves: int = 6) -> None:
    """Draws root mean squares of pre-activations by layer, a colour for each step.

    Args:
        frame: Rows of `snapshots` with a column ``run``: a row of panels for each.
        path: Where to write.
        curves: Steps drawn of each run, from the first to the last.
    """
    runs = list(dict.fromkeys(frame["run"]))
    axes = regions_plot.new_axes(2, len(runs), width=4.6, height=2.7)
    for i, ax in enumerate(axes):
        name, direction = runs[i // 2], ("forward", "backward")[i % 2]
        own = frame[(frame["run"] == name) & (frame["direction"] == direction)]
        _draw_steps(ax, own[own["kind"] == "u"], curves)
        ax.set_title(f"{name}, {direction}", fontsize=9)
        ax.set(yscale="log", xlabel="layer", ylabel="root mean square")
        ax.grid(alpha=0.25)
    axes[0].legend(fontsize=7.5, title="step", title_fontsize=7.5)
    regions_plot.save(axes[0], path)


def _draw_steps(ax: Any, own: pd.DataFrame, curves: int) -> None:
    steps = np.unique(own["step"])
    some = steps[np.unique(np.linspace(0, len(steps) - 1, curves).astype(int))]
    for step, late in zip(some, np.linspace(0, 1, len(some)), strict=True):
        then = own[own["step"] == step].dropna()
        positive = then[then["rms"] > 0]
        color = (0.9 * late, 0.35, 0.8 * (1 - late))  # from blue to red
        style: dict[str, Any] = {"color": color, "linewidth": 1.2, "markersize": 2.5}
        ax.plot(positive["layer"], positive["rms"], "o-", label=f"{step}", **style)


def ratio(epochs: Sequence[tuple[float, float]]) -> float:
    """Returns the time of training with snapshots over that without them.

    Args:
        epochs: Seconds of every epoch, and those of them that snapshots took. The first
            is left out, as it compiles; there must be another.
    """
    whole, looking = np.sum(epochs[1:], axis=0)
    return float(whole / (whole - looking))
