"""Residual schemes against their formulas, and networks of a thousand layers."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layerwise as lw
from helpers import assert_mean_close
from layerwise.errors import UnsupportedModelError


class Net(nn.Module):
    """Three blocks of two weights, each branch times a learned scalar if asked for."""

    width: int = 32
    scalar: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width, name="stem")(x)
        for i in range(3):
            y = nn.Dense(2 * self.width, name=f"one_{i}")(nn.relu(x))
            y = nn.Dense(self.width, name=f"two_{i}")(nn.relu(y))
            if self.scalar:
                y = y * self.param(f"alpha_{i}", nn.initializers.ones, ())
            x = x + y
        return nn.Dense(4, name="head")(x)


X = jnp.ones((2, 16))
N = 32


def test_taki_is_c_over_n_l_for_one_weight_and_its_root_for_two():
    one = lw.zoo.taki_mlp(input_shape=(16,), depth=5, width=N)
    law = lw.scheme_law(one, None, "taki", c=2.0)
    assert law.variances["Dense_3"] == pytest.approx(2.0 / (N * 5))
    two = lw.scheme_law(Net(), X, "taki").variances
    assert two["one_1"] == pytest.approx(math.sqrt(1 / 3) / N)
    assert two["two_1"] == pytest.approx(math.sqrt(1 / 3) / (2 * N))
    assert two["stem"] == pytest.approx(2.0 / 16)


def test_fixup():
    law = lw.scheme_law(Net(scalar=True), X, "fixup")
    for i in range(3):  # [Zhang2019] L^(-1/(2m-2)) on the standard deviation, m = 2
        assert law.variances[f"one_{i}"] == pytest.approx(2 / (2 * N) / 3)
        assert law.constants[f"two_{i}/kernel"] == 0.0
        assert law.constants[f"alpha_{i}"] == 1.0
    assert law.constants["head/kernel"] == 0.0


@pytest.mark.parametrize("scheme", ["skipinit", "rezero"])
def test_skipinit_and_rezero_begin_as_the_identity(scheme, key):
    law = lw.scheme_law(Net(scalar=True), X, scheme)
    params = law(key)
    assert all(float(params["params"][f"alpha_{i}"]) == 0.0 for i in range(3))
    n = 1 / N if scheme == "skipinit" else 1 / (N + 2 * N)
    assert law.variances["one_0"] == pytest.approx(2 * n)
    with pytest.raises(UnsupportedModelError, match="no learned scalar"):
        lw.scheme_law(Net(), X, scheme)


def test_scaled_branches_share_one_over_root_l():
    law = lw.scheme_law(Net(), X, "scaled_branches")
    assert law.variances["two_0"] == pytest.approx(2 / (2 * N) / 3)
    assert law.variances["one_0"] == pytest.approx(2 / N)
    scalar = lw.scheme_law(Net(scalar=True), X, "scaled_branches")
    assert scalar.constants["alpha_2"] == pytest.approx(3**-0.5)
    assert scalar.variances["two_0"] == pytest.approx(2 / (2 * N))


def test_nf_keeps_the_variance_it_says(key):
    x = jax.random.normal(key, (256, 128))
    net, alpha = Net(width=128), 0.5
    law = lw.scheme_law(net, x, "nf", alpha=alpha)
    gamma = 2 / (1 - 1 / math.pi)
    for i in range(3):  # beta^2 = 1 + i alpha^2, folded into the first weight
        expected = gamma / 128 / (1 + i * alpha**2)
        assert law.variances[f"one_{i}"] == pytest.approx(expected)
    params = jax.jit(law)(key)
    kernel = np.asarray(params["params"]["one_0"]["kernel"], np.float64)
    np.testing.assert_allclose(kernel.mean(axis=0), 0.0, atol=1e-6)
    norms = np.square(kernel).mean(axis=0)
    np.testing.assert_allclose(norms, norms.mean(), rtol=1e-4)
    _, state = net.apply(params, x, capture_intermediates=True)
    branch: Any = state["intermediates"]["two_2"]["__call__"][0]
    assert float(jnp.var(branch, axis=0).mean()) == pytest.approx(alpha**2, rel=0.15)


def test_nf_reads_the_activation_inside_a_loop():
    class Step(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return x + nn.Dense(16)(nn.gelu(x)), None

    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, x):
            how: Any = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            return nn.scan(Step, length=3, **how)()(nn.Dense(16, name="stem")(x), None)[
                0
            ]

    law = lw.scheme_law(Scanned(), jnp.ones((2, 8)), "nf", alpha=0.5)
    (inner,) = (v for path, v in law.variances.items() if path != "stem")
    gamma = float(lw.gain(nn.gelu, "variance")) ** 2
    assert inner == pytest.approx(0.5**2 * gamma / 16, rel=1e-5)


def test_a_model_without_blocks_says_so():
    with pytest.raises(UnsupportedModelError, match="no sum with a shortcut"):
        lw.scheme_law(nn.Dense(3), X, "taki")


class Thousand(nn.Module):
    """A thousand layers in a scan."""

    convolutional: bool
    width: int = 64
    depth: int = 1000

    @nn.compact
    def __call__(self, x):
        outer = self

        class Step(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                if outer.convolutional:
                    return jnp.tanh(
                        nn.Conv(outer.width, (3, 3), use_bias=False)(x)
                    ), None
                return x + nn.Dense(outer.width, use_bias=False)(nn.relu(x)), None

        make = (
            nn.Conv(self.width, (3, 3)) if self.convolutional else nn.Dense(self.width)
        )
        scan = nn.scan(
            Step,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.depth,
        )
        x, _ = scan()(make(x), None)
        return nn.Dense(8)(x.reshape(x.shape[0], -1))


@pytest.mark.slow
def test_a_residual_mlp_of_a_thousand_layers_stays_within_two(key):
    x = jax.random.normal(key, (16, 32))
    law = lw.scheme_law(Thousand(False), x, "taki", c=1.0)
    m = lw.measure(Thousand(False), None, x, draws=8, redraw=law)
    for direction in ("forward", "backward"):  # exp(c/2) = 1.65
        inner = m.curve(direction).mean(axis=0)[2:1002]
        assert inner.max() / inner.min() < 2.0


@pytest.mark.slow
def test_a_delta_orthogonal_cnn_of_a_thousand_layers_stays_within_two(key):
    """tanh loses 2 q^2 a layer: at q_0 = 1/(4 L) a thousand take a third of q."""
    x = jax.random.normal(key, (2, 4, 4, 3)) / math.sqrt(4 * 1000)
    net = Thousand(True, width=8)
    law = lw.scheme_law(net, x, "delta_orthogonal")
    draws = jax.lax.map(law, jax.random.split(key, 2))
    m = lw.measure(net, draws, x)
    for direction in ("forward", "backward"):
        inner = m.curve(direction).mean(axis=0)[1:1001]
        assert np.all(np.isfinite(inner))
        assert inner.max() / inner.min() < 2.0


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["kernel_forward", "scaled_branches"])
def test_a_trunk_of_a_thousand_branches_grows_by_e(scheme, key):
    x = jax.random.normal(key, (16, 32))
    law = lw.scheme_law(Thousand(False), x, scheme)
    m = lw.measure(Thousand(False), None, x, draws=16, redraw=law)
    q = m.curve("forward")
    if scheme == "kernel_forward":  # one leaf for all: 1/L at its first use
        assert_mean_close(q[:, 2], 1e-3, bias=1e-5)
    # (1 + 1/L)^L in the mean of q; of its logarithm less by half the variance.
    assert_mean_close(np.log(q[:, 1001] / q[:, 2]), 1.0, bias=0.1)
