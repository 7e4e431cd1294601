"""Every statistic against NumPy, and through the taps of a model."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layerwise as lw
from layerwise.errors import InvalidArgumentError
from layerwise.measurement import statistics
from layerwise.measurement.result import log_covariance


def cosines(vectors):
    """Cosines between all pairs of rows that are not zero."""
    rows = [v for v in vectors if np.any(v)]
    return [
        a @ b / np.sqrt(a @ a * (b @ b)) for i, a in enumerate(rows) for b in rows[:i]
    ]


def reference(x):
    x = np.asarray(x, np.float64)
    x = x.reshape(-1, 1) if x.ndim < 2 else x
    space = tuple(range(x.ndim - 1))
    rows = x.reshape(-1, x.shape[-1])
    singular = np.linalg.svd(rows, compute_uv=False)
    positions = [cosines(e.reshape(-1, x.shape[-1])) for e in x] if x.ndim > 2 else []
    found = {
        "channel_squared_mean": np.mean(x.mean(space) ** 2),
        "channel_variance": np.mean(x.var(space)),
        "dead_fraction": np.mean(np.all(x == 0, space)),
        "zero_fraction": np.mean(x == 0),
        "cosine_examples": np.mean(cosines(x.reshape(len(x), -1)) or np.nan),
        "cosine_positions": np.mean([np.mean(p) for p in positions if p] or np.nan),
        "effective_rank": np.sum(singular**2) ** 2 / np.sum(singular**4)
        if singular.any()
        else np.nan,
        "minimum": x.min(),
        "maximum": x.max(),
        "outside_float16": np.mean((abs(x) > 65504) | ((x != 0) & (abs(x) < 2.0**-14))),
        "outside_bfloat16": np.mean((x != 0) & (abs(x) < 2.0**-126)),
    }
    for q in statistics.QUANTILES:
        found[f"quantile_{q}"] = np.quantile(x, q)
    return found


def arrays():
    key = jax.random.key(1)
    normal = lambda *shape: jax.random.normal(key, shape) + 0.3
    return {
        "images": jax.nn.relu(normal(3, 4, 5, 6)).at[..., 2].set(0).at[1, 2, 3].set(0),
        "rows": normal(4, 7).at[2].set(0),
        "one example": normal(1, 6),
        "a vector": normal(5),
        "zeros": jnp.zeros((2, 3)),
        "wide range": normal(40, 30) * 10.0 ** jnp.linspace(-7, 6, 30),
        "tiny": 1e-25 * normal(3, 2, 4),
    }


@pytest.mark.parametrize("name", arrays())
def test_every_statistic_is_numpys(name):
    x = arrays()[name]
    every = tuple(statistics.REGISTRY.values())
    got = np.concatenate(jax.jit(lambda x: statistics.reduce_all(every, x))(x))
    names = statistics.outputs(every)
    want = reference(x)
    assert set(names) == set(want)
    size = float(np.abs(np.asarray(x)).max())
    for n, value in zip(names, got, strict=True):
        np.testing.assert_allclose(
            value, want[n], rtol=2e-5, atol=1e-6 * min(size, 1.0), err_msg=n
        )


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3), name="a")(x))
        return nn.Dense(4, name="b")(x.reshape(x.shape[0], -1))


@pytest.mark.slow
def test_all_of_them_in_one_pass_and_weight_gradients(key):
    x = jax.random.normal(key, (3, 5, 5, 2))
    params = Net().init(key, x)
    loss = lambda y: jnp.sum(jnp.sin(y))
    asked = [*statistics.REGISTRY, statistics.WEIGHT_GRADIENT]
    got = lw.measure(Net(), params, x, draws=2, loss=loss, statistics=asked)

    def run(offset):
        p: Any = params["params"]
        u = nn.Conv(6, (3, 3)).apply({"params": p["a"]}, x) + offset
        v = jax.nn.relu(u).reshape(3, -1)
        return loss(v @ p["b"]["kernel"] + p["b"]["bias"]), u

    cotangent, u = jax.grad(run, has_aux=True)(jnp.zeros((3, 5, 5, 6)))
    site = got.find("u", 1)
    for direction, value in (("forward", u), ("backward", cotangent)):
        want = reference(value)
        for name in statistics.outputs(tuple(statistics.REGISTRY.values())):
            np.testing.assert_allclose(
                got.statistic(name, direction)[0, site],
                want[name],
                rtol=1e-4,
                atol=1e-6,
                err_msg=name,
            )
    gradient = jax.grad(lambda p: loss(Net().apply(p, x)))(params)["params"]
    want = [np.mean(np.square(gradient[n]["kernel"])) for n in "ab"]
    assert got.weight_gradient is not None
    assert got.weight_gradient.shape == (3, 2)
    np.testing.assert_allclose(got.weight_gradient[0], want, rtol=1e-5)
    frame = got.to_frame()
    rows = frame[(frame.statistic == "dead_fraction") & (frame.direction == "forward")]
    assert len(rows) == 3 * len(got.sites)
    assert len(frame) == 3 * (2 * len(got.sites) * len(got.statistic_names) + 2)
    one = rows[(rows.path == "a") & (rows.kind == "v") & (rows.draw == 1)]
    at = got.find("v", 1)
    assert one.value.item() == got.statistic("dead_fraction")[2, at]
    one = frame[(frame.kind == "weight") & (frame.path == "b") & (frame.draw == 0)]
    assert one.value.item() == got.weight_gradient[1, 1]
    np.testing.assert_array_equal(
        got.summary("forward", "maximum").mean,
        got.statistic("maximum")[got.ensemble].mean(axis=0),
    )


def test_names_that_are_not_statistics(key):
    x = jnp.ones((2, 5, 5, 2))
    with pytest.raises(InvalidArgumentError, match="Did you mean 'quantiles'"):
        lw.measure(Net(), None, x, statistics=["quantile"])
    got = lw.measure(Net(), None, x, draws=1)
    with pytest.raises(InvalidArgumentError, match="statistics="):
        got.statistic("maximum")
    assert got.statistic_names == ("mean", "variance", "second_moment")


def test_log_covariance_leaves_broken_draws_out():
    logs = np.array(jax.random.normal(jax.random.key(0), (50, 3)))
    logs[:, 1] += logs[:, 0]
    samples = np.exp(logs.astype(np.float64))
    want = np.cov(np.log(samples), rowvar=False)
    np.testing.assert_allclose(log_covariance(samples), want, rtol=1e-10)
    whole = samples.copy()
    samples[3, 2], samples[7, 0] = np.inf, np.nan
    got = log_covariance(samples)
    for (i, j), without in {(0, 2): [3, 7], (0, 1): [7], (2, 2): [3]}.items():
        kept = np.log(np.delete(whole, without, axis=0))
        assert got[i, j] == pytest.approx(np.cov(kept, rowvar=False)[i, j])
    assert np.isnan(log_covariance(samples[:1])).all()
