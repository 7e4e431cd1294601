"""Maps of many positions: an activation's moments are interpolated between them."""

import jax
import numpy as np
import pytest

from layerwise.moments.activations import cached_float64
from layerwise.theory import lags as lagging, pointwise
from layerwise.theory.state import Field, white


def uneven(size):
    """Positions whose standard deviations differ by a factor of 30, correlated."""
    lags = (lagging.lag_values(size),)
    sd = np.exp(3.4 * np.sin(np.arange(size)) ** 2)
    rho = 0.9 ** np.abs(np.array(lags[0]))[:, None]
    table = rho * lagging.pairs_of(sd, lags)
    return Field(np.zeros(size), table[None], lags, symmetric=True, spread=0.2)


@pytest.mark.parametrize("name", ["gelu", "tanh", "silu"])
def test_interpolated_moments_are_those_of_every_site(name, monkeypatch):
    phi, slope = cached_float64(getattr(jax.nn, name))
    field, ct = uneven(300), white((300,), 1, np.ones(300), lagging.DENSE)

    def both():
        run = pointwise.Pointwise(field)
        return run, run.apply(phi), run.pull_back(ct, phi, slope)

    run, value, cotangent = both()
    assert len(run.sites[0]) > 2 * pointwise.GRID
    assert len(run.values(phi)) == pointwise.GRID
    monkeypatch.setattr(pointwise, "GRID", 10**6)
    _, one_by_one, alone = both()
    for got, expected in ((value, one_by_one), (cotangent, alone)):
        expected = expected.rescaled(got.log_scale)
        np.testing.assert_allclose(got.second, expected.second, rtol=1e-5)
        np.testing.assert_allclose(
            got.table, expected.table, atol=1e-5 * np.abs(expected.table).max()
        )
    np.testing.assert_allclose(
        value.mean, one_by_one.rescaled(value.log_scale).mean, rtol=1e-4, atol=1e-6
    )
