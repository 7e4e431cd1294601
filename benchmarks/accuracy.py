"""Predicted against measured, layer by layer: how far off is the theory engine?

    python -m benchmarks.accuracy                                 # all architectures
    python -m benchmarks.accuracy --quick                         # about a minute
    python -m benchmarks.accuracy --markdown docs/accuracy.md     # into a page

One row per architecture and direction. The error of a weight operation is
|log(predicted / measured)| of its pre-activation's second moment (forward) or of that
of its cotangent (backward), cumulative from the input or the output, in percent; beyond
two standard errors of the measured mean over draws. `se` is the median standard error,
`stated` the largest tolerance that the prediction itself states. Of operations that
were sampled, and are graded `measured`, the prediction claims nothing: they are counted
beside the bar, and their errors are not.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

import layerwise as lw
from layerwise.theory.predict import predict
from layerwise.theory.state import Grade


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


class Bar(NamedTuple):
    """What a family of architectures is held to: median and largest error, percent."""

    forward: tuple[float, float]
    backward: tuple[float, float]


BARS = {
    "linear": Bar((5, 20), (5, 20)),
    "pooling": Bar((8, 30), (8, 30)),
    "smooth": Bar((10, 40), (10, 40)),
    "normalized": Bar((3, 15), (15, 50)),
    "attention": Bar((5, 20), (25, 80)),
}
FAMILIES = {
    "linear": "Convolution, dense, stride, padding, ReLU, residual",
    "pooling": "Average, max and overlapping pooling, photo crops",
    "smooth": "Smooth activations and gates",
    "normalized": "Batch, layer and group normalization",
    "attention": "Attention",
}


class Case(NamedTuple):
    """One architecture: its family, what builds it, and whether `--quick` has it."""

    family: str
    build: Callable[[], Any]
    quick: bool = False
    white: bool = False


CASES = {
    "mlp relu": Case("linear", Dense, quick=True),
    "conv relu, white, flat": Case("linear", lambda: Plain(head="flat"), white=True),
    "conv relu, white": Case("linear", Plain, white=True),
    "residual, pre-activation, white": Case(
        "linear", lambda: Plain(residual="pre"), quick=True, white=True
    ),
    "residual, post-activation": Case("linear", lambda: Plain(residual="post")),
    "zoo: taki_cnn": Case(
        "linear", lambda: lw.zoo.registry.entry("taki_cnn").build_small()
    ),
    "zoo: cifar_resnet": Case(
        "pooling", lambda: lw.zoo.registry.entry("cifar_resnet").build_small()
    ),
    "conv relu, photo, mean": Case("pooling", Plain, quick=True),
    "residual, pre-activation, photo": Case("pooling", lambda: Plain(residual="pre")),
    "conv max 2x2": Case("pooling", lambda: Plain(pool="max")),
    "conv max 3/2/1": Case("pooling", lambda: Plain(pool="max_overlap"), quick=True),
    "conv average 2x2": Case("pooling", lambda: Plain(pool="average")),
    "conv average 3/2/1": Case("pooling", lambda: Plain(pool="average_overlap")),
    "mlp tanh": Case("smooth", lambda: Dense(act="tanh")),
    "mlp gated": Case("smooth", Gated, quick=True),
    "conv tanh": Case("smooth", lambda: Plain(act="tanh")),
    "conv gelu": Case("smooth", lambda: Plain(act="gelu"), quick=True),
    "conv silu": Case("smooth", lambda: Plain(act="silu")),
    "batch norm": Case("normalized", lambda: Plain(norm="batch"), quick=True),
    "layer norm": Case("normalized", lambda: Plain(norm="layer")),
    "group norm": Case("normalized", lambda: Plain(norm="group")),
    "batch norm, pre-activation": Case(
        "normalized", lambda: Plain(norm="batch", residual="pre")
    ),
    "attention": Case("attention", Attention),
}


class Row(NamedTuple):
    """Errors of one architecture in one direction, in percent.

    Of those weight operations that something is claimed of; `measured` are the others.
    """

    median: float
    worst: float
    median_beyond: float
    worst_beyond: float
    standard_error: float
    stated: float
    claimed: int
    measured: int

    def meets(self, bar: tuple[float, float]) -> bool:
        """Whether the errors beyond two standard errors are within the bar."""
        return self.median_beyond <= bar[0] and self.worst_beyond <= bar[1]


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
    at = [i for i, s in enumerate(predicted.sites) if s.kind == "u"]
    rows = {}
    for direction in ("forward", "backward"):
        samples = measured.second_moment(direction)[measured.ensemble][:, at]
        mean = samples.mean(axis=0)
        sem = samples.std(axis=0, ddof=1) / np.sqrt(len(samples)) / mean
        error = np.abs(np.log(predicted.second[direction][at] / mean))
        grades = [predicted.grade[direction][i] for i in at]
        claimed = np.array([g is not Grade.MEASURED for g in grades])
        if not claimed.any():
            rows[direction] = Row(*[np.nan] * 6, claimed=0, measured=len(at))
            continue
        error, sem = error[claimed], sem[claimed]
        beyond = np.maximum(error - 2 * sem, 0.0)
        stated = predicted.tolerance[direction][at][claimed]
        numbers = (
            np.median(error),
            np.max(error),
            np.median(beyond),
            np.max(beyond),
            np.median(sem),
            np.max(stated),
        )
        rows[direction] = Row(
            *(100.0 * float(v) for v in numbers),
            claimed=int(claimed.sum()),
            measured=int((~claimed).sum()),
        )
    return rows, predicted.coverage, seconds


HEADER = (
    "architecture",
    "",
    "median",
    "max",
    "beyond 2 se: median",
    "max",
    "se",
    "stated",
    "bar",
)


def cells(name: str, direction: str, row: Row, bar: tuple[float, float]) -> list[str]:
    """Returns a row of the table."""
    if not row.claimed:
        return [name, direction, *[""] * 6, "measured, not claimed"]
    numbers = [f"{v:.1f}" for v in row[:5]]
    verdict = "met" if row.meets(bar) else "**missed**"
    if row.measured:
        verdict += f" by {row.claimed}, {row.measured} measured"
    return [name, direction, *numbers, f"{row.stated:.0f}", verdict]


def page(rows: dict[str, dict[str, Row]], setting: str) -> str:
    """Returns docs/accuracy.md."""
    lines = [
        "# Accuracy",
        "",
        f"Generated by `python -m benchmarks.accuracy {' '.join(sys.argv[1:])}`.",
        f"{setting}.",
        "",
        (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip(),
        "",
    ]
    for family, title in FAMILIES.items():
        if family not in {CASES[name].family for name in rows}:
            continue
        bar = BARS[family]
        lines += [
            f"## {title}",
            "",
            f"Bars, median / max: forward {bar.forward[0]} / {bar.forward[1]}, "
            f"backward {bar.backward[0]} / {bar.backward[1]}.",
            "",
            "| " + " | ".join(HEADER) + " |",
            "|" + "---|" * len(HEADER),
        ]
        for name, found in rows.items():
            if CASES[name].family == family:
                for direction, row in found.items():
                    held = cells(name, direction, row, getattr(bar, direction))
                    lines.append("| " + " | ".join(held) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Prints the table, and writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="about a minute")
    parser.add_argument("--draws", type=int, default=0)
    parser.add_argument("--size", type=int, default=0, help="pixels")
    parser.add_argument("--only", default="", help="those whose name holds this")
    parser.add_argument("--markdown", default="", help="file to write the page to")
    options = parser.parse_args()
    draws = options.draws or (32 if options.quick else 64)
    size = options.size or 8
    setting = f"{draws} draws, {size} px, 8 examples; errors in percent"
    widths = (32, 9, 7, 7, 20, 7, 6, 9, 12)

    def show(row: Sequence[str]) -> None:
        print(
            " ".join(f"{v:{w}}" for v, w in zip(row, widths, strict=True)), flush=True
        )

    print(setting)
    show(HEADER)
    found: dict[str, dict[str, Row]] = {}
    for name, case in CASES.items():
        if (options.quick and not case.quick) or options.only not in name:
            continue
        found[name], coverage, seconds = compare(case, draws, size)
        for direction, row in found[name].items():
            show(cells(name, direction, row, getattr(BARS[case.family], direction)))
        print(f"{'':32} {seconds:.1f} s; {coverage}", flush=True)
        if options.markdown:
            with open(options.markdown, "w", encoding="utf-8") as file:
                file.write(page(found, setting))


if __name__ == "__main__":
    main()
