"""Weights of 16 bits: JAX draws them with a mean, which deep networks feel.

Each network is held to its tolerance and 5 standard errors of 512 networks.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layerwise.theory import law
from layerwise.theory.predict import predict
from layerwise.theory.state import Grade
from layerwise.tracing.prepare import prepare
from tests.theory.ensemble import measure, misses


HALF = (jnp.bfloat16, jnp.float16)
INITIALIZERS = {
    "normal": nn.initializers.he_normal(),
    "truncated": nn.initializers.lecun_normal(),
    "uniform": nn.initializers.he_uniform(),
    "positive": nn.initializers.uniform(0.1),
}


class Deep(nn.Module):
    """Dense or convolution layers with an activation."""

    dtype: Any
    conv: bool = False
    width: int = 64
    residual: bool = False
    phi: Any = nn.relu

    @nn.compact
    def __call__(self, x):
        he = nn.initializers.he_normal()
        for i in range(6):
            if self.conv:
                layer = nn.Conv(
                    self.width, (3, 3), param_dtype=self.dtype, kernel_init=he
                )
            else:
                layer = nn.Dense(self.width, param_dtype=self.dtype, kernel_init=he)
            y = self.phi(layer(x))
            x = (x + y) / jnp.sqrt(2.0) if self.residual and i else y
        if self.conv:
            x = nn.avg_pool(x, (2, 2), (2, 2)).reshape(len(x), -1)
        return nn.Dense(3, param_dtype=jnp.float32)(x)


NETWORKS: dict[str, Any] = {
    "dense": {},
    "dense, GELU": {"phi": nn.gelu},
    "dense, residual": {"residual": True},
    "convolutions": {"conv": True, "width": 16},
    "convolutions, tanh, residual": {
        "conv": True,
        "width": 16,
        "phi": nn.tanh,
        "residual": True,
    },
}


CHEAPEST = "dense, residual"


def second_of(dtype, init):
    """The law of a dense kernel, and draws of it."""
    model = nn.Dense(64, use_bias=False, param_dtype=dtype, kernel_init=init)
    x = jnp.ones((1, 64))
    ready = prepare(model, None, x)
    found = law.of_init(model.init, ready.inputs, ready.once)
    keys = jax.random.split(jax.random.key(1), 64)
    draws = jax.vmap(lambda k: model.init(k, x)["params"]["kernel"])(keys)
    return found.leaves["kernel"], np.asarray(draws, np.float64)


@pytest.mark.parametrize(
    "init",
    [
        n if n in ("uniform", "positive") else pytest.param(n, marks=pytest.mark.slow)
        for n in INITIALIZERS
    ],
)
def test_the_law_of_a_leaf_does_not_depend_on_the_precision_of_one_before(init):
    for dtype in (jnp.float32, *HALF, jnp.float32):
        leaf, draws = second_of(dtype, INITIALIZERS[init])
        assert leaf.drawn is None
        for power, moment in ((1, leaf.mean), (2, leaf.second)):
            each = draws**power
            error = np.std(each) / np.sqrt(each.size)
            assert abs(np.mean(each) - moment) <= 5 * error, (dtype, power)
    half, _ = second_of(jnp.bfloat16, INITIALIZERS[init])
    assert half.mean != 0


@pytest.mark.parametrize(
    "dtype", [pytest.param(jnp.bfloat16, marks=pytest.mark.slow), jnp.float16]
)
@pytest.mark.parametrize(
    "name",
    [n if n == CHEAPEST else pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS],
)
def test_deep_networks(dtype, name, key):
    model = Deep(dtype, **NETWORKS[name])
    shape = (4, 6, 6, 3) if model.conv else (4, 32)
    x = jax.random.normal(key, shape) + 0.5
    got = predict(model, None, x)
    assert Grade.MEASURED not in got.grade["forward"]
    measured = measure(got, lambda k: model.init(k, x), x, draws=512)
    assert not misses(got, measured)


def test_wide_networks_have_no_rule(key):
    x = jax.random.normal(key, (2, 8))
    got = predict(Deep(jnp.bfloat16, width=1024), None, x, draws=0)
    assert any("mean is" in reason for reason in got.sampled.values())
    assert got.grade["forward"][-1] is None
