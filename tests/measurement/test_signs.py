"""Random signs for cotangents, and parameters' squares, as a few kernels draw them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layerwise.measurement.walk import squares
from layerwise.random import signs


SHAPES = [(), (7,), (3, 5), (0, 4), (64, 100)]


def likes(dtype=jnp.float32):
    return [jax.ShapeDtypeStruct(shape, dtype) for shape in SHAPES]


def flat(drawn):
    return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in drawn])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_signs_are_the_lowest_bits_of_the_generator(dtype, key):
    drawn = signs(key, likes(dtype))
    assert [(x.shape, x.dtype) for x in drawn] == [(s, dtype) for s in SHAPES]
    bits = jax.random.bits(key, (sum(x.size for x in drawn),))
    np.testing.assert_array_equal(flat(drawn), 1.0 - 2.0 * (np.asarray(bits) & 1))


def test_an_old_key_is_the_same_key(key):
    old = jax.random.key_data(key)
    np.testing.assert_array_equal(flat(signs(old, likes())), flat(signs(key, likes())))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_signs_of_many_keys_are_independent(impl):
    keys = jax.random.split(jax.random.key(0, impl=impl), 4000)
    draw = jax.jit(jax.vmap(lambda key: signs(key, [jnp.zeros((4, 5))])[0]))
    drawn = np.asarray(draw(keys)).reshape(4000, 20)
    assert set(np.unique(drawn)) == {-1.0, 1.0}
    pairs = drawn.T @ drawn / np.sqrt(4000)  # standard normal off the diagonal
    off = pairs[np.triu_indices(20, 1)]
    assert np.abs(drawn.sum(0) / np.sqrt(4000)).max() < 4.5
    assert np.abs(off).max() < 5.0
    assert np.square(off).mean() == pytest.approx(1.0, abs=5 * np.sqrt(2 / off.size))


def test_squares_of_small_and_large_arrays(key):
    shapes = [(64,)] * 100 + [(3, 3, 3, 64), (10,), (), (3000,), (65, 70)]
    keys = jax.random.split(key, len(shapes))
    arrays = {i: jax.random.normal(keys[i], s) for i, s in enumerate(shapes)}
    got = squares(arrays)
    assert got.keys() == arrays.keys()
    for i, x in arrays.items():
        assert got[i].shape == ()
        np.testing.assert_allclose(got[i], np.sum(np.square(np.asarray(x))), rtol=1e-5)


def test_what_is_not_finite_stays_in_its_own_array():
    arrays = {0: jnp.ones(5), 1: jnp.full(3, jnp.nan), 2: jnp.full(2, jnp.inf)}
    got = squares(arrays)
    assert float(got[0]) == 5.0
    assert np.isnan(got[1])
    assert np.isinf(got[2])
