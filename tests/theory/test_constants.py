"""Fixed arrays, known at every position, against samples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layerwise.theory.predict import predict
from layerwise.theory.state import Grade
from tests.theory.ensemble import measure, misses


SIZE, WIDTH = 8, 16


def conv(x, w):
    return jax.lax.conv_general_dilated(
        x, w, (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC")
    )


def window(x):
    return x * jnp.hanning(SIZE)[:, None]


def counts(x):
    return x / jnp.arange(1.0, SIZE + 1)[:, None]


def mask(x):
    return jnp.where(jnp.arange(SIZE)[:, None] < SIZE // 3, x, 0.0)


def lengths(x):
    seen = jnp.arange(SIZE) < jnp.array([8, 1, 3, 6])[:, None]
    return x * seen[..., None]


def codes(x):
    rates = jnp.arange(1, x.shape[-1] + 1) / 5.0
    return jnp.sin(jnp.arange(SIZE)[:, None] * rates) - x


def network(place):
    def apply(params, x):
        x = place(jax.nn.relu(conv(x, params["a"])))
        return jax.nn.relu(conv(x, params["b"])).mean(1) @ params["c"]

    return apply


def draw(key):
    a, b, c = jax.random.split(key, 3)
    return {
        "a": jax.random.normal(a, (3, 4, WIDTH)) / np.sqrt(12),
        "b": jax.random.normal(b, (3, WIDTH, WIDTH)) / np.sqrt(3 * WIDTH),
        "c": jax.random.normal(c, (WIDTH, 4)) / np.sqrt(WIDTH),
    }


def test_a_mask_that_differs_by_example_is_measured():
    # Kernels are averages over examples: that one is zero where another is not is lost.
    x = jax.random.normal(jax.random.key(1), (4, SIZE, 4))
    prediction = predict(network(lengths), draw(jax.random.key(0)), x, draws=4)
    assert prediction.grade["forward"][-1] is Grade.MEASURED
    assert "differs by example" in " ".join(prediction.sampled.values())


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(window, marks=pytest.mark.slow),
        counts,
        pytest.param(mask, marks=pytest.mark.slow),
        codes,
    ],
)
def test_fixed_arrays_are_not_random(place):
    x = jax.random.normal(jax.random.key(1), (4, SIZE, 4))
    prediction = predict(network(place), draw(jax.random.key(0)), x, law=draw)
    assert Grade.MEASURED not in (
        *prediction.grade["forward"],
        *prediction.grade["backward"],
    )
    run = functools.partial(measure, prediction, draw, x)
    assert not misses(prediction, run(draws=1024))
