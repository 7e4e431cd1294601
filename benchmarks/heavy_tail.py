"""The mean over networks that few of them decide: GELU, sixteen convolutions deep.

    python -m benchmarks.heavy_tail           # 18 runs of 64 networks, minutes
    python -m benchmarks.heavy_tail --quick   # narrow networks, two runs

The logarithm of a network's second moment q has a standard deviation of 0.9 at the
last convolution and of 1.3 at the dense layer behind it, so that 40 draws say little
about the mean. Here networks are drawn layer by layer, many side by side, and after
each layer copied in proportion to about what they will have at the end, q^a; dividing
by that leaves every mean unbiased (sequential importance sampling). What is averaged at
a layer is its expectation given the activations in front of it. Standard errors are
over runs.
"""

import argparse
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

import layerwise as lw
from benchmarks.initializers import GeluCnn
from experiments.photos import photo_crops


DEPTH = 16
GROWTH = 1.06  # d log q of a layer / d log q of the one before, about


def expected(x: jax.Array, layer: int, variance: float) -> jax.Array:
    """Returns E[u^2] of each example at the operation that reads `x`."""
    if layer == DEPTH:
        return variance * jnp.sum(jnp.square(x.mean((1, 2))), axis=-1)
    power = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    under = _convolve(power, jnp.ones((3, 3, 1, 1)))  # the taps of each position
    return variance * jnp.mean(under, axis=(1, 2, 3))


def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    order = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=order
    )


@functools.partial(jax.jit, static_argnames=("layer", "channels"))
def advance(
    key: jax.Array,
    x: jax.Array,
    now: float,
    after: float,
    *,
    layer: int,
    channels: int,
) -> tuple[jax.Array, jax.Array]:
    """Returns one network's next activations, and E[u^2] behind them by example."""
    kernel = jax.random.normal(key, (3, 3, x.shape[-1], channels)) * jnp.sqrt(now)
    x = jax.nn.gelu(_convolve(x, kernel))
    if layer % 4 == 3:
        n, height, width, _ = x.shape
        x = x.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))
    return x, expected(x, layer + 1, after)


def run(
    key: jax.Array,
    inputs: jax.Array,
    variances: Sequence[float],
    width: int,
    count: int,
) -> np.ndarray:
    """Returns the mean second moment of every layer, from `count` networks."""
    first = np.asarray(expected(inputs, 0, variances[0]), np.float64)
    networks, means = [inputs] * count, [first.mean()]
    tilt = np.full(count, np.mean(first ** (GROWTH**DEPTH)))
    total = tilt[0]
    for layer in range(DEPTH):
        key, pick, *keys = jax.random.split(key, 2 + count)
        step = functools.partial(
            advance, layer=layer, channels=width * 2 ** (layer // 8)
        )
        pair = variances[layer], variances[layer + 1]
        made = [step(k, x, *pair) for k, x in zip(keys, networks, strict=True)]
        q = np.array([np.asarray(v, np.float64) for _, v in made])
        means.append(total * np.mean(q.mean(axis=1) / tilt))
        ahead = np.mean(q ** (GROWTH ** (DEPTH - 1 - layer)), axis=1)
        weights = ahead / tilt
        total *= weights.mean()
        at = (float(jax.random.uniform(pick)) + np.arange(count)) / count
        chosen = np.searchsorted(np.cumsum(weights / weights.sum()), at)
        chosen = np.minimum(chosen, count - 1)
        networks, tilt = [made[i][0] for i in chosen], ahead[chosen]
    return np.array(means)


def main() -> None:
    """Prints the mean of every layer, whose target is 1, with its standard error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--runs", type=int, default=18)
    parser.add_argument("--networks", type=int, default=64)
    args = parser.parse_args()
    width, size = (8, 16) if args.quick else (64, 64)
    inputs = photo_crops(4, size)
    law = lw.scheme_law(GeluCnn(width), inputs, "kernel_forward")
    variances = [float(v) for v in law.variances.values()]
    runs = []
    for i in range(2 if args.quick else args.runs):
        x = jnp.asarray(inputs)
        runs.append(run(jax.random.key(i), x, variances, width, args.networks))
        mean = np.mean(runs, axis=0)
        error = np.std(runs, axis=0, ddof=1) / np.sqrt(i + 1) if i else 0 * mean
        print(i + 1, *(f"{m:.3f}+-{e:.3f}" for m, e in zip(mean, error, strict=True)))


if __name__ == "__main__":
    main()
