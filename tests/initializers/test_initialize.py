import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layerwise as lw
from layerwise.errors import InvalidArgumentError, UnsupportedModelError


CLASSICS = {
    "lecun": jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal"),
    "glorot": jax.nn.initializers.variance_scaling(1.0, "fan_avg", "normal"),
    "kaiming_fan_in": jax.nn.initializers.variance_scaling(2.0, "fan_in", "normal"),
    "kaiming_fan_out": jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
}


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(48, (3, 3), strides=2)(x))
        return nn.Dense(600)(x.reshape(x.shape[0], -1))


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(5), (2, 8, 8, 32))


@pytest.mark.parametrize("scheme", CLASSICS)
def test_classics_have_the_variance_of_jax_initializers(scheme, images, key):
    params = lw.initialize(Net(), images, key, scheme)["params"]
    for module in ("Conv_0", "Dense_0"):
        kernel = params[module]["kernel"]
        other = CLASSICS[scheme](key, kernel.shape, kernel.dtype)
        # Sample variances of n normals: relative standard error sqrt(2/n) each.
        bound = 6 * np.sqrt(2 * 2 / kernel.size)
        assert abs(float(jnp.var(kernel) / jnp.var(other)) - 1) < bound
        assert abs(float(jnp.mean(kernel))) < 6 * float(jnp.std(kernel)) / np.sqrt(
            kernel.size
        )
        assert not params[module]["bias"].any()


def test_the_law_is_what_is_drawn(images, key):
    law = lw.scheme_law(Net(), images, "asv_forward")
    params = lw.initialize(Net(), images, key, "asv_forward")
    for module in ("Conv_0", "Dense_0"):
        kernel = params["params"][module]["kernel"]
        ratio = float(jnp.mean(kernel**2)) / law.variances[module]
        assert abs(ratio - 1) < 6 * np.sqrt(2 / kernel.size)


def test_the_tree_is_that_of_the_models_init(images, key):
    class Mixed(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(4, (3, 3), param_dtype=jnp.bfloat16)(x)
            x = nn.BatchNorm(use_running_average=True)(x)
            return nn.Dense(3)(nn.LayerNorm()(x))

    own = Mixed().init(key, images)
    got = lw.initialize(Mixed(), images, key, "glorot")
    assert jax.tree.structure(own) == jax.tree.structure(got)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), own) == jax.tree.map(
        lambda x: (x.shape, x.dtype), got
    )
    # What the scheme says nothing about is as the model's own init makes it.
    np.testing.assert_array_equal(got["params"]["LayerNorm_0"]["scale"], 1.0)
    np.testing.assert_array_equal(got["batch_stats"]["BatchNorm_0"]["var"], 1.0)
    Mixed().apply(got, images)


def test_metadata_boxes_survive(images, key):
    class Boxed(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
            return nn.Dense(8, kernel_init=init)(x.reshape(x.shape[0], -1))

    kernel = lw.initialize(Boxed(), images, key, "lecun")["params"]["Dense_0"]["kernel"]
    assert isinstance(kernel, nn.Partitioned)
    assert kernel.names == (None, "model")


def test_the_key_alone_decides(images, key):
    one = lw.initialize(Net(), images, key, "asv_backward")
    two = lw.initialize(Net(), images + 1, key, "asv_backward")
    jax.tree.map(np.testing.assert_array_equal, one, two)
    other = lw.initialize(Net(), images, jax.random.fold_in(key, 1), "asv_backward")
    kernels = [p["params"]["Conv_0"]["kernel"] for p in (one, other)]
    assert not np.array_equal(*kernels)


def test_runs_under_jit_and_vmap(images, key):
    law = lw.scheme_law(Net(), images, "asv_forward")
    stacked = jax.vmap(law)(jax.random.split(key, 3))
    single = jax.jit(law)(jax.random.split(key, 3)[1])
    for a, b in zip(jax.tree.leaves(stacked), jax.tree.leaves(single), strict=True):
        np.testing.assert_allclose(a[1], b, rtol=1e-6)


def test_cap_bounds_the_backward_rule():
    model = lw.zoo.f34(width=4, image_size=224)
    free = lw.scheme_law(model, None, "asv_backward").variances
    capped = lw.scheme_law(model, None, "asv_backward", cap=3.0).variances
    last = "Conv_33"  # in front of the 7x7 average: 49 times Kaiming's deviation
    assert free[last] / capped[last] == pytest.approx((49 / 3) ** 2, rel=1e-6)
    assert free["Conv_32"] == capped["Conv_32"]


def test_a_tied_weight_is_scaled_once(key):
    class Tied(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Dense(16)
            return layer(nn.relu(layer(x)))

    x = jnp.ones((2, 16))
    kernel = lw.initialize(Tied(), x, key, "kaiming_fan_in")["params"]["Dense_0"][
        "kernel"
    ]
    assert abs(float(jnp.mean(kernel**2)) / (2 / 16) - 1) < 6 * np.sqrt(2 / 256)


def test_plain_functions_and_nnx(key):
    from flax import nnx

    def function(params, x):
        return jax.nn.relu(x @ params["w1"]) @ params["w2"]

    shapes = {"w1": jnp.zeros((64, 128)), "w2": jnp.zeros((128, 32))}
    got = lw.initialize(function, jnp.ones((4, 64)), key, "lecun", params=shapes)
    assert abs(float(jnp.var(got["w1"])) * 64 - 1) < 0.1

    class Two(nnx.Module):
        def __init__(self, rngs):
            self.one = nnx.Linear(64, 128, rngs=rngs)
            self.two = nnx.Linear(128, 32, rngs=rngs)

        def __call__(self, x):
            return self.two(nnx.relu(self.one(x)))

    model = Two(nnx.Rngs(0))
    state = lw.initialize(model, jnp.ones((4, 64)), key, "kaiming_fan_in")
    nnx.update(model, state)
    assert abs(float(jnp.var(model.one.kernel[...])) * 64 / 2 - 1) < 0.1


def test_unknown_scheme_names_the_closest(images, key):
    with pytest.raises(InvalidArgumentError, match="Did you mean 'asv_forward'"):
        lw.initialize(Net(), images, key, "asv_forwards")
    with pytest.raises(InvalidArgumentError, match="cap=3"):
        lw.initialize(Net(), images, key, "glorot", cap=3.0)
    for bad in (-1.0, 0.0, float("nan"), "large"):
        with pytest.raises(InvalidArgumentError, match="Pass a positive number"):
            lw.initialize(Net(), images, key, "taki", c=bad)
    with pytest.raises(InvalidArgumentError, match="a function from the output"):
        lw.initialize(Net(), images, key, "gradinit", loss=3.0)
    with pytest.raises(InvalidArgumentError, match="Pass a whole number"):
        lw.initialize(Net(), images, key, "gradinit", steps=2.5)


def test_a_scheme_for_chains_says_so_of_other_models(images, key):
    class Residual(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x + nn.Dense(x.shape[-1])(x)

    with pytest.raises(UnsupportedModelError, match="does not read the layer"):
        lw.initialize(
            nn.Sequential([nn.Dense(4), Residual(), nn.Dense(3)]), images, key
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lw.initialize(Residual(), images, key, "lecun")


class Dropped(nn.Module):
    """A network that draws random numbers in its call."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(16)(x))
        x = nn.Dropout(0.5, deterministic=False)(x)
        return nn.Dense(4)(x)


@pytest.mark.parametrize(
    "scheme",
    [
        pytest.param("kaiming_fan_in", marks=pytest.mark.slow),
        "kernel_forward",
        pytest.param("lsuv", marks=pytest.mark.slow),
    ],
)
def test_streams_of_the_call_are_passed_on(scheme, key):
    x, rngs = jax.random.normal(key, (8, 12)), {"dropout": jax.random.key(1)}
    params = lw.initialize(Dropped(), x, key, scheme, rngs=rngs)
    own = Dropped().init({"params": key} | rngs, x)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, own)
    report = lw.propagate_variance(
        Dropped(), None, x, scheme=scheme, draws=2, rngs=rngs
    )
    assert np.all(np.isfinite(report.measurement.curve("forward")))
