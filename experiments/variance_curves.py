"""Second moments by layer under several schemes: measured, and predicted beside.

Draws networks, measures them forward and backward on the same inputs, and sets the
paper's eq. (4) and (5) beside the measurement. Writes ``variance_curves.png`` and
``.svg``, ``table.csv`` (tidy) and ``config.json`` into the work directory.

    python -m experiments.variance_curves \
        --config=experiments/configs/variance_curves.py:quick --workdir=runs/demo
"""

import textwrap
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from ml_collections import ConfigDict
from rich.console import Console
from tqdm import tqdm

import layerwise as lw
from experiments.launch import check_counts, launch
from experiments.models import build, check_schemes, parse_scheme
from experiments.photos import photo_crops
from layerwise.errors import InvalidArgumentError, message


def make_inputs(config: ConfigDict, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the batch that is propagated, of unit second moment."""
    if config.inputs == "photos":
        return photo_crops(config.batch, shape[0])
    if config.inputs == "gaussian":
        key = jax.random.key(config.seed + 1)
        return np.asarray(jax.random.normal(key, (config.batch, *shape)))
    raise InvalidArgumentError(
        message(
            f"inputs={config.inputs!r}.",
            "The inputs are 'photos' and 'gaussian'.",
            "Pass --config.inputs=photos.",
        )
    )


def check(config: ConfigDict) -> None:
    """Raises what is wrong with the configuration, before any work is done."""
    check_counts(config, "batch", "draws")
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
                method="recursion",
                title=f"{config.model}, {label}, {config.inputs}",
            )
    return reports


def tidy(reports: Mapping[str, lw.VarianceReport]) -> pd.DataFrame:
    """Returns all reports' tidy tables as one, with a scheme column in front."""
    frames = [r.to_frame().assign(scheme=label) for label, r in reports.items()]
    frame = pd.concat(frames, ignore_index=True)
    return frame[["scheme", *frame.columns.drop("scheme")]]


def conclusion(reports: Mapping[str, lw.VarianceReport]) -> str:
    """Says in one paragraph what the reports show, disagreement included."""
    last = len(next(iter(reports.values())).measurement.layer_paths)
    drawn = next(iter(reports.values())).measurement.draws_done
    what = []
    for label, report in reports.items():
        q, r = report.summary("forward"), report.summary("backward")
        what.append(
            f"{label} takes q from {q.mean[0]:.2g} to {q.mean[-1]:.2g} ± "
            f"{q.sem[-1]:.1g} and r from {r.mean[-1]:.2g} to {r.mean[0]:.2g} ± "
            f"{r.sem[0]:.1g}"
        )
    said = []
    for direction, point, name in (
        ("forward", -1, f"eq. (4) at q_{last}"),
        ("backward", 0, "eq. (5) at r_0"),
    ):
        factors, gaps = zip(
            *(_factor(r, direction, point) for r in reports.values()), strict=True
        )
        low, high = min(factors), max(factors)
        factor = f"{low:.2g}" if high / low < 1.05 else f"{low:.2g} to {high:.2g}"
        said.append(
            f"what is measured is {factor} times what {name} says "
            f"({min(gaps):.1f} or more standard errors away)"
            if min(gaps) > 2
            else f"{name} agrees to within {max(gaps):.1f} standard errors"
        )
    worst = max(
        np.nanmax(np.abs(np.log(r.table()[[f"{n}_ratio" for n in "qr"]].to_numpy())))
        for r in reports.values()
    )
    return (
        f"Over {drawn} networks, {'; '.join(what)}. The recursion does not agree "
        f"everywhere: {said[0]}, and {said[1]}; at its worst layer it is off by a "
        f"factor {np.exp(worst):.2g}. It averages over positions what zero padding, "
        "overlapping pooling and the correlation of neighbouring pixels do to each of "
        "them, and such averages do not compound with depth as the signal does. Where "
        "a ReLU network is only rescaled, layer by layer, measurement and prediction "
        "move together: the factor between them is the network's, not the scheme's."
    )


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
    table = tidy(reports)
    table.to_csv(folder / "table.csv", index=False)
    figure = lw.plot_comparison(reports)[0].get_figure(root=True)
    assert figure is not None
    for name in ("variance_curves.png", "variance_curves.svg"):
        figure.savefig(folder / name, dpi=160)
    console.print(textwrap.fill(conclusion(reports), 100))
    return table


if __name__ == "__main__":
    launch("variance_curves", check, run)
