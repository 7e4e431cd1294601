"""One oracle for every rule: draw weights, run the program, compare both directions.

A case is a function of one or two pre-activations, each a product of the inputs with
weights of its own and so exactly normal. The second moment and the mean of its result,
and the second moment of the cotangent at the pre-activation (from independent signs at
the result), are compared with 1000 networks: within 5 standard errors, and what the
rule states as its own error.
"""

import inspect
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import assert_mean_close
from layerwise.errors import InvalidArgumentError
from layerwise.theory import law as laws, registry, taps
from layerwise.theory.engine import Engine
from layerwise.theory.predict import predict
from layerwise.theory.rules import (
    elementwise,
    linear,
    normalization,
    pooling,
    positions,
)
from layerwise.theory.state import Grade
from layerwise.tracing import as_function, trace


HEIGHT, WIDTH, CHANNELS, BATCH, SOURCES = 6, 5, 6, 3, 16
DRAWS = 1000


def inputs():
    """Images whose neighbours are correlated, with a mean."""
    shape = (BATCH, HEIGHT + 1, WIDTH + 1, SOURCES)
    x = np.asarray(jax.random.normal(jax.random.key(4), shape))
    x = x[:, 1:] + x[:, :-1]
    x = x[:, :, 1:] + x[:, :, :-1]
    return (0.5 * x + 0.3).astype(np.float32)


def conv(x, w, stride=1, padding="SAME", dilation=1, up=1, groups=1):
    return jax.lax.conv_general_dilated(
        x,
        w,
        (stride, stride),
        padding,
        lhs_dilation=(up, up),
        rhs_dilation=(dilation, dilation),
        feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def batch_norm(u):
    return (u - u.mean((0, 1, 2))) * jax.lax.rsqrt(u.var((0, 1, 2)) + 1e-5)


def layer_norm(u):
    mean = u.mean(-1, keepdims=True)
    var = jnp.maximum((u**2).mean(-1, keepdims=True) - mean**2, 0.0)
    return (u - mean) * jax.lax.rsqrt(var + 1e-6)


def group_norm(u, groups=2):
    """By hand, in two passes: everything goes through the centred value."""
    y = u.reshape(*u.shape[:-1], groups, -1)
    centred = y - y.mean((1, 2, 4), keepdims=True)
    variance = (centred**2).mean((1, 2, 4), keepdims=True)
    return (centred * jax.lax.rsqrt(variance + 1e-5)).reshape(u.shape)


def window_sum(u):
    zero = np.float32(0)
    return jax.lax.reduce_window(
        u, zero, jax.lax.add, (1, 3, 3, 1), (1, 2, 2, 1), "SAME"
    )


def window_max(u):
    low = -np.float32(np.inf)
    pads = ((0, 0), (1, 1), (1, 1), (0, 0))
    return jax.lax.reduce_window(u, low, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), pads)


ROWS = np.array([0.1, 0.2, 0.5, 1.0, 2.0, 3.0]).reshape(HEIGHT, 1, 1)
MASK = (np.arange(BATCH * HEIGHT * WIDTH * CHANNELS) % 3 > 0).reshape(
    BATCH, HEIGHT, WIDTH, CHANNELS
)


def mean_over_positions(u):
    return jax.nn.relu(u).mean((1, 2))


def attend(q, k, v, heads=1):
    """Causal softmax attention between all positions, with a bias by distance."""

    def split(u):
        return u.reshape(BATCH, -1, heads, u.shape[-1] // heads)

    q, k, v = map(split, (q, k, v))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    at = np.arange(q.shape[1])
    scores = jnp.where(at[:, None] >= at, scores, -1e9)
    weights = jax.nn.softmax(scores - 0.1 * np.abs(at[:, None] - at), axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def projected(p, u):
    q, k, v = (u @ p["heads"][:, i] for i in range(3))
    return attend(q, k, v, heads=2)


# name of the node -> a function of the pre-activations
CASES = {
    "conv_general_dilated": (lambda p, u: conv(jax.nn.relu(u), p["v"], 2)),
    "dot_general": (lambda p, u: jax.nn.relu(u) @ p["m"]),
    "fixed_product": (
        lambda p, u: jax.image.resize(
            jax.nn.relu(u), (BATCH, 9, 4, CHANNELS), "bilinear"
        )
    ),
    "pointwise": (lambda p, u: jax.nn.gelu(1.3 * u) - 0.2),
    "add": (lambda p, u, t: jax.nn.relu(u) + jax.nn.relu(t)),
    "sub": (lambda p, u, t: jax.nn.relu(u) - jax.nn.relu(t)),
    "mul": (lambda p, u, t: u * jax.nn.sigmoid(t)),
    "div": (
        lambda p, u: jax.nn.relu(u) / jnp.arange(1.0, 1.0 + u.shape[1])[:, None, None]
    ),
    "select_n": (lambda p, u: jnp.where(MASK, u, 0.0)),
    "reshape": (lambda p, u: jax.nn.relu(u).reshape(BATCH, -1)),
    "squeeze": (lambda p, u: jnp.squeeze(jax.nn.relu(u).sum(1, keepdims=True), 1)),
    "optimization_barrier": (lambda p, u: jax.lax.optimization_barrier(u)),
    "transpose": (lambda p, u: jax.nn.relu(u).transpose(0, 2, 1, 3).sum(1)),
    "reduce_sum": (lambda p, u: mean_over_positions(u)),
    "reduce_window_sum": (lambda p, u: window_sum(jax.nn.relu(u))),
    "cumsum": (lambda p, u: jnp.cumsum(jax.nn.relu(u), 1)),
    "rev": (lambda p, u: conv(jax.nn.relu(u)[:, ::-1], p["v"], 2)),
    "pad": (lambda p, u: jnp.pad(u, ((0, 0), (1, 2), (0, 0), (0, 0)))),
    "slice": (lambda p, u: u[:, 1:4:2]),
    "broadcast_in_dim": (
        lambda p, u: jnp.broadcast_to(
            mean_over_positions(u)[:, None, None], (BATCH, 2, 3, CHANNELS)
        ).sum(2)
    ),
    "split": (lambda p, u: jnp.split(jnp.tanh(u), 2, -1)[1]),
    "concatenate": (lambda p, u, t: jnp.concatenate([jax.nn.relu(u), t], -1)),
    "normalization": (lambda p, u: jax.nn.relu(batch_norm(u))),
    "attention": (lambda p, u, t: attend(u, t, t)),
    "reduce_window_max": (lambda p, u: window_max(jax.nn.relu(u))),
    "reduce_max": (lambda p, u: jax.nn.relu(u).max((1, 2))),
}
MORE = {  # a second form of some rules
    "attention, projected": projected,
    "class token": (
        lambda p, u: jnp.concatenate(
            [jnp.zeros((BATCH, 1, WIDTH, CHANNELS)), u], 1
        ).sum(1)
    ),
    "positions beside others": (lambda p, u, t: jnp.concatenate([u, t], 1).sum(1)),
    "conv transposed": (lambda p, u: conv(u, p["v"], 1, ((1, 2), (1, 2)), up=2)),
    "conv dilated": (lambda p, u: conv(u, p["v"], 1, "SAME", 2)),
    "conv grouped": (lambda p, u: conv(u, p["g"], groups=3)),
    "columns read at fixed places": (
        lambda p, u: conv(jax.nn.relu(u)[:, :, np.array([0, 0, 2, 4, 1, 1])], p["v"])
    ),
    "channels first, flattened": (
        lambda p, u: jax.nn.relu(u).transpose(0, 3, 1, 2).reshape(BATCH, -1)
    ),
    "weighted sum of rows": (
        lambda p, u: jnp.einsum("bhwc,h->bwc", jax.nn.relu(u), np.arange(6.0) - 1.0)
    ),
    "fixed matrix first": (
        lambda p, u: conv(
            jnp.einsum("gw,bhwc->bhgc", np.eye(5, 5, 1) - 0.3, jax.nn.relu(u)), p["v"]
        )
    ),
    "bias": (lambda p, u: jax.nn.relu(u + p["b"])),
    "layer norm": (lambda p, u: layer_norm(conv(jax.nn.relu(u), p["wide"]))),
    "group norm by hand": (lambda p, u: group_norm(conv(jax.nn.relu(u), p["wide"]))),
    "gains, then an activation": (lambda p, u: jnp.tanh(u * p["b"])),
    "channels padded": (lambda p, u: jnp.pad(u, ((0, 0),) * 3 + ((1, 3),))),
    "silu": (lambda p, u: jax.nn.silu(u)),
    "rows merged": (lambda p, u: window_sum(jnp.repeat(jax.nn.relu(u), 2, axis=1))),
    "rows split": (
        lambda p, u: jax.nn.relu(u)[:, :, 1].reshape(BATCH, 2, 3, CHANNELS).sum(1)
    ),
    "zeros with gains": (lambda p, u: jax.nn.relu6(jax.nn.relu6(u) * p["b"])),
    "maximum of unequal rows": (lambda p, u: jax.nn.relu(u * ROWS).max((1, 2))),
    "windows of unequal rows": (lambda p, u: window_max(u * ROWS)),
    "activation behind a sum": (lambda p, u, t: jax.nn.relu(jax.nn.relu(u) + t)),
    "activation behind a product": (
        lambda p, u, t: jax.nn.relu(jax.nn.relu(u) * jax.nn.sigmoid(t) - 0.5)
    ),
}
FIXED_SHAPES = {
    "w": (3, 3, SOURCES, CHANNELS),
    "t": (1, 1, SOURCES, CHANNELS),
    "v": (3, 3, CHANNELS, 4),
    "m": (CHANNELS, 4),
    "g": (3, 3, CHANNELS // 3, CHANNELS),
    "b": (CHANNELS,),
    "wide": (1, 1, CHANNELS, 64),
    "heads": (CHANNELS, 3, 8),
}


def model_of(case):
    """Returns (model, names of its weights)."""
    two = len(inspect.signature(case).parameters) == 3

    def model(params, x):
        u = conv(x, params["w"])
        if two:
            return case(params, u, conv(x, params["t"]))
        return case(params, u)

    return model


def predictions(case):
    """Returns (node names, result, cotangent, scales of the leaves)."""
    model = model_of(case)
    shapes = jax.eval_shape(
        lambda: {n: jnp.zeros(s, jnp.float32) for n, s in FIXED_SHAPES.items()}
    )
    scale = {n: 0.5 + 0.1 * i for i, n in enumerate(FIXED_SHAPES)}
    leaves = {n: laws.Leaf(s**2, 0.0, None) for n, s in scale.items()}
    law = laws.Law(leaves, lambda key: draw(key, scale))
    x = jnp.asarray(inputs())
    traced = trace(as_function(model), shapes, (x,))
    (out,) = traced.graph.outputs
    assert isinstance(out, int)
    u = traced.layers[0].root
    engine = Engine(traced, law, (x,), frozenset([u, out]))
    engine.run()
    assert not engine.reasons, engine.reasons
    back = engine.combined(u)
    assert back is not None
    names = [n.name for n in engine.nodes]
    return names, engine.known[out], back, scale


def draw(key, scale):
    keys = jax.random.split(key, len(FIXED_SHAPES))
    return {
        n: scale[n] * jax.random.normal(k, s)
        for (n, s), k in zip(FIXED_SHAPES.items(), keys, strict=True)
    }


def samples(case, scale, key):
    """Returns per network: moments of the result, and of the cotangent."""
    x = jnp.asarray(inputs())
    two = len(inspect.signature(case).parameters) == 3

    def one(key):
        params = draw(key, scale)
        u = conv(x, params["w"])
        rest = (conv(x, params["t"]),) if two else ()
        y, pull = jax.vjp(lambda u: case(params, u, *rest), u)
        signs = jax.random.rademacher(jax.random.fold_in(key, 1), y.shape, y.dtype)
        (ct,) = pull(signs)
        return y.mean(), (y**2).mean(), (ct**2).mean()

    run = jax.jit(lambda k: jax.lax.map(one, k, batch_size=100))
    return [np.asarray(v, np.float64) for v in run(jax.random.split(key, DRAWS))]


def check(case, key):
    names, result, back, scale = predictions(case)
    means, seconds, backs = samples(case, scale, key)
    mean, _, second = result.moments()
    stated = np.expm1(result.tolerance)
    assert_mean_close(means, mean, bias=stated * second**0.5)
    assert_mean_close(seconds, second, bias=stated * second)
    cotangent = back.moments()[2]
    assert_mean_close(backs, cotangent, bias=np.expm1(back.tolerance) * cotangent)
    return names


@pytest.mark.parametrize("name", sorted(CASES))
def test_rule_matches_samples(name, key):
    assert name in check(CASES[name], key)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MORE))
def test_other_forms_match_samples(name, key):
    check(MORE[name], key)


def test_cotangents_of_one_origin_are_not_added_as_if_independent():
    """d/du of (u + t) + 2 u is 3: 9 in square, where 1 + 4 would be wrong."""
    model = model_of(lambda p, u, t: (u + t) + 2.0 * u)
    keys = jax.random.split(jax.random.key(0), 2)
    params = {n: jax.random.normal(keys[0], FIXED_SHAPES[n]) for n in ("w", "t")}
    got = predict(model, params, jnp.asarray(inputs()))
    at = got.find("u", 1)
    assert got.grade["backward"][at] is Grade.MEASURED
    assert got.second["backward"][at] == pytest.approx(9.0, rel=1e-5)
    assert "sampled" in got.coverage
    merged = [i for i, s in enumerate(got.sites) if s.kind == "merge"][-1]
    assert got.grade["forward"][merged] is Grade.EXACT  # terms are collected


def test_a_mean_of_branches_is_a_sum():
    def model(join):
        return model_of(lambda p, u, t: join(jax.nn.relu(u), jax.nn.relu(t)) @ p["m"])

    params = {n: jax.random.normal(jax.random.key(0), FIXED_SHAPES[n]) for n in "wtm"}
    stacked, added = (
        predict(model(join), params, jnp.asarray(inputs()))
        for join in (lambda a, b: jnp.stack([a, b]).mean(0), lambda a, b: (a + b) / 2)
    )
    assert not stacked.sampled
    for direction in ("forward", "backward"):
        curve = added.curve(direction)
        assert stacked.curve(direction) == pytest.approx(curve, nan_ok=True)


def test_every_rule_has_a_case():
    elsewhere = {"gather"}  # reads integers: tests/theory/test_lookup.py
    assert set(CASES) | elsewhere == {e.name for e in registry.entries()}


def test_refuses_a_second_rule():
    with pytest.raises(InvalidArgumentError, match="second rule for primitive 'add'"):
        registry.rule("add")(elementwise.Sum)


# One term taken out of a rule -> a case that must fail.
MUTATIONS = {
    "mean cross terms of a sum": (elementwise, "table = table + sign * (", "table = table + 0 * (", "add"),  # noqa: E501
    "other taps of a convolution": (taps, "] += values[", "] = values[", "conv_general_dilated"),  # noqa: E501
    "transpose of a linear map": (positions, "field = map_axis(ctx, field, _spatial_index(state, a), m.T)", "field = map_axis(ctx, field, _spatial_index(state, a), m.T / 1.2)", "reduce_sum"),  # noqa: E501
    "windows of a maximum": (pooling, "second = pool.unequal.handed(ct.second * active, wins)", "second = pool.unequal.handed(ct.second * active / 2, wins)", "reduce_window_max"),  # noqa: E501
    "unequal entries of a maximum": (pooling, "first, squared = self.unequal.more(1), self.unequal.more(2)", "first, squared = 0.0, 0.0", "maximum of unequal rows"),  # noqa: E501
    "copies of a broadcast": (positions, "np.ones((1, size))", "np.ones((1, size)) / 1.3", "broadcast_in_dim"),  # noqa: E501
    "root of the variance": (normalization, "(stats.variance + epsilon) / boost", "(stats.variance + epsilon) * 2", "normalization"),  # noqa: E501
}  # fmt: skip


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_rule_without_one_of_its_terms_fails(name, key, monkeypatch):
    module, old, new, case = MUTATIONS[name]
    source = inspect.getsource(module)
    assert old in source
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    for entry in registry.entries():
        if entry.rule.__module__ == module.__name__:
            registry.unregister(entry.name)
    mutant = types.ModuleType("mutant")
    monkeypatch.setitem(sys.modules, "mutant", mutant)  # dataclasses look it up
    exec(compile(source.replace(old, new), "mutant", "exec"), mutant.__dict__)
    if module is taps:  # no rule, but what those of another module call
        monkeypatch.setattr(linear, "convolve", mutant.convolve)  # type: ignore[attr-defined]
    with pytest.raises(AssertionError, match="standard errors apart"):
        check({**CASES, **MORE}[case], key)
