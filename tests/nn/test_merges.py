"""Merges, and Theorem 2 of [Nagase2019]: each as affine maps and one activation.

The theorem's list has a misprint (division for difference) and a condition it does not
state: the product needs positive signals.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import assert_mean_close
from layerwise.errors import InvalidArgumentError
from layerwise.nn import merges


def identity(x):
    return x


I, O = np.eye(5), np.zeros((5, 5))

# Name: inner affine map, activation, outer affine map of what the activation returned,
# and an affine bypass: y = outer @ f(inner @ (x; y)) + bypass @ (x; y).
THEOREM_2 = {
    "add": (np.hstack([I, I]), identity, I, np.hstack([O, O])),
    "subtract": (np.hstack([I, -I]), identity, I, np.hstack([O, O])),
    "mean": (np.hstack([I, I]) / 2, identity, I, np.hstack([O, O])),
    "maximum": (np.hstack([I, -I]), jax.nn.relu, I, np.hstack([O, I])),
    "concatenate": (np.eye(10), identity, np.eye(10), np.zeros((10, 10))),
}


@pytest.fixture
def pair(key, x64):
    return list(jax.random.normal(key, (2, 5)))


@pytest.mark.parametrize("name", THEOREM_2)
def test_theorem_2(name, pair):
    inner, activation, outer, bypass = THEOREM_2[name]
    both = jnp.concatenate(pair)
    expected = outer @ activation(inner @ both) + bypass @ both
    np.testing.assert_allclose(merges.merge(name)(pair), expected, atol=1e-15)


def test_theorem_2_product_holds_for_positive_signals_only(pair):
    positive = [jnp.abs(x) for x in pair]
    by_logarithm = jnp.exp(np.hstack([I, I]) @ jnp.log(jnp.concatenate(positive)))
    np.testing.assert_allclose(merges.multiply(positive), by_logarithm, rtol=1e-14)
    with np.errstate(invalid="ignore"):
        assert np.isnan(np.log(np.asarray(jnp.concatenate(pair)))).any()


def test_product_of_any_sign_by_squares(pair):
    x, y = pair
    np.testing.assert_allclose(
        merges.multiply(pair), ((x + y) ** 2 - (x - y) ** 2) / 4, atol=1e-15
    )


@pytest.mark.parametrize("name", ["add", "subtract", "mean", "maximum", "concatenate"])
def test_homogeneous(name, pair):
    merge = merges.merge(name)
    np.testing.assert_allclose(
        merge([3 * x for x in pair]), 3 * merge(pair), rtol=1e-14
    )


@pytest.mark.parametrize(
    ("name", "factor"),
    [("add", 3), ("subtract", 3), ("mean", 1 / 3), ("multiply", 1), ("concatenate", 1)],
)
def test_second_moment_of_three_independent_signals(name, factor, key):
    signals = list(jax.random.normal(key, (3, 20_000)))
    merged = merges.merge(name)([s[:, None] for s in signals])
    assert_mean_close(np.asarray(merged**2).mean(axis=-1), factor)


def test_unknown_merge_gets_the_closest_one():
    with pytest.raises(InvalidArgumentError, match="Did you mean 'concatenate'"):
        merges.merge("concat")
