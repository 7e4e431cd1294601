"""A model traced once: the same program and the same draws as traced twice."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layerwise import zoo
from layerwise.theory import law
from layerwise.tracing import trace
from layerwise.tracing.prepare import prepare


REPRESENTATIVES = sorted(
    {type(zoo.entry(n).build_small()): n for n in reversed(zoo.names())}.values()
)


def equations(traced):
    """All that tells the equations of a program apart, numbers of values included."""
    return [
        (
            e.name,
            tuple(a if isinstance(a, int) else str(a) for a in e.inputs),
            e.outputs,
            e.scope,
            e.source,
        )
        for e in traced.graph.all_equations()
    ]


def check_same(model, inputs, **kwargs):
    """Checks what one trace says of a model against what two say."""
    ready = prepare(model, None, inputs, **kwargs)
    assert ready.once is not None
    init: Any = ready.model.init
    shapes = jax.eval_shape(init, jax.random.key(0), *ready.inputs)
    assert jax.tree.structure(ready.own) == jax.tree.structure(shapes)
    for one, two in zip(jax.tree.leaves(ready.own), jax.tree.leaves(shapes)):
        assert (one.shape, one.dtype, one.weak_type) == (
            two.shape,
            two.dtype,
            two.weak_type,
        )
    one = trace(ready.model, ready.own, ready.inputs, ready.once)
    two = trace(ready.model, shapes, ready.inputs)
    assert equations(one) == equations(two)
    assert one.leaf_values == two.leaf_values
    assert one.output_tree == two.output_tree
    drawn = law.of_init(init, ready.inputs, ready.once).leaves
    expected = law.of_init(init, ready.inputs).leaves
    assert drawn.keys() == expected.keys()
    for name, leaf in expected.items():
        got = drawn[name]
        np.testing.assert_array_equal(got.value, leaf.value)
        if leaf.drawn is None:
            assert (got.mean, got.second) == (leaf.mean, leaf.second), name
        else:  # other draws of the same law
            check_alike(got.drawn, leaf.drawn)


def check_alike(got, expected):
    """Checks two sets of draws, the first axis, by their own standard errors."""
    for power in (1, 2):
        a, b = (
            np.mean(x**power, axis=tuple(range(1, x.ndim))) for x in (got, expected)
        )
        error = np.sqrt(np.var(a) / len(a) + np.var(b) / len(b))
        assert abs(np.mean(a) - np.mean(b)) <= 5 * error


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_architectures(name, key):
    model = zoo.entry(name).build_small()
    check_same(model, jax.random.normal(key, (2, *model.input_shape)))


class Odd(nn.Module):
    """Parameters of every kind: shared, tied, boxed, constant, made from others."""

    def setup(self):
        self.own = self.param("own", nn.initializers.ones, (8,))
        self.embed = nn.Embed(11, 8)
        self.shared = nn.Dense(8, kernel_init=nn.initializers.orthogonal())

    @nn.compact
    def __call__(self, tokens):
        x = self.shared(self.shared(self.embed(tokens)) * self.own)
        kernel: Any = nn.with_partitioning(nn.initializers.he_normal(), (None, "model"))
        x = nn.Dense(8, kernel_init=kernel)(x)
        constant = jnp.float32(0.5)
        x = x * self.param("gain", lambda key: constant)
        x = x + self.param("again", lambda key: constant)
        first = self.param("first", nn.initializers.normal(0.3), (8, 8))
        second = self.param("second", lambda key: first.T @ first)
        mean = x.mean((0, 1))
        x = (x - self.param("mean", lambda key: mean)) @ second + mean
        self.sow("intermediates", "x", x)
        return self.embed.attend(x)


def test_parameters_of_every_kind(key):
    check_same(Odd(), jax.random.randint(key, (2, 5), 0, 11))


def test_dropout_and_keyword_arguments(key):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            x = nn.Dropout(0.5, deterministic=not train)(nn.Dense(8)(x))
            return nn.BatchNorm(use_running_average=True)(x)

    x = jax.random.normal(key, (4, 8))
    check_same(Net(), x, kwargs={"train": False})
    check_same(Net(), x, kwargs={"train": True}, rngs={"dropout": key})
    # Without a key for it the model cannot be called, though it can be initialized.
    assert prepare(Net(), None, x, kwargs={"train": True}).once is None


def dense(x):
    return nn.Dense(x.shape[-1])(x)


class Asks(nn.Module):
    """Looks for its own parameter before it makes it."""

    @nn.compact
    def __call__(self, x):
        new = not self.has_variable("params", "scale")
        scale = self.param("scale", nn.initializers.ones, ())
        return dense(x) if new else dense(x) * scale


class Catches(nn.Module):
    """Looks for it, and catches what goes wrong."""

    @nn.compact
    def __call__(self, x):
        try:
            new = "scale" not in self.variables["params"]
        except Exception:
            new = True
        scale = self.param("scale", nn.initializers.ones, ())
        return dense(x) if new else dense(x) * scale


class Counts(nn.Module):
    """Changes its state whenever it is called, by its init as well."""

    @nn.compact
    def __call__(self, x):
        count = self.variable("state", "count", jnp.zeros, ())
        count.value += 1
        return dense(x) * count.value


class Cached(nn.Module):
    """Does another thing once its state is there."""

    @nn.compact
    def __call__(self, x):
        there = self.has_variable("cache", "x")
        self.variable("cache", "x", jnp.zeros, ())
        return dense(x) * 2 if there else dense(x)


class Lifted(nn.Module):
    """A layer in one of Flax's transformations."""

    transform: Any

    @nn.compact
    def __call__(self, x):
        return self.transform(nn.Dense)(x.shape[-1])(dense(x))


class Looped(nn.Module):
    """A layer in a loop of JAX's own: a module that has its weights may be."""

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(x.shape[-1])
        if self.is_initializing():
            return layer(x)
        return jax.lax.fori_loop(0, 3, lambda i, x: layer(x), x)


class Scanned(nn.Module):
    """Layers in a scan."""

    @nn.compact
    def __call__(self, x):
        body = nn.scan(
            lambda layer, x: (layer(x), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )
        return body(nn.Dense(x.shape[-1], name="layer"), dense(x))[0]


class Normed(nn.Module):
    """A layer that is given other weights than it has."""

    @nn.compact
    def __call__(self, x):
        return nn.WeightNorm(nn.Dense(x.shape[-1]))(x)


class Training(nn.Module):
    """Batch norm that updates its state."""

    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=False)(dense(x))


@pytest.mark.parametrize(
    "model",
    [
        Asks(),
        Catches(),
        Counts(),
        Cached(),
        Lifted(nn.remat),
        Lifted(nn.jit),
        Looped(),
        Scanned(),
        Normed(),
        Training(),
    ],
    ids=lambda m: type(m).__name__,
)
def test_traced_twice_where_making_parameters_could_differ(model, key):
    x = jax.random.normal(key, (2, 4))
    ready = prepare(model, None, x)
    assert ready.once is None
    init: Any = ready.model.init
    shapes = jax.eval_shape(init, jax.random.key(0), x)
    assert jax.tree.structure(ready.own) == jax.tree.structure(shapes)
    assert trace(ready.model, ready.example, ready.inputs).all_layers()


def test_given_parameters_are_used_as_they_are(key):
    x = jax.random.normal(key, (2, 4))
    model = nn.Dense(3)
    assert prepare(model, model.init(key, x), x).once is None


def test_initializers_of_jax_are_traced_once_and_others_each_time(key):
    calls = []

    def other(key, shape, dtype):
        calls.append(shape)
        return len(calls) * jax.random.normal(key, shape, dtype)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(3):
                x = nn.Dense(4, kernel_init=nn.initializers.he_normal())(x)
            for scale in (1, 1.0, 2.0):
                init = nn.initializers.variance_scaling(scale, "fan_in", "uniform")
                x = nn.Dense(4, kernel_init=init, use_bias=False)(x)
            for _ in range(2):
                x = nn.Dense(4, kernel_init=other, use_bias=False)(x)
            return x

    x = jax.random.normal(key, (2, 4))
    ready = prepare(Net(), None, x)
    assert ready.once is not None
    assert len(calls) == 2
    eqns = ready.once.making.eqns
    bodies = [e.params["jaxpr"] for e in eqns if e.primitive.name == "jit"]
    drawn = [b for b in bodies if b.in_avals and len(b.eqns) > 1]
    assert len({id(b) for b in drawn[:3]}) == 1
    init: Any = ready.model.init
    leaves = law.of_init(init, ready.inputs, ready.once).leaves
    second = [leaves[f"Dense_{i}/kernel"].second for i in range(8)]
    wanted = [1 / 2] * 3 + [1 / 4, 1 / 4, 1 / 2]
    np.testing.assert_allclose(second[:6], wanted, rtol=2e-3)
    # What another initializer does may depend on what it did before.
    assert second[7] > 3.5 * second[6]
