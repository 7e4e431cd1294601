"""Weights scaled at first use: the second moments asked for, in logarithms."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layerwise.theory import law as laws
from layerwise.theory.first_use import scale_at_first_use
from layerwise.theory.predict import predict
from layerwise.tracing import as_function, trace
from layerwise.tracing.model import leaf_name


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(8, (3, 3))(x)), (2, 2), (2, 2))
        tied = nn.Conv(8, (3, 3), use_bias=False)
        x = nn.tanh(tied(x))
        x = x + nn.tanh(tied(x))
        return nn.Dense(4)(x.mean((1, 2)))


INPUTS = jax.random.normal(jax.random.key(1), (2, 8, 8, 3)) + 0.5


def scales(model, params, target):
    function = as_function(model)
    law = laws.of_params(params)
    return scale_at_first_use(
        trace(function, params, (INPUTS,)), law, (INPUTS,), target
    )


@pytest.mark.slow
@pytest.mark.parametrize("before", [1e18, 1.0, 1e-18])
def test_first_uses_have_the_second_moment_asked_for(before):
    params = Net().init(jax.random.key(0), INPUTS)
    params = jax.tree.map(lambda x: before * x, params)
    wanted = {"Conv_0": 0.0, "Conv_1": math.log(0.25), "Dense_0": math.log(3.0)}
    found = scales(Net(), params, lambda path, log: wanted[path])
    assert set(found) == {"Conv_0/kernel", "Conv_1/kernel", "Dense_0/kernel"}

    def scaled(path, x):
        return x * np.float32(math.exp(found.get(leaf_name(path), 0.0)))

    after = predict(Net(), jax.tree_util.tree_map_with_path(scaled, params), INPUTS)
    at = [after.find("u", i) for i in (1, 2, 4)]
    np.testing.assert_allclose(
        after.log_second["forward"][at], list(wanted.values()), atol=1e-5
    )
    assert after.layer_paths[2] == "Conv_1#2"  # the same leaf: it has its scale already


def test_what_is_sampled_is_sampled_with_the_scales_found_so_far():
    def model(p, x):
        u = x @ p["a"]
        v = jnp.sort(u, axis=-1)  # no rule
        return v @ p["b"]

    rows = INPUTS.reshape(2, -1)
    keys = jax.random.split(jax.random.key(3))
    n = rows.shape[1]
    params = {
        "a": 30 * jax.random.normal(keys[0], (n, 16)),
        "b": jax.random.normal(keys[1], (16, 16)),
    }
    law = laws.of_params(params)
    traced = trace(as_function(model), params, (rows,))
    found = scale_at_first_use(traced, law, (rows,), lambda path, log: 0.0)
    q = float(jnp.mean(rows**2) * jnp.mean(params["a"] ** 2) * n)
    assert found["a"] == pytest.approx(-0.5 * math.log(q), rel=1e-5)
    second = float(jnp.mean(params["b"] ** 2)) * 16  # sorted entries keep E[x^2] = 1
    assert found["b"] == pytest.approx(-0.5 * math.log(second), abs=0.15)
