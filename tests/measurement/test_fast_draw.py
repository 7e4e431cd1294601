"""Parameters drawn by one kernel are the parameters that the init draws."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import layerwise as lw
from layerwise.measurement import fast_draw
from layerwise.tracing.graph import from_jaxpr


def groups(draw):
    jaxpr = jax.make_jaxpr(draw)(jax.random.key(0))
    return [g.chains for g in fast_draw._groups(from_jaxpr(jaxpr))]


def count(draw, name):
    """Equations of this name in what is compiled."""
    graph = from_jaxpr(jax.make_jaxpr(draw)(jax.random.key(0)))
    return sum(e.name == name for e in graph.all_equations())


def assert_same(draw, key):
    fast = fast_draw.fast_draw(draw)
    plain, quick = jax.jit(draw)(key), jax.jit(fast)(key)
    assert jax.tree.structure(plain) == jax.tree.structure(quick)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(quick), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        # The same operations in the same order; a compiler may contract a product and a
        # sum in one program and not in the other.
        np.testing.assert_allclose(a, b, rtol=3e-7, atol=1e-12)


@pytest.mark.parametrize("shape", [(3,), (1,), (7, 300), (5, 5, 1000), (2**15 + 1,)])
def test_bits_are_those_of_jax(shape, key):
    draw = lambda key: jax.random.bits(key, shape)
    assert len(groups(draw)) == 1
    np.testing.assert_array_equal(fast_draw.fast_draw(draw)(key), draw(key))


LAWS = {
    "normal": lambda k: jax.random.normal(k, (20, 30)) * 0.1,
    "uniform": lambda k: jax.random.uniform(k, (20, 30), minval=-3.0, maxval=2.0),
    "truncated": lambda k: jax.random.truncated_normal(k, -2.0, 2.0, (20, 30)),
    "he": lambda k: nn.initializers.he_normal()(k, (3, 3, 8, 16)),
    "laplace": lambda k: jax.random.laplace(k, (20, 30)),
    "bernoulli": lambda k: jax.random.bernoulli(k, 0.3, (20, 30)),
    "orthogonal": lambda k: nn.initializers.orthogonal()(k, (20, 20)),
    "two uses": lambda k: (lambda x: (x, jnp.sum(x)))(jax.random.normal(k, (50,))),
}


@pytest.mark.parametrize("name", LAWS)
def test_a_law(name, key):
    draw = LAWS[name]
    assert sum(map(len, groups(draw))) == 1
    assert_same(draw, key)


def test_leaves_of_one_law_are_drawn_together(key):
    def draw(key):
        keys = jax.random.split(key, 4)
        shapes = [(3,), (300, 40), (1, 7), (64,)]
        return [
            jax.random.normal(k, s) * np.float32(0.1 * i)
            for i, (k, s) in enumerate(zip(keys, shapes, strict=True))
        ]

    assert [len(g) for g in groups(draw)] == [4]
    assert_same(draw, key)


def test_keys_are_hashed_together(key):
    def draw(key):
        keys = [jax.random.fold_in(key, i) for i in (7, 3, 2**32 - 1)]
        keys += [jax.random.fold_in(k, 5) for k in keys]
        other = jax.random.key(3, impl="rbg")
        more = [jax.random.fold_in(other, i) for i in range(2)]
        leaves = [jax.random.normal(k, (8,)) for k in [*keys, *more]]
        return leaves, [jax.random.key_data(k) for k in (*keys, *more)]

    assert_same(draw, key)
    assert count(draw, "random_fold_in") == 8
    # Three of the draw's key, three of those, and two of another generator.
    assert count(fast_draw.fast_draw(draw), "random_fold_in") == 3


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_a_deep_network_hashes_its_keys_at_once(kind, key):
    def linen(key):
        layers = nn.Sequential([nn.Dense(8) for _ in range(12)])
        return layers.init(key, jnp.ones((2, 8)))

    def with_rngs(key):
        rngs = nnx.Rngs(key)
        layers = nnx.Sequential(*[nnx.Linear(8, 8, rngs=rngs) for _ in range(12)])
        return nnx.to_pure_dict(nnx.state(layers, nnx.Param))

    draw = {"linen": linen, "nnx": with_rngs}[kind]
    assert_same(draw, key)
    assert count(draw, "random_fold_in") >= 12
    assert count(fast_draw.fast_draw(draw), "random_fold_in") <= 2


def test_what_int32_cannot_number_is_drawn_by_itself():
    def draw(key):
        keys = jax.random.split(key, 3)
        return [jax.random.bits(k, (2**15, 2**15)) for k in keys]

    assert [len(g) for g in groups(draw)] == [1]


def test_where_leaves_begin_can_be_an_argument(key):
    draw = lambda key: [jax.random.normal(k, (50,)) for k in jax.random.split(key, 3)]
    law = fast_draw.fast_draw(draw)
    got = jax.jit(lambda law, key: law(key))(law, key)
    assert len(jax.tree.leaves(law)) == 3
    for a, b in zip(draw(key), got, strict=True):
        np.testing.assert_allclose(a, b, rtol=3e-7)


def test_a_leaf_whose_scale_is_random_waits_for_it(key):
    def draw(key):
        one, two = jax.random.split(key)
        scale = jax.random.normal(one, ())
        return jax.random.normal(two, (40,)) * scale

    assert_same(draw, key)


def test_other_generators_are_left_alone(key):
    def draw(key):
        return jax.random.normal(jax.random.key(3, impl="rbg"), (4,)), key

    assert fast_draw.fast_draw(draw) is draw
    with jax.threefry_partitionable(False):
        plain = lambda key: jax.random.normal(key, (4,))
        assert fast_draw.fast_draw(plain) is plain


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("f34", "resnet18")]


@pytest.mark.parametrize("name", ["mixer_s16", *SLOW])
def test_a_model(name, key):
    entry = lw.zoo.registry.entry(name)
    model = entry.build_small()
    x = jnp.zeros((1, *model.input_shape))
    draw = lambda key: model.init(key, x)
    assert sum(map(len, groups(draw))) > 3
    assert_same(draw, key)


def test_many_draws_at_once(key):
    draw = lambda key: [jax.random.normal(key, (30,)), jax.random.uniform(key, (9,))]
    keys = jax.random.split(key, 3)
    for a, b in zip(jax.vmap(draw)(keys), jax.vmap(fast_draw.fast_draw(draw))(keys)):
        np.testing.assert_allclose(a, b, rtol=3e-7)
