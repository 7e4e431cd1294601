"""Attention: found by what it computes, and predicted from draws of its signals."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.photos import photo_crops
from layerwise.theory import drawing
from layerwise.theory.predict import predict
from layerwise.theory.state import Grade
from layerwise.zoo.vision_transformer import ViT
from tests.theory import ensemble


BATCH, TOKENS, WIDTH, HEADS = 2, 8, 48, 4


def tokens(width=WIDTH, count=TOKENS, correlation=0.5, seed=0):
    """Correlated tokens, the same in every example: kernels are averages over them."""
    keys = jax.random.split(jax.random.key(seed))
    common = jax.random.normal(keys[0], (1, width))
    own = jax.random.normal(keys[1], (count, width))
    x = np.sqrt(correlation) * common + np.sqrt(1 - correlation) * own
    return jnp.asarray(np.broadcast_to(x, (BATCH, count, width)), jnp.float32)


def heads(x, count=HEADS):
    return x.reshape(*x.shape[:2], count, -1)


def rotated(x):
    """Rotary positions: channels in pairs, turned by an angle that grows along them."""
    half = x.shape[-1] // 2
    speed = 100.0 ** (-np.arange(half) / half)
    angle = (np.arange(x.shape[1])[:, None] * speed)[None, :, None]
    a, b = x[..., :half], x[..., half:]
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def by_hand(q, k, v, squash=lambda s: s, mask=None):
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    scores = squash(scores)
    if mask is not None:
        scores = jnp.where(mask, scores, -1e9)
    return jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores), v)


def three(x):
    return [nn.DenseGeneral((HEADS, 8))(x) for _ in range(3)]


def flax_causal(x):
    mask = nn.make_causal_mask(x[..., 0])
    return nn.MultiHeadDotProductAttention(HEADS)(x, mask=mask)


def flax_self(x):
    return nn.MultiHeadDotProductAttention(HEADS)(x)


def fused(x):
    q, k, v = jnp.moveaxis(nn.Dense(96)(x).reshape(*x.shape[:2], 3, HEADS, 8), 2, 0)
    return by_hand(q, k, v)


def grouped(x):
    q = nn.DenseGeneral((HEADS, 8))(x)
    k, v = (nn.DenseGeneral((2, 8))(x) for _ in range(2))
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def repeated(x):
    q = nn.DenseGeneral((HEADS, 8))(x)
    k, v = (nn.DenseGeneral((2, 8))(x) for _ in range(2))
    return by_hand(q, jnp.repeat(k, 2, axis=2), jnp.repeat(v, 2, axis=2))


def rotary(x):
    q, k, v = three(x)
    return by_hand(rotated(q), rotated(k), v)


def normalized_queries(x):
    q, k, v = three(x)
    return by_hand(nn.LayerNorm()(q), nn.LayerNorm()(k), v)


def capped(x):
    q, k, v = three(x)
    return by_hand(q, k, v, lambda s: 5.0 * jnp.tanh(s / 5.0))


def cross(x):
    memory = nn.Dense(24)(x[:, ::2])
    return nn.MultiHeadDotProductAttention(HEADS)(x, memory)


def sigmoid(x):
    q, k, v = three(x)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(8)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.sigmoid(scores), v)


def linear(x):
    q, k, v = three(x)
    q, k = nn.relu(q) + 0.1, nn.relu(k) + 0.1
    return jnp.einsum("bqhd,bhde->bqhe", q, jnp.einsum("bkhd,bkhe->bhde", k, v))


FORMS = {
    f.__name__: f
    for f in (
        flax_causal,
        flax_self,
        fused,
        grouped,
        repeated,
        rotary,
        normalized_queries,
        capped,
        cross,
        sigmoid,
        linear,
    )
}


class Around(nn.Module):
    """A form of attention in a pre-norm residual block, and a dense layer behind."""

    form: str
    norm: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        x = nn.Dense(WIDTH)(x)
        z = nn.LayerNorm()(x) if self.norm else x
        y: Any = FORMS[self.form](z)
        x = x + nn.DenseGeneral(WIDTH, axis=tuple(range(2, y.ndim)))(y)
        return nn.Dense(4)(nn.relu(x).mean(1))


def check(model, x, draws, bars=(20, 80)):
    """Holds a prediction to samples: its tolerance, and the issue's bars in percent."""
    got = predict(model, None, x, draws=0)
    assert not got.sampled, got.sampled
    measured = ensemble.measure(
        got, lambda key: model.init(key, x), x, draws=draws, batch=32
    )
    assert not ensemble.misses(got, measured)
    for direction, bar in zip(ensemble.DIRECTIONS, bars, strict=True):
        for i, site in enumerate(got.sites):
            if not got.second[direction][i] > 0:
                continue
            samples = measured[direction][site.value]
            sem = samples.std(ddof=1) / np.sqrt(draws) / samples.mean()
            error = abs(np.log(got.second[direction][i] / samples.mean()))
            assert 100 * max(error - 2 * sem, 0.0) <= bar, (direction, site.path, error)
    return got


@pytest.mark.slow
@pytest.mark.parametrize("form", sorted(FORMS))
def test_forms_match_samples(form):
    check(Around(form), tokens(), 192)


@pytest.mark.slow
def test_masked_scores_are_not_sampled():
    """They hold -3e38: once their moments were taken, and the prediction broke."""
    got = predict(Around("flax_causal"), None, tokens(), draws=0)
    assert not got.sampled
    grades = {*got.grade["forward"], *got.grade["backward"]}
    assert grades <= {Grade.EXACT, Grade.APPROXIMATE}
    assert np.isfinite(got.log_second["forward"]).all()


class Weights(nn.Module):
    """Attention that returns its weights too."""

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        q, k, v = (nn.Dense(16, name=n)(x) for n in "qkv")
        weights = nn.softmax(q @ k.swapaxes(1, 2))
        return weights @ v, weights


def test_weights_that_are_returned_are_measured():
    got = predict(Weights(), None, tokens(), draws=2)
    assert got.sampled
    assert Grade.MEASURED in got.grade["forward"]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["flax_causal", "cross"])
def test_without_normalization(form):
    check(Around(form, norm=False), tokens(), 192)


@pytest.mark.slow
def test_photographs_that_differ_stay_in_the_tolerance():
    """Each position normalized by itself: a batch's mean kernel is not each one's."""
    x = jnp.asarray(photo_crops(4, 32))
    model = ViT(num_classes=10, image_size=32, patch=8, width=64, depth=1, heads=4)
    got = predict(model, None, x, draws=0)
    assert not got.sampled
    measured = ensemble.measure(
        got, lambda key: model.init(key, x), x, draws=96, batch=16
    )
    assert not ensemble.misses(got, measured)


class Bare(nn.Module):
    """One head of attention, its queries scaled."""

    scale: float
    causal: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        q, k, v = (nn.Dense(64, name=n)(x)[:, :, None] for n in "qkv")
        mask = np.tril(np.ones((x.shape[1],) * 2, bool)) if self.causal else None
        return nn.Dense(16)(by_hand(self.scale * q, k, v, mask=mask)[:, :, 0])


@pytest.mark.slow
def test_without_scores_it_is_the_mean():
    x = tokens(correlation=0.0)
    got = predict(Bare(0.0), None, x, draws=0)
    products = [i for i, s in enumerate(got.sites) if s.path == "dot_general"]
    mean = float(jnp.square(x.mean(1)).mean())
    assert got.second["forward"][products[-1]] == pytest.approx(mean, rel=1e-3)


@pytest.mark.slow
def test_the_kernel_of_one_network_moves_the_cotangent_of_queries(monkeypatch):
    """It goes as the square of the centred kernel: by positions over channels."""
    model, x = Around("flax_self"), tokens(count=24, correlation=0.7)
    whole = predict(model, None, x, draws=0)
    monkeypatch.setattr(drawing, "projected", lambda ctx, value: None)
    averaged = predict(model, None, x, draws=0)
    at = next(i for i, s in enumerate(whole.sites) if s.path.endswith("query"))
    ratio = whole.second["backward"][at] / averaged.second["backward"][at]
    assert ratio > 1.2
    assert whole.second["forward"][at] == averaged.second["forward"][at]
