"""The registry: what it holds, and what it says when something is wrong."""

import importlib.util
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from layerwise import zoo
from layerwise.errors import InvalidArgumentError
from layerwise.zoo import registry


@pytest.mark.parametrize("name", zoo.names())
def test_entries_are_complete(name):
    entry = zoo.entry(name)
    assert getattr(zoo, name) is entry.constructor
    assert name in dir(zoo)
    assert name.islower()
    assert entry.summary.endswith(".")
    small = entry.build_small()
    assert all(isinstance(n, int) for n in small.input_shape)
    assert small.num_classes <= 16 if hasattr(small, "num_classes") else True


@pytest.mark.parametrize("name", zoo.names())
def test_no_constructor_hides_a_file(name):
    assert importlib.util.find_spec(f"layerwise.zoo.{name}") is None


@pytest.mark.parametrize("name", zoo.names())
def test_every_model_takes_an_initializer_and_a_dtype(name):
    fields = inspect.signature(type(zoo.entry(name).build_small())).parameters
    assert {"kernel_init", "dtype"} <= set(fields)


def test_unknown_name_gets_the_closest_one():
    with pytest.raises(InvalidArgumentError, match="Did you mean 'resnet50'"):
        zoo.create("resnet_50")
    with pytest.raises(AttributeError, match=r"zoo\.names"):
        _ = zoo.resnet51


def test_arguments_reach_the_model():
    assert zoo.create("f34", width=16).width == 16
    assert zoo.f34(image_size=64).input_shape == (64, 64, 3)
    assert zoo.resnet50(depths=(1, 1, 1, 1)).depths == (1, 1, 1, 1)


def test_a_name_is_taken_once(monkeypatch):
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))

    def f34() -> nn.Module:
        return zoo.create("mlp")

    with pytest.raises(InvalidArgumentError, match="named 'f34' already, in zoo/plain"):
        zoo.register(small={})(f34)


@pytest.mark.parametrize(
    ("name", "kwargs", "match"),
    [
        ("cifar_resnet", {"depth": 21}, r"depths are 6 n \+ 2.*\n.*example 20"),
        ("cifar_resnet", {"depth": 2}, "example 8"),
        ("preresnet", {"depth": 21}, r"9 n \+ 2"),
        ("cifar_resnet", {"shortcut": "C"}, "Unknown shortcut 'C'"),
        ("pyramidnet", {"rounding": "up"}, "Unknown rounding 'up'"),
        ("taki_mlp", {"order": "random"}, "Unknown order 'random'"),
        ("f34", {"kernel_init": (lambda *a: a,) * 3}, "3 initializers for 34 weight"),
    ],
)
def test_impossible_arguments_are_named(name, kwargs, match):
    model = zoo.entry(name).build_small(**kwargs)
    inputs = jax.ShapeDtypeStruct((1, *model.input_shape), jnp.float32)
    with pytest.raises(InvalidArgumentError, match=match):
        jax.eval_shape(model.init, jax.random.key(0), inputs)
