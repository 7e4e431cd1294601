r"""A hundred residual blocks: the stability table, and the laws behind it [Taki2017].

Trains the same stack of ``z + W f(z)`` on digits under every scheme, with and without
batch normalization, at every learning rate; and simulates how second moments grow
through such stacks, with the closed laws beside them. Writes ``runs.jsonl`` and
``laws.jsonl`` (a row as soon as it is computed; a run that was killed continues),
``table.csv``, ``laws.csv`` and ``residual_depth.png`` into the work directory.

    python -m experiments.residual_depth \
        --config=experiments/configs/residual_depth.py:quick --workdir=runs/depth
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from ml_collections import ConfigDict

import layerwise as lw
from experiments.launch import (
    check_choices,
    check_counts,
    check_positive,
    launch,
    some,
)
from experiments.models import check_schemes
from experiments.streams import Block, normal_weight, normalize_batch, streams
from experiments.training import Data, digits, draw_parameters, error_rate, train
from experiments.workdir import recorded
from layerwise.report import regions_plot
from layerwise.report.style import PALETTE
from layerwise.theory import residual as laws


DIVERGED, TRAINED, NEITHER = "diverged", "trained", "neither"

# The stability table ------------------------------------------------------------------


@functools.cache
def images(network: str) -> Data:
    """Returns the digits as the network takes them."""
    return digits(flat=network == "mlp")


def build(config: ConfigDict, network: str, row: str) -> tuple[nn.Module, str]:
    """Returns the stack of a row of the table, and its scheme."""
    scheme, _, norm = row.partition("+")
    flags = {"use_norm": norm == "bn", "use_scale": scheme in ("skipinit", "rezero")}
    if network == "mlp":
        shape, width = (64,), config.width
    else:
        shape, width = (8, 8, 1), config.cnn_width
    return lw.zoo.create(
        f"taki_{network}", input_shape=shape, width=width, depth=config.depth, **flags
    ), scheme


def outcome(losses: np.ndarray, classes: int = 10) -> str:
    """Returns whether a run diverged, trained, or did neither.

    It diverged if a loss was not finite, or if it ended at three times the loss of
    knowing nothing, ln C; it trained if it ended below half of that.
    """
    last, nothing = losses[-20:].mean(), np.log(classes)
    if not np.isfinite(losses).all() or last > 3 * nothing:
        return DIVERGED
    return TRAINED if last < nothing / 2 else NEITHER


def train_row(
    config: ConfigDict, *, network: str, row: str, rate: float, seed: int
) -> dict[str, Any]:
    """Trains one stack and returns its losses, error and outcome."""
    (model, scheme), data = build(config, network, row), images(network)
    start, order = jax.random.split(jax.random.key(seed))
    variables = draw_parameters(model, data.x[:2], start, scheme)
    got = train(
        model,
        variables,
        data,
        steps=config.steps,
        learning_rate=rate,
        batch=config.batch,
        key=order,
    )
    finite = np.isfinite(got.losses)
    return {
        "outcome": outcome(got.losses),
        "first_loss": float(got.losses[0]),
        "last_loss": float(got.losses[-20:].mean()),
        "test_error": error_rate(model, got.variables, data),
        "finite_steps": int(finite.argmin()) if not finite.all() else len(finite),
    }


def stability(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the table: what happened to every row at every learning rate."""

    def cell(runs: pd.DataFrame) -> str:
        outcomes = runs["outcome"].tolist()
        said = ", ".join(
            f"{o} {outcomes.count(o)}/{len(outcomes)}" if len(set(outcomes)) > 1 else o
            for o in dict.fromkeys(outcomes)
        )
        if DIVERGED in outcomes:
            return said
        return f"{said} ({runs['last_loss'].mean():.2g})"

    keys = ["network", "row", "rate"]
    cells = frame.groupby(keys, sort=False)[["outcome", "last_loss"]].apply(cell)
    table = cells.unstack("rate")
    return table.reindex(frame[keys[:2]].drop_duplicates().apply(tuple, axis=1))


# The laws -----------------------------------------------------------------------------


class Law(NamedTuple):
    """A stack, what the corrected theory says of it, and what the slides print.

    Attributes:
        panel: Where it is drawn.
        block: One random block; takes the width.
        depth: Blocks.
        q: q_0 ... q_L of the theory, or None.
        r: r_0 ... r_L of the theory, or None.
        printed: What is printed for the direction that is drawn.
    """

    panel: str
    block: Callable[[int], Block]
    depth: int
    q: np.ndarray | None
    r: np.ndarray | None
    printed: np.ndarray


def _identity(x: jax.Array) -> jax.Array:
    return x


ACTIVATIONS = {"identity": _identity, "tanh": jnp.tanh, "relu": jax.nn.relu}
PLAIN, LAST, FIRST, NORM = "f(W z)", "z + W f(z)", "z + f(W z)", "z + W f(BN z)"


def law_of(config: ConfigDict, name: str) -> Law:
    """Returns the law of a name of `law_names`."""
    return _laws(config)[name]


def law_names(config: ConfigDict) -> list[str]:
    """Returns the names of the laws that are simulated."""
    return list(_laws(config))


def _laws(config: ConfigDict) -> dict[str, Law]:
    relu, depth, plain = jax.nn.relu, config.depth, config.laws.plain_depth
    found: dict[str, Law] = {}
    for b in config.laws.plain:
        back = np.arange(plain, -1, -1)
        found[f"plain, b = {b:g}"] = Law(
            PLAIN,
            lambda n, b=b: lambda k, z: relu(z @ normal_weight(k, b, n)),
            plain,
            None,
            np.array([laws.plain_growth(b, int(i), relu) for i in back]),
            b**back,
        )
    for c in config.laws.constants:
        s = c / depth
        q, r = laws.weight_then_add(s, depth, relu)
        found[f"W f, c = {c:g}"] = Law(
            LAST,
            lambda n, s=s: lambda k, z: z + relu(z) @ normal_weight(k, s, n),
            depth,
            q,
            r,
            np.exp(0.5 * c * np.arange(depth, -1, -1) / depth),
        )
    for c in config.laws.constants[:2]:
        s = c / depth
        found[f"f W, c = {c:g}"] = Law(
            FIRST,
            lambda n, s=s: lambda k, z: z + relu(z @ normal_weight(k, s, n)),
            depth,
            laws.activate_then_add(s, depth, relu)[0],
            None,
            (1 + s / 2) ** np.arange(depth + 1),
        )
    for phi_name in config.laws.norms:
        phi = ACTIVATIONS[phi_name]
        found[f"BN, {phi_name}"] = Law(
            NORM,
            lambda n, phi=phi: (
                lambda k, z: z + phi(normalize_batch(z)) @ normal_weight(k, 2.0, n)
            ),
            depth,
            None,
            laws.batch_norm(depth, phi, s=2.0, q_0=1.0).ratio,
            (depth + 0.5) / (np.arange(depth + 1) + 0.5),
        )
    return found


def simulate(config: ConfigDict, *, law: str) -> dict[str, Any]:
    """Returns mean and standard error of the second moments of one stack."""
    stack, size = law_of(config, law), config.laws
    width, draws, batch = {
        PLAIN: (size.width, size.plain_draws, 4),
        NORM: (size.bn_width, size.bn_draws, size.bn_batch),
    }.get(stack.panel, (size.width, size.draws, 4))
    q, r = streams(stack.block(width), stack.depth, draws, width=width, batch=batch)
    return {
        f"{name}_{what}": value.tolist()
        for name, x in (("q", q), ("r", r))
        for what, value in (
            ("mean", x.mean(0)),
            ("sem", x.std(0, ddof=1) / np.sqrt(draws)),
        )
    }


def compare(config: ConfigDict, simulated: pd.DataFrame) -> pd.DataFrame:
    """Returns theory and simulation at the end of every stack that has a law."""
    rows = []
    for _, row in simulated.iterrows():
        law = law_of(config, row["law"])
        for name, theory, at in (("q", law.q, law.depth), ("r", law.r, 0)):
            if theory is None:
                continue
            drawn = name == ("q" if law.r is None else "r")
            mean, sem = row[f"{name}_mean"][at], row[f"{name}_sem"][at]
            rows.append(
                {
                    "law": row["law"],
                    "what": f"{name}_{at}",
                    "printed": law.printed[at] if drawn else np.nan,
                    "theory": theory[at],
                    "measured": mean,
                    "sem": sem,
                    "gap": mean / theory[at] - 1,
                }
            )
    return pd.DataFrame(rows)


def draw(config: ConfigDict, simulated: pd.DataFrame, path: Path) -> None:
    """Draws measured moments as points, theory as lines, what is printed dashed."""
    panels = (PLAIN, LAST, FIRST, NORM)
    axes = dict(zip(panels, regions_plot.new_axes(2, 2, width=5.4, height=4.0)))
    for panel, ax in axes.items():
        rows = [
            row
            for _, row in simulated.iterrows()
            if law_of(config, row["law"]).panel == panel
        ]
        for color, row in zip(PALETTE, rows):
            law = law_of(config, row["law"])
            name, theory = ("q", law.q) if law.r is None else ("r", law.r)
            layers = np.arange(law.depth + 1)
            some = np.unique(np.geomspace(1, law.depth + 1, 16).astype(int)) - 1
            mean, sem = (np.array(row[f"{name}_{w}"])[some] for w in ("mean", "sem"))
            label = row["law"].split(", ")[1]
            style = {"color": color, "fmt": "o", "markersize": 4, "capsize": 2}
            ax.errorbar(layers[some], mean, yerr=2 * sem, label=label, **style)
            assert theory is not None
            ax.plot(layers, theory, color=color, linewidth=1.3)
            ax.plot(layers, law.printed, "--", color=color, linewidth=0.9)
        ax.set_yscale("log")
        if panel == NORM:
            ax.set_xscale("log")
            ax.set_xlim(left=0.9)
        direction = "q_l / q_0" if panel == FIRST else "r_l / r_L"
        ax.set(xlabel="block l", ylabel=direction, title=panel)
        ax.grid(alpha=0.25)
        ax.legend(fontsize=8.5)
    axes[PLAIN].set_title(f"{PLAIN}: points measured, lines theory, dashed as printed")
    regions_plot.save(axes[PLAIN], path)


# The experiment -----------------------------------------------------------------------


def check(config: ConfigDict) -> None:
    """Raises what is wrong with the configuration, before any work is done."""
    check_counts(config, "depth", "width", "cnn_width", "seeds", "steps", "batch")
    sizes = [
        name for name, value in config.laws.items() if not isinstance(value, tuple)
    ]
    check_counts(config.laws, *sizes)
    check_positive(config.laws, "plain", "constants")
    check_choices("laws.norms", config.laws.norms, ACTIVATIONS)
    check_positive(config, "learning_rates")
    check_choices("networks", config.networks, ("mlp", "cnn"))
    for row in some("rows", config.rows):
        check_choices("rows", ["+".join(str(row).split("+")[1:])], ("", "bn"))
    few = ConfigDict({**config.to_dict(), "depth": 2})  # the same, quicker to trace
    for row in config.rows:
        for network in config.networks:
            model, scheme = build(few, network, str(row))
            check_schemes(model, images(network).x[:2], [scheme])


def run(config: ConfigDict, folder: Path) -> pd.DataFrame:
    """Trains and simulates what is not there yet; returns the stability table."""
    cases = [
        {"network": network, "row": row, "rate": rate, "seed": seed}
        for network in config.networks
        for row in config.rows
        for rate in config.learning_rates
        for seed in range(config.seeds)
    ]
    frame = recorded(
        folder / "runs.jsonl", cases, functools.partial(train_row, config), "training"
    )
    simulated = recorded(
        folder / "laws.jsonl",
        [{"law": name} for name in law_names(config)],
        functools.partial(simulate, config),
        "laws",
    )
    table, gaps = stability(frame), compare(config, simulated)
    table.to_csv(folder / "table.csv")
    gaps.to_csv(folder / "laws.csv", index=False)
    draw(config, simulated, folder / "residual_depth.png")
    print(f"{config.depth} blocks; in brackets the last training loss\n")
    print(table.to_string())
    print("\nSecond moments: as printed, by the corrected theory, measured\n")
    print(gaps.to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    return table


if __name__ == "__main__":
    launch("residual_depth", check, run)
