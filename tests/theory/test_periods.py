"""Rows of equal layers at a fixed point: the same as computed one by one."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from layerwise.theory import engine
from layerwise.theory.periods import Row
from layerwise.theory.predict import predict
from layerwise.theory.relaxation import Relaxation
from layerwise.theory.repeats import TOTAL, Repeats


def image(size):
    wave = np.cos(np.arange(2 * size * size * 3) * 0.37)
    return wave.reshape(2, size, size, 3).astype(np.float32)


class Layer(nn.Module):
    """Convolutions with ReLU behind each, as the body of a scan."""

    sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        for n in self.sizes:
            x = nn.relu(nn.Conv(32, (n, n), kernel_init=init)(x))
        return x, None


class Deep(nn.Module):
    """Equal layers between two others."""

    sizes: tuple[int, ...]
    depth: int = 120

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        body = nn.scan(
            Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.depth,
        )
        x, _ = body(self.sizes)(x, None)
        return nn.Dense(3)(x.mean((1, 2)))


@pytest.mark.parametrize("sizes", [(3,), pytest.param((3, 1), marks=pytest.mark.slow)])
def test_rows_filled_in_are_those_computed(sizes, monkeypatch):
    net, x = Deep(sizes), image(4)
    filled = []
    own = Row.ahead

    def ahead(self, i, k, length):
        filled.append((self.sign, k))
        return own(self, i, k, length)

    # As on maps of usual size: what pairs of cotangents do falls off more slowly.
    monkeypatch.setattr(engine, "PAIRS_BACK_BUDGET", 0.0)
    monkeypatch.setattr(Relaxation, "forward", lambda *_: iter(()))
    monkeypatch.setattr(Row, "ahead", ahead)
    got = predict(net, None, x)
    assert {sign for sign, _ in filled} == {1, -1}
    assert len(filled) > len(got.sites)  # of 3 or 6 nodes a layer, both ways
    monkeypatch.setattr(Row, "add", lambda *_: None)
    expected = predict(net, None, x)
    for direction in ("forward", "backward"):
        for name in ("log_second", "mean", "tolerance"):
            np.testing.assert_allclose(
                getattr(got, name)[direction],
                getattr(expected, name)[direction],
                rtol=1e-6,
                atol=1e-6,
            )
        assert got.grade[direction] == expected.grade[direction]
    # And as without any memory of equal layers, to what is let go over all of them.
    monkeypatch.setattr(Repeats, "_recall", lambda *_: None)
    each = predict(net, None, x)
    for direction in ("forward", "backward"):
        np.testing.assert_allclose(
            got.log_second[direction], each.log_second[direction], atol=TOTAL, rtol=0
        )


@pytest.mark.parametrize("sizes", [(3,), pytest.param((3, 1), marks=pytest.mark.slow)])
def test_single_positions_go_on_alone_as_they_would_with_their_pairs(
    sizes, monkeypatch
):
    net, x = Deep(sizes, depth=90), image(12)
    alone = []
    own = Relaxation.forward

    def forward(self, *args):
        for v, state in own(self, *args):
            alone.append(v)
            yield v, state

    monkeypatch.setattr(engine, "PAIRS_BACK_BUDGET", 0.0)
    monkeypatch.setattr(Relaxation, "forward", forward)
    got = predict(net, None, x)
    assert len(alone) > 40 * len(sizes)
    monkeypatch.setattr(Relaxation, "forward", lambda *_: iter(()))
    monkeypatch.setattr(Repeats, "_recall", lambda *_: None)
    each = predict(net, None, x)
    for direction in ("forward", "backward"):
        np.testing.assert_allclose(
            got.log_second[direction], each.log_second[direction], atol=TOTAL, rtol=0
        )
        np.testing.assert_allclose(
            got.mean[direction], each.mean[direction], rtol=TOTAL, atol=1e-12
        )
        assert got.grade[direction] == each.grade[direction]
    # What is stated for pairs goes on too, as fluctuations over networks grow.
    stated = [p.tolerance["forward"][-1] for p in (got, each)]
    assert 0.5 < stated[0] / stated[1] < 2.0


class Residual(nn.Module):
    """One branch of a residual network, as the body of a scan."""

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return x + nn.Dense(16)(nn.relu(x)), None


@pytest.mark.slow
def test_a_residual_sum_never_settles(monkeypatch):
    monkeypatch.setattr(Row, "ahead", lambda *_: pytest.fail("filled in"))
    body = nn.scan(
        Residual, variable_axes={"params": 0}, split_rngs={"params": True}, length=100
    )

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return body()(x, None)[0]

    got = predict(Net(), None, np.ones((2, 16), np.float32))
    u = [i for i, s in enumerate(got.sites) if s.kind == "u"]
    assert np.all(np.diff(got.log_second["forward"][u]) > 0.3)
