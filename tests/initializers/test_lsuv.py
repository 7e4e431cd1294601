"""LSUV: unit second moments on the batch, whatever the model."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layerwise as lw


class Step(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(8)(nn.relu(x)), None


class Net(nn.Module):
    """An embedding, a loop, attention, pooling without any rule, a tied weight."""

    shared: bool = False

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(20, 8)
        x = embed(tokens)
        how: Any = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        if self.shared:
            how = {"variable_broadcast": "params", "split_rngs": {"params": False}}
        x, _ = nn.scan(Step, length=3, **how)()(x, None)
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        x = nn.Dense(8, param_dtype=jnp.bfloat16)(jnp.sort(x, axis=-1))
        return embed.attend(x)


TOKENS = jax.random.randint(jax.random.key(1), (4, 6), 0, 20)


@pytest.mark.parametrize("shared", [pytest.param(False, marks=pytest.mark.slow), True])
def test_every_operation_is_unit_on_the_batch(shared, key):
    law = lw.scheme_law(Net(shared), TOKENS, "lsuv", distribution="normal")
    params = jax.jit(law)(key)
    m = lw.measure(Net(shared), params, TOKENS, draws=1)
    q = dict(zip(m.layer_paths, m.curve("forward")[0, 1:], strict=True))
    tied = [p for p in q if "Embed" in p]  # scaled where its rows are read
    repeated = [p for p in q if shared and ("[1]" in p or "[2]" in p)]
    for path in q.keys() - set(tied) - set(repeated):
        assert q[path] == pytest.approx(1.0, rel=3e-2 if path == "Dense_0" else 1e-4)
    assert all(np.isfinite(list(q.values())))
    assert law.variances == {}  # they depend on the batch


def test_begins_orthogonal_and_survives_any_scale(key):
    net = nn.Sequential([nn.Dense(16), nn.tanh, nn.Dense(16), nn.relu, nn.Dense(4)])
    x = 1e-12 * jax.random.normal(key, (8, 16))
    kernel = lw.initialize(net, x, key, "lsuv")["params"]["layers_2"]["kernel"]
    gram = np.asarray(kernel, np.float64).T @ np.asarray(kernel, np.float64)
    np.testing.assert_allclose(gram / gram[0, 0], np.eye(16), atol=1e-5)
    m = lw.measure(net, lw.initialize(net, x, key, "lsuv"), x, draws=1)
    np.testing.assert_allclose(m.curve("forward")[0, 1:], 1.0, rtol=1e-4)
