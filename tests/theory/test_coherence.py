"""Sums of a value and an activation of it: cotangents that turn toward the value.

Predictions are held to their tolerance and 5 standard errors of 512 networks, and the
matrix of a cotangent's projections to those of dense blocks that are written out here.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layerwise.theory.coherence import Block, Coherence, in_front_of_weights
from layerwise.theory.predict import predict
from tests.theory.ensemble import measure, misses


HE = nn.initializers.he_normal()


class Blocks(nn.Module):
    """Blocks x + f(W x), in several forms."""

    phi: Any = nn.relu
    width: int = 64
    depth: int = 5
    conv: bool = False
    inner: Any = None
    scale: float = 0.7
    sign: float = 1.0
    scanned: bool = False
    twins: bool = False

    @nn.compact
    def __call__(self, x):
        def layer(**name):
            if self.conv:
                return nn.Conv(self.width, (3, 3), kernel_init=HE, **name)
            return nn.Dense(self.width, kernel_init=HE, **name)

        x = self.phi(layer()(x))
        if self.scanned:
            body = nn.scan(
                lambda w, x: ((x + self.phi(w(x))) * self.scale, None),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.depth,
            )
            x, _ = body(layer(name="block"), x)
        else:
            for _ in range(self.depth):
                if self.twins:
                    x = (self.phi(layer()(x)) + self.phi(layer()(x))) * self.scale
                    continue
                y = x if self.inner is None else self.inner(layer()(x))
                y = self.phi(layer()(y))
                x = (x + y if self.sign > 0 else x - y) * self.scale
        return nn.Dense(3)(x.reshape(len(x), -1))


FORMS: dict[str, Any] = {
    "ReLU": {},
    "ReLU, 16 blocks of 32": {"depth": 16, "width": 32},
    "leaky ReLU": {"phi": lambda x: nn.leaky_relu(x, 0.2)},
    "GELU": {"phi": nn.gelu},
    "softplus": {"phi": nn.softplus, "scale": 0.5},
    "absolute value": {"phi": jnp.abs},
    "a difference": {"sign": -1.0, "scale": 1.0},
    "twins": {"twins": True, "width": 32},
    "twins, GELU": {"twins": True, "phi": nn.gelu},
    "two layers": {"inner": nn.relu},
    "convolutions": {"conv": True, "width": 12, "depth": 3},
}


@pytest.mark.parametrize(
    "form",
    [n if n == "ReLU" else pytest.param(n, marks=pytest.mark.slow) for n in FORMS],
)
def test_blocks_that_end_with_an_activation(form, key):
    model = Blocks(**FORMS[form])
    shape = (4, 6, 6, 3) if model.conv else (4, 32)
    x = jax.random.normal(key, shape) + 0.3
    got = predict(model, None, x)
    assert not got.sampled
    measured = measure(got, lambda k: model.init(k, x), x, draws=512)
    assert not misses(got, measured)


def test_a_scan_is_the_same_as_its_blocks(key):
    x = jax.random.normal(key, (4, 32))
    plain, scanned = (
        predict(Blocks(depth=12, scanned=s), None, x).curve("backward")
        for s in (False, True)
    )
    np.testing.assert_allclose(plain, scanned, rtol=1e-9)


def projections(depth, width, draws):
    """Second moments of c, b and c b at x_0 ... x_L, over E[g^2], of ReLU blocks."""

    def one(key):
        keys = jax.random.split(key, depth + 2)
        he = np.sqrt(2.0 / width)
        weights = [he * jax.random.normal(k, (width, width)) for k in keys[:depth]]
        xs = [jnp.maximum(jax.random.normal(keys[-2], (width,)), 0.0)]
        for w in weights:
            xs.append(xs[-1] + jnp.maximum(w @ xs[-1], 0.0))
        g = jax.random.normal(keys[-1], (width,))
        found = []
        for x, w in zip(xs[::-1], [None, *weights[::-1]], strict=True):
            if w is not None:
                g = g + w.T @ ((w @ x > 0) * g)
            apart = x - x.mean()
            c = g.sum() / np.sqrt(width)
            b = apart @ g / jnp.linalg.norm(apart)
            found.append(jnp.stack([c * c, c * b, b * b, jnp.mean(g**2)]))
        return jnp.stack(found[::-1])

    keys = jax.random.split(jax.random.key(0, impl="unsafe_rbg"), draws)
    many = jax.jit(lambda k: jax.lax.map(one, k, batch_size=16))(keys)
    return np.asarray(many, np.float64)


@pytest.mark.slow
def test_projections_of_wide_relu_blocks():
    depth, width = 4, 96
    q, mean = [0.5], [1 / np.sqrt(2 * np.pi)]
    for _ in range(depth):
        drift = np.sqrt(q[-1] / np.pi)
        q.append(2 * q[-1] + 2 * mean[-1] * drift)
        mean.append(mean[-1] + drift)
    at, power = Coherence(), 1.0
    expected = [(1.0, 0.0, 1.0, 1.0)]
    for x_mean, x_second in zip(mean[-2::-1], q[-2::-1], strict=True):
        drift = np.sqrt(x_second / np.pi)
        block = Block(x_mean, x_second, drift, x_second, drift, 1.0)
        skip, added = block.at_skip(at, 1.0)
        skip = skip.over(1.0 + added / width)
        # ReLU keeps the alignment: that of f(u) is that of u.
        along = block.at_branch(at).along(drift, x_second)
        branch, more = in_front_of_weights(along, x_mean, x_second, width)
        terms = [1.0 + added / width, 1.0 + more]
        shares = [t / sum(terms) for t in terms]
        at, power = Coherence.average([skip, branch], shares), power * sum(terms)
        matrix = (np.eye(2) + at.matrix) * power
        expected.append((matrix[0, 0], matrix[0, 1], matrix[1, 1], power))
    got = projections(depth, width, 384)
    error = got.std(axis=0) / np.sqrt(len(got))
    # Of order 1/width: what q of one network has beside the average.
    bias = 10.0 / width * np.abs(expected[::-1])
    assert np.all(np.abs(got.mean(axis=0) - expected[::-1]) <= 5 * error + bias)


def test_independent_channels_gain_nothing_without_means():
    block = Block(0.0, 1.0, 0.0, 0.5, 0.0, 1.0)
    after, added = block.at_skip(Coherence(), 1.0)
    assert added == pytest.approx(0.0, abs=1e-12)
    assert after.matrix[0] == pytest.approx([0.0, 0.0])
