"""A maximum into few outputs: each pair of entries at its own correlation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

import layerwise as lw
from helpers import assert_mean_close
from layerwise.theory import marginal


WIDTH, DRAWS = 256, 512


def data():
    """Two examples of six positions: five that are nearly one, and one that is not."""
    alike = np.eye(8)[0] + 0.1 * np.eye(8)[1:6]
    apart = np.stack([0.5 * np.eye(8)[6], 0.7 * np.eye(8)[7]])
    x = np.stack([np.vstack([alike, a]) for a in apart])
    return jnp.asarray(x, jnp.float32)


def over_the_map(x):
    return x.max(axis=1)


def over_halves(x):
    """Two windows, with what is alike in both, and what is apart in the second."""
    return jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 3, 1), (1, 3, 1), "VALID"
    ).mean(axis=1)


@pytest.mark.parametrize("pool", [over_the_map, over_halves])
@pytest.mark.parametrize("phi", [jax.nn.sigmoid, jax.nn.relu, jnp.square])
def test_a_maximum_of_positions_that_are_unlike(pool, phi, key):
    x = data()

    def model(p, x):
        return pool(phi(x @ p["w"])) @ p["out"]

    keys = jax.random.split(key, 2)
    p = {
        "w": 1.5 * jax.random.normal(keys[0], (8, WIDTH)),
        "out": jax.random.normal(keys[1], (WIDTH, 2)) / WIDTH**0.5,
    }
    sd = {n: float(jnp.sqrt(jnp.mean(w**2))) for n, w in p.items()}
    got = lw.predict(model, p, x, draws=0)
    assert not got.sampled

    def one(k):
        ks = jax.random.split(k, 2)
        w = sd["w"] * jax.random.normal(ks[0], p["w"].shape)
        back = sd["out"] * 2**0.5 * jax.random.normal(ks[1], (WIDTH,))
        u = x @ w
        cotangent = jax.grad(lambda u: (pool(phi(u)) * back).sum())(u)
        return jnp.square(pool(phi(u))).mean(), jnp.square(cotangent).mean()

    forward, backward = jax.jit(jax.vmap(one))(jax.random.split(key, DRAWS))
    predicted = got.second["forward"][got.find("z", 1)]
    assert_mean_close(forward, predicted, bias=0.01 * predicted)
    predicted = got.second["backward"][got.find("u", 1)]
    assert_mean_close(backward, predicted, bias=0.02 * predicted)


@given(st.floats(0.0, 2.0), st.floats(0.1, 2.0), st.floats(-1.0, 1.0))
def test_values_of_a_law_stay_in_order(share, sd, away):
    """Whether or not a flat end is taken for zero."""
    rectified = marginal.of_two_slopes(1.0, 0.0)
    law = marginal.convolve(rectified, 1.0, rectified, share)
    assert law is not None
    for one, end in ((law, law[0]), (-law[::-1], -law[0])):
        mean = sd * (0.2 * away - end)
        assert np.all(np.diff(marginal.entries(one, mean, sd)) >= 0.0)
