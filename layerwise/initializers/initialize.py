"""Parameters for a whole model, drawn under a scheme.

A scheme turns a traced model into one variance per layer. From it comes a `Law`: which
leaf is drawn with which standard deviation, which leaves are biases and start at zero,
and which the scheme says nothing about and the model's own init decides.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from layerwise.errors import (
    InvalidArgumentError,
    UnsupportedModelError,
    did_you_mean,
    message,
)
from layerwise.initializers import asv, variance_scaling
from layerwise.random import normal_leaves
from layerwise.tracing import TracedModel, trace
from layerwise.tracing.model import ModelFunction, leaf_name
from layerwise.tracing.prepare import prepare
from layerwise.types import PyTree


_ALIASES = {
    "xavier": "glorot",
    "he": "kaiming_fan_in",
    "kaiming": "kaiming_fan_in",
    "kaiming_forward": "kaiming_fan_in",
    "kaiming_backward": "kaiming_fan_out",
    "asv": "asv_forward",
}


def scheme_names() -> list[str]:
    """Returns the names that `initialize` knows, without aliases."""
    return [*variance_scaling.PER_LAYER, *asv.RULES]


@dataclasses.dataclass(frozen=True, eq=False)
class Law:
    """How each parameter leaf of a model is drawn.

    Attributes:
        scheme: Name of the scheme.
        stddev: Leaf name -> standard deviation, for weights.
        zeros: Leaf names that start at zero: the biases.
        others: Leaf names that the model's own init decides.
        variances: Layer path -> weight variance, as the scheme gives it.
    """

    scheme: str
    stddev: Mapping[str, float]
    zeros: frozenset[str]
    others: frozenset[str]
    variances: Mapping[str, float]
    _model: ModelFunction
    _abstract: PyTree
    _inputs: tuple[Any, ...]

    @property
    def label(self) -> str:
        """What the law is, in a few words."""
        return f"drawn under {self.scheme}"

    def __call__(self, key: jax.Array) -> PyTree:
        """Returns one set of parameters; traceable, and determined by `key` alone."""
        flat, tree = jax.tree_util.tree_flatten_with_path(self._abstract)
        likes = {leaf_name(path): like for path, like in flat}
        leaves = self._own(key) if self.others else {}
        leaves |= normal_leaves(key, likes, self.stddev)
        leaves |= {n: jnp.zeros(likes[n].shape, likes[n].dtype) for n in self.zeros}
        return jax.tree.unflatten(tree, [leaves[name] for name in likes])

    def _own(self, key: jax.Array) -> dict[str, jax.Array]:
        if self._model.init is not None:
            tree = self._model.init(key, *self._inputs)
        else:
            tree = self._model.params
        flat = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {leaf_name(p): x for p, x in flat}


def scheme_law(
    model: Any,
    inputs: Any,
    scheme: str,
    *,
    cap: float | None = None,
    params: PyTree = None,
    kwargs: Mapping[str, Any] | None = None,
) -> Law:
    """Returns the law by which a scheme draws a model's parameters.

    Arguments and errors are those of `initialize`.
    """
    name = _ALIASES.get(scheme, scheme)
    if name not in scheme_names():
        known = scheme_names()
        raise InvalidArgumentError(
            message(
                f"Unknown scheme {scheme!r}.{did_you_mean(str(scheme), known)}",
                f"The schemes are {', '.join(known)}.",
                f"Pass one of them, such as scheme={known[-2]!r}.",
            )
        )
    if cap is not None and not (cap > 0 and name in asv.RULES):
        raise InvalidArgumentError(
            message(
                f"cap={cap} with scheme={name!r}.",
                "The cap bounds the standard deviation of eq. (6) and (7) by a "
                "positive multiple.",
                "Pass cap=3.0 with an asv scheme, as its authors do, or no cap.",
            )
        )
    ready = prepare(model, params, inputs, kwargs=kwargs)
    function, arrays = ready.model, ready.inputs
    if function.init is None and function.params is None:
        function = dataclasses.replace(function, params=ready.given)
    abstract = jax.eval_shape(lambda p: p, ready.own)
    traced = trace(function, abstract, arrays)
    if name in asv.RULES:
        variances = asv.variances(traced, name, cap=cap)
    else:
        variances = variance_scaling.variances(traced, name)
    return _law(name, traced, variances, abstract, arrays)


def _law(
    scheme: str,
    traced: TracedModel,
    variances: Mapping[str, float],
    abstract: PyTree,
    inputs: tuple[Any, ...],
) -> Law:
    stddev: dict[str, float] = {}
    zeros: set[str] = set()
    for layer in traced.layers:
        variance = variances[layer.path]
        if not 0.0 < variance < float("inf"):
            raise UnsupportedModelError(
                message(
                    f"{scheme} gives {layer.path} (at {layer.source}) the weight "
                    f"variance {variance}.",
                    "No finite scale keeps the signal through this layer.",
                    "Use another scheme, or cap=3.0 with an asv scheme.",
                )
            )
        if len(layer.weight_leaves) == 1:  # a shared weight is scaled at its first use
            stddev.setdefault(layer.weight_leaves[0], variance**0.5)
        zeros.update(layer.bias_leaves)
    flat = jax.tree_util.tree_flatten_with_path(abstract)[0]
    names = {leaf_name(p) for p, _ in flat}
    zeros -= set(stddev)
    others = names - set(stddev) - zeros
    return Law(
        scheme,
        stddev,
        frozenset(zeros),
        frozenset(others),
        dict(variances),
        traced.model,
        abstract,
        inputs,
    )


def initialize(
    model: Any,
    inputs: Any,
    key: jax.Array,
    scheme: str = "asv_forward",
    *,
    cap: float | None = None,
    params: PyTree = None,
    kwargs: Mapping[str, Any] | None = None,
) -> PyTree:
    """Returns parameters for a whole model, drawn under a scheme.

    Weights of dense and convolution layers are normal with zero mean and the scheme's
    variance; biases are zero; every other leaf (a normalization's scale, an embedding)
    is what the model's own init makes it.

    Args:
        model: A Flax module (Linen, NNX) or a function ``apply(params, *inputs)``.
        inputs: Example inputs, batch axis first; None where the model declares an
            ``input_shape``. Only their shapes matter.
        key: PRNG key. The result depends on it alone.
        scheme: One of `scheme_names`: "lecun", "glorot", "kaiming_fan_in",
            "kaiming_fan_out", "asv_forward" (eq. 6), "asv_backward" (eq. 7).
        cap: For the asv schemes: bound on the standard deviation, as a multiple of what
            the formula gives with the pooling constant replaced by 1/2. Their authors
            use 3.
        params: For a plain function: its parameter tree, of which shapes are read.
        kwargs: Keyword arguments of the model's call.

    Returns:
        A tree of the structure, shapes and dtypes of the model's own parameters.

    Raises:
        InvalidArgumentError: If the scheme is unknown.
        InputError: If inputs are missing or cannot be used.
        UnsupportedModelError: If the model has no weights, or if the scheme needs a
            chain of layers and the model is not one.

    Example:
        >>> params = initialize(lw.zoo.f34(width=4, image_size=32), None,
        ...                     jax.random.key(0), "asv_forward")
        >>> params["params"]["Conv_2"]["kernel"].shape
        (3, 3, 4, 4)

    References:
        [Henmi2020] eq. (6), (7); [He2015]; [Glorot2010]; [LeCun1998].
    """
    law = scheme_law(model, inputs, scheme, cap=cap, params=params, kwargs=kwargs)
    return jax.jit(law)(key)
