"""What it costs to predict: wall time, CPU time and peak memory, by depth and width.

    python -m benchmarks.prediction             # all, a few minutes
    python -m benchmarks.prediction --quick     # about a minute
    python -m benchmarks.prediction --only resnet152

Each network is predicted in a process of its own, forward and backward, from its law:
no weight is drawn. The time is that of `lw.predict`, tracing and compiling included;
importing is not.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import layerwise as lw
from benchmarks.accuracy import crops
from benchmarks.models import Cnn
from layerwise.theory.predict import predict


class Scanned(nn.Module):
    """A convolution with ReLU, scanned over depth, between two layers of its own."""

    depth: int = 10_000
    width: int = 64

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns 10 logits for images."""

        def layer(conv: nn.Module, x: jax.Array) -> tuple[jax.Array, None]:
            y: Any = conv(x)  # type: ignore[operator]
            return nn.relu(y), None

        def conv(name: str) -> nn.Conv:
            he = nn.initializers.he_normal()
            return nn.Conv(self.width, (3, 3), kernel_init=he, name=name)

        x = nn.relu(conv("first")(x))
        body = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.depth - 2,
        )
        x, _ = body(conv("layers"), x)
        return nn.Dense(10)(x.mean((1, 2)))


class Perceptron(nn.Module):
    """Dense layers of one width with ReLU behind each."""

    depth: int = 4
    width: int = 64

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the output of the last layer."""
        for _ in range(self.depth):
            x = nn.relu(nn.Dense(self.width)(x))
        return x


class Case(NamedTuple):
    """One network: what builds it, its input, and the seconds that are wanted.

    Attributes:
        build: Returns the model.
        pixels: Height and width of its images.
        wanted: Seconds, where there is a bar.
        quick: Whether `--quick` has it.
    """

    build: Callable[[], Any]
    pixels: int
    wanted: float | None = None
    quick: bool = False


CASES = {
    "resnet152, 224 px": Case(lw.zoo.resnet152, 224, 20.0, quick=True),
    "cnn, 1000 layers, 32 px": Case(lambda: Cnn(1000), 32, 10.0),
    "scanned cnn, 10000 layers, 32 px": Case(Scanned, 32, 20.0),
    "cnn, 125 layers, 32 px": Case(lambda: Cnn(125), 32, quick=True),
    "cnn, 250 layers, 32 px": Case(lambda: Cnn(250), 32, quick=True),
    "cnn, 500 layers, 32 px": Case(lambda: Cnn(500), 32),
    "cnn, 2000 layers, 32 px": Case(lambda: Cnn(2000), 32),
    "cnn, 125 layers, 1024 wide": Case(lambda: Cnn(125, 1024), 32, quick=True),
    "cnn, 125 layers, 16384 wide": Case(lambda: Cnn(125, 16384), 32),
}
EXAMPLES = 4


def run(name: str) -> dict[str, float]:
    """Predicts one network in this process; returns seconds and megabytes."""
    case = CASES[name]
    inputs = crops(EXAMPLES, case.pixels)
    jax.block_until_ready(jnp.zeros(1) + 1)  # the backend is up
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    wall, cpu = time.perf_counter(), time.process_time()
    predicted = lw.predict(case.build(), None, inputs)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    complete = all(
        np.all(np.isfinite(predicted.log_second[d])) for d in ("forward", "backward")
    )
    return {
        "wall": wall,
        "cpu": cpu,
        "peak": peak,
        "before": before,
        "sites": len(predicted.sites),
        "sampled": len(predicted.sampled),
        "complete": float(complete),
    }


def extremes() -> list[str]:
    """Returns lines on layers that multiply the second moment by 1e300 or 1e-300."""
    model, x = Perceptron(), np.ones((2, 64), np.float32)
    lines = []
    for power in (-300, 300):
        # fan_in * variance / 2 is the factor behind ReLU.
        variance = 2.0 * 10.0**power / 64
        layers = {f"Dense_{i}": variance for i in range(model.depth)}
        got = predict(model, None, x, weight_variance=layers)
        u = [i for i, s in enumerate(got.sites) if s.kind == "u"]
        expected = np.log(2.0) + power * np.log(10.0) * np.arange(1, model.depth + 1)
        off = float(np.abs(got.log_second["forward"][u] - expected).max())
        first = {
            kind: next(iter(got.out_of_range(kind)), "no site")
            for kind in ("float16", "bfloat16", "float32")
        }
        lines.append(
            f"1e{power:+d} a layer: log E[u^2] of layer {model.depth} is "
            f"{got.log_second['forward'][u[-1]]:.3f}, off by at most {off:.1e}; first "
            + ", ".join(f"out of {k} at {v}" for k, v in first.items())
        )
    return lines


HEADER = ("network", "wall s", "CPU s", "wanted", "peak MB", "sites", "sampled")


def cells(name: str, got: dict[str, float]) -> list[str]:
    """Returns a row of the table."""
    wanted = CASES[name].wanted
    return [
        name,
        f"{got['wall']:.1f}",
        f"{got['cpu']:.1f}",
        "" if wanted is None else f"{wanted:.0f}",
        f"{got['peak']:.0f}",
        f"{got['sites']:.0f}" + ("" if got["complete"] else " (incomplete)"),
        f"{got['sampled']:.0f}",
    ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="about a minute")
    parser.add_argument("--only", default="", help="those whose name holds this")
    parser.add_argument("--one", default="", help="predict one here, and print JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run(options.one)))
        return
    print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    print("| " + " | ".join(HEADER) + " |\n|" + "---|" * len(HEADER), flush=True)
    for name, case in CASES.items():
        if (options.quick and not case.quick) or options.only not in name:
            continue
        command = [sys.executable, "-m", "benchmarks.prediction", "--one", name]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        row = cells(name, json.loads(out.splitlines()[-1]))
        print("| " + " | ".join(row) + " |", flush=True)
    if not options.only:
        print("\n".join(extremes()))


if __name__ == "__main__":
    main()
