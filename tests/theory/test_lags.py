"""Tables of pair moments by lag: products, their sums, the half that is computed."""

import itertools
from unittest import mock

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from layerwise.theory import lags as lagging, raster
from layerwise.theory.context import RuleContext
from layerwise.theory.state import Field


@st.composite
def maps(draw):
    """A map of up to three axes, with the lags held of each, some beyond the map."""
    sizes = draw(st.lists(st.integers(1, 5), max_size=3))
    lags = []
    for n in sizes:
        positive = draw(st.sets(st.integers(1, n + 1)))
        lags.append(tuple(sorted({0, *positive, *(-v for v in positive)})))
    shape = (*sizes, draw(st.integers(1, 3)))
    return np.sin(np.arange(np.prod(shape)) ** 2.0).reshape(shape), tuple(lags)


def one_by_one(x, lags):
    """``(*lags, *positions)``: products of pairs, each by itself."""
    sizes = x.shape[:-1]
    out = np.zeros((*map(len, lags), *sizes))
    for which in itertools.product(*(range(len(v)) for v in lags)):
        for p in np.ndindex(*sizes):
            there = [a + v[i] for a, v, i in zip(p, lags, which, strict=True)]
            if all(0 <= b < n for b, n in zip(there, sizes, strict=True)):
                out[(*which, *p)] = x[p] @ x[tuple(there)]
    return out


@given(maps())
def test_products_and_their_sums_are_those_of_every_pair(case):
    x, lags = case
    expected = one_by_one(x, lags)
    over = tuple(range(len(lags), 2 * len(lags)))
    for at_once in (0, 2**20):
        with mock.patch.object(lagging, "_GRAM", at_once):
            got = lagging.products(x, lags)
        np.testing.assert_allclose(got, expected, atol=1e-12)
    np.testing.assert_allclose(
        lagging.summed_products(x, lags), expected.sum(axis=over), atol=1e-12
    )


@given(maps())
def test_half_of_the_lags_say_the_other_half(case):
    x, lags = case
    table = np.stack([one_by_one(x, lags), one_by_one(2.0 * x, lags)])
    kept = lagging.half(lags)
    first = len(lags[0]) - len(kept[0]) if lags else 0
    half = table[:, first:] if lags else table
    np.testing.assert_array_equal(lagging.whole(half, lags), table)


@given(st.sampled_from([1, 2, 4]), st.integers(17, 40))
def test_lags_between_are_read_off_their_own_kind(comb, size):
    """Pairs that are a multiple of `comb` apart are alike, and so are the others."""
    held = lagging.lag_values(size)
    kinds = {v: 1.0 / (1 + np.gcd(v, comb)) for v in range(1 - size, size)}
    p = np.arange(size)
    inside = [(p + v >= 0) & (p + v < size) for v in held]
    table = np.stack([kinds[v] * there for v, there in zip(held, inside, strict=True)])
    for lag, value in kinds.items():
        (got,) = lagging.at_lags(table[None], [held], 0, [lag], comb)
        there = (p + lag >= 0) & (p + lag < size)
        np.testing.assert_allclose(got[0], value * there, atol=1e-12)


@given(st.integers(17, 24), st.floats(0.1, 3.0))
def test_positions_that_are_one_and_the_same_are_read_at_any_lag(size, wave):
    """However unlike their sizes are, as they are at the borders of a padded map."""
    x = 1.1 + np.cos(wave * np.arange(3 * size)).reshape(3, size, 1)
    held = (lagging.lag_values(3), lagging.lag_values(size, lagging.SPARSE))
    table = one_by_one(x, held)[None]
    pairs = lagging.to_pairs(table, held, 1, 1)[0]
    expected = one_by_one(x, (held[0], tuple(range(1 - size, size))))
    p = np.arange(size)
    for a, lag in enumerate(range(1 - size, size)):
        there = p[(p + lag >= 0) & (p + lag < size)]
        np.testing.assert_allclose(
            pairs[:, :, there, there + lag], expected[:, a, :, there].transpose(1, 2, 0)
        )
    np.testing.assert_allclose(
        lagging.row_sums(table, held, (1, 1))[0], x[..., 0] * x.sum(), rtol=1e-9
    )


def test_rows_laid_behind_each_other_where_few_lags_are_held():
    rows, columns = 20, 3
    x = 1.0 + 0.3 * np.cos(np.arange(rows)[:, None] / 9 + np.arange(columns))[..., None]
    lags = tuple(lagging.lag_values(n, lagging.DENSE) for n in (rows, columns))
    assert not lagging.is_complete(lags[:1], (rows,))
    field = Field(x[..., 0], lagging.products(x, lags)[None], lags)
    ctx = mock.Mock(spec=RuleContext, level=lagging.DENSE)
    got = raster.merge(ctx, field, 0)
    expected = lagging.products(x.reshape(-1, 1), got.lags)
    np.testing.assert_allclose(got.table[0], expected, atol=0.01)
    ctx.level = lagging.NONE
    alone = raster.merge(ctx, field, 0)
    np.testing.assert_array_equal(alone.second, np.square(x).ravel())
    back = raster.split(ctx, alone, 0, columns)
    np.testing.assert_array_equal(back.mean, field.mean)
