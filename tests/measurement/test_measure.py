"""The measurement against a plain, slow reference, and against itself."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layerwise as lw
from layerwise.errors import InvalidArgumentError


class Chain(nn.Module):
    """Every kind of layer that the chain formulas know, in one small net."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (5, 5), strides=2, name="a")(x))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        x = jnp.tanh(nn.Conv(8, (3, 3), name="b")(x))
        x = nn.gelu(nn.Conv(8, (3, 3), feature_group_count=2, name="c")(x))
        x = nn.avg_pool(x, (2, 2), (2, 2))
        x = nn.silu(nn.Dense(12, name="d")(x.reshape(x.shape[0], -1)))
        return nn.Dense(4, name="e")(x)


def explicit(params, x, cotangent):
    """u and z of each layer of `Chain`, and their cotangents, by hand."""

    def tail(taps):
        values = {}

        def at(name, value):
            value = value + taps.get(name, 0.0)
            values[name] = value
            return value

        def conv(name, x, strides=1, groups=1):
            p = params[name]
            out = jax.lax.conv_general_dilated(
                x,
                p["kernel"],
                (strides, strides),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=groups,
            )
            return at(f"{name}.u", out + p["bias"])

        h = at("input", x)
        h = jax.nn.relu(conv("a", h, strides=2))
        h = at("a.v", h)
        h = at("a.z", nn.max_pool(h, (3, 3), (2, 2), padding=((1, 1), (1, 1))))
        h = at("b.v", jnp.tanh(conv("b", h)))
        h = at("c.v", jax.nn.gelu(conv("c", h, groups=2)))
        h = at("c.z", nn.avg_pool(h, (2, 2), (2, 2)))
        h = h.reshape(h.shape[0], -1)
        h = at("d.u", h @ params["d"]["kernel"] + params["d"]["bias"])
        h = at("d.v", jax.nn.silu(h))
        h = at("e.u", h @ params["e"]["kernel"] + params["e"]["bias"])
        return jnp.sum(h * cotangent), values

    _, values = tail({})
    zeros = {k: jnp.zeros_like(v) for k, v in values.items()}
    cotangents = jax.grad(lambda t: tail(t)[0])(zeros)
    return values, cotangents


def site_name(site):
    return "input" if site.kind == "input" else f"{site.path}.{site.kind}"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_every_statistic_is_the_explicit_one(dtype, key):
    with jax.enable_x64(dtype == jnp.float64):
        x = 1.3 * jax.random.normal(key, (3, 16, 16, 3), dtype) + 0.4
        model = Chain()
        params = model.init(key, x)
        params = jax.tree.map(
            lambda p: (p + 0.1 * jax.random.normal(key, p.shape)).astype(dtype), params
        )
        weights = jax.random.normal(key, (3, 4), dtype)
        got = lw.measure(model, params, x, draws=1, loss=lambda y: jnp.sum(y * weights))
        values, cotangents = explicit(params["params"], x, weights)
    names = [site_name(s) for s in got.sites]
    assert set(names) == set(values)
    assert names.index("a.v") < names.index("a.z") < names.index("b.u")
    assert list(got.draws) == [-1, 0]
    for i, name in enumerate(names):
        for direction, tensors in (("forward", values), ("backward", cotangents)):
            want = np.asarray(tensors[name], np.float64)
            rms = np.sqrt(np.mean(want**2))
            assert got.second_moment(direction)[0, i] == pytest.approx(
                np.mean(want**2), rel=1e-5
            )
            assert got.mean[direction][0, i] == pytest.approx(
                want.mean(), abs=1e-5 * rms
            )
            assert got.variance[direction][0, i] == pytest.approx(want.var(), rel=1e-4)
    for i, name in enumerate("abcde"):
        kernel = np.asarray(params["params"][name]["kernel"], np.float64)
        bias = np.asarray(params["params"][name]["bias"], np.float64)
        assert got.weight_variance[0, i] == pytest.approx(np.mean(kernel**2), rel=1e-5)
        assert got.bias_variance[0, i] == pytest.approx(np.mean(bias**2), rel=1e-5)


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(7), (2, 16, 16, 3))


def curves(m):
    return np.concatenate([m.curve("forward"), m.curve("backward")], axis=1)


@pytest.mark.slow
def test_repeats_are_bit_identical_and_chunks_change_rounding_only(images):
    one = lw.measure(Chain(), None, images, draws=6, chunk=6)
    again = lw.measure(Chain(), None, images, draws=6, chunk=6)
    np.testing.assert_array_equal(curves(one), curves(again))
    cuts: tuple[dict[str, Any], ...] = (
        {"chunk": 1},
        {"chunk": 4},
        {"chunk": 3, "batch_size": 3},
    )
    for options in cuts:
        other = lw.measure(Chain(), None, images, draws=6, **options)
        np.testing.assert_allclose(curves(one), curves(other), rtol=1e-4)
    fewer = lw.measure(Chain(), None, images, draws=2)
    np.testing.assert_allclose(curves(one)[:2], curves(fewer), rtol=1e-4)


@pytest.mark.slow
def test_without_rewrites_the_numbers_are_the_same(images):
    fast = lw.measure(Chain(), None, images, draws=2)
    plain = lw.measure(Chain(), None, images, draws=2, rewrite=False)
    np.testing.assert_allclose(curves(fast), curves(plain), rtol=1e-4)


@pytest.mark.slow
def test_stacked_parameters_are_measured_one_by_one(images, key):
    keys = jax.random.split(key, 3)
    stacked = jax.vmap(Chain().init, (0, None))(keys, images)
    got = lw.measure(Chain(), stacked, images, loss=jnp.sum)
    assert list(got.draws) == [0, 1, 2]
    for i in range(3):
        single = jax.tree.map(lambda x, i=i: x[i], stacked)
        one = lw.measure(Chain(), single, images, draws=1, loss=jnp.sum)
        np.testing.assert_allclose(curves(got)[i], curves(one)[0], rtol=1e-4)


@pytest.mark.slow
def test_parameters_of_another_scale_are_redrawn_at_their_own(images, key):
    own = Chain().init(key, images)
    assert "own init" in lw.measure(Chain(), own, images, draws=1).law
    wide = jax.tree.map(lambda x: 3 * x, own)
    got = lw.measure(Chain(), wide, images, draws=8)
    assert "leaf by leaf" in got.law
    for i, name in enumerate("abcde"):
        kernel = np.asarray(wide["params"][name]["kernel"])
        ratio = got.weight_variance[1:, i] / np.mean(kernel**2)
        assert abs(ratio.mean() - 1) < 6 * np.sqrt(2 / (8 * kernel.size))
    assert not got.bias_variance.any()  # constant leaves stay as they are


def test_default_cotangents_have_unit_second_moment(images):
    got = lw.measure(Chain(), None, images, draws=3)
    np.testing.assert_allclose(got.curve("backward")[:, -1], 1.0, rtol=1e-6)


@pytest.mark.slow
def test_linen_nnx_and_function_twins_agree(key):
    from flax import nnx

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(5, (3, 3), name="one")(x))
            return nn.Dense(3, name="two")(x.reshape(x.shape[0], -1))

    class Twin(nnx.Module):
        def __init__(self, rngs):
            self.one = nnx.Conv(2, 5, (3, 3), rngs=rngs)
            self.two = nnx.Linear(5 * 36, 3, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.one(x))
            return self.two(x.reshape(x.shape[0], -1))

    x = jax.random.normal(key, (4, 6, 6, 2))
    params = Linen().init(key, x)
    twin = Twin(nnx.Rngs(0))
    for name in ("one", "two"):
        for leaf in ("kernel", "bias"):
            getattr(getattr(twin, name), leaf)[...] = params["params"][name][leaf]
    linen = lw.measure(Linen(), params, x, draws=1, loss=jnp.sum)
    nnx_ = lw.measure(twin, None, x, draws=1, loss=jnp.sum, redraw="resample")
    function = lw.measure(
        lambda p, x: Linen().apply(p, x), params, x, draws=1, loss=jnp.sum
    )
    assert linen.layer_paths == nnx_.layer_paths == function.layer_paths
    np.testing.assert_allclose(curves(linen)[0], curves(function)[0], rtol=1e-5)
    np.testing.assert_allclose(curves(linen)[0], curves(nnx_)[0], rtol=1e-5)


@pytest.mark.slow
def test_squares_beyond_float32_are_measured():
    """Entries of 1e-30 and of 1e+28 have squares that float32 cannot hold."""

    class Scaled(nn.Module):
        factor: float

        @nn.compact
        def __call__(self, x):
            for _ in range(3):
                x = self.factor * nn.relu(nn.Dense(16)(x))
            return x

    x = jax.random.normal(jax.random.key(0), (8, 16))
    unit = lw.measure(Scaled(1.0), None, x, draws=2)
    for factor in (1e-10, 1e9):
        got = lw.measure(Scaled(factor), None, x, draws=2)
        powers = np.array([0, 0, 1, 2])
        np.testing.assert_allclose(
            got.curve("forward"),
            unit.curve("forward") * factor ** (2.0 * powers),
            rtol=1e-4,
        )
        np.testing.assert_allclose(
            got.curve("backward"),
            unit.curve("backward") * factor ** (2.0 * np.array([3, 2, 1, 0])),
            rtol=1e-4,
        )


def test_a_large_mean_does_not_eat_the_variance():
    class Shifted(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(64, bias_init=nn.initializers.constant(1e4))(x)

    x = jax.random.normal(jax.random.key(0), (64, 64))
    params = Shifted().init(jax.random.key(1), x)
    u = np.asarray(x, np.float64) @ np.asarray(
        params["params"]["Dense_0"]["kernel"], np.float64
    )
    got = lw.measure(Shifted(), params, x, draws=1)
    i = got.find("u", 1)
    assert got.variance["forward"][0, i] == pytest.approx(u.var(), rel=1e-3)


@pytest.mark.slow
def test_overflow_is_counted_and_named_not_averaged(key):
    class Exploding(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(4):
                x = nn.relu(nn.Dense(16)(x))
            return x

    x = jnp.ones((2, 16))
    keys = jax.random.split(key, 3)
    stacked = jax.vmap(Exploding().init, (0, None))(keys, x)
    stacked = jax.tree.map(lambda p: p.at[1].multiply(1e20), stacked)
    got = lw.measure(Exploding(), stacked, x)
    assert set(got.nonfinite()) == {1}
    assert got.nonfinite()[1].startswith("forward at Dense_1 (u)")
    from layerwise.measurement.result import summarize

    s = summarize(got.curve("forward"))
    assert list(s.count) == [3, 3, 2, 2, 2]
    assert np.isfinite(s.mean).all()


def test_overflow_backward_alone_is_named_too(key):
    apply = lambda params, x: x @ params["a"] @ params["b"]
    scale = lambda key: jnp.where(jax.random.bernoulli(key), 1e3, 1e-3)
    redraw = lambda key: {n: scale(key) * jnp.eye(4) for n in "ab"}
    got = lw.measure(
        apply, redraw(key), jnp.full((2, 4), 1e-9), draws=8, redraw=redraw,
        loss=lambda y: 3e35 * jnp.sum(y), rewrite=False,
    )  # fmt: skip
    large = {int(d) for d, w in zip(got.draws, got.weight_variance[:, 0]) if w > 1}
    assert 0 < len(large) < len(got.draws)
    assert got.nonfinite("forward") == {}
    assert set(got.nonfinite("backward")) == set(got.nonfinite()) == large
    assert set(got.nonfinite().values()) == {"backward at input (input)"}


@pytest.mark.slow
def test_interruption_returns_what_is_done(images):
    def stop(done, total):
        if done == 4:
            raise KeyboardInterrupt

    got = lw.measure(Chain(), None, images, draws=8, chunk=2, progress=stop)
    assert (got.draws_done, got.requested) == (4, 8)
    whole = lw.measure(Chain(), None, images, draws=8, chunk=2)
    np.testing.assert_array_equal(curves(got), curves(whole)[:4])


@pytest.mark.parametrize(
    "options", [{"draws": 0}, {"draws": True}, {"chunk": 0}, {"redraw": "sometimes"}]
)
def test_options_that_mean_nothing(images, options):
    with pytest.raises(InvalidArgumentError, match=next(iter(options))):
        lw.measure(Chain(), None, images, **options)
