"""What a user passes -> a model as a function, with inputs and parameters checked."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from layerwise import _jax
from layerwise.errors import InvalidArgumentError, message
from layerwise.tracing.model import (
    ModelFunction,
    as_function,
    check_inputs,
    complete,
    default_inputs,
    own_params,
)
from layerwise.tracing.once import Once, trace_once
from layerwise.types import PyTree


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A model, and what to run it on.

    Attributes:
        model: The model as a pure function.
        inputs: Its inputs, batch axis first.
        given: The parameters passed, completed by those the model holds; None if none.
        own: Shapes and dtypes of the model's own parameters.
        once: Its trace, where one is enough and no parameters were passed.
    """

    model: ModelFunction
    inputs: tuple[jax.Array, ...]
    given: PyTree
    own: PyTree
    once: Once | None = None

    @property
    def example(self) -> PyTree:
        """Parameters to trace the model on: those given, else shapes."""
        return self.own if self.given is None else self.given


def prepare(
    model: Any,
    params: PyTree,
    inputs: Any,
    *,
    kwargs: Mapping[str, Any] | None = None,
    rngs: Mapping[str, jax.Array] | None = None,
    key: jax.Array | None = None,
) -> Prepared:
    """Returns the model as a function of checked inputs.

    Args:
        model: A Linen module, an NNX module, or a function ``apply(params, *inputs)``.
        params: Its parameters, or None. See `layerwise.tracing.model.check_params`.
        inputs: The data, batch axis first; a tuple for several; None for standard
            normal inputs where the model declares an ``input_shape``.
        kwargs: Keyword arguments of the model's call.
        rngs: Keys of the streams that the call draws from, by name (Linen).
        key: Key of the standard normal inputs.

    Raises:
        InputError: If inputs are missing, of the wrong rank or dtype, or without
            moments.
        ParametersError: If there are none, and the model makes none.
    """
    _refuse_tracers((params, inputs, key))
    function = as_function(model, kwargs=kwargs, rngs=rngs)
    if inputs is None:
        inputs = default_inputs(function, jax.random.key(0) if key is None else key)
    arrays = check_inputs(function, inputs)
    given = complete(function, params)
    once = trace_once(function, arrays) if given is None else None
    own = own_params(function, given, arrays) if once is None else once.params
    return Prepared(function, arrays, given, own, once)


def _refuse_tracers(given: PyTree) -> None:
    if any(_jax.is_tracer(x) for x in jax.tree.leaves(given)):
        raise InvalidArgumentError(
            message(
                "Parameters or inputs are tracers: this is called from a function "
                "under jax.jit, jax.grad or jax.vmap.",
                "Their values are checked, and results are NumPy arrays; a tracer has "
                "no values.",
                "Call it from outside; many networks are one call: draws=64.",
            )
        )
