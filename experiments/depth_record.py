"""How deep a plain convolutional net trains, without shortcuts or normalization.

Delta-orthogonal kernels at the edge of chaos keep angles and lengths through any depth
of tanh layers [Xiao2018]; Gaussian kernels of the same variance keep lengths alone, and
on average. With ReLU both keep lengths (He's variance, which ours is where nothing is
padded with zeros), and angles are lost layer by layer. Trains every depth on digits and
records the steps to a given training accuracy. Writes ``runs.jsonl`` (a row as soon as
a net is done; a run that was killed continues), ``table.csv`` and ``depth_record.png``.

    python -m experiments.depth_record \
        --config=experiments/configs/depth_record.py:quick --workdir=runs/record
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from experiments.launch import check_choices, check_counts, check_positive, launch
from experiments.training import Images, Sgd, digits, with_replacement
from experiments.workdir import recorded
from layerwise.report import regions_plot
from layerwise.report.style import PALETTE
from layerwise.theory.mean_field import edge_of_chaos


ACTIVATIONS = {"tanh": jnp.tanh, "relu": nn.relu}
LAWS = ("orthogonal", "gaussian")


class DeepPlain(nn.Module):
    """A stack of 3x3 convolutions on a torus, one compiled loop over all of them.

    A convolution is nine shifted products, since XLA is slow at convolutions in loops.

    Attributes:
        depth: Convolutions.
        width: Channels.
        activation: Behind every one.
        law: Of the kernels: "orthogonal" (delta-orthogonal) or "gaussian".
        gain: Standard deviation times the root of fan-in.
        sigma_b: Standard deviation of the biases.
        num_classes: Of the readout.
    """

    depth: int
    width: int
    activation: Callable[[jax.Array], jax.Array]
    law: str
    gain: float
    sigma_b: float
    num_classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits, `(batch, num_classes)`."""
        shape = (self.depth, 3, 3, self.width, self.width)
        kernels = self.param("kernels", self._kernels, shape)
        bias = nn.initializers.normal(self.sigma_b)
        biases = self.param("biases", bias, (self.depth, self.width))

        def layer(x: jax.Array, own: tuple[jax.Array, jax.Array]) -> Any:
            return self.activation(_torus_conv(x, own[0]) + own[1]), None

        # The image goes in as it is, in as many channels: a gain of one.
        x = jnp.broadcast_to(x[..., :1], (*x.shape[:-1], self.width))
        spread = self.param("spread", nn.initializers.orthogonal(), (self.width,) * 2)
        x, _ = jax.lax.scan(layer, x @ spread, (kernels, biases))
        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))

    @nn.nowrap
    def _kernels(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        init = (
            nn.initializers.delta_orthogonal(self.gain)
            if self.law == "orthogonal"
            else nn.initializers.variance_scaling(self.gain**2, "fan_in", "normal")
        )
        keys = jax.random.split(key, self.depth)
        return jax.vmap(lambda k: init(k, shape[1:], jnp.float32))(keys)


def _torus_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    shifted = [
        jnp.roll(x, (1 - i, 1 - j), axis=(1, 2)) for i in range(3) for j in range(3)
    ]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def build(config: ConfigDict, activation: str, law: str, depth: int) -> DeepPlain:
    """Returns a net at the edge of chaos of its activation."""
    phi = ACTIVATIONS[activation]
    sigma_b = config.sigma_b if activation == "tanh" else 0.0
    gain = edge_of_chaos(phi, sigma_b=sigma_b)[0] if sigma_b else np.sqrt(2.0)
    return DeepPlain(depth, config.width, phi, law, float(gain), sigma_b)


def train_one(
    config: ConfigDict, *, activation: str, law: str, depth: int, rate: float, seed: int
) -> dict[str, Any]:
    """Trains until the accuracy is reached; returns the steps, or None if it is not."""
    data = digits(config.image_size)
    start, order = jax.random.split(jax.random.key(seed))
    model = build(config, activation, law, depth)
    sgd = Sgd(model)
    images = data.train
    state = sgd.start(model.init(start, images.x[:2]))
    recent: list[float] = []
    loss = jnp.float32(jnp.nan)
    batches = with_replacement(order, config.steps, config.batch, len(data.x))
    for step, chosen in enumerate(batches):
        batch = Images(*images.take(chosen))
        recent.append(float(sgd.accuracy(state["variables"], batch)))
        state, loss = sgd.step(state, images, chosen, jnp.float32(rate))
        if not np.isfinite(loss):
            break
        last = recent[-config.window :]
        if len(last) == config.window and np.mean(last) >= config.accuracy:
            return {"steps": step + 1, "accuracy": float(np.mean(last)), "finite": True}
    return {
        "steps": None,
        "accuracy": float(np.mean(recent[-config.window :])),
        "finite": bool(np.isfinite(loss)),
    }


def table_of(config: ConfigDict, frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the fewest steps over the rates, or the best accuracy in brackets."""

    def cell(runs: pd.DataFrame) -> str:
        rates = runs.groupby("rate")
        reached = rates["steps"].apply(lambda s: s.median(skipna=False))
        if reached.notna().any():
            return f"{reached.min():g} steps at {reached.idxmin():g}"
        return f"not in {config.steps} ({rates['accuracy'].median().max():.2f})"

    keys = ["activation", "law", "depth"]
    columns = ["rate", "steps", "accuracy"]
    return frame.groupby(keys, sort=False)[columns].apply(cell).unstack("depth")


def draw(config: ConfigDict, frame: pd.DataFrame, path: Path) -> None:
    """Draws the fewest steps against depth; what was not reached, open on top."""
    (ax,) = regions_plot.new_axes(1, width=6.4, height=4.0)
    lines = frame.groupby(["activation", "law"], sort=False)
    for color, ((activation, law), own) in zip(PALETTE, lines):
        steps = own.groupby("depth")["steps"].min()
        depth, reached = steps.index.to_numpy(), steps.notna().to_numpy()
        style: dict[str, Any] = {"color": color, "markersize": 6}
        label = f"{activation}, {law}"
        ax.plot(depth, steps.fillna(config.steps), ":", color=color, linewidth=1)
        ax.plot(depth[reached], steps[reached], "o-", label=label, **style)
        missing = depth[~reached]
        ax.plot(missing, [config.steps] * len(missing), "o", mfc="none", **style)
    ax.set_xscale("log")
    ax.set(xlabel="layers", ylabel=f"steps to accuracy {config.accuracy:g}")
    ax.set_title(f"Plain nets (open: not in {config.steps} steps)")
    ax.set_ylim(bottom=0)
    ax.grid(alpha=0.25)
    ax.legend(fontsize=8.5)
    regions_plot.save(ax, path)


def check(config: ConfigDict) -> None:
    """Raises what is wrong with the configuration, before any work is done."""
    check_counts(config, "width", "image_size", "window", "steps", "batch", "seeds")
    check_counts(config, "depths")
    check_positive(config, "learning_rates", "accuracy", "sigma_b")
    check_choices("activations", config.activations, ACTIVATIONS)
    check_choices("laws", config.laws, LAWS)


def run(config: ConfigDict, folder: Path) -> pd.DataFrame:
    """Trains what is not trained yet and returns the table."""
    cases = [
        {
            "activation": activation,
            "law": law,
            "depth": depth,
            "rate": rate,
            "seed": seed,
        }
        for activation in config.activations
        for law in config.laws
        for depth in config.depths
        for rate in config.learning_rates
        for seed in range(config.seeds)
    ]
    frame = recorded(
        folder / "runs.jsonl", cases, functools.partial(train_one, config), "training"
    )
    table = table_of(config, frame)
    table.to_csv(folder / "table.csv")
    draw(config, frame, folder / "depth_record.png")
    print(
        "Steps to a training accuracy of", config.accuracy, "by depth, at the best rate"
    )
    print("(in brackets the accuracy of what did not get there)\n")
    print(table.to_string())
    return table


if __name__ == "__main__":
    launch("depth_record", check, run)
