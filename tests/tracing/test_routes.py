"""Paths, counted by a network that counts them.

A linear network of width 1 whose weights are all 1 sends the input 1 along every path,
so that its output is their number.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import layerwise as lw
from helpers import traced
from layerwise.tracing.routes import count_paths


def one(name=None):
    return nn.Dense(1, use_bias=False, kernel_init=nn.initializers.ones, name=name)


class Residual(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(5):
            x = x + one()(one()(x))
        return one()(x)


class Nested(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            y = one()(x)
            y = y + one()(y) + one()(one()(y))
            x = x + one()(y)
        return one()(x)


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        class Block(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return x + one()(x), None

        loop = nn.scan(
            Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=7
        )
        return loop()(one()(x), None)[0]


@pytest.mark.parametrize("model", [Residual(), Nested(), Scanned()])
def test_equals_the_output_of_a_network_of_ones(model):
    x = jnp.ones((1, 1))
    ones = jax.tree.map(jnp.ones_like, model.init(jax.random.key(0), x))
    assert count_paths(traced(model, x)) == float(model.apply(ones, x)[0, 0])


def test_a_product_is_no_choice():
    class Gated(nn.Module):
        @nn.compact
        def __call__(self, x):
            gate = nn.sigmoid(nn.Dense(4)(x))
            return nn.Dense(2)(gate * nn.Dense(4)(x) + (1 - gate) * x)

    assert count_paths(traced(Gated(), jnp.ones((2, 4)))) == 2


def test_joined_channels_are_ways_of_their_own():
    assert lw.describe(lw.zoo.entry("cifar_densenet").build()).paths == 2**36
