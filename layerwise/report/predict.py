"""`predict`: the theory engine, under any scheme of the initializers."""

from collections.abc import Mapping
from typing import Any

import jax

from layerwise.initializers import Law, scheme_law
from layerwise.theory import predict as theory
from layerwise.theory.predict import Progress
from layerwise.theory.prediction import Prediction
from layerwise.types import PyTree


def predict(
    model: Any,
    params: PyTree | str | Law = None,
    inputs: Any = None,
    *,
    method: str = "kernel",
    cap: float | None = None,
    kwargs: Mapping[str, Any] | None = None,
    rngs: Mapping[str, jax.Array] | None = None,
    draws: int = 48,
    progress: Progress | None = None,
) -> Prediction:
    """Predicts the moments of every layer, forward and backward, over random networks.

    No weight is drawn, except where an equation has no sound rule: there, networks are
    sampled, and every number that depends on it is graded `measured`.

    Args:
        model: A Flax module (Linen, NNX), unmodified, or ``apply(params, *inputs)``.
        params: What the networks are: None for the model's own init; the name of a
            scheme, or a `layerwise.Law`; or one set of parameters, which stands for
            zero-mean networks with the second moment of each of its leaves (constant
            leaves as they are).
        inputs: The data, batch axis first; a tuple for several. None for standard
            normal inputs where the model declares an ``input_shape``.
        method: "kernel" (correlations between positions and examples, the inputs
            themselves), "sitewise" (the same with inputs taken for independent
            zero-mean entries of the same squares), or "recursion" (eq. (4) and (5) of
            the paper, chains of layers only).
        cap: With the name of a scheme: as for `layerwise.initialize`.
        kwargs: Keyword arguments of the model's call.
        rngs: Keys of the streams that the call draws from, by name (Linen).
        draws: Networks to run where an equation has to be sampled; with 0 none is, and
            what would depend on it is left out (NaN, without a grade).
        progress: Called with (steps done, steps in all).

    Returns:
        The prediction. Every number has a grade. `exact`: in expectation, at any width.
        `approximate`: as width grows; a layer errs by O(1/width), and by what its rule
        says. `measured`: it depends on an equation that was sampled.

    Raises:
        InvalidArgumentError: If the method or the scheme is unknown, or there is
            nothing to draw from.
        InputError: If inputs are missing or have no moments (NaN, infinite, zero).
        ParametersError: If `params` do not belong to the model or are not finite.
        UnsupportedModelError: If the model has no weights or branches on its data; with
            ``method="recursion"``, if it is no chain of layers.

    Example:
        >>> model = lw.zoo.f34(width=4, image_size=32)
        >>> p = predict(model, "kaiming_fan_in", method="sitewise")
        >>> p.curve("forward").shape, p.grade["forward"][0].label
        ((35,), 'exact')

    References:
        [Henmi2020] eq. (4), (5) for ``method="recursion"``.
    """
    law: Law | None = None
    if isinstance(params, str):
        law = scheme_law(model, inputs, params, cap=cap, kwargs=kwargs, rngs=rngs)
    elif isinstance(params, Law):
        law = params
    return theory.predict(
        model,
        None if law is not None else params,
        inputs,
        method=method,
        law=law,
        kwargs=kwargs,
        rngs=rngs,
        draws=draws,
        progress=progress,
    )
