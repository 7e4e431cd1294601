"""What a trained net loses when blocks are deleted or exchanged [Veit2016].

Trains a ResNet for CIFAR and its plain twin (the same convolutions without shortcuts, a
VGG-like stack) on digits. Then deletes every block alone, some at random, and exchanges
pairs of them, always with the trained weights; and measures the gradient along single
paths of every length. Writes ``runs.jsonl`` (a row as soon as a net is done; a run that
was killed continues), ``lesions.csv``, ``paths.csv`` and ``lesion.png``.

    python -m experiments.lesion \
        --config=experiments/configs/lesion.py:quick --workdir=runs/lesion
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from ml_collections import ConfigDict

from experiments.blocks import NETWORKS, Chain, chain, twin, without
from experiments.launch import check_choices, check_counts, check_positive, launch
from experiments.training import Data, digits, error_rate, train_as_configured
from experiments.workdir import recorded
from layerwise.errors import InvalidArgumentError, message
from layerwise.expressivity import Block, sampled_gradient_by_length
from layerwise.expressivity.paths import path_length_law, random_swaps, swap
from layerwise.report import regions_plot
from layerwise.report.style import PALETTE
from layerwise.zoo.resnet_cifar import CifarResNet


def build(config: ConfigDict, network: str) -> CifarResNet:
    """Returns the residual net, or its plain twin."""
    return twin(
        network, depth=config.depth, width=config.width, image_size=config.image_size
    )


def examine(config: ConfigDict, *, network: str, seed: int) -> dict[str, Any]:
    """Trains a net and returns its test errors after every operation."""
    model, data = build(config, network), digits(config.image_size, channels=3)
    start, order, operate = jax.random.split(jax.random.key(seed), 3)
    got = train_as_configured(model, data, config, start, order)
    net = chain(model, got.variables, data.x_test)

    def error(blocks: Sequence[Block]) -> float:
        out = np.asarray(net.logits(blocks))
        return float((out.argmax(-1) != data.y_test).mean())

    n = len(net.blocks)
    result: dict[str, Any] = {
        "train_loss": float(got.losses[-20:].mean()),
        "error": error_rate(model, got.variables, data),
        "delete_each": [error(without(model, net.blocks, {i})) for i in range(n)],
        "delete": [],
        "exchange": [],
    }
    for count in config.counts:
        keys = jax.random.split(jax.random.fold_in(operate, count), config.samples)
        gone = [np.asarray(jax.random.permutation(k, n))[:count].tolist() for k in keys]
        pairs = [random_swaps(net.blocks, net.inputs, k, count=count) for k in keys]
        result["delete"].append([error(without(model, net.blocks, g)) for g in gone])
        result["exchange"].append(
            [error(swap(net.blocks, p, net.inputs)) for p in pairs]
        )
    if network == "residual":
        result |= gradients(config, net, data, operate)
    return result


def gradients(
    config: ConfigDict, net: Chain, data: Data, key: jax.Array
) -> dict[str, Any]:
    """Returns the mean gradient norm along one path, by length, and its error."""
    x, y = net.inputs[: config.path_images], data.y_test[: config.path_images]

    def loss(z: jax.Array) -> jax.Array:
        out = net.readout(z)
        return optax.softmax_cross_entropy_with_integer_labels(out, y).mean()

    found = sampled_gradient_by_length(
        net.blocks, x, loss, key, samples=config.path_samples, forward="path"
    )
    return {"path_norm": found.mean.tolist(), "path_sem": found.sem.tolist()}


def lesions(config: ConfigDict, frame: pd.DataFrame) -> pd.DataFrame:
    """Returns test errors, a row for every operation on every net."""
    rows = []
    for _, net in frame.iterrows():
        own = {"network": net["network"], "seed": net["seed"]}
        rows.append({**own, "operation": "none", "which": 0, "error": net["error"]})
        for i, error in enumerate(net["delete_each"]):
            rows.append({**own, "operation": "delete", "which": i, "error": error})
        for name in ("delete", "exchange"):
            for count, errors in zip(config.counts, net[name], strict=True):
                kind = f"{name} k"
                rows += [
                    {**own, "operation": kind, "which": count, "error": e}
                    for e in errors
                ]
    return pd.DataFrame(rows)


def paths(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the gradient by length, a row for every length of every residual net."""
    rows = []
    for _, net in frame[frame["network"] == "residual"].iterrows():
        norms = np.array(net["path_norm"])
        share = path_length_law(len(norms) - 1)
        carried = share * norms / (share * norms).sum()
        rows += [
            {
                "seed": net["seed"],
                "length": k,
                "paths": share[k],
                "norm": norms[k],
                "sem": net["path_sem"][k],
                "carried": carried[k],
            }
            for k in range(len(norms))
        ]
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame, found: pd.DataFrame, path: Path) -> None:
    """Draws errors after every operation, and the gradient by path length."""
    axes = regions_plot.new_axes(2, 2, width=5.2, height=3.8)
    titles = ("one block deleted", "k blocks deleted", "k pairs exchanged")
    for ax, kind, title in zip(axes, ("delete", "delete k", "exchange k"), titles):
        for color, network in zip(PALETTE, NETWORKS):
            own = table[table["network"] == network]
            part = own[own["operation"] == kind].groupby("which")["error"]
            mean, low, high = (part.agg(f) for f in ("mean", "min", "max"))
            at = mean.index.to_numpy()
            ax.plot(at, mean, "o-", color=color, markersize=4, label=network)
            ax.fill_between(at, low, high, color=color, alpha=0.15, linewidth=0)
            whole = own[own["operation"] == "none"]["error"].mean()
            ax.axhline(whole, color=color, linestyle=":", linewidth=1)
        ax.set(xlabel="block" if kind == "delete" else "k", ylabel="test error")
        ax.set(ylim=(0, 1), title=f"{title} (dotted: none)")
        ax.grid(alpha=0.25)
        ax.legend(fontsize=8.5)
    mean = found.groupby("length").mean()
    for color, name, label in zip(
        PALETTE, ("paths", "carried"), ("share of paths", "share of the gradient")
    ):
        axes[3].plot(
            mean.index.to_numpy(),
            mean[name],
            "o-",
            color=color,
            markersize=4,
            label=label,
        )
    axes[3].set(xlabel="path length (branches taken)", title="gradient by path length")
    axes[3].grid(alpha=0.25)
    axes[3].legend(fontsize=8.5)
    regions_plot.save(axes[0], path)


def check(config: ConfigDict) -> None:
    """Raises what is wrong with the configuration, before any work is done."""
    check_counts(config, "depth", "width", "image_size", "seeds", "steps", "batch")
    check_counts(config, "samples", "path_images", "path_samples")
    check_counts(config, "counts")
    check_positive(config, "learning_rate")
    check_choices("networks", config.networks, NETWORKS)
    for network in config.networks:
        jax.eval_shape(
            build(config, network).init,
            jax.random.key(0),
            jnp.zeros((1, config.image_size, config.image_size, 3)),
        )
    n = (config.depth - 2) // 2
    if max(config.counts) > n:
        raise InvalidArgumentError(
            message(
                f"counts={tuple(config.counts)} with depth={config.depth}.",
                f"That net has {n} blocks, and no more can be deleted.",
                f"Pass --config.counts with numbers up to {n}.",
            )
        )


def run(config: ConfigDict, folder: Path) -> pd.DataFrame:
    """Trains and operates on what is not done yet; returns the table of errors."""
    cases = [
        {"network": network, "seed": seed}
        for network in config.networks
        for seed in range(config.seeds)
    ]
    frame = recorded(
        folder / "runs.jsonl", cases, functools.partial(examine, config), "nets"
    )
    table, found = lesions(config, frame), paths(frame)
    table.to_csv(folder / "lesions.csv", index=False)
    found.to_csv(folder / "paths.csv", index=False)
    draw(table, found, folder / "lesion.png")
    mean = table.groupby(["operation", "network"], sort=False)["error"]
    print("Test error: mean, median and worst over what was deleted or exchanged\n")
    print(mean.agg(["mean", "median", "max"]).round(3).to_string())
    print(f"\nTraining loss: {frame.groupby('network')['train_loss'].mean().to_dict()}")
    shorter = found[found["length"] <= (config.depth - 2) // 4]
    print(
        f"Paths of at most half the blocks: {shorter['paths'].sum() / config.seeds:.0%}"
        f" of all, {shorter['carried'].sum() / config.seeds:.0%} of the gradient"
    )
    return table


if __name__ == "__main__":
    launch("lesion", check, run)
