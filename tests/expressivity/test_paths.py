import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layerwise.errors import InputError, InvalidArgumentError
from layerwise.expressivity.paths import (
    Block,
    gradient_by_length,
    lesion,
    path_gradients,
    path_length_law,
    path_outputs,
    random_swaps,
    run_blocks,
    sampled_gradient_by_length,
    share_of_paths,
    swap,
)


def linear(params, x):
    return x @ params


def rectified(params, x):
    return jax.nn.relu(x @ params)


def halved(x):
    return x[..., ::2]


def to_half(params, x):
    return jax.nn.relu(x @ params)[..., ::2]


def make_blocks(key, n, d, branch, *, after=lambda x: x, scale=0.5):
    keys = jax.random.split(key, n)
    size = scale / np.sqrt(d)
    return [
        Block(branch, size * jax.random.normal(k, (d, d)), after=after) for k in keys
    ]


def model_gradient(blocks, x, cotangent):
    def whole(x):
        for block in blocks:
            out = block.shortcut(x)
            if block.branch is not None:
                out = out + block.branch(block.params, x)
            x = block.after(out)
        return jnp.vdot(x, cotangent)

    return jax.grad(whole)(x)


def test_how_many_paths_have_which_length():
    assert share_of_paths(54, 5, 17) == pytest.approx(0.004537, abs=5e-7)
    assert share_of_paths(54, 19, 35) == pytest.approx(0.9802, abs=5e-5)
    for n in (1, 2, 10, 54, 600):
        law = path_length_law(n)
        assert law.sum() == pytest.approx(1.0, abs=1e-12)
        assert law @ np.arange(n + 1) == pytest.approx(n / 2)


@pytest.mark.parametrize("n", [1, 4, 10])
def test_linear_blocks_sum_over_paths_to_the_product(n, key, x64):
    blocks = make_blocks(key, n, 6, linear)
    x = jax.random.normal(key, (3, 6))
    outputs, lengths = path_outputs(blocks, x)
    assert len(outputs) == 2**n
    np.testing.assert_array_equal(np.bincount(lengths) / 2.0**n, path_length_law(n))
    product = functools.reduce(lambda a, b: a @ (jnp.eye(6) + b.params), blocks, x)
    assert abs(outputs.sum(axis=0) - product).max() < 1e-10
    assert abs(run_blocks(blocks, x)[-1] - product).max() < 1e-10


@pytest.mark.parametrize(
    "after",
    [pytest.param(lambda x: x, marks=pytest.mark.slow), jax.nn.relu],
    ids=["v2", "v1"],
)
def test_gradients_sum_over_paths_to_the_gradient(after, key, x64):
    blocks = make_blocks(key, 8, 5, rectified, after=after)
    x, cotangent = jax.random.normal(key, (2, 4, 5))
    expected = model_gradient(blocks, x, cotangent)
    parts, lengths = path_gradients(blocks, x, cotangent)
    assert abs(parts.sum(axis=0) - expected).max() < 1e-10
    by_length = gradient_by_length(blocks, x, cotangent)
    assert abs(by_length.sum(axis=0) - expected).max() < 1e-10
    for k in range(9):
        total = parts[np.asarray(lengths) == k].sum(axis=0)
        assert abs(by_length[k] - total).max() < 1e-10


def test_small_linear_branches_weigh_lengths_binomially(key, x64):
    """Equal branches e I: length k carries C(n, k) e^k."""
    blocks = [Block(linear, 0.1 * jnp.eye(4))] * 12
    parts = gradient_by_length(blocks, jnp.ones(4), jnp.ones(4))
    choose = path_length_law(12) * 2.0**12
    np.testing.assert_allclose(parts[:, 0], choose * 0.1 ** np.arange(13), rtol=1e-12)
    sampled = sampled_gradient_by_length(
        blocks, jnp.ones(4), lambda y: y.sum(), key, samples=2
    )
    expected = choose * 0.1 ** np.arange(13)
    np.testing.assert_allclose(sampled.share, expected / expected.sum(), rtol=1e-12)
    # All paths of one length are equal here: no spread but that of rounding.
    assert (sampled.sem < 1e-15 * sampled.mean + 1e-18).all()


@pytest.mark.parametrize(
    ("branch", "forward"),
    [(linear, "full"), (linear, "path"), (rectified, "full")],
)
def test_sampled_paths_are_paths_of_the_enumeration(branch, forward, key, x64):
    """Each sample is one of the 2^n; for linear blocks, forward does not matter."""
    blocks = make_blocks(key, 5, 4, branch)
    x = jax.random.normal(key, (4,))
    parts, lengths = path_gradients(blocks, x, jnp.ones(4))
    every = np.linalg.norm(np.asarray(parts), axis=1)
    found = sampled_gradient_by_length(
        blocks, x, lambda y: y.sum(), key, samples=6, forward=forward
    )
    for k, row in zip(found.lengths, found.norms):
        candidates = every[np.asarray(lengths) == k]
        gaps = abs(row[:, None] - candidates).min(axis=1)
        assert gaps.max() < 1e-12
        assert len(np.unique(row.round(10))) > 1 or k in (0, 5)


def test_a_path_alone_is_the_network_without_the_rest(key, x64):
    """All branches, no shortcut: length n forward along the path is a plain network."""
    blocks = make_blocks(key, 3, 4, rectified)
    x = jax.random.normal(key, (4,))

    def plain(x):
        for block in blocks:
            x = rectified(block.params, x)
        return x.sum()

    found = sampled_gradient_by_length(
        blocks, x, jnp.sum, key, lengths=[3], samples=2, forward="path"
    )
    expected = jnp.linalg.norm(jax.grad(plain)(x))
    np.testing.assert_allclose(found.norms, float(expected), rtol=1e-12)


def test_a_lesion_leaves_half_of_the_paths(key):
    blocks = make_blocks(key, 6, 4, linear)
    x = jax.random.normal(key, (4,))
    cut = lesion(blocks, [2])
    assert len(path_outputs(cut, x)[0]) == 2**5
    other = [b for i, b in enumerate(blocks) if i != 2]
    np.testing.assert_allclose(
        run_blocks(cut, x)[-1], run_blocks(other, x)[-1], rtol=1e-6
    )
    everything = lesion(blocks, range(6))
    np.testing.assert_array_equal(run_blocks(everything, x)[-1], x)
    assert gradient_by_length(everything, x, x)[1:].any() == np.False_


def test_swaps_stay_within_equal_shapes(key):
    blocks = make_blocks(key, 3, 8, rectified)
    down = Block(to_half, blocks[0].params, shortcut=halved)
    net = [*blocks[:2], down, *make_blocks(key, 2, 4, rectified)]
    x = jax.random.normal(key, (8,))
    swapped = swap(net, [(0, 1), (3, 4)], x)
    assert [net.index(b) for b in swapped] == [1, 0, 2, 4, 3]
    assert run_blocks(swapped, x)[-1].shape == (4,)
    with pytest.raises(InputError, match="within one stage"):
        swap(net, [(1, 3)], x)
    pairs = random_swaps(net, x, key, count=20)
    assert {frozenset(p) for p in pairs} == {frozenset({0, 1}), frozenset({3, 4})}
    with pytest.raises(InputError, match="equal shapes"):
        random_swaps([down], x, key, count=1)


def test_wrong_arguments_are_refused(key):
    blocks = make_blocks(key, 17, 2, linear)
    x = jnp.ones(2)
    with pytest.raises(InvalidArgumentError, match="gradient_by_length"):
        path_outputs(blocks, x)
    with pytest.raises(InvalidArgumentError, match="0 to 16"):
        lesion(blocks, [17])
    with pytest.raises(InvalidArgumentError, match="at least 2"):
        sampled_gradient_by_length(blocks, x, jnp.sum, key, samples=1)
    with pytest.raises(InvalidArgumentError, match="54"):
        path_length_law(0)
