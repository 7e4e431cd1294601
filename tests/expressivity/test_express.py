import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from expressivity.nets import Draws
from flax import nnx

from layerwise import zoo
from layerwise.errors import InputError, InvalidArgumentError, UnsupportedModelError
from layerwise.expressivity import (
    Slice,
    decompose_line,
    decompose_plane,
    express,
    net_of,
)
from layerwise.expressivity.graph import Affine, Concat, Input, Pointwise


def draw_model(model, x, key):
    """Random variables of the model's shapes: no bias, scale or statistic is special.

    Filled from one pool, because compiling an init costs more than the test.
    """
    shapes = jax.eval_shape(model.init, key, x)
    draw = Draws(7)

    def fill(path, leaf):
        values = draw.normal(*leaf.shape)
        if leaf.ndim > 1:
            values = values * np.sqrt(2.0 / np.prod(leaf.shape[:-1]))
        elif str(path[-1].key) in ("var", "scale", "negative_slope"):
            values = 0.2 + np.abs(values)
        return np.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def check(model, x, key):
    """Expresses a model, and compares with the model itself at other inputs."""
    variables = draw_model(model, x, key)
    form = express(model, x, params=variables)
    assert form.relative_error < 1e-4
    other = 1.7 * jax.random.normal(key, x.shape)
    expected = model.apply(variables, other)
    gap = abs(form(other) - expected).max() / abs(expected).max()
    assert gap < 1e-4
    kinds = {type(n) for n in form.net.nodes()}
    assert kinds <= {Input, Affine, Pointwise, Concat}
    names = {n.activation.name for n in form.net.nodes() if isinstance(n, Pointwise)}
    return form, names


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "preresnet",
        "cifar_densenet",
        "fractalnet",
        "ror3",
        "se_resnet18",
        "densenet121",
    ],
)
def test_zoo_blocks_as_concat_affine_relu(name, key):
    model = zoo.entry(name).build_small()
    x = jax.random.normal(key, (1, *model.input_shape))
    form, names = check(model, x, key)
    if name.startswith("se_"):
        assert names == {"relu", "logistic", "square"}  # gates multiply
    else:
        assert names == {"relu"}
    assert form.n_units >= form.original.n_units


@pytest.mark.slow
def test_f34_at_32_pixels(key):
    x = jax.random.normal(key, (1, 32, 32, 3))
    form, names = check(zoo.f34(), x, key)
    assert names == {"relu"}
    # 33 ReLU layers, and a 3x3 max pool of ceil(log2 9) = 4.
    assert (form.original.n_layers, form.n_layers) == (33, 37)


class Oddities(nn.Module):
    """One of everything that the translator reads."""

    @nn.compact
    def __call__(self, x):
        y = nn.Conv(6, (3, 3), strides=(2, 2), padding="SAME")(x)
        y = nn.leaky_relu(y, 0.1)
        y = nn.avg_pool(y, (2, 2), strides=(1, 1), padding="SAME")
        z = nn.max_pool(-y, (3, 3), strides=(2, 2), padding="SAME")
        y = nn.max_pool(y, (3, 3), strides=(2, 2), padding="SAME")
        y = jnp.concatenate([y, z, nn.relu6(2 * y - z)], axis=-1)
        y = nn.Conv(6, (1, 1), use_bias=False)(
            jnp.pad(y, ((0, 0), (1, 0), (0, 1), (0, 0)))
        )
        y = jnp.maximum(y, y[..., ::-1]) + jnp.abs(y) - nn.hard_tanh(y)
        y = jnp.minimum(y, jnp.arange(6.0)) * jnp.arange(1.0, 7.0) / 3.0
        y = nn.PReLU()(y)
        return nn.Dense(3)(y.max(axis=1).reshape(y.shape[0], -1))


@pytest.mark.slow
def test_one_of_everything(key):
    x = jax.random.normal(key, (2, 9, 9, 2))
    _, names = check(Oddities(), x, key)
    assert names == {"relu"}


def test_smooth_activations_and_gates_stay(key):
    class Gated(nn.Module):
        @nn.compact
        def __call__(self, x):
            gate = nn.sigmoid(nn.Dense(5)(x))
            return gate * nn.gelu(nn.Dense(5)(x)) + (1 - gate) * nn.silu(x)

    _, names = check(Gated(), jax.random.normal(key, (2, 5)), key)
    assert "square" in names


def test_nnx_and_plain_functions(key):
    x = jax.random.normal(key, (1, 4))
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.Linear(4, 6, rngs=rngs), nnx.relu, nnx.Linear(6, 2, rngs=rngs)
    )
    form = express(model, x)
    assert (form.n_layers, form.n_units) == (1, 6)
    np.testing.assert_allclose(form(x), model(x), rtol=1e-4, atol=1e-6)
    weight = jax.random.normal(key, (4, 3))
    form = express(lambda w, x: jax.nn.relu(x @ w), x, params=weight)
    np.testing.assert_allclose(form(x), jax.nn.relu(x @ weight), rtol=1e-4, atol=1e-6)


def test_what_cannot_be_expressed_is_named(key):
    x = jax.random.normal(key, (2, 4))

    def sorts(w, x):
        return jnp.sort(x @ w, axis=-1)

    with pytest.raises(UnsupportedModelError, match=r"'sort' on \(float32"):
        express(sorts, x, params=jnp.eye(4))
    with pytest.raises(InputError, match="2 inputs"):
        express(lambda w, x, y: x + y, (x, x), params=jnp.eye(4))
    with pytest.raises(InputError, match="int32"):
        express(lambda w, x: x @ w, jnp.ones((2, 4), int), params=jnp.eye(4))
    with pytest.raises(InputError, match="floating-point"):
        express(lambda w, x: x @ w, None, params=jnp.eye(4))
    with pytest.raises(InputError, match="cannot be called"):
        express(lambda w, x: x @ w, jnp.ones((2, 3)), params=jnp.eye(4))
    assert express(lambda w, x: x @ w, 0 * x, params=jnp.eye(4)).relative_error < 1e-6
    with pytest.raises(InvalidArgumentError, match="rtol"):
        express(lambda w, x: x @ w, x, params=jnp.eye(4), rtol=0.0)


@pytest.mark.slow
def test_a_form_that_is_not_the_model_is_refused(key):
    """The comparison can fail: carries through ReLUs are wrong for negative values."""
    model = nn.Sequential(
        [nn.Dense(8), lambda x: -1.0 - nn.relu(x), lambda x: x.max(-1)]
    )
    x = jax.random.normal(key, (3, 4))
    assert express(model, x).relative_error < 1e-6
    with pytest.raises(UnsupportedModelError, match="differs from the model"):
        express(model, x, carry="nonnegative")


# Regions of traced models -------------------------------------------------------------


class SmallConv(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.leaky_relu(nn.Conv(3, (3, 3))(x), 0.2)
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x + nn.relu(nn.Conv(3, (3, 3))(x))
        return nn.Dense(2)(x.mean(axis=(1, 2)))


def test_regions_of_a_traced_convolutional_network(key):
    x = jax.random.normal(key, (1, 6, 6, 2))
    variables = draw_model(SmallConv(), x, key)
    net = net_of(SmallConv(), x, params=variables)
    points = np.asarray(jax.random.normal(key, (3, 72)), np.float64)
    plane = Slice.through(*points)
    found = decompose_plane(net, plane, low=(-3, -3), high=(3, 3))
    assert found.n_activation_regions > 50
    assert abs(found.cells.areas().sum() - 36.0) < 1e-9
    centers = found.cells.interior()
    inputs = plane.embed(centers).reshape(-1, 6, 6, 2)
    expected = np.asarray(SmallConv().apply(variables, jnp.asarray(inputs, "float32")))
    # The decomposition is in float64 with the model's float32 weights.
    np.testing.assert_allclose(found.values(centers), expected, rtol=1e-3, atol=1e-4)
    line = Slice.through(points[0], points[1])
    assert decompose_line(net, line).n_linear_regions > 20


def test_gelu_has_no_regions(key):
    x = jax.random.normal(key, (1, 2))
    net = net_of(nn.Sequential([nn.Dense(4), nn.gelu, nn.Dense(1)]), x)
    with pytest.raises(UnsupportedModelError, match="not piecewise linear"):
        decompose_plane(net)
