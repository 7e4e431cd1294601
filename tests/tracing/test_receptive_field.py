"""Receptive fields, against the footprint of a gradient.

With positive weights and no activation nothing cancels, so the inputs that an output
depends on are those at which its gradient is not zero. The widest footprint over all
outputs is the receptive field.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import traced
from layerwise.tracing.receptive_field import receptive_fields


def conv(features, kernel, **options):
    return nn.Conv(features, kernel, kernel_init=nn.initializers.ones, **options)


class Dilated(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = conv(2, (3, 3), strides=2)(x)
        x = conv(2, (3, 1), kernel_dilation=2)(x)
        return nn.avg_pool(x, (2, 2), (2, 2))


class Transposed(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = conv(2, (3, 3), strides=2)(x)
        x = nn.ConvTranspose(2, (4, 4), (2, 2), kernel_init=nn.initializers.ones)(x)
        return conv(1, (3, 3))(x)


class Upsampled(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.avg_pool(conv(2, (3, 3))(x), (2, 2), (2, 2))
        y = jnp.repeat(jnp.repeat(y, 2, axis=1), 2, axis=2)
        return jnp.concatenate([conv(1, (3, 3))(y), x], axis=-1)


class Patches(nn.Module):
    """Patches by reshape, a layer on each, and a window over patches."""

    @nn.compact
    def __call__(self, x):
        b, h, w, c = x.shape
        x = x.reshape(b, h // 4, 4, w // 4, 4, c).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(b, h // 4, w // 4, 16 * c)
        x = nn.Dense(3, kernel_init=nn.initializers.ones)(x)
        return conv(2, (3, 3), padding="VALID")(x)


class Excited(nn.Module):
    """A gate from the mean of the map: everything is seen."""

    @nn.compact
    def __call__(self, x):
        x = conv(2, (3, 3))(x)
        gate = nn.Dense(2, kernel_init=nn.initializers.ones)(x.mean(axis=(1, 2)))
        return x * gate[:, None, None, :]


class Cropped(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = conv(2, (5, 5), padding="VALID")(x)
        x = jnp.pad(x[:, 2:-2:2, 2:-2], ((0, 0), (1, 1), (1, 1), (0, 0)))
        return conv(2, (3, 3))(x)


def footprint(model, params, x):
    """Returns the largest extent of any output's dependence, per axis of the input."""
    out = jax.eval_shape(model.apply, params, x)

    def seen(position):
        def pick(x):
            return model.apply(params, x)[0, position[0], position[1]].sum()

        return jax.grad(pick)(x)[0].sum(-1) != 0

    grid = np.indices(out.shape[1:3]).reshape(2, -1).T
    masks = np.asarray(jax.vmap(seen)(jnp.asarray(grid)))
    extents = []
    for axis in (1, 2):
        along = np.any(masks, axis=3 - axis)
        first = along.argmax(1)
        last = along.shape[1] - np.flip(along, 1).argmax(1)
        extents.append(int((last - first).max()))
    return tuple(extents)


@pytest.mark.parametrize(
    "model", [Dilated(), Transposed(), Upsampled(), Patches(), Excited(), Cropped()]
)
def test_equals_the_footprint_of_the_gradient(model):
    x = 1 + jnp.arange(24.0 * 28).reshape(1, 24, 28, 1) % 7
    found = traced(model, x)
    (out,) = found.graph.outputs
    assert isinstance(out, int)
    params = model.init(jax.random.key(0), x)
    assert receptive_fields(found)[out] == footprint(model, params, x)


def test_a_sequence_sees_itself_then_all_of_it():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            x = nn.Embed(11, 8)(tokens)
            x = x + nn.Conv(8, (3,))(x)
            return nn.MultiHeadDotProductAttention(2)(x)

    found = traced(Model(), jnp.zeros((2, 20), int))
    fields = receptive_fields(found)
    sizes = [fields[y.u] for y in found.layers]
    assert sizes == [(3,), (3,), (3,), (3,), (20,)]  # conv; query, key, value; out


def test_a_flat_input_has_none():
    assert receptive_fields(traced(nn.Dense(3), jnp.ones((2, 5)))) == {}
