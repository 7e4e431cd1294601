"""Look-ups: moments of embedded tokens, against samples; what is refused."""

import jax
import jax.numpy as jnp
import numpy as np

import layerwise as lw
from helpers import assert_mean_close
from layerwise.theory.state import Grade


TOKENS = jnp.array([[0, 1, 1, 2], [3, 3, 3, 0]])
SHAPES = {"table": (5, 8), "w": (8, 16), "out": (16, 4)}


def model(p, tokens):
    x = p["table"][tokens] @ p["w"]
    return jax.nn.relu(x).mean(1) @ p["out"]


def draw(key):
    keys = jax.random.split(key, len(SHAPES))
    return {
        n: jax.random.normal(k, s)
        for (n, s), k in zip(SHAPES.items(), keys, strict=True)
    }


def test_equal_tokens_are_one_row(key):
    params = draw(jax.random.key(0))
    scale = {n: float(jnp.sqrt(jnp.mean(x**2))) for n, x in params.items()}
    got = lw.predict(model, params, TOKENS)
    assert not got.sampled
    at = got.find("u", 1)
    expected = (scale["table"] * scale["w"]) ** 2 * 8
    assert got.grade["forward"][at] is Grade.EXACT
    np.testing.assert_allclose(got.second["forward"][at], expected, rtol=1e-6)

    def one(k):
        p = {n: scale[n] * x for n, x in draw(k).items()}
        return (model(p, TOKENS) ** 2).mean()

    samples = jax.jit(jax.vmap(one))(jax.random.split(key, 4000))
    last = got.find("u", 2)
    # Two channels of one position share the row, of 8 entries: order 1/width.
    assert_mean_close(
        samples, got.second["forward"][last], bias=0.05 * float(samples.mean())
    )


def test_a_table_read_twice_is_not_fresh():
    def tied(p, tokens):
        x = jax.nn.relu(p["table"][tokens] @ p["w"] @ p["w"].T)
        return x @ p["table"].T

    params = draw(jax.random.key(0))
    got = lw.predict(tied, params, TOKENS, draws=8)
    assert all("another arrangement" in r for r in got.sampled.values())
    assert got.sampled
