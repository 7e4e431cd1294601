"""A Linen module as functions: what it costs to call, and whose lines it is made of."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layerwise.tracing import trace
from layerwise.tracing.model import abstract_params, as_function


class Scaled(nn.Module):
    """A parameter of its own beside a layer's, and one in `setup`."""

    def setup(self):
        self.dense = nn.Dense(3)
        self.scale = self.param("scale", nn.initializers.ones, (3,))

    def __call__(self, x):
        return self.dense(x) * self.scale


@pytest.fixture
def counted():
    """Returns a model and a list to which its initializer adds each call."""
    calls = []

    def init(key, shape, dtype=jnp.float32):
        calls.append(shape)
        return jax.random.normal(key, shape, dtype)

    return nn.Sequential([nn.Dense(4, kernel_init=init), nn.relu, nn.Dense(2)]), calls


def test_applying_a_model_does_not_trace_its_initializers(counted):
    model, calls = counted
    x = jnp.ones((2, 3))
    function = as_function(model)
    params = abstract_params(function, (x,))
    assert len(calls) == 1
    trace(function, params, (x,))
    assert len(calls) == 1
    assert function.init is not None
    given = function.init(jax.random.key(0), x)
    np.testing.assert_array_equal(function.apply(given, x), model.apply(given, x))


def test_parameters_are_those_given_wherever_they_are_asked_for():
    x = jnp.ones((2, 3))
    params: Any = Scaled().init(jax.random.key(0), x)
    params["params"]["scale"] = jnp.array([1.0, 2.0, 3.0])
    got = as_function(Scaled()).apply(params, x)
    np.testing.assert_array_equal(got, Scaled().apply(params, x))


def test_a_missing_parameter_is_an_error_as_without_us():
    x = jnp.ones((2, 3))
    params: Any = Scaled().init(jax.random.key(0), x)
    del params["params"]["scale"]
    with pytest.raises(Exception, match="scale"):
        as_function(Scaled()).apply(params, x)


def test_equations_name_the_line_that_called_the_layer():
    x = jnp.ones((2, 3))

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.LayerNorm()(x))

    function = as_function(Net())
    traced = trace(function, abstract_params(function, (x,)), (x,))
    places = {e.source for e in traced.graph.equations}
    assert all("test_linen.py" in place for place in places), places
