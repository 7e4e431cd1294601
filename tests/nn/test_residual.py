"""Definitions of the residual blocks, by what is left when the branch is zero."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import assert_mean_close
from layerwise.errors import InvalidArgumentError
from layerwise.nn.blocks.gates import (
    Highway,
    SqueezeExcite,
    StochasticDepth,
    linear_survival,
)
from layerwise.nn.blocks.residual import (
    PreactivationBlock,
    PyramidBlock,
    ResidualBlock,
    basic,
    bottleneck,
    stages,
)
from tests.nn.running import apply, compile_once, init, init_with_output


ZEROS = nn.initializers.zeros


@pytest.fixture
def x(key):
    return jax.random.normal(key, (2, 8, 8, 4))


def evaluate(block, *args):
    return init_with_output(block, *args)[0]


def with_zeros(x, n):
    return np.concatenate([x, np.zeros((*x.shape[:-1], n))], axis=-1)


def test_v1_with_zero_branch_is_relu(x):
    block = ResidualBlock(convs=basic(4), kernel_init=ZEROS)
    np.testing.assert_array_equal(evaluate(block, x), nn.relu(x))
    inner = ResidualBlock(convs=basic(4), kernel_init=ZEROS, activate=False)
    np.testing.assert_array_equal(evaluate(inner, x), x)


def test_option_a_subsamples_and_pads(x):
    block = ResidualBlock(convs=basic(6, 2), shortcut="pad", kernel_init=ZEROS)
    expected = with_zeros(nn.relu(x)[:, ::2, ::2], 2)
    np.testing.assert_array_equal(evaluate(block, x), expected)


def test_option_a_has_no_parameter_and_takes_odd_sizes(x):
    def params(shortcut):
        block = ResidualBlock(convs=basic(6, 2), shortcut=shortcut)
        out, variables = init_with_output(block, x[:, :7, :7])
        assert out.shape == (2, 4, 4, 6)
        return set(variables["params"])

    assert params("pad") == params("none")
    assert params("projection") - params("pad") == {"Conv_2", "BatchNorm_2"}


def test_plain_has_no_shortcut(x):
    block = ResidualBlock(convs=basic(4), shortcut="none", kernel_init=ZEROS)
    np.testing.assert_array_equal(evaluate(block, x), np.zeros_like(x))


def test_preactivation_with_zero_branch_is_the_identity(x):
    block = PreactivationBlock(convs=bottleneck(4, 2), kernel_init=ZEROS)
    np.testing.assert_array_equal(evaluate(block, x), x)


def test_preactivation_projects_what_is_activated(x):
    block = PreactivationBlock(convs=basic(6), use_norm=False)
    variables = init(block, x)
    params = jax.tree.map(jnp.zeros_like, variables["params"])
    params["Conv_2"] = variables["params"]["Conv_2"]
    y = apply(block, {"params": params}, x)
    kernel = variables["params"]["Conv_2"]["kernel"][0, 0]
    np.testing.assert_allclose(y, nn.relu(x) @ kernel, rtol=1e-5, atol=1e-6)


def test_preactivation_does_not_touch_the_stream(x):
    # The stream may go negative and is not normalized: the block is odd around it.
    block = PreactivationBlock(convs=basic(4))
    variables = init(block, x)
    branch = apply(block, variables, x) - x
    kept = apply(block, variables, x) - branch
    np.testing.assert_allclose(kept, x, atol=1e-5)
    assert (np.asarray(apply(block, variables, x)) < 0).any()


@pytest.mark.parametrize("stride", [1, 2])
def test_pyramid_identity_is_pooled_and_padded(x, stride):
    block = PyramidBlock(convs=basic(7, stride), kernel_init=ZEROS)
    pooled = x.reshape(2, 8 // stride, stride, 8 // stride, stride, 4).mean((2, 4))
    np.testing.assert_allclose(evaluate(block, x), with_zeros(pooled, 3), atol=1e-6)


def test_pyramid_has_one_normalization_more_than_convolutions(x):
    variables = init(PyramidBlock(convs=basic(4)), x)
    names = set(variables["params"])
    assert sum(n.startswith("Conv") for n in names) == 2
    assert sum(n.startswith("BatchNorm") for n in names) == 3


def test_grouped_bottleneck_is_a_sum_of_narrow_ones(x):
    groups, width = 2, 3
    convs = bottleneck(4, groups * width, groups=groups)
    block = ResidualBlock(convs=convs, use_norm=False)
    variables = init(block, x)
    narrow = ResidualBlock(convs=bottleneck(4, width), use_norm=False, activate=False)
    kernels = [variables["params"][f"Conv_{i}"]["kernel"] for i in range(3)]
    total = x
    for g in range(groups):
        mine = slice(g * width, (g + 1) * width)
        params = init(narrow, x)["params"]
        params["Conv_0"]["kernel"] = kernels[0][..., mine]
        params["Conv_1"]["kernel"] = kernels[1][..., mine]
        params["Conv_2"]["kernel"] = kernels[2][:, :, mine]
        total = total + apply(narrow, {"params": params}, x) - x
    np.testing.assert_allclose(
        apply(block, variables, x), nn.relu(total), rtol=1e-4, atol=1e-4
    )


def test_the_stride_stands_in_the_3x3():
    assert [s.stride for s in bottleneck(64, 16, 2)] == [1, 2, 1]
    assert [s.stride for s in basic(64, 2)] == [2, 1]


def test_stages_halve_the_map_at_every_later_stage():
    blocks = list(stages((2, 1, 2), (16, 32, 64)))
    assert blocks == [(16, 1), (16, 1), (32, 2), (64, 2), (64, 1)]
    with pytest.raises(ValueError, match="zip"):
        list(stages((2, 1), (16, 32, 64)))


def test_squeeze_excitation_against_its_definition(x):
    gate = SqueezeExcite(ratio=2)
    y, variables = init_with_output(gate, x)
    p = variables["params"]
    assert p["Dense_0"]["kernel"].shape == (4, 2)
    hidden = nn.relu(x.mean((1, 2)) @ p["Dense_0"]["kernel"])
    s = nn.sigmoid(hidden @ p["Dense_1"]["kernel"])
    np.testing.assert_allclose(y, x * s[:, None, None, :], rtol=1e-5, atol=1e-6)


def test_squeeze_excitation_halves_at_first(x):
    y = evaluate(SqueezeExcite(ratio=2, kernel_init=ZEROS), x)
    np.testing.assert_allclose(y, x / 2)


def test_squeeze_excitation_needs_a_hidden_unit(x):
    with pytest.raises(InvalidArgumentError, match="ratio of at most 4"):
        evaluate(SqueezeExcite(ratio=16), x)


@pytest.mark.parametrize(
    ("blocks", "used"), [(54, 40.25), (600, 449.75)], ids=["110", "1202"]
)
def test_stochastic_depth_uses_three_quarters_of_the_blocks(blocks, used):
    survival = linear_survival(blocks, 0.5)
    assert sum(survival) == pytest.approx(used)
    assert survival[-1] == 0.5
    assert survival[0] == 1 - 0.5 / blocks


@pytest.mark.parametrize("per_example", [False, True])
def test_stochastic_depth_has_the_mean_of_its_eval_mode(per_example, key):
    x = jnp.ones((2, 3, 3, 1))
    block = StochasticDepth(0.7, per_example=per_example)
    keys = jax.random.split(key, 4000)
    y = jax.vmap(lambda k: apply(block, {}, x, train=True, rngs={"dropout": k}))(keys)
    y = np.asarray(y)
    assert set(np.unique(y)) == {0.0, 1.0}
    assert (y[:, 0] == y[:, 1]).all() != per_example
    assert_mean_close(y[:, 0, 0, 0, 0], 0.7)
    np.testing.assert_allclose(apply(block, {}, x), 0.7)


def test_stochastic_depth_drops_the_branch_and_not_the_stream(x, key):
    block = ResidualBlock(convs=basic(4), survival=0.5)
    variables = init(block, x)

    def train(key):
        y, _ = block.apply(
            variables, x, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        return y

    outputs = compile_once(jax.vmap(train))(jax.random.split(key, 16))
    dropped = [bool((y == nn.relu(x)).all()) for y in outputs]
    assert 0 < sum(dropped) < 16


@pytest.mark.parametrize("survival", [0.0, -0.1, 1.1])
def test_survival_is_a_probability(survival, x):
    with pytest.raises(InvalidArgumentError, match=r"in \(0, 1\]"):
        evaluate(StochasticDepth(survival), x)


@pytest.mark.parametrize("kernel", [None, 3])
def test_highway_goes_from_identity_to_plain_with_its_gate(kernel, x):
    closed = Highway(kernel=kernel, gate_bias=-50.0)
    np.testing.assert_allclose(evaluate(closed, x), x, atol=1e-6)
    opened, variables = init_with_output(Highway(kernel=kernel, gate_bias=50.0), x)
    plain = nn.Dense(4) if kernel is None else nn.Conv(4, (3, 3))
    expected = apply(plain, {"params": variables["params"]["transform"]}, x)
    np.testing.assert_allclose(opened, nn.relu(expected), rtol=1e-4, atol=1e-5)


def test_highway_gate_weighs_both():
    x = jnp.array([[1.0, -2.0]])
    block = Highway(gate_bias=0.0, kernel_init=ZEROS)
    np.testing.assert_allclose(evaluate(block, x), x / 2)  # H = 0, T = 1/2
