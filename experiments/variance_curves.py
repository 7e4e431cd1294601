"""Second moments by layer under several schemes: measured, and predicted beside.

Draws networks of the zoo or of a class of yours, measures them on the same inputs, and
sets the paper's eq. (4) and (5), or the engine's prediction, beside the measurement.
Depths and widths: `experiments.sweep`, its forms ``depth`` and ``width``. Writes
``variance_curves.png`` and ``.svg``, ``table.csv`` (tidy) and ``config.json`` into the
work directory.

    python -m experiments.variance_curves \
        --config=experiments/configs/variance_curves.py:quick --workdir=runs/demo
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from ml_collections import ConfigDict
from rich.console import Console
from tqdm import tqdm

import layerwise as lw
from experiments import data
from experiments.launch import check_choices, check_counts, launch
from experiments.models import build, check_schemes, parse_scheme
from experiments.photos import photo_crops
from layerwise.errors import InvalidArgumentError, message


METHODS = ("recursion", "sitewise", "kernel", "none")
DIRECTIONS = ("forward", "backward")
SUBSETS = ("train", "test")


def make_inputs(config: ConfigDict, shape: tuple[int, ...]) -> np.ndarray | jax.Array:
    """Returns the batch that is propagated, of unit second moment."""
    name = str(config.inputs)
    if name == "photos":
        return photo_crops(config.batch, shape[0])
    if name == "gaussian":
        key = jax.random.key(config.seed + 1)
        return np.asarray(jax.random.normal(key, (config.batch, *shape)))
    if name in data.OURS or name.startswith("tfds:"):
        found = data.of_name(name, config.tfds, shape[0])
        images = found.train if config.subset == "train" else found.test
        return images.take(slice(config.batch))[0]
    raise InvalidArgumentError(
        message(
            f"inputs={config.inputs!r}.",
            "The inputs are photos, gaussian, digits, fungi10 and tfds:NAME.",
            "Pass --config.inputs=photos.",
        )
    )


def check(config: ConfigDict) -> None:
    """Raises what is wrong with the configuration, before any work is done."""
    check_counts(config, "batch", "draws")
    check_counts(config, "seed", least=0)
    check_choices("method", [config.method], METHODS)
    check_choices("directions", config.directions, DIRECTIONS)
    check_choices("subset", [config.subset], SUBSETS)
    model = build(config)
    check_schemes(model, make_inputs(config, model.input_shape), config.schemes)


def measure_all(config: ConfigDict) -> dict[str, lw.VarianceReport]:
    """Returns a report for each scheme of the configuration.

    All schemes are measured on the same draws of unit normals, so that what differs
    between their curves is the scheme.
    """
    model = build(config)
    inputs = make_inputs(config, model.input_shape)
    schemes = [(text, *parse_scheme(text)) for text in config.schemes]
    reports: dict[str, lw.VarianceReport] = {}
    total = config.draws * len(schemes)
    with tqdm(total=total, unit="network", desc="measuring") as bar:
        for label, scheme, cap in schemes:
            bar.set_postfix_str(label)
            start = bar.n

            def advance(done: int, _: int, start: int = start) -> None:
                bar.update(start + done - bar.n)

            reports[label] = lw.propagate_variance(
                model,
                None,
                inputs,
                draws=config.draws,
                key=jax.random.key(config.seed),
                scheme=scheme,
                cap=cap,
                chunk=4,
                progress=advance,
                method=None if config.method == "none" else config.method,
                title=f"{config.model}, {label}, {config.inputs}",
            )
    return reports


def tidy(
    reports: Mapping[str, lw.VarianceReport], directions: Sequence[str]
) -> pd.DataFrame:
    """Returns all reports' tidy tables as one, with a scheme column in front."""
    frames = [r.to_frame().assign(scheme=label) for label, r in reports.items()]
    frame = pd.concat(frames, ignore_index=True)
    frame = frame[["scheme", *frame.columns.drop("scheme")]]
    return frame[frame["direction"].isin(list(directions))].reset_index(drop=True)


def conclusion(
    reports: Mapping[str, lw.VarianceReport], directions: Sequence[str]
) -> str:
    """Says in one paragraph what the reports show, disagreement included."""
    first = next(iter(reports.values()))
    what = [
        f"{label} takes " + " and ".join(_course(r, d) for d in directions)
        for label, r in reports.items()
    ]
    said = [f"Over {first.measurement.draws_done} networks, {'; '.join(what)}."]
    methods = [r.prediction.method for r in reports.values() if r.prediction]
    if len(methods) < len(reports):
        reasons = dict.fromkeys(r.unpredicted for r in reports.values())
        return (
            f"{said[0]} Not everything is predicted: {' '.join(filter(None, reasons))}."
        )
    ends, method = [_agreement(reports, d) for d in directions], methods[0]
    off = {d: max(_worst(r, d) for r in reports.values()) for d in directions}
    where = max(off, key=lambda d: off[d])
    said.append(
        f"Beside what {method} predicts: {', and '.join(ends)}; at its worst layer "
        f"({where}) it is off by a factor {np.exp(off[where]):.2g}."
    )
    if method == "recursion" and off[where] > np.log(1.5):
        said.append(
            "The recursion averages over positions what zero padding, overlapping "
            "pooling and the correlation of neighbouring pixels do to each of them, "
            "and such averages do not compound with depth as the signal does."
        )
    return " ".join(said)


def _course(report: lw.VarianceReport, direction: str) -> str:
    s, name = report.summary(direction), "q" if direction == "forward" else "r"
    order = slice(None) if direction == "forward" else slice(None, None, -1)
    mean, sem = s.mean[order], s.sem[order]
    return f"{name} from {mean[0]:.2g} to {mean[-1]:.2g} ± {sem[-1]:.1g}"


def _agreement(reports: Mapping[str, lw.VarianceReport], direction: str) -> str:
    """Says how the end of a curve, the output or the input, was predicted."""
    point = -1 if direction == "forward" else 0
    name = "q at the output" if direction == "forward" else "r at the input"
    factors, gaps = zip(
        *(_factor(r, direction, point) for r in reports.values()), strict=True
    )
    if np.isnan(factors).any():
        return f"{name} is not predicted under every scheme"
    low, high = min(factors), max(factors)
    factor = f"{low:.2g}" if high / low < 1.05 else f"{low:.2g} to {high:.2g}"
    if min(gaps) > 2:
        return f"{name} is {factor} times that ({min(gaps):.1f} or more s.e. away)"
    return f"{name} agrees to within {max(gaps):.1f} standard errors"


def _worst(report: lw.VarianceReport, direction: str) -> float:
    """Returns the largest gap of a layer, as a logarithm; 0 if nothing is predicted."""
    ratio = report.summary(direction).mean / report.predicted[direction]
    return float(np.nanmax(np.abs(np.log(ratio)), initial=0.0))


def _factor(
    report: lw.VarianceReport, direction: str, point: int
) -> tuple[float, float]:
    """Returns measured / predicted, and the gap in standard errors."""
    s, predicted = report.summary(direction), report.predicted[direction][point]
    mean = float(s.mean[point])
    return mean / predicted, abs(mean - predicted) / float(s.sem[point])


def run(config: ConfigDict, folder: Path) -> pd.DataFrame:
    """Runs the experiment and returns the tidy table that it also writes.

    Args:
        config: The configuration.
        folder: The work directory.
    """
    reports = measure_all(config)
    console = Console(width=150)
    for report in reports.values():
        console.print(report)
        console.print()
    directions = [d for d in DIRECTIONS if d in config.directions]
    table = tidy(reports, directions)
    table.to_csv(folder / "table.csv", index=False)
    both = lw.plot_comparison(reports)
    figure = both[0].get_figure(root=True)
    assert figure is not None
    for axes, direction in zip(both, DIRECTIONS, strict=True):
        axes.set_visible(direction in directions)
    for name in ("variance_curves.png", "variance_curves.svg"):
        figure.savefig(folder / name, dpi=160)
    console.print(textwrap.fill(conclusion(reports, directions), 100))
    return table


if __name__ == "__main__":
    launch("variance_curves", check, run)
