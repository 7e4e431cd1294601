"""A maximum's slope is that of the entry which is the maximum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layerwise as lw
from helpers import assert_mean_close


SIZES = np.array([0.3, 0.6, 1.0, 1.5, 2.5])


def entries():
    """One example whose positions are independent, of these root mean squares."""
    own = np.zeros((1, len(SIZES), len(SIZES)), np.float32)
    own[0] = np.diag(SIZES)
    return jnp.asarray(own)


@pytest.mark.parametrize(
    "phi", [jnp.square, jnp.sin, jax.nn.softplus], ids=["square", "sin", "softplus"]
)
def test_the_slope_in_front_of_a_maximum_over_unequal_entries(phi, key):
    x, width = entries(), 512

    def model(p, x):
        return phi(x @ p["w"]).max(axis=1) @ p["out"]

    keys = jax.random.split(key, 2)
    p = {
        "w": jax.random.normal(keys[0], (len(SIZES), width)),
        "out": jax.random.normal(keys[1], (width, 2)) / width**0.5,
    }
    sd = {n: float(jnp.sqrt(jnp.mean(w**2))) for n, w in p.items()}
    got = lw.predict(model, p, x, draws=0)
    assert not got.sampled
    predicted = got.second["backward"][got.find("u", 1)]

    def one(k):
        ks = jax.random.split(k, 2)
        w = sd["w"] * jax.random.normal(ks[0], p["w"].shape)
        back = sd["out"] * jax.random.normal(ks[1], (width,)) * 2**0.5
        u = x @ w
        cotangent = jax.grad(lambda u: (phi(u).max(axis=1) * back).sum())(u)
        return jnp.square(cotangent).mean()

    samples = jax.jit(jax.vmap(one))(jax.random.split(key, 512))
    # Which of unequal entries is the maximum is drawn, and between eight variances.
    assert_mean_close(samples, predicted, bias=0.02 * predicted)
