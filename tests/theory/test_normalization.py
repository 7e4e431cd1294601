"""Backward through normalizations of one position: 1/q where q fluctuates."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layerwise as lw
from layerwise.theory import marginal
from layerwise.theory.predict import predict
from layerwise.theory.rules import normalization
from tests.theory.architectures import Architecture, draw, example, inputs
from tests.theory.ensemble import measure, misses
from tests.theory.operations import Random


WIDTH = 64
SHAPES = {
    "first": Random((6, WIDTH), 2.0 / 6),
    "second": Random((WIDTH, WIDTH), 2.0 / WIDTH),
    "last": Random((WIDTH, 5), 1.0 / WIDTH),
}


def network(params, x, centred):
    u = jax.nn.relu(x @ params["first"]) @ params["second"]
    if centred:
        u = u - u.mean(-1, keepdims=True)
    u = u / jnp.sqrt((u**2).mean(-1, keepdims=True) + 1e-6)
    return jax.nn.relu(u) @ params["last"]


@pytest.mark.parametrize(
    "centred", [pytest.param(True, marks=pytest.mark.slow), False], ids=["layer", "rms"]
)
def test_a_second_moment_that_fluctuates_is_divided_by(centred, key, monkeypatch):
    model = functools.partial(network, centred=centred)
    # The power of one example is four times that of the other.
    x = jax.random.normal(key, (2, 6))
    x = x / jnp.linalg.norm(x, axis=1, keepdims=True) * jnp.array([[1.0], [2.0]])
    params = example(SHAPES)
    prediction = predict(model, params, x)
    draws = measure(prediction, functools.partial(draw, SHAPES), x, draws=4096)
    assert not misses(prediction, draws)
    monkeypatch.setattr(normalization, "_inverse_gain", lambda f, epsilon: np.ones(()))
    wide = predict(model, params, x)
    assert not wide.sampled
    assert misses(wide, draws)


@pytest.mark.parametrize("count", [12, 24])
@pytest.mark.parametrize(
    "function", [lambda z: z**3, lambda z: z * abs(z)], ids=["cube", "signed square"]
)
def test_a_value_is_part_of_what_it_is_divided_by(function, count, key):
    x = function(jax.random.normal(key, (100_000, count)))
    fourth = np.mean(np.square(x**2 / np.mean(x**2, axis=1, keepdims=True)), axis=1)
    law = marginal.standardize(function(marginal.nodes()))
    assert law is not None
    got = normalization._self_normalized(law, float(count))
    predicted = marginal.weights() @ got**4
    # The others' sum is log-normal only in the limit: 6 % at 12 of the cubes.
    assert predicted == pytest.approx(float(np.mean(fourth)), rel=0.08)
    assert marginal.weights() @ law**4 > 1.5 * predicted


@pytest.mark.parametrize(
    "norm",
    [pytest.param(nn.LayerNorm, marks=pytest.mark.slow), nn.RMSNorm, nn.GroupNorm],
    ids=lambda n: n.__name__,
)
def test_what_is_added_to_a_small_variance_counts(norm, key):
    class Small(nn.Module):
        """Of values whose variance is twice what is added to it."""

        @nn.compact
        def __call__(self, x):
            x = 0.003 * nn.Dense(64)(x)
            settings = {"num_groups": 2} if norm is nn.GroupNorm else {}
            return nn.Dense(4)(nn.gelu(norm(epsilon=5e-6, **settings)(x)))

    x = jax.random.normal(key, (4, 24))
    prediction = predict(Small(), None, x, draws=0)
    drawn = measure(prediction, lambda k: Small().init(k, x), x, draws=1024)
    assert not misses(prediction, drawn)


def test_examples_that_differ_at_one_place(key):
    class Places(nn.Module):
        """Reads the first place of normalized places."""

        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.LayerNorm()(nn.Dense(48)(x)))
            return nn.Dense(4)(nn.Dense(48)(x)[:, 0])

    x = jax.random.normal(key, (4, 8, 24))
    x = x / jnp.linalg.norm(x, axis=-1, keepdims=True) * np.sqrt(24)
    x = x.at[:, 0].multiply(jnp.array([[0.2], [0.5], [1.0], [1.6]]))
    prediction = predict(Places(), None, x, draws=0)
    drawn = measure(prediction, lambda k: Places().init(k, x), x, draws=1024)
    assert not misses(prediction, drawn)


def test_what_batch_normalization_of_photographs_states_of_a_mean(key):
    """Examples have kernels of their own; what the average misses is stated."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(use_running_average=False)(nn.Conv(32, (3, 3))(x))
            x = nn.Conv(32, (3, 3))(nn.relu(x))
            x = nn.BatchNorm(use_running_average=False)(x)
            return nn.Dense(8)(x.mean((1, 2)))

    x = inputs(Architecture((), inputs="photo", size=12, batch=4))
    prediction = lw.predict(Model(), None, x, draws=0)
    measured = lw.measure(Model(), None, x, draws=256, key=key)
    at = prediction.find("u", 3)
    samples = np.log(measured.second_moment("forward")[:, at].mean())
    error = prediction.log_second["forward"][at] - samples
    assert 0.3 < error < prediction.tolerance["forward"][at]
