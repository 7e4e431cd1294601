"""MetaInit and GradInit lower what they say, and leave directions as drawn."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layerwise as lw
from layerwise.initializers.learned import gradient_quotient, loss_after_a_step


def test_gradient_quotient_of_a_quadratic_is_its_curvature():
    curvature = jnp.array([0.5, 2.0, 3.0])
    params = {"p": jnp.array([1.0, -2.0, 0.7])}
    got = gradient_quotient(lambda t: 0.5 * jnp.sum(curvature * t["p"] ** 2), params)
    assert float(got) == pytest.approx(float(curvature.mean()), rel=1e-4)


def test_a_sign_step():
    params = {"p": jnp.array([1.0, -2.0])}
    got = loss_after_a_step(lambda t: jnp.sum(t["p"] ** 2), params, rate=0.1)
    assert float(got) == pytest.approx(0.9**2 + 1.9**2)
    held = loss_after_a_step(
        lambda t: jnp.sum(t["p"] ** 2), params, rate=0.1, bound=0.5
    )
    assert float(held) == pytest.approx(0.1 * (2 + 4))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "objective"),
    [("metainit", gradient_quotient), ("gradinit", loss_after_a_step)],
)
def test_learned_scales_lower_their_objective(scheme, objective, key):
    net = nn.Sequential([nn.Dense(16), jnp.tanh, nn.Dense(16), jnp.tanh, nn.Dense(4)])
    x = jax.random.normal(key, (16, 8))
    labels = jax.random.randint(key, (16,), 0, 4)

    def loss(output):
        rows = jax.nn.log_softmax(output)
        return -jnp.mean(jnp.take_along_axis(rows, labels[:, None], axis=1))

    start = lw.initialize(net, x, key, scheme, loss=loss, steps=0)
    got = lw.initialize(net, x, key, scheme, loss=loss, steps=30)
    values = [
        float(objective(lambda p: loss(net.apply(p, x)), params))
        for params in (start, got)
    ]
    assert values[1] < values[0]
    for a, b in zip(jax.tree.leaves(start), jax.tree.leaves(got), strict=True):
        if a.any():  # one scale for each leaf
            ratio = np.asarray(b) / np.asarray(a)
            np.testing.assert_allclose(ratio, ratio.flat[0], rtol=1e-4)
