"""Definitions of the blocks that concatenate, join, or reach far."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from helpers import assert_mean_close
from layerwise.nn.blocks.convnext import ConvNeXtBlock
from layerwise.nn.blocks.dense import DenseLayer, Transition
from layerwise.nn.blocks.encoder_decoder import (
    DoubleConv,
    FeaturePyramid,
    Hourglass,
    UpBlock,
    center_crop,
    upsample,
)
from layerwise.nn.blocks.fractal import FractalBlock, Join
from layerwise.nn.blocks.inception import Fork, Inception, Pool
from layerwise.nn.blocks.transformer import EncoderBlock, MixerBlock
from layerwise.nn.modules import ConvSpec
from tests.nn.running import apply, compile_once, init, init_with_output


KEY = jax.random.key(0)


@pytest.fixture
def x(key):
    return jax.random.normal(key, (2, 8, 8, 4))


def evaluate(block, *args):
    return init_with_output(block, *args)[0]


@pytest.mark.parametrize("bottleneck", [False, True])
def test_dense_layer_appends_and_keeps_what_was_there(bottleneck, x):
    y = x
    for depth in range(1, 4):
        y = evaluate(DenseLayer(growth=3, bottleneck=bottleneck), y)
        assert y.shape[-1] == 4 + 3 * depth
    np.testing.assert_array_equal(y[..., :4], x)


def test_bottleneck_of_a_dense_layer_has_four_times_the_growth(x):
    params = init(DenseLayer(growth=3), x)["params"]
    assert params["Conv_0"]["kernel"].shape == (1, 1, 4, 12)
    assert params["Conv_1"]["kernel"].shape == (3, 3, 12, 3)


@pytest.mark.parametrize(("compression", "features"), [(1.0, 5), (0.5, 2)])
def test_transition_rounds_down(compression, features, key):
    x = jax.random.normal(key, (2, 8, 8, 5))
    y = evaluate(Transition(compression=compression), x)
    assert y.shape == (2, 4, 4, features)


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_fractal_block_has_a_convolution_for_every_node(columns, x):
    block = FractalBlock(features=4, columns=columns)
    params = jax.eval_shape(block.init, KEY, x)["params"]
    convs = [name for name in params if name.startswith("Conv")]
    assert len(convs) == 2**columns - 1


def test_fractal_block_against_its_recursion(x):
    block = FractalBlock(features=4, columns=3, use_norm=False)
    y, variables = init_with_output(block, x)
    convs = (variables["params"][f"Conv_{i}"] for i in range(7))

    def conv(x):
        return nn.relu(apply(nn.Conv(4, (3, 3)), {"params": next(convs)}, x))

    # f_3 = (f_2 . f_2) + conv, f_2 = (conv . conv) + conv. The block makes layers in
    # the order of the steps, shortest column first.
    first = conv(x)
    half = (conv(first) + conv(x)) / 2
    third = conv(half)
    expected = (conv(third) + conv(half) + conv(x)) / 3
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_join_is_the_mean(key):
    paths = list(jax.random.normal(key, (3, 5)))
    np.testing.assert_allclose(apply(Join(0.5), {}, paths), sum(paths) / 3, rtol=1e-6)


def test_join_with_drop_path_averages_what_is_left(key):
    paths = list(jnp.eye(3))  # the output shows the weight of every path
    keys = jax.random.split(key, 4000)
    join = Join(0.6)
    weights = jax.vmap(
        lambda k: jnp.asarray(apply(join, {}, paths, train=True, rngs={"dropout": k}))
    )(keys)
    weights = np.asarray(weights)
    kept = (weights > 0).sum(axis=1)
    assert kept.min() == 1  # never none
    np.testing.assert_allclose(weights.max(axis=1), 1 / kept, rtol=1e-6)
    # Binomial, but where all three are dropped one comes back.
    assert_mean_close((kept == 1).astype(float), 3 * 0.4 * 0.36 + 0.6**3)
    assert_mean_close(weights[:, 0], 1 / 3)


def test_inception_concatenates_in_order(x):
    branches = ((ConvSpec(3, 1),), (), (Pool("max"), ConvSpec(2, 1)))
    y = evaluate(Inception(branches=branches), x)
    assert y.shape == (2, 8, 8, 9)
    np.testing.assert_array_equal(y[..., 3:7], x)


def test_inception_forks_within_a_branch(x):
    fork = Fork(((ConvSpec(2, (1, 3)),), (ConvSpec(3, (3, 1)),)))
    block = Inception(branches=((ConvSpec(6, 1), fork),))
    y, variables = init_with_output(block, x)
    assert y.shape == (2, 8, 8, 5)
    shapes = [variables["params"][f"Conv_{i}"]["kernel"].shape for i in range(3)]
    assert shapes == [(1, 1, 4, 6), (1, 3, 6, 2), (3, 1, 6, 3)]


@pytest.mark.parametrize("kind", ["max", "avg"])
def test_inception_pools_down(kind, x):
    y = evaluate(Inception(branches=((Pool(kind, 2, "SAME"),),)), x)
    assert y.shape == (2, 4, 4, 4)


def test_upsample_repeats_and_its_adjoint_sums(x, key):
    y, vjp = jax.vjp(upsample, x)
    assert y.shape == (2, 16, 16, 4)
    np.testing.assert_array_equal(y[:, ::2, 1::2], x)
    cotangent = jax.random.normal(key, y.shape)
    expected = cotangent.reshape(2, 8, 2, 8, 2, 4).sum((2, 4))
    np.testing.assert_allclose(vjp(cotangent)[0], expected, rtol=1e-5, atol=1e-6)


def test_unpadded_convolutions_lose_four_pixels_and_skips_are_cropped(x):
    assert evaluate(DoubleConv(features=3), x).shape == (2, 4, 4, 3)
    coarse = jnp.ones((2, 3, 3, 6))
    up = UpBlock(features=4)
    assert evaluate(up, coarse, x).shape == (2, 2, 2, 4)
    np.testing.assert_array_equal(center_crop(x, (4, 4)), x[:, 2:6, 2:6])
    # What was cropped has no effect, what is inside has.
    variables = init(up, coarse, x)

    def total(x):
        return jnp.sum(jnp.asarray(up.apply(variables, coarse, x)))

    inside = compile_once(jax.grad(total))(x) != 0
    assert inside.any()
    assert not inside.at[:, 1:7, 1:7].set(False).any()


def test_feature_pyramid_adds_coarse_to_fine(key):
    keys = jax.random.split(key, 3)
    sizes = [(8, 3), (4, 5), (2, 7)]
    maps = [
        jax.random.normal(k, (1, n, n, c))
        for k, (n, c) in zip(keys, sizes, strict=True)
    ]
    outputs, variables = init_with_output(FeaturePyramid(features=6), maps)
    assert [y.shape for y in outputs] == [(1, n, n, 6) for n, _ in sizes]

    def conv(i, x, kernel):
        layer = nn.Conv(6, (kernel, kernel))
        return apply(layer, {"params": variables["params"][f"Conv_{i}"]}, x)

    top = conv(2, maps[2], 1)
    middle = conv(1, maps[1], 1) + upsample(top)
    fine = conv(0, maps[0], 1) + upsample(middle)
    np.testing.assert_allclose(outputs[0], conv(3, fine, 3), rtol=1e-4, atol=1e-4)


def test_hourglass_with_zero_branches_is_a_sum_over_levels(x):
    block = Hourglass(levels=2, features=4, kernel_init=nn.initializers.zeros)

    def pool(x):
        return nn.max_pool(x, (2, 2), strides=(2, 2))

    inner = pool(x) + upsample(pool(pool(x)))
    np.testing.assert_allclose(evaluate(block, x), x + upsample(inner), rtol=1e-6)


def test_encoder_block_commutes_with_permutations_of_tokens(key):
    x = jax.random.normal(key, (2, 5, 8))
    block = EncoderBlock(heads=2, mlp_dim=16)
    variables = init(block, x)
    order = jnp.array([3, 0, 4, 1, 2])
    y = apply(block, variables, x)
    np.testing.assert_allclose(
        apply(block, variables, x[:, order]), y[:, order], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "block",
    [
        EncoderBlock(heads=2, mlp_dim=16, kernel_init=nn.initializers.zeros),
        MixerBlock(4, 16, kernel_init=nn.initializers.zeros),
    ],
    ids=["encoder", "mixer"],
)
def test_token_blocks_with_zero_kernels_are_the_identity(block, key):
    x = jax.random.normal(key, (2, 5, 8))
    np.testing.assert_array_equal(evaluate(block, x), x)


def test_mixer_mixes_tokens(key):
    x = jax.random.normal(key, (1, 5, 8))
    block = MixerBlock(4, 16)
    variables = init(block, x)

    def first_token(x):
        return jnp.sum(jnp.asarray(block.apply(variables, x))[0, 0])

    assert (jnp.abs(compile_once(jax.grad(first_token))(x)).max(axis=-1) > 0).all()


def test_convnext_block_is_nearly_the_identity_at_first(x):
    y = evaluate(ConvNeXtBlock(), x)
    assert 0 < np.abs(y - x).max() < 1e-4
    far = evaluate(ConvNeXtBlock(layer_scale=1.0), x)
    # The branch is linear in the scale; rounding of x + 1e-6 * branch is the rest.
    np.testing.assert_allclose((y - x) * 1e6, far - x, atol=0.5)


def test_convnext_drop_path_divides_where_stochastic_depth_does_not(key):
    x = jax.random.normal(key, (64, 4, 4, 4))
    block = ConvNeXtBlock(drop_path=0.5, layer_scale=1.0)
    variables = init(block, x)
    full = apply(block, variables, x) - x
    y = apply(block, variables, x, train=True, rngs={"dropout": key})
    ratio = np.asarray((jnp.asarray(y) - x) / full).reshape(64, -1)
    # An example is dropped as a whole, or its branch doubled.
    assert set(np.round(np.median(ratio, axis=1), 2)) == {0.0, 2.0}
