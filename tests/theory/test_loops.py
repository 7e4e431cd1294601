"""Loops and branches are written out; equal layers are computed once; any scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layerwise as lw
from helpers import assert_mean_close
from layerwise.theory import law as laws, repeats
from layerwise.theory.state import Grade
from layerwise.tracing.graph import evaluate


KEY = jax.random.key(2)
WIDTH = 16
ROWS = jax.random.normal(KEY, (3, WIDTH)) + 0.2


def stack(n, gain=2.0):
    keys = jax.random.split(KEY, n)
    return jnp.stack([jax.random.normal(k, (WIDTH, WIDTH)) for k in keys]) * np.sqrt(
        gain / WIDTH
    )


def step(x, w):
    return jax.nn.gelu(x @ w), None


def scanned(p, x):
    return jax.lax.scan(step, x, p["w"])[0] @ p["out"]


def written_out(p, x):
    for i in range(p["w"].shape[0]):
        x = step(x, p["w"][i])[0]
    return x @ p["out"]


def counted(p, x):
    x = jax.lax.fori_loop(0, p["w"].shape[0], lambda i, y: step(y, p["w"][i])[0], x)
    return x @ p["out"]


def while_counted(p, x):
    def body(carry):
        i, y = carry
        return i + 1, jax.nn.gelu(y @ p["out"])

    return jax.lax.while_loop(lambda c: c[0] < 2, body, (0, x))[1] @ p["w"][0]


def branched(p, x):
    return jax.lax.cond(p["w"].shape[0] > 2, lambda y: y @ p["w"][0], lambda y: y, x)


@jax.custom_vjp
def own_rule(x, w):
    return jnp.tanh(x @ w)


def _forward(x, w):
    y = own_rule(x, w)
    return y, (x, w, y)


def _pull(kept, ct):
    x, w, y = kept
    inner = ct * (1 - y**2)
    return inner @ w.T, x.T @ inner


own_rule.defvjp(_forward, _pull)


def curves(prediction):
    return [prediction.curve(d, log=True) for d in ("forward", "backward")]


def test_a_scan_is_its_iterations():
    p = {"w": stack(4), "out": stack(1)[0]}
    loop, plain = (lw.predict(m, p, ROWS) for m in (scanned, written_out))
    np.testing.assert_allclose(curves(loop), curves(plain), rtol=1e-9)
    assert loop.layer_paths == ("w[0]", "w[1]", "w[2]", "w[3]", "out")
    at = loop.find("u", 3)
    assert loop.sites[at].iteration == (2,)
    assert loop.coverage.startswith(f"{loop.equations} of {loop.equations}")


def states(p, x):
    """The states of a recurrent network, ``(row, step, channel)``, as flax has them."""

    def cell(h, x):
        h = jnp.tanh(h @ p["w"][0] + x @ p["w"][1])
        return h, h

    steps = jnp.stack([x, 2 * x, -x])
    last, stacked = jax.lax.scan(cell, jnp.zeros_like(x), steps)
    return last, jnp.swapaxes(stacked, 0, 1)


def test_a_state_read_from_all_that_a_scan_stacked_is_that_state():
    p = {"w": stack(2), "out": stack(1)[0]}
    cut = lw.predict(lambda p, x: states(p, x)[1][:, -1] @ p["out"], p, ROWS, draws=0)
    carried = lw.predict(lambda p, x: states(p, x)[0] @ p["out"], p, ROWS, draws=0)
    assert not cut.sampled
    np.testing.assert_allclose(curves(cut), curves(carried), rtol=1e-9)


@pytest.mark.slow
def test_states_of_one_recurrent_layer_are_read_one_by_one_by_the_next():
    def two(p, x):
        _, first = states(p, x)

        def cell(h, x):
            h = jnp.tanh(h @ p["w"][2] + x @ p["w"][3])
            return h, h

        first = jnp.swapaxes(first, 0, 1)
        _, second = jax.lax.scan(cell, jnp.zeros_like(x), first)
        return second[2] @ p["out"]

    p = {"w": stack(4, gain=1.0), "out": stack(1)[0]}
    got = lw.predict(two, p, ROWS, draws=0)
    assert not got.sampled
    x = jnp.asarray(ROWS)
    graph = got.traced.graph
    (mine,) = evaluate(graph, [p["out"], p["w"], x])
    np.testing.assert_allclose(mine, two(p, x), rtol=1e-5, atol=1e-6)


def test_a_loop_of_known_length_and_a_known_branch():
    p = {"w": stack(4), "out": stack(1)[0]}
    got = lw.predict(while_counted, p, ROWS)
    assert not got.sampled
    last = got.find("u", len(got.layer_paths))
    assert got.grade["forward"][last] is Grade.APPROXIMATE
    assert not lw.predict(branched, p, ROWS).sampled


def test_a_custom_rule_that_is_the_derivative_is_looked_into():
    p = {"w": stack(1)[0], "out": stack(1)[0]}
    own = lw.predict(lambda p, x: own_rule(x @ p["out"], p["w"]), p, ROWS)
    plain = lw.predict(lambda p, x: jnp.tanh(x @ p["out"] @ p["w"]), p, ROWS)
    assert not own.sampled
    first = own.find("u", 1), plain.find("u", 1)
    for d in ("forward", "backward"):
        assert own.second[d][first[0]] == pytest.approx(plain.second[d][first[1]])


def test_steps_that_share_weights_are_not_taken_for_independent():
    def recurrent(p, x):
        h, total = jnp.zeros_like(x), 0.0
        for _ in range(2):
            h = jnp.tanh(h @ p["w"] + x @ p["out"])
            total = total + h
        return total @ p["w"].T

    p = {"w": stack(1)[0], "out": stack(2)[1]}
    got = lw.predict(recurrent, p, ROWS, draws=8)
    assert got.sampled
    last = got.find("u", len(got.layer_paths))
    assert got.grade["forward"][last] is Grade.MEASURED


def test_pieces_of_one_product_are_independent(key):
    """A gated unit whose two halves are one matrix product."""

    def gated(p, x):
        a, b = jnp.split(x @ p["both"], 2, axis=-1)
        return (a * jax.nn.sigmoid(b)) @ p["out"]

    wide = 256
    keys = jax.random.split(key, 2)
    p = {
        "both": jax.random.normal(keys[0], (WIDTH, 2 * wide)) / 4,
        "out": jax.random.normal(keys[1], (wide, 4)) / wide**0.5,
    }
    got = lw.predict(gated, p, ROWS)
    assert not got.sampled
    sd = {n: float(jnp.sqrt(jnp.mean(x**2))) for n, x in p.items()}

    def one(k):
        ks = jax.random.split(k, 2)
        q = {n: sd[n] * jax.random.normal(i, p[n].shape) for n, i in zip(p, ks)}
        return (gated(q, ROWS) ** 2).mean()

    samples = jax.jit(jax.vmap(one))(jax.random.split(key, 200))
    expected = got.second["forward"][got.find("u", 2)]
    assert_mean_close(samples, expected)


def deep(p, x):
    def conv(x, w):
        spec = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=spec
        )

    x = jax.lax.scan(lambda y, w: (jax.nn.relu(conv(y, w)), None), x, p["w"])[0]
    return x.mean((1, 2)) @ p["out"]


IMAGES = jax.random.normal(KEY, (2, 8, 8, 4))


def deep_params(n, gain):
    unit = jax.random.normal(KEY, (n, 3, 3, 4, 4))
    return {"w": unit * np.sqrt(gain / 36), "out": jnp.ones((4, 2)) * KEYED}


KEYED = jnp.array([[0.5, -0.5]])


@pytest.mark.slow
def test_equal_layers_are_computed_once_and_right_to_a_part_in_a_thousand(monkeypatch):
    depth = 340
    p = deep_params(depth, 2.0)
    hits = []
    original = repeats.Repeats.forward

    def counting(self, node, states):
        got = original(self, node, states)
        hits.append(got is not None)
        return got

    monkeypatch.setattr(repeats.Repeats, "forward", counting)
    fast = lw.predict(deep, p, IMAGES)
    # Two nodes a layer: those recalled, and those filled in behind them.
    assert 2 * depth - hits.count(False) > 200
    monkeypatch.setattr(repeats, "FEWEST", 10**9)
    slow = lw.predict(deep, p, IMAGES)
    np.testing.assert_allclose(curves(fast), curves(slow), atol=2e-3)


def stacked(key, keys_differ):
    def row(carry, k):
        own = k if keys_differ else key
        return carry, 0.3 * jax.random.normal(own, (4, 4))

    return {"w": jax.lax.scan(row, 0, jax.random.split(key, 50))[1]}


@pytest.mark.parametrize("keys_differ", [True, False])
def test_what_a_scan_stacks_is_integrated_unless_its_rows_are_copies(keys_differ):
    law = laws.of_init(lambda key: stacked(key, keys_differ), ())
    leaf = law.leaves["w"]
    assert (leaf.drawn is None) == keys_differ
    assert leaf.second == pytest.approx(0.09, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("gain", [2e-2, 2e2])
def test_second_moments_beyond_the_range_of_float64(gain):
    p = deep_params(300, gain)
    got = lw.predict(deep, p, IMAGES)
    base = lw.predict(deep, deep_params(300, 2.0), IMAGES)
    layers = np.arange(1, 301)
    for d, order in (("forward", layers), ("backward", 301 - layers)):
        shift = got.curve(d, log=True) - base.curve(d, log=True)
        np.testing.assert_allclose(
            shift[1:301] if d == "forward" else shift[:300],
            order * np.log(gain / 2.0),
            rtol=1e-4,
        )
    crossed = got.out_of_range("float32")
    assert set(crossed.values()) == {"underflow" if gain < 1 else "overflow"}
    assert not any("[3]" in name for name in crossed if name.startswith("forward"))


def test_a_gate_of_one_entry_is_repeated_over_the_positions(key):
    """Squeeze-and-excitation: JAX multiplies (b, h, w, c) by (b, 1, 1, c) as it is."""

    def excited(p, x):
        u = jax.nn.relu(x @ p["a"])
        gate = jax.nn.sigmoid((u @ p["b"]).mean((1, 2)) @ p["c"])
        return u * gate[:, None, None, :]

    keys = jax.random.split(KEY, 3)
    shapes = {"a": (4, 64), "b": (64, 32), "c": (32, 64)}
    p = {n: jax.random.normal(k, shapes[n]) for n, k in zip(shapes, keys, strict=True)}
    got = lw.predict(excited, p, IMAGES)
    merged = [i for i, s in enumerate(got.sites) if s.kind == "merge"][-1]
    assert got.grade["forward"][merged] is Grade.APPROXIMATE
    sd = {n: float(jnp.sqrt(jnp.mean(x**2))) for n, x in p.items()}

    def one(k):
        ks = dict(zip(shapes, jax.random.split(k, 3), strict=True))
        q = {n: sd[n] * jax.random.normal(ks[n], shapes[n]) for n in shapes}
        return (excited(q, IMAGES) ** 2).mean()

    samples = jax.jit(jax.vmap(one))(jax.random.split(key, 200))
    expected = got.second["forward"][merged]
    assert_mean_close(samples, expected, bias=0.03 * expected)  # order 1/width
