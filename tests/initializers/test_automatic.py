"""Schemes that walk the graph: what they keep, by the theory and by measurement."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layerwise as lw
from helpers import assert_mean_close
from layerwise.errors import UnsupportedModelError
from layerwise.theory.predict import predict


class Chain(nn.Module):
    """Padding, stride, overlapping pooling, another activation, average."""

    width: int = 16

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(self.width, (3, 3))(x))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        x = nn.gelu(nn.Conv(self.width, (3, 3), strides=2)(x))
        x = nn.relu(nn.Conv(self.width, (3, 3))(x))
        return nn.Dense(10)(x.mean((1, 2)))


class Residual(nn.Module):
    """A trunk with two blocks; the weight last on each branch."""

    width: int = 64

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width)(x)
        for _ in range(2):
            y = nn.Dense(self.width)(nn.relu(x))
            x = x + nn.Dense(self.width)(nn.relu(y))
        return nn.Dense(10)(x)


@pytest.fixture(scope="module")
def images():
    x = jax.random.normal(jax.random.key(5), (4, 16, 16, 3))
    return (x + jnp.roll(x, 1, 1) + jnp.roll(x, 1, 2)) / math.sqrt(3.0)  # correlated


@pytest.mark.slow
def test_forward_is_one_at_every_layer(images):
    law = lw.scheme_law(Chain(), images, "kernel_forward")
    q = lw.measure(Chain(), None, images, draws=64, redraw=law).curve("forward")
    for layer in range(1, 5):
        assert_mean_close(q[:, layer], 1.0, bias=0.05)  # the theory's own error


def test_backward_is_one_at_every_layer():
    x = jax.random.normal(jax.random.key(6), (8, 8, 8, 3))

    class Relu(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(8, (3, 3))(x))
            x = nn.relu(nn.Conv(8, (3, 3), strides=2)(x))
            return nn.Dense(10)(x.reshape(x.shape[0], -1))

    law = lw.scheme_law(Relu(), x, "position_resolved_backward")
    got = predict(Relu(), None, x, method="sitewise", weight_variance=law.variances)
    np.testing.assert_allclose(got.curve("backward"), 1.0, rtol=1e-4)
    # [Henmi2020] eq. (7) is the same where nothing is padded.
    assert law.variances["Dense_0"] == pytest.approx(0.1, rel=1e-6)


@pytest.mark.slow
def test_position_resolved_f34_is_exact():
    model = lw.zoo.f34(width=4, image_size=64)
    x = jax.random.normal(jax.random.key(7), (2, 64, 64, 3))
    law = lw.scheme_law(model, x, "position_resolved_forward")
    got = predict(model, None, x, method="sitewise", weight_variance=law.variances)
    q = got.curve("forward")[1:]
    assert q.shape == (34,)
    assert np.all((q > 0.99) & (q < 1.01))
    # Padding and correlated pooling: eq. (6) is far off the same promise.
    paper = lw.scheme_law(model, x, "asv_forward").variances
    off = predict(model, None, x, method="sitewise", weight_variance=paper)
    assert off.curve("forward").max() > 2.0


@pytest.mark.slow
def test_position_resolved_f34_is_what_is_measured():
    model = lw.zoo.f34(image_size=64)
    x = jax.random.normal(jax.random.key(8), (4, 64, 64, 3))
    law = lw.scheme_law(model, x, "position_resolved_forward")
    back = predict(model, None, x, method="sitewise", weight_variance=law.variances)
    m = lw.measure(model, None, x, draws=64, redraw=law, key=jax.random.key(5))
    for layer in range(34):
        assert_mean_close(m.curve("forward")[:, layer + 1], 1.0, n_sigma=3.0)
        expected = back.curve("backward")[layer]
        assert_mean_close(m.curve("backward")[:, layer], expected, n_sigma=3.0)


@pytest.mark.slow
def test_constant_resolution_has_the_perron_eigenvalue():
    """Deep 3x3 stacks: sigma^2 = 2 / (9 C lambda_n^2), not the average count."""

    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(24):
                x = nn.relu(nn.Conv(4, (3, 3), use_bias=False)(x))
            return x

    x = jax.random.normal(jax.random.key(9), (2, 7, 7, 4))
    law = lw.scheme_law(Deep(), x, "position_resolved_forward")
    per_axis = (1.0 + 2.0 * math.cos(math.pi / 8.0)) / 3.0
    expected = 2.0 / (9.0 * 4.0 * per_axis**2)
    assert law.variances["Conv_23"] == pytest.approx(expected, rel=1e-4)


def test_residual_branches_get_their_target():
    x = jax.random.normal(jax.random.key(10), (16, 32))
    law = lw.scheme_law(Residual(), x, "kernel_forward")
    q = lw.measure(Residual(), None, x, draws=64, redraw=law).curve("forward")
    for layer, target in enumerate((1.0, 1.0, 0.5, 1.0, 0.5, 1.0), start=1):
        assert_mean_close(q[:, layer], target, bias=0.03)  # O(1/width)


def test_balanced_is_the_geometric_mean_in_a_relu_chain():
    net = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(16), nn.relu, nn.Dense(4)])
    x = jax.random.normal(jax.random.key(11), (8, 32))
    one, other, got = (
        lw.scheme_law(net, x, s).variances
        for s in ("kernel_forward", "kernel_backward", "balanced")
    )
    for path in ("layers_0", "layers_2"):
        assert got[path] == pytest.approx(math.sqrt(one[path] * other[path]), rel=1e-2)


def test_a_tied_embedding_is_scaled_where_its_rows_are_read(key):
    class Tied(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            table = nn.Embed(50, 16)
            x = nn.Dense(16)(table(tokens))
            return table.attend(x)

    tokens = jax.random.randint(key, (4, 6), 0, 50)
    law = lw.scheme_law(Tied(), tokens, "kernel_forward")
    assert law.stddev["Embed_0/embedding"] == pytest.approx(1.0)
    assert law.variances["Dense_0"] == pytest.approx(1 / 16, rel=0.15)


@pytest.mark.slow
def test_what_is_not_understood_is_listed_and_left_alone(images, key):
    class Odd(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = x.reshape(x.shape[0], -1)
            x = nn.WeightNorm(nn.Dense(32))(x)
            return nn.Dense(4)(nn.relu(x))

    law = lw.scheme_law(Odd(), images, "kernel_forward")
    assert any("Dense_0/kernel" in name for name in law.left_alone)
    q = lw.measure(Odd(), None, images, draws=16, redraw=law).curve("forward")
    assert_mean_close(q[:, 2], 1.0, bias=0.1)  # behind it the scale is right again


def test_no_depth_overflows():
    """Scales in logarithms: inputs of 1e-15 and 40 layers of a plain network."""
    net = nn.Sequential([f for _ in range(40) for f in (nn.Dense(4), nn.relu)])
    x = 1e-15 * jax.random.normal(jax.random.key(12), (4, 8))
    law = lw.scheme_law(net, x, "kernel_forward")
    assert law.variances["layers_0"] == pytest.approx(
        1.0 / float(8 * np.mean(np.square(np.asarray(x, np.float64)))), rel=1e-3
    )
    assert law.variances["layers_38"] == pytest.approx(0.5, rel=1e-3)


def test_kernel_schemes_need_data_with_moments():
    with pytest.raises(UnsupportedModelError):
        lw.scheme_law(
            lambda p, x: x * p["a"],
            jnp.ones((2, 3)),
            "kernel_forward",
            params={"a": jnp.ones(3)},
        )
