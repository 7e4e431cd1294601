"""The degradation experiment: deeper plain nets train worse [He2016].

Trains the ResNet for CIFAR and its plain twin, with equal parameters, on digits at
several depths and seeds. Writes ``runs.jsonl`` (a row as soon as a net is trained; a
run that was killed continues), ``table.csv`` and ``degradation.png``.

    python -m experiments.degradation \
        --config=experiments/configs/degradation.py:quick --workdir=runs/degradation
"""

import functools
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pandas as pd
from ml_collections import ConfigDict

from experiments.blocks import NETWORKS, twin
from experiments.launch import check_choices, check_counts, check_positive, launch
from experiments.training import digits, error_rate, train_as_configured
from experiments.workdir import recorded
from layerwise.report import regions_plot
from layerwise.report.style import PALETTE


MEASURES = ("train_loss", "train_error", "test_error")


def build(config: ConfigDict, network: str, depth: int) -> nn.Module:
    """Returns a net of one depth."""
    return twin(network, depth=depth, width=config.width, image_size=config.image_size)


def train_one(
    config: ConfigDict, *, network: str, depth: int, seed: int
) -> dict[str, float]:
    """Trains one net and returns its loss and errors."""
    model = build(config, network, depth)
    data = digits(config.image_size, channels=3)
    start, order = jax.random.split(jax.random.key(seed))
    got = train_as_configured(model, data, config, start, order)
    seen = data._replace(x_test=data.x, y_test=data.y)
    return {
        "train_loss": float(got.losses[-20:].mean()),
        "train_error": error_rate(model, got.variables, seen),
        "test_error": error_rate(model, got.variables, data),
    }


def table_of(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns mean and standard error over seeds, by network and depth."""
    groups = frame.groupby(["network", "depth"], sort=False)[list(MEASURES)]
    return groups.agg(["mean", "sem"])


def conclusion(frame: pd.DataFrame) -> str:
    """Says whether the deepest net of each kind trained worse than the shallowest."""
    said = []
    for network in frame["network"].unique():
        own = frame[frame["network"] == network].pivot(
            index="seed", columns="depth", values="train_loss"
        )
        low, high = own.columns.min(), own.columns.max()
        worse = int((own[high] > own[low]).sum())
        said.append(
            f"{network}: {high} layers end at a higher training loss than {low} in "
            f"{worse} of {len(own)} seeds ({own[high].mean():.3f} against "
            f"{own[low].mean():.3f})"
        )
    return "\n".join(said)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draws loss and errors against depth."""
    axes = regions_plot.new_axes(3, width=4.2, height=3.6)
    for ax, measure in zip(axes, MEASURES):
        for color, network in zip(PALETTE, table.index.unique("network")):
            part: Any = table.loc[network]
            mean, sem = (part[measure, what].to_numpy() for what in ("mean", "sem"))
            ax.errorbar(
                part.index.to_numpy(),
                mean,
                yerr=sem,
                marker="o",
                color=color,
                capsize=3,
                label=network,
            )
        ax.set(xlabel="layers", ylabel=measure.replace("_", " "))
        ax.set_ylim(bottom=0)
        ax.grid(alpha=0.25)
        ax.legend(fontsize=8.5)
    regions_plot.save(axes[0], path)


def check(config: ConfigDict) -> None:
    """Raises what is wrong with the configuration, before any work is done."""
    check_counts(config, "width", "image_size", "seeds", "steps", "batch")
    check_counts(config, "depths")
    check_positive(config, "learning_rate")
    check_choices("networks", config.networks, NETWORKS)
    x = jnp.zeros((1, config.image_size, config.image_size, 3))
    for network in config.networks:
        for depth in config.depths:
            jax.eval_shape(build(config, network, depth).init, jax.random.key(0), x)


def run(config: ConfigDict, folder: Path) -> pd.DataFrame:
    """Trains what is not trained yet and returns the table."""
    cases = [
        {"network": network, "depth": depth, "seed": seed}
        for network in config.networks
        for depth in config.depths
        for seed in range(config.seeds)
    ]
    frame = recorded(
        folder / "runs.jsonl", cases, functools.partial(train_one, config), "training"
    )
    table = table_of(frame)
    table.to_csv(folder / "table.csv")
    draw(table, folder / "degradation.png")
    print(table.round(3).to_string())
    print(f"\n{conclusion(frame)}")
    return table


if __name__ == "__main__":
    launch("degradation", check, run)
