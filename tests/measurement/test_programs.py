"""Loops, rematerialization and wrappers: the same numbers as the plain program."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layerwise as lw


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return nn.tanh(nn.Dense(6)(x)) + x, None


class Scanned(nn.Module):
    wrapped: Any = Block

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6, name="first")(x)
        blocks = nn.scan(
            self.wrapped, variable_axes={"params": 0}, split_rngs={"params": True},
            length=3,
        )(name="blocks")  # fmt: skip
        x, _ = blocks(x, None)
        return nn.Dense(2, name="last")(x)


class Unrolled(nn.Module):
    wrapped: Any = Block

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6, name="first")(x)
        for i in range(3):
            x, _ = self.wrapped(name=f"block_{i}")(x)
        return nn.Dense(2, name="last")(x)


def twins(key):
    x = jax.random.normal(key, (5, 4))
    params = Scanned().init(key, x)
    stacked = params["params"]["blocks"]
    flat = {
        "first": params["params"]["first"],
        "last": params["params"]["last"],
        **{f"block_{i}": jax.tree.map(lambda p, i=i: p[i], stacked) for i in range(3)},
    }
    return x, params, {"params": flat}


def both(m):
    return np.concatenate([m.second_moment(d)[0] for d in ("forward", "backward")])


@pytest.mark.slow
def test_a_scan_is_measured_iteration_by_iteration(key):
    x, params, flat = twins(key)
    scan = lw.measure(Scanned(), params, x, draws=1, loss=jnp.sum)
    plain = lw.measure(Unrolled(), flat, x, draws=1, loss=jnp.sum)
    assert scan.layer_paths == (
        "first", "blocks/Dense_0[0]", "blocks/Dense_0[1]", "blocks/Dense_0[2]", "last",
    )  # fmt: skip
    assert [s.kind for s in scan.sites] == [s.kind for s in plain.sites]
    assert [s.layer for s in scan.sites] == [s.layer for s in plain.sites]
    np.testing.assert_allclose(both(scan), both(plain), rtol=1e-5)
    np.testing.assert_allclose(
        scan.weight_variance[0], plain.weight_variance[0], rtol=1e-5
    )
    assert not scan.untapped


@pytest.mark.slow
def test_remat_alone_and_in_a_scan(key):
    x, params, flat = twins(key)
    want = lw.measure(Unrolled(), flat, x, draws=1, loss=jnp.sum)
    for model, given in (
        (Unrolled(nn.remat(Block)), flat),
        (Scanned(nn.remat(Block, prevent_cse=False)), params),
    ):
        names = jax.tree.structure(model.init(key, x))
        given = jax.tree.unflatten(names, jax.tree.leaves(given))
        got = lw.measure(model, given, x, draws=1, loss=jnp.sum)
        np.testing.assert_allclose(both(got), both(want), rtol=1e-5)


def test_loops_in_loops_and_large_values(key):
    """Nested iterations in order, and frames that move inside of a loop."""

    def nested(params, x):
        def inner(x, w):
            return 1e12 * jnp.tanh(1e-12 * (x @ w)), None

        def outer(x, ws):
            return jax.lax.scan(inner, x, ws)[0], None

        return jax.lax.scan(outer, x, params["w"])[0]

    def unrolled(params, x):
        for ws in params["w"]:
            for w in ws:
                x = 1e12 * jnp.tanh(1e-12 * (x @ w))
        return x

    params = {"w": 1e4 * jax.random.normal(key, (2, 3, 7, 7))}
    x = jax.random.normal(key, (4, 7))
    got = lw.measure(nested, params, x, draws=1, loss=jnp.sum)
    want = lw.measure(unrolled, params, x, draws=1, loss=jnp.sum)
    assert got.layer_paths[:4] == ("w[0][0]", "w[0][1]", "w[0][2]", "w[1][0]")
    np.testing.assert_allclose(both(got), both(want), rtol=1e-4)


@pytest.mark.slow
def test_a_recurrent_network(key):
    model = nn.RNN(nn.GRUCell(5))
    x = jax.random.normal(key, (3, 4, 2))
    got = lw.measure(model, None, x, draws=2)
    assert np.isfinite(got.curve("forward")[:, 1:]).all()
    assert sum(path.endswith("[3]") for path in got.layer_paths) > 0


def test_batch_statistics_dropout_and_keyword_arguments(key):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            x = nn.BatchNorm(use_running_average=not train)(nn.Dense(16)(x))
            x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
            return nn.Dense(3)(x)

    x = 3.0 + jax.random.normal(key, (64, 8))
    train = lw.measure(
        Net(), None, x, draws=4, kwargs={"train": True}, rngs={"dropout": key}
    )
    test = lw.measure(Net(), None, x, draws=4, kwargs={"train": False})
    v_train, v_test = (
        m.second_moment("forward")[:, m.find("z", 1)] for m in (train, test)
    )
    # Half of the units survive, doubled: twice the second moment of 1/2.
    assert np.all(np.abs(v_train - 1.0) < 0.3)
    assert np.all(
        v_test > 2.0
    )  # running averages of an untrained net normalize nothing


def test_attention_tied_weights_and_embeddings(key):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            embed = nn.Embed(11, 8)
            x = embed(tokens)
            attention: Any = nn.MultiHeadDotProductAttention(num_heads=2)
            x = x + attention(nn.LayerNorm()(x))
            return embed.attend(x)

    tokens = jax.random.randint(key, (2, 5), 0, 11)
    got = lw.measure(Net(), None, tokens, draws=2)
    for name in ("query", "key", "value", "out"):
        assert f"MultiHeadDotProductAttention_0/{name}" in got.layer_paths
    assert got.layer_paths[-1] == "Embed_0"  # the tied projection
    (embedding,) = (s for s in got.sites if s.kind == "embedding")
    assert (embedding.path, embedding.shape) == ("Embed_0", (2, 5, 8))
    assert not got.untapped
    assert np.isfinite(got.curve("backward")[:, 1:]).all()


@pytest.mark.slow
def test_half_precision_models_have_statistics_in_float32(key):
    class Net(nn.Module):
        dtype: Any

        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Dense(64, dtype=self.dtype)(x))
            return nn.Dense(8, dtype=self.dtype)(x)

    x = jax.random.normal(key, (32, 64))
    params = Net(jnp.float32).init(key, x)
    want = lw.measure(Net(jnp.float32), params, x, draws=1, loss=jnp.sum)
    got = lw.measure(Net(jnp.bfloat16), params, x, draws=1, loss=jnp.sum)
    # 8 bits of mantissa in each entry; averaged over thousands
    np.testing.assert_allclose(both(got), both(want), rtol=0.02)


@pytest.mark.parametrize("name", ["WeightNorm", "weight standardization"])
def test_weights_that_are_computed(name, key):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            if name == "WeightNorm":
                return nn.WeightNorm(nn.Dense(7))(x)
            w = self.param("w", nn.initializers.lecun_normal(), (x.shape[-1], 7))
            return x @ ((w - w.mean(0)) / w.std(0))

    x = jax.random.normal(key, (5, 9))
    got = lw.measure(Net(), None, x, draws=2)
    want = 1 / 9 if name == "WeightNorm" else 1.0
    np.testing.assert_allclose(got.weight_variance, want, rtol=1e-4)
