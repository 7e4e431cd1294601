"""Models and schemes by the names that a configuration gives them."""

import functools
import importlib
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

import layerwise as lw
from experiments.launch import some
from layerwise.errors import InvalidArgumentError, message


def build(config: ConfigDict) -> nn.Module:
    """Returns the model of a configuration: `model` called with `model_args`.

    `model` is a name of the zoo, or ``package.module:Class``, a Linen module with the
    shape of one example as its `input_shape`.

    Raises:
        InvalidArgumentError: If there is no such model, or it cannot be built.
    """
    name, arguments = str(config.model), config.model_args.to_dict()
    make = functools.partial(lw.zoo.create, name)
    if ":" in name:
        make = _imported(name)
    elif name not in lw.zoo.names():
        return make()  # which says what there is
    try:
        model = make(**arguments)
        x = jax.ShapeDtypeStruct((2, *model.input_shape), jnp.float32)
        jax.eval_shape(model.init, jax.random.key(0), x)
    except Exception as error:  # whatever a model raises at arguments it cannot take
        raise InvalidArgumentError(
            message(
                f"{name} cannot be built with {arguments}: {_first_line(error)}",
                "It takes the arguments of its constructor, and has an input_shape.",
                "Correct --config.model_args, as in --config.model_args.width=8.",
            )
        ) from error
    return model


def _imported(name: str) -> Callable[..., nn.Module]:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidArgumentError(
            message(
                f"model={name!r} cannot be imported: {error}.",
                "Before the colon is a module on the path, behind it a class.",
                "Pass --config.model=package.module:Class.",
            )
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


def parse_scheme(text: str) -> tuple[str, float | None]:
    """Returns scheme and cap of ``asv_backward:3``; the cap is None without a colon."""
    name, colon, cap = str(text).partition(":")
    try:
        return name, float(cap) if colon else None
    except ValueError:
        raise InvalidArgumentError(
            message(
                f"Scheme {text!r} has the cap {cap!r}.",
                "A cap bounds standard deviations by a positive number.",
                "Write scheme:cap, as in asv_backward:3.",
            )
        ) from None


def law_of(model: Any, inputs: Any, text: str) -> Any:
    """Returns the law of a scheme, written as ``scheme`` or ``scheme:cap``."""
    scheme, cap = parse_scheme(text)
    return lw.scheme_law(model, inputs, scheme, cap=cap)


def check_schemes(model: Any, inputs: Any, schemes: Iterable[str]) -> None:
    """Raises if a scheme is unknown, or cannot draw the parameters of the model."""
    for text in some("schemes", schemes):
        law_of(model, inputs, text)
