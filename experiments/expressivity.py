"""Theorems as programs, regions as pictures: every figure and table, regenerated.

Writes into the work directory: ``config.json``; the tables ``theorems.csv``,
``counts.csv``, ``line.csv``, ``memorization.csv`` and ``paths.csv``; the figures
``expressivity_mosaic.png``, ``expressivity_counts.png`` and ``expressivity_paths.png``.

    python -m experiments.expressivity \
        --config=experiments/configs/expressivity.py:quick --workdir=runs/expressivity
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from ml_collections import ConfigDict
from rich.console import Console

from experiments.launch import check_counts, launch
from experiments.resnet110 import loss_of, resnet110_blocks
from layerwise.expressivity import (
    Decomposition,
    Net,
    Slice,
    compile_net,
    constructions,
    decompose_line,
    decompose_plane,
    folding,
    gradient_by_length,
    memorize,
    memorize_deep,
    net_of,
    sampled_gradient_by_length,
    share_of_paths,
    strictness,
)
from layerwise.expressivity.cells import Polygons
from layerwise.expressivity.paths import path_length_law, run_blocks
from layerwise.report import regions_plot


def normal(key: jax.Array, *shape: int) -> np.ndarray:
    return np.asarray(jax.random.normal(key, shape), np.float64)


def random_net(
    key: jax.Array, in_size: int, widths: Sequence[int], *, bias: float
) -> Net:
    """Returns a He network of `widths` with one output."""
    keys = iter(jax.random.split(key, 2 * len(widths) + 1))
    layers, fan_in = [], in_size
    for width in widths:
        weight = normal(next(keys), width, fan_in) * np.sqrt(2.0 / fan_in)
        layers.append((weight, bias * normal(next(keys), width)))
        fan_in = width
    return folding.dense_net(layers, (normal(next(keys), 1, fan_in), np.zeros(1)))


# Theorems -----------------------------------------------------------------------------


def random_long_skip(key: jax.Array, widths: Sequence[int]) -> constructions.LongSkip:
    keys = iter(jax.random.split(key, 2 * len(widths) + 3))
    hidden, fan_in = [], 4
    for width in widths:
        hidden.append((normal(next(keys), width, fan_in), normal(next(keys), width)))
        fan_in = width
    readout, skip = normal(next(keys), 2, fan_in), normal(next(keys), 2, 4)
    return constructions.LongSkip(hidden, readout, skip, normal(next(keys), 2))


def theorem_table(config: ConfigDict) -> pd.DataFrame:
    """Largest error of each construction on random points, with its size."""
    key, rows = jax.random.key(config.seed), []

    def add(name: str, built: Net, target: Callable, x: np.ndarray) -> None:
        error = float(np.abs(built(x) - target(x)).max())
        rows.append((name, built.n_layers, built.n_units, error))

    for window, strides, padding in ((2, 2, 0), (3, 2, 1), (7, 7, 0)):
        windows, _ = constructions.pool_windows(
            (7, 7), window, strides=strides, padding=padding
        )
        pool = constructions.max_pool(windows, 49)
        name = f"max pool {window}x{window}/{strides}, padding {padding}"
        add(name, compile_net(pool), pool, normal(key, 1000, 49))
    for kind in ("add", "subtract", "mean", "max", "product", "quotient"):
        merge = constructions.join_branches(kind, 8)
        x = np.abs(normal(key, 1000, 16)) + 0.1
        add(f"join: {kind}", compile_net(merge), merge, x)
    merge = constructions.join_branches("product", 8)
    squares = compile_net(merge, product="squares")
    add("join: product, any sign", squares, merge, normal(key, 1000, 16))
    printed = random_long_skip(key, (5, 6))
    x = normal(key, 1000, 4)
    add("Theorem 4 as printed", constructions.concatenated(printed), printed.net(), x)
    for depth in (1, 3, 8):
        deep = random_long_skip(key, (5,) * depth)
        for build in (constructions.concatenated_minimal, constructions.additive):
            name = f"Theorem 4, {build.__name__}, L = {depth}"
            add(name, build(deep), deep.net(), x)
    line = np.linspace(-4, 4, 1001)[:, None]
    add(
        "relu(x) + relu(x - 1), concatenated",
        strictness.target_in_concatenated(),
        strictness.target,
        line,
    )
    bound = strictness.certify().distance
    rows.append(("the same with one long skip: at least", 2, 2, bound))
    return pd.DataFrame(rows, columns=["construction", "layers", "units", "error"])


# Regions ------------------------------------------------------------------------------


class PooledConv(nn.Module):
    """A small convolutional network with leaky ReLUs, a max pool and a residual sum."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns one number per image."""
        x = nn.leaky_relu(nn.Conv(4, (3, 3))(x), 0.1)
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x + nn.relu(nn.Conv(4, (3, 3))(x))
        return nn.Dense(1)(x.reshape(x.shape[0], -1))


def mosaics(config: ConfigDict) -> dict[str, Decomposition[Polygons]]:
    """Returns the decompositions that are drawn, by title."""
    key = jax.random.key(config.seed)
    found = {}
    lines = folding.general_lines(6)
    net = folding.folding_net(2, 3, 2, last=lines, readout=np.ones((1, 6)))
    found["folding, widths (6, 6, 6)"] = decompose_plane(
        net, low=(0, 0), high=(1.5, 1.5)
    )
    net = random_net(key, 2, (6, 6, 6), bias=0.5)
    found["random, widths (6, 6, 6)"] = decompose_plane(net)
    net = random_net(key, 2, (32, 32, 32), bias=0.5)
    found["random, widths (32, 32, 32)"] = decompose_plane(net)
    net = net_of(PooledConv(), jnp.ones((1, 6, 6, 1)), key=key)
    plane = Slice.through(*normal(key, 3, net.input.size))
    title = "pooled conv net, a plane through 3 inputs"
    found[title] = decompose_plane(net, plane, low=(-6, -6), high=(12, 12))
    return found


def draw_mosaics(found: dict[str, Decomposition[Polygons]], path: Path) -> None:
    axes = regions_plot.new_axes(2, 2, width=5.0, height=5.2)
    for ax, (title, d) in zip(axes, found.items(), strict=True):
        batch = d.cells.batch
        polygons = [v[:n] for v, n in zip(batch.vertices, batch.count)]
        dense = d.n_activation_regions > 1900
        regions_plot.draw_mosaic(
            ax, polygons, d.rows[:, 0, 1:], edge_width=0.12 if dense else 0.3
        )
        ax.set_title(f"{title}\n{d.n_linear_regions:,} linear regions")
        ax.set_xlabel("first coordinate")
        ax.set_ylabel("second coordinate")
    regions_plot.save(axes[0], path)


def count_in_square(
    config: ConfigDict, widths: Sequence[int], side: float
) -> tuple[float, float]:
    """Mean linear regions of random networks in a large square, and standard error."""
    counts = []
    for i in range(config.plane_networks):
        key = jax.random.fold_in(jax.random.key(config.seed), i)
        net = random_net(key, 2, widths, bias=0.5)
        box = {"low": (-side, -side), "high": (side, side)}
        counts.append(decompose_plane(net, **box).n_linear_regions)
    return float(np.mean(counts)), float(np.std(counts, ddof=1) / len(counts) ** 0.5)


def folded_count(widths: Sequence[int]) -> int:
    """Exact linear regions of the folding network of these widths, inside its cube."""
    pieces, last = widths[0] // 2, widths[-1]
    weights, readout = folding.general_lines(last), np.ones((1, last))
    if len(widths) == 1:
        shift = weights[0] @ np.full(2, 0.0) + weights[1]
        net = folding.dense_net([(weights[0], shift)], (readout, np.zeros(1)))
        return decompose_plane(net, low=(0, 0), high=(0.5, 0.5)).n_linear_regions
    net = folding.folding_net(2, pieces, len(widths) - 1, last=weights, readout=readout)
    box = {"low": (0, 0), "high": (pieces / 2, pieces / 2)}
    return decompose_plane(net, **box).n_linear_regions


def count_table(config: ConfigDict) -> pd.DataFrame:
    """Regions against depth and width: bounds, the construction, random networks."""
    nets = [("depth", d, (8,) * d) for d in config.depths]
    nets += [("width", n, (n, n)) for n in config.widths]
    rows = []
    for against, x, widths in nets:
        mean, sem = count_in_square(config, widths, side=20.0)
        montufar = folding.montufar_lower_bound(2, widths)
        folded = folded_count(widths) if montufar < 30_000 else np.nan
        rows.append(
            {
                "against": against,
                "x": x,
                "widths": str(widths),
                "neurons": sum(widths),
                "random": mean,
                "random_sem": sem,
                "half_squared_neurons": sum(widths) ** 2 / 2,
                "folding_exact": folded,
                "montufar_lower": montufar,
                "serra_lower": folding.serra_lower_bound(2, widths),
                "serra_upper": folding.serra_upper_bound(2, widths),
            }
        )
    return pd.DataFrame(rows)


def line_table(config: ConfigDict) -> pd.DataFrame:
    """Pieces along a random line through 16-dimensional input space."""
    rows = []
    for widths in config.line_widths:
        counts = []
        for i in range(config.networks):
            key = jax.random.fold_in(jax.random.key(config.seed), i)
            line = Slice.through(*normal(key, 2, 16))
            net = random_net(key, 16, widths, bias=0.0)
            counts.append(decompose_line(net, line).n_linear_regions)
        sem = np.std(counts, ddof=1) / len(counts) ** 0.5
        rows.append(
            (str(tuple(widths)), len(widths), sum(widths), np.mean(counts), sem)
        )
    return pd.DataFrame(rows, columns=["widths", "depth", "neurons", "pieces", "sem"])


def column_of(table: pd.DataFrame, name: str) -> np.ndarray:
    return np.array(table[name].tolist(), np.float64)


def draw_counts(table: pd.DataFrame, line: pd.DataFrame, path: Path) -> None:
    axes = regions_plot.new_axes(3, width=4.4, height=4.0)
    labels = {
        "Serra et al., upper bound": "serra_upper",
        "folding construction, exact": "folding_exact",
        "random networks, mean ± s.e.": "random",
        "(neurons)²/2": "half_squared_neurons",
    }
    for ax, against in zip(axes, ("depth", "width")):
        part = table[table.against == against]
        series = {
            label: (
                column_of(part, column),
                column_of(part, "random_sem") if column == "random" else None,
            )
            for label, column in labels.items()
        }
        bounds = ("Serra et al., upper bound", "(neurons)²/2")
        regions_plot.draw_counts(ax, column_of(part, "x"), series, lines_only=bounds)
        ax.set_ylabel("linear regions, two inputs")
    axes[0].set_xlabel("hidden layers of width 8")
    axes[1].set_xlabel("width of two hidden layers")
    regions_plot.draw_line_counts(
        axes[2], *(column_of(line, c) for c in ("neurons", "pieces", "sem", "depth"))
    )
    regions_plot.save(axes[0], path)


# Memorization and paths ---------------------------------------------------------------


def memorization_table(config: ConfigDict) -> pd.DataFrame:
    """Widths, weights and errors of networks that fit random labels."""
    m, key = config.memorize, jax.random.key(config.seed)
    x, y = normal(key, m.n, m.d), normal(jax.random.fold_in(key, 1), m.n)
    nets = {"Zhang et al., two layers": memorize(x, y, key)}
    for hidden in m.hidden:
        nets[f"{hidden} hidden"] = memorize_deep(x, y, key, n_hidden=hidden)
    rows = [
        (name, net.width, net.n_weights, float(np.abs(net(x) - y).max()))
        for name, net in nets.items()
    ]
    return pd.DataFrame(rows, columns=["network", "width", "weights", "error"])


def path_table(config: ConfigDict) -> pd.DataFrame:
    """The gradient of an untrained ResNet-110 by path length, sampled and exact."""
    p, key = config.paths, jax.random.key(config.seed)
    blocks = resnet110_blocks(key)
    n = len(blocks)
    x = jax.random.normal(key, (p.batch, p.image_size, p.image_size, 16))
    loss = loss_of(key, p.batch)
    lengths = range(0, n + 1, p.stride)
    full, alone = (
        sampled_gradient_by_length(
            blocks, x, loss, key, lengths=lengths, samples=samples, forward=forward
        )
        for forward, samples in (("full", p.samples), ("path", p.samples_alone))
    )
    cotangent = jax.grad(loss)(run_blocks(blocks, x)[-1])
    exact = gradient_by_length(blocks, x, cotangent)
    norms = np.linalg.norm(np.asarray(exact, np.float64).reshape(n + 1, -1), axis=1)
    columns = {
        "length": full.lengths,
        "paths": path_length_law(n)[full.lengths],
        "full_norm": full.mean,
        "full_sem": full.sem,
        "full_share": full.share,
        "alone_norm": alone.mean,
        "alone_sem": alone.sem,
        "alone_share": alone.share,
        "summed_norm": norms[full.lengths],
    }
    return pd.DataFrame(columns)


def draw_paths(table: pd.DataFrame, path: Path) -> None:
    axes = regions_plot.new_axes(2, width=5.4, height=4.0)
    lengths = column_of(table, "length")
    labels = {"full": "forward: whole network", "alone": "forward: that path alone"}
    norms = {
        label: (lengths, column_of(table, f"{k}_norm"), column_of(table, f"{k}_sem"))
        for k, label in labels.items()
    }
    regions_plot.draw_path_norms(axes[0], norms)
    axes[0].set_title("Untrained ResNet-110: sampled paths, mean ± s.e.")
    summed = column_of(table, "summed_norm")
    shares = {
        f"paths × norm, {label}": (lengths, column_of(table, f"{k}_share"))
        for k, label in labels.items()
    }
    shares["norm of the sum over paths, exact"] = (lengths, summed / summed.sum())
    regions_plot.draw_path_shares(axes[1], path_length_law(54), shares)
    axes[1].set_title("Which lengths carry the gradient")
    regions_plot.save(axes[0], path)


def check(config: ConfigDict) -> None:
    """Raises what is wrong with the configuration, before any work is done."""
    check_counts(config, "networks", "plane_networks")
    check_counts(config, "depths", "widths")


def run(config: ConfigDict, folder: Path) -> pd.DataFrame:
    """Runs everything; returns the table of region counts, and writes all of them."""
    console = Console(width=140)
    tables = {
        "theorems": theorem_table(config),
        "counts": count_table(config),
        "line": line_table(config),
        "memorization": memorization_table(config),
        "paths": path_table(config),
    }
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
        console.print(f"\n[bold]{name}[/bold]\n{table.to_string(index=False)}")
    draw_mosaics(mosaics(config), folder / "expressivity_mosaic.png")
    draw_counts(tables["counts"], tables["line"], folder / "expressivity_counts.png")
    draw_paths(tables["paths"], folder / "expressivity_paths.png")
    few, most = share_of_paths(54, 5, 17), share_of_paths(54, 19, 35)
    console.print(f"\nOf 2^54 paths {few:.4%} have length 5-17, {most:.1%} 19-35.")
    return tables["counts"]


if __name__ == "__main__":
    launch("expressivity", check, run)
