"""Runs of elementwise equations as scalar functions, and when two are one."""

import jax
import jax.numpy as jnp

from layerwise.tracing import as_function, trace


def test_equal_bodies_with_different_rules_are_told_apart():
    """ReLU, ReLU again, and ReLU with a gradient of its own in between."""

    def through(scale):
        @jax.custom_jvp
        def relu(x):
            return jnp.maximum(x, 0.0)

        relu.defjvps(lambda dx, y, x: scale * dx)
        return relu

    def model(params, x):
        for relu in (jax.nn.relu, through(1.0), jax.nn.relu, through(2.0)):
            x = relu(x @ params["w"])
        return x

    params, x = {"w": jnp.eye(4)}, jnp.ones((2, 4))
    traced = trace(as_function(model), params, (x,))
    found = [[s.kind for s in layer.steps] for layer in traced.layers]
    assert found == [["pointwise"], ["other"], ["pointwise"], ["other"]]
    first, third = (traced.layers[i].steps[0].phi for i in (0, 2))
    assert first is third
