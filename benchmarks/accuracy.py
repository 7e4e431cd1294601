"""Predicted against measured, layer by layer: how far off is the theory engine?

    python -m benchmarks.accuracy            # all architectures, 64 draws and more
    python -m benchmarks.accuracy --quick    # a few of them, about a minute

One row per architecture and direction. The error of a weight operation is
|log(predicted / measured)| of its pre-activation's second moment (forward) or of that
of its cotangent (backward), cumulative from the input or the output, in percent; beyond
two standard errors of the measured mean over draws. `se` is the median standard error.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

import layerwise as lw
from layerwise.theory.predict import predict


def crops(examples: int, size: int, seed: int = 3) -> np.ndarray:
    """Images with the 1/f spectrum and correlated colours of photographs."""
    f = np.fft.fftfreq(size)
    radius = np.hypot(f[:, None], f[None])
    radius[0, 0] = 1 / size
    shape = (examples, size, size, 3)
    z = np.asarray(jax.random.normal(jax.random.key(seed), shape))
    x = np.fft.ifft2(
        np.fft.fft2(z, axes=(1, 2)) / radius[None, :, :, None], axes=(1, 2)
    )
    colours = np.array([[1.0, 0.9, 0.9], [0.0, 0.4, 0.1], [0.0, 0.0, 0.4]])
    y = x.real @ colours
    y = y - y.mean()
    return (y / np.sqrt((y**2).mean())).astype(np.float32)


class Plain(nn.Module):
    """Convolutions at one width, with an activation, a normalization and pooling."""

    depth: int = 8
    width: int = 64
    act: str = "relu"
    norm: str = ""
    pool: str = ""
    residual: str = ""
    head: str = "mean"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits."""
        act = getattr(nn, self.act)
        for i in range(self.depth):
            shortcut = x
            if self.residual == "pre" and i:
                x = act(self.normalize(x))
            x = nn.Conv(self.width, (3, 3), kernel_init=nn.initializers.he_normal())(x)
            if self.residual == "pre" and i:
                x = shortcut + 0.5 * x
            else:
                x = self.normalize(x)
                if self.residual == "post" and i:
                    x = shortcut + 0.5 * x
                x = act(x) if self.residual != "pre" else x
            if i == self.depth // 2:
                x = self.pooled(x)
        x = x.mean((1, 2)) if self.head == "mean" else x.reshape(x.shape[0], -1)
        return nn.Dense(10)(x)

    def normalize(self, x: jax.Array) -> jax.Array:
        """Applies the normalization asked for."""
        match self.norm:
            case "batch":
                return nn.BatchNorm(use_running_average=False)(x)
            case "layer":
                return nn.LayerNorm()(x)
            case "group":
                return nn.GroupNorm(num_groups=4)(x)
        return x

    def pooled(self, x: jax.Array) -> jax.Array:
        """Applies the pooling asked for."""
        match self.pool:
            case "max":
                return nn.max_pool(x, (2, 2), (2, 2))
            case "max_overlap":
                return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
            case "average":
                return nn.avg_pool(x, (2, 2), (2, 2))
            case "average_overlap":
                return nn.avg_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        return x


class Dense(nn.Module):
    """A multilayer perceptron."""

    act: str = "relu"
    depth: int = 10
    width: int = 256

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits."""
        x = x.reshape(x.shape[0], -1)
        for _ in range(self.depth):
            x = nn.Dense(self.width, kernel_init=nn.initializers.he_normal())(x)
            x = getattr(nn, self.act)(x)
        return nn.Dense(10)(x)


class Gated(nn.Module):
    """A perceptron of GLU layers, each gate with weights of its own."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits."""
        x = x.reshape(x.shape[0], -1)
        for _ in range(4):
            x = 2.0 * nn.Dense(256)(x) * nn.sigmoid(nn.Dense(256)(x))
        return nn.Dense(10)(x)


class Attention(nn.Module):
    """Patches, self-attention with layer normalization, a perceptron."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits."""
        x = nn.Conv(64, (4, 4), (4, 4), padding="VALID")(x)
        x = x.reshape(x.shape[0], -1, 64)
        mixed: Any = nn.MultiHeadDotProductAttention(num_heads=4)(nn.LayerNorm()(x))
        x = x + mixed
        x = x + nn.Dense(64)(nn.gelu(nn.Dense(128)(nn.LayerNorm()(x))))
        return nn.Dense(10)(x.mean(1))


class Case(NamedTuple):
    """One architecture of the table: what builds it, and whether `--quick` has it."""

    build: Callable[[], Any]
    quick: bool = False
    white: bool = False


CASES = {
    "mlp relu": Case(Dense, quick=True),
    "mlp tanh": Case(lambda: Dense(act="tanh")),
    "mlp gated": Case(Gated, quick=True),
    "conv relu, white, flat": Case(lambda: Plain(head="flat"), True, True),
    "conv relu, photo, mean": Case(lambda: Plain(), quick=True),
    "conv max 2x2": Case(lambda: Plain(pool="max")),
    "conv max 3/2/1": Case(lambda: Plain(pool="max_overlap"), quick=True),
    "conv average 2x2": Case(lambda: Plain(pool="average")),
    "conv average 3/2/1": Case(lambda: Plain(pool="average_overlap")),
    "conv tanh": Case(lambda: Plain(act="tanh")),
    "conv gelu": Case(lambda: Plain(act="gelu"), quick=True),
    "conv silu": Case(lambda: Plain(act="silu")),
    "residual, pre-activation": Case(lambda: Plain(residual="pre"), quick=True),
    "residual, post-activation": Case(lambda: Plain(residual="post")),
    "batch norm": Case(lambda: Plain(norm="batch"), quick=True),
    "layer norm": Case(lambda: Plain(norm="layer")),
    "group norm": Case(lambda: Plain(norm="group")),
    "batch norm, pre-activation": Case(lambda: Plain(norm="batch", residual="pre")),
    "attention": Case(Attention),
    "zoo: taki_cnn": Case(lambda: lw.zoo.registry.entry("taki_cnn").build_small()),
}


class Row(NamedTuple):
    """Errors of one architecture in one direction, in percent."""

    median: float
    worst: float
    median_beyond: float
    worst_beyond: float
    standard_error: float
    grade: str


def compare(case: Case, draws: int, size: int) -> tuple[dict[str, Row], str, float]:
    """Returns the two rows, the coverage line and the seconds of the prediction."""
    model = case.build()
    shape = getattr(model, "input_shape", (size, size, 3))
    x = crops(8, shape[0])
    if case.white:
        x = np.asarray(jax.random.normal(jax.random.key(1), (8, *shape)))
    start = time.perf_counter()
    predicted = predict(model, None, x)
    seconds = time.perf_counter() - start
    measured = lw.measure(model, None, x, draws=draws, redraw="init")
    rows = {}
    for direction in ("forward", "backward"):
        samples = measured.second_moment(direction)[measured.ensemble]
        mean = samples.mean(axis=0)
        sem = samples.std(axis=0, ddof=1) / np.sqrt(len(samples)) / mean
        at = [i for i, s in enumerate(predicted.sites) if s.kind == "u"]
        error = np.abs(np.log(predicted.second[direction][at] / mean[at]))
        beyond = np.maximum(error - 2 * sem[at], 0.0)
        grades = [
            g
            for i, g in enumerate(predicted.grade[direction])
            if i in at and g is not None
        ]
        numbers = [
            100.0 * float(v)
            for v in (
                np.median(error),
                np.max(error),
                np.median(beyond),
                np.max(beyond),
                np.median(sem[at]),
            )
        ]
        rows[direction] = Row(*numbers, grade=max(grades).label)
    return rows, predicted.coverage, seconds


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="about a minute")
    parser.add_argument("--draws", type=int, default=0)
    parser.add_argument(
        "--only", default="", help="architectures whose name holds this"
    )
    options = parser.parse_args()
    draws = options.draws or (32 if options.quick else 256)
    size = 12 if options.quick else 16
    print(f"{draws} draws, {size} px, 8 examples; errors in %")
    print(
        f"{'architecture':28} {'':8} {'median':>7} {'max':>7}   beyond 2 se: "
        f"{'median':>6} {'max':>6} {'se':>5}  grade"
    )
    for name, case in CASES.items():
        if (options.quick and not case.quick) or options.only not in name:
            continue
        rows, coverage, seconds = compare(case, draws, size)
        for direction, r in rows.items():
            print(
                f"{name:28} {direction:8} {r.median:7.1f} {r.worst:7.1f}"
                f"{'':16} {r.median_beyond:6.1f} {r.worst_beyond:6.1f} "
                f"{r.standard_error:5.1f}  {r.grade}"
            )
        print(f"{'':28} {seconds:.1f} s; {coverage}", flush=True)


if __name__ == "__main__":
    main()
