"""What each kind of layer does to a signal, against closed forms and samples."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import assert_mean_close
from layerwise.errors import InvalidArgumentError
from layerwise.nn import layers
from tests.nn.running import FAST_KEY, apply, compile_once, init


NAMES = [kind.name for kind in layers.kinds()]

# Of the small instances, in closed form; kinds that are not here have none.
PARAMETERS = {
    "dense": 5 * 6 + 6,
    "conv": 9 * 4 * 6 + 6,
    "embedding": 7 * 6,
    "prelu": 1,
    "batch_norm": 2 * 3,
    "layer_norm": 2 * 5,
    "group_norm": 2 * 6,
    "instance_norm": 2 * 3,
    "attention": 4 * (6 * 6 + 6),
}


def example(kind, key, batch=3):
    shape = (batch, *kind.input_shape)
    if kind.integer:
        return jax.random.randint(key, shape, 0, 7)
    return jax.random.normal(key, shape, jnp.result_type(float))


def bind(kind, key, x):
    """Returns the instance's parameters, and its function of parameters and input."""
    module = kind.build()
    variables = dict(init(module, x, key={"params": FAST_KEY, "dropout": key}))
    params = variables.pop("params", {})

    def function(params, x):
        outputs, _ = module.apply(
            {**variables, "params": params},
            x,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        return outputs

    return params, function


@pytest.mark.parametrize("name", NAMES)
def test_parameter_count(name, key):
    kind = layers.kind(name)
    x = jax.ShapeDtypeStruct(
        (3, *kind.input_shape), jnp.int32 if kind.integer else jnp.float32
    )
    rngs = {"params": key, "dropout": key}
    variables = jax.eval_shape(kind.build().init, rngs, x)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables.get("params", {})))
    assert count == PARAMETERS.get(name, 0)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_the_slope(name, key, x64):
    kind = layers.kind(name)
    x = example(kind, key)
    params, function = bind(kind, key, x)
    params = jax.tree.map(lambda p: p.astype(jnp.float64), params)
    arguments = (params,) if kind.integer else (params, x)

    def loss(arguments):
        y = function(*arguments, *((x,) if kind.integer else ()))
        return (y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)).sum()

    direction = jax.tree.map(lambda a: jnp.sin(1.0 + jnp.arange(a.size)), arguments)
    step = 1e-6

    @compile_once
    def slopes(arguments):
        def moved(sign):
            return jax.tree.map(
                lambda a, d: a + sign * step * d.reshape(a.shape), arguments, direction
            )

        difference = (loss(moved(1)) - loss(moved(-1))) / (2 * step)
        products = jax.tree.map(
            lambda g, d: (g.ravel() * d).sum(), jax.grad(loss)(arguments), direction
        )
        return difference, sum(jax.tree.leaves(products))

    # Central differences: error step**2 from the third derivative, rounding 1e-16/step.
    np.testing.assert_allclose(*slopes(arguments), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_says_what_it_does(name):
    kind = layers.kind(name)
    assert kind.effect.endswith(".")
    assert kind.family in {
        "weights",
        "activation",
        "pooling",
        "normalization",
        "randomness",
        "attention",
    }


def test_unknown_kind_gets_the_closest_one():
    with pytest.raises(InvalidArgumentError, match="Did you mean 'dense'"):
        layers.kind("dens")


def test_dense_of_one_hot_is_a_table_lookup(key):
    indices = jnp.array([3, 0, 6, 3])
    embed = nn.Embed(7, 6)
    variables = init(embed, indices)
    table = variables["params"]["embedding"]
    dense = nn.Dense(6, use_bias=False)
    one_hot = jax.nn.one_hot(indices, 7)
    looked_up = apply(embed, variables, indices)
    np.testing.assert_array_equal(
        looked_up, apply(dense, {"params": {"kernel": table}}, one_hot)
    )


def test_embedding_has_fan_in_one(key):
    # A row is looked up, not summed: its second moment is Var[w], whatever the number
    # of rows. A dense layer's rule, 1 / rows, would make it vanish.
    for rows in (10, 1000):
        embed = nn.Embed(rows, 512, embedding_init=nn.initializers.normal(1.0))
        indices = jnp.arange(10)
        y = apply(embed, init(embed, indices), indices)
        assert_mean_close((np.asarray(y) ** 2).mean(axis=1), 1.0)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_dropout_keeps_the_mean_and_raises_the_second_moment(p, key):
    x = 1.0 + jnp.arange(100.0) / 100
    keys = jax.random.split(key, 2000)
    drop = nn.Dropout(p, deterministic=False)
    y = jax.vmap(lambda k: apply(drop, {}, x, rngs={"dropout": k}))(keys)
    assert_mean_close(y.mean(axis=1), float(x.mean()))
    assert_mean_close((y**2).mean(axis=1), float((x**2).mean()) / (1 - p))


def test_dropout_draws_a_mask_per_example_and_step(key):
    x = jnp.ones((2, 1000))
    drop = nn.Dropout(0.5, deterministic=False)
    first, second = (
        apply(drop, {}, x, rngs={"dropout": k}) for k in jax.random.split(key)
    )
    assert (first[0] != first[1]).any()
    assert (first != second).any()


def test_softmax_cross_entropy_has_gradient_y_minus_t(key, x64):
    logits = jax.random.normal(key, (5, 4))
    target = jax.nn.one_hot(jnp.array([0, 3, 1, 1, 2]), 4)

    def cross_entropy(logits):
        return -(target * jax.nn.log_softmax(logits)).sum()

    np.testing.assert_allclose(
        jax.grad(cross_entropy)(logits), jax.nn.softmax(logits) - target, atol=1e-14
    )


@pytest.mark.parametrize(
    "name", ["batch_norm", "layer_norm", "group_norm", "instance_norm"]
)
def test_normalization_ignores_the_scale_of_its_input(name, key):
    kind = layers.kind(name)
    x = example(kind, key, batch=8)
    params, function = bind(kind, key, x)
    function = compile_once(function)
    # Not exact: epsilon 1e-6 or 1e-5 stands beside variances of order one and more.
    np.testing.assert_allclose(
        function(params, x), function(params, 100.0 * x), atol=1e-4
    )


def test_batch_norm_in_eval_mode_does_not(key):
    x = example(layers.kind("batch_norm"), key)
    norm = nn.BatchNorm(use_running_average=True, epsilon=0.0)
    variables = init(norm, x)
    np.testing.assert_allclose(apply(norm, variables, x), x)
    np.testing.assert_allclose(apply(norm, variables, 100.0 * x), 100.0 * x)


def test_local_response_norm_does_not(key):
    x = example(layers.kind("local_response_norm"), key)
    local_norm = compile_once(layers.local_response_norm)
    y = local_norm(x)
    np.testing.assert_allclose(x / y, 2**0.75, rtol=1e-3)
    # At 1000 the squares outweigh the offset, and the output falls with the scale.
    assert np.abs(local_norm(1000 * x) / y).max() < 500


def test_local_response_norm_against_its_definition(key):
    x = jax.random.normal(key, (7,))
    expected = [
        x[i] / (2 + 1e-4 * (x[max(0, i - 2) : i + 3] ** 2).sum()) ** 0.75
        for i in range(7)
    ]
    local_norm = compile_once(layers.local_response_norm)
    np.testing.assert_allclose(local_norm(x), expected, rtol=1e-6)


LOGITS = jnp.array([0.5, -1.0, 2.0, 0.0])


def gumbel_samples(key, temperature, n=20_000, **kwargs):
    keys = jax.random.split(key, n)

    def sample(key):
        return layers.gumbel_softmax(key, LOGITS, temperature=temperature, **kwargs)

    return jax.vmap(sample)(keys)


@pytest.mark.parametrize("temperature", [0.01, 1.0, 10.0])
def test_gumbel_softmax_picks_the_category_at_any_temperature(temperature, key):
    picked = jax.nn.one_hot(gumbel_samples(key, temperature).argmax(axis=1), 4)
    for category, probability in enumerate(jax.nn.softmax(LOGITS)):
        assert_mean_close(picked[:, category], float(probability))


def test_gumbel_softmax_tends_to_the_categorical_law(key):
    # E[max] -> 1 and E[y] -> softmax(logits) as the temperature falls.
    distances = [
        float(1 - gumbel_samples(key, t).max(axis=1).mean()) for t in (1.0, 0.1, 0.01)
    ]
    assert distances[0] > 5 * distances[1] > 25 * distances[2]
    cold = gumbel_samples(key, 1e-4)
    for category, probability in enumerate(jax.nn.softmax(LOGITS)):
        # E[y] is off by O(temperature): how often the two largest are that close.
        assert_mean_close(cold[:, category], float(probability), bias=1e-4)


def test_gumbel_softmax_hard_is_one_hot_with_the_soft_gradient(key):
    hard = layers.gumbel_softmax(key, LOGITS, hard=True)
    np.testing.assert_allclose(hard, jax.nn.one_hot(hard.argmax(), 4), atol=1e-6)

    def first(logits, hard):
        return layers.gumbel_softmax(key, logits, hard=hard)[0]

    np.testing.assert_allclose(
        jax.grad(first)(LOGITS, True), jax.grad(first)(LOGITS, False), rtol=1e-6
    )


def test_gumbel_softmax_needs_a_positive_temperature(key):
    with pytest.raises(InvalidArgumentError, match="hard=True"):
        layers.gumbel_softmax(key, LOGITS, temperature=0.0)


def test_reparameterization_has_the_law_and_its_gradient(key):
    mean, log_variance = 0.7, 0.4
    keys = jax.random.split(key, 20_000)

    def square(mean, log_variance, key):
        return (
            layers.sample_gaussian(key, jnp.array(mean), jnp.array(log_variance)) ** 2
        )

    values = jax.vmap(square, (None, None, 0))(mean, log_variance, keys)
    assert_mean_close(values, mean**2 + np.exp(log_variance))
    by_mean, by_log_variance = jax.vmap(jax.grad(square, (0, 1)), (None, None, 0))(
        mean, log_variance, keys
    )
    assert_mean_close(by_mean, 2 * mean)
    assert_mean_close(by_log_variance, np.exp(log_variance))


# phi: E[phi(z)^2] for z ~ N(0, 1); the numbers that the effects above quote.
SECOND_MOMENTS = {
    "relu": 0.5,
    "gelu": 0.425221,
    "silu": 0.355776,
    "tanh": 0.394294,
    "sigmoid": 0.293379,
    "softplus": 0.921246,
    "elu": 0.644945,
    "selu": 1.0,
}


@pytest.mark.parametrize("name", SECOND_MOMENTS)
def test_activation_second_moment(name, x64):
    # Quadrature on both sides of the kink: geometric convergence, 6 digits asserted.
    nodes, weights = np.polynomial.legendre.leggauss(80)
    z = np.concatenate([6 * (nodes - 1), 6 * (nodes + 1)])
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) * 6 * np.tile(weights, 2)
    y = np.asarray(apply(layers.kind(name).build(), {}, jnp.asarray(z)))
    np.testing.assert_allclose((y**2 * density).sum(), SECOND_MOMENTS[name], atol=1e-6)


def test_causal_attention_does_not_see_what_comes(key):
    attention = layers.SelfAttention(num_heads=2, causal=True)
    x = jax.random.normal(key, (1, 4, 6))
    variables = init(attention, x)
    before = apply(attention, variables, x)
    after = apply(attention, variables, x.at[:, 3].add(1.0))
    np.testing.assert_allclose(before[:, :3], after[:, :3], atol=1e-6)
    assert (before[:, 3] != after[:, 3]).any()
