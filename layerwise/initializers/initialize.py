"""Parameters for a whole model, drawn under a scheme.

A scheme turns a traced model into one variance per layer; from it comes a `Law`: which
leaf is drawn how, which are biases and start at zero, and which the scheme says nothing
about and the model's own init decides.
"""

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import Any

import jax

from layerwise.errors import InvalidArgumentError, message
from layerwise.initializers import registry
from layerwise.initializers.law import Law, make
from layerwise.initializers.variance_scaling import check_distribution
from layerwise.tracing import trace
from layerwise.tracing.prepare import prepare
from layerwise.types import PyTree


def scheme_law(
    model: Any,
    inputs: Any,
    scheme: str,
    *,
    distribution: str | None = None,
    params: PyTree = None,
    kwargs: Mapping[str, Any] | None = None,
    rngs: Mapping[str, jax.Array] | None = None,
    **options: Any,
) -> Law:
    """Returns the law by which a scheme draws a model's parameters.

    Arguments and errors are those of `initialize`.
    """
    found = registry.find(scheme)
    if distribution is not None:
        check_distribution(distribution, found.distributions or (found.name,), scheme)
    given = {k: v for k, v in options.items() if v is not None}
    _check_options(found, given)
    ready = prepare(model, params, inputs, kwargs=kwargs, rngs=rngs)
    function = ready.model
    if function.init is None and ready.given is not None:
        function = dataclasses.replace(function, params=ready.given)
    abstract = jax.eval_shape(lambda p: p, ready.own)
    problem = registry.Problem(
        trace(function, abstract, ready.inputs, ready.once),
        ready.inputs,
        abstract,
        given,
    )
    return make(found, problem, found.solve(problem), distribution or found.default)


def _check_options(scheme: registry.Scheme, given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name not in scheme.options:
            takers = [
                n for n in registry.scheme_names() if name in registry.find(n).options
            ]
            raise InvalidArgumentError(
                message(
                    f"{name}={value!r} with scheme={scheme.name!r}.",
                    f"This scheme takes {', '.join(scheme.options) or 'no options'}; "
                    f"{name} belongs to {', '.join(takers) or 'none'}.",
                    f"Leave {name} out"
                    + (f", or use scheme={takers[0]!r}." if takers else "."),
                )
            )
        right, meaning, wanted = _OPTIONS.get(name, _SCALE)
        if not right(value):
            raise InvalidArgumentError(
                message(
                    f"{name}={value!r} with scheme={scheme.name!r}.",
                    f"It {meaning}.",
                    f"Pass {wanted}, or none.",
                )
            )


_SCALE = (
    lambda v: isinstance(v, numbers.Real) and 0 < float(v) < math.inf,
    "is a scale or a variance",
    "a positive number",
)
_OPTIONS = {
    "loss": (
        callable,
        "is called with what the model returns",
        "a function from the output to a scalar",
    ),
    "steps": (
        lambda v: isinstance(v, numbers.Integral) and int(v) >= 0,
        "counts the steps that adjust the scales; 0 leaves them as drawn",
        "a whole number",
    ),
}
"""What an option has to be, what it is, and what to pass."""


def initialize(
    model: Any,
    inputs: Any,
    key: jax.Array,
    scheme: str = "asv_forward",
    *,
    distribution: str | None = None,
    params: PyTree = None,
    kwargs: Mapping[str, Any] | None = None,
    rngs: Mapping[str, jax.Array] | None = None,
    **options: Any,
) -> PyTree:
    """Returns parameters for a whole model, drawn under a scheme.

    Weights of dense layers, convolutions and embeddings have zero mean and the scheme's
    variance; biases are zero; every other leaf (a normalization's scale, the positions
    of a transformer) is what the model's own init makes it.

    Args:
        model: A Flax module (Linen, NNX) or a function ``apply(params, *inputs)``.
        inputs: Example inputs, batch axis first; a tuple for several; None where the
            model declares an ``input_shape``. Only their shapes matter, but for schemes
            that need data (see the table in the guide on initializers).
        key: PRNG key. The result depends on it alone.
        scheme: One of `scheme_names`.
        distribution: "normal" (the default), "truncated", "uniform" or "orthogonal".
        params: For a plain function: its parameter tree, of which shapes are read.
        kwargs: Keyword arguments of the model's call.
        rngs: Keys of the streams that the call draws from, by name (Linen).
        **options: Those of the scheme: ``cap`` (asv: bound on the standard deviation,
            as a multiple of what the formula gives with the pooling constant replaced
            by 1/2; its authors use 3), ``gain`` (orthogonal, delta_orthogonal,
            identity), ``c`` (taki), ``loss`` (gradinit), and so on, as each says.

    Returns:
        A tree of the structure, shapes, dtypes, boxes and shardings of the model's own
        parameters.

    Raises:
        InvalidArgumentError: If the scheme, the distribution or an option is unknown,
            or the scheme does not take it.
        InputError: If inputs are missing or cannot be used.
        UnsupportedModelError: If the model has no weights, or is not what the scheme
            is for (a chain of layers, residual blocks).

    Example:
        >>> params = initialize(lw.zoo.f34(width=4, image_size=32), None,
        ...                     jax.random.key(0), "asv_forward")
        >>> params["params"]["Conv_2"]["kernel"].shape
        (3, 3, 4, 4)

    References:
        [Henmi2020] eq. (6), (7); [He2015]; [Glorot2010]; [LeCun1998]; [Saxe2014].
    """
    law = scheme_law(
        model,
        inputs,
        scheme,
        distribution=distribution,
        params=params,
        kwargs=kwargs,
        rngs=rngs,
        **options,
    )
    return law.place(law(key))
