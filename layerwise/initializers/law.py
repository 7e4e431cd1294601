"""How each parameter leaf of a model is drawn."""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from layerwise.errors import ParametersError, UnsupportedModelError, message
from layerwise.initializers.orthogonality import structured
from layerwise.initializers.registry import Assignment, Problem, Scheme
from layerwise.initializers.weights import Weight, weights
from layerwise.random import SAMPLERS, normal_leaves
from layerwise.tracing import TracedModel
from layerwise.tracing.model import ModelFunction, leaf_name
from layerwise.types import PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class Law:
    """How each parameter leaf of a model is drawn.

    Attributes:
        scheme: Name of the scheme.
        stddev: Leaf name -> standard deviation, for weights.
        constants: Leaf name -> value of all of its entries; 0.0 for biases.
        others: Leaf names that the model's own init decides.
        left_alone: Those of them that hold weights, each with the reason.
        variances: Layer path -> weight variance, as the scheme gives it; empty where
            that depends on data.
        distribution: What the weights are drawn from.
    """

    scheme: str
    stddev: Mapping[str, Any]
    constants: Mapping[str, float]
    others: frozenset[str]
    left_alone: Mapping[str, str]
    variances: Mapping[str, Any]
    distribution: str
    _weights: Mapping[str, Weight]
    _model: ModelFunction
    _abstract: PyTree
    _inputs: tuple[Any, ...]
    _adjust: Callable[[PyTree], PyTree] | None = None

    @property
    def label(self) -> str:
        """What the law is, in a few words."""
        return f"drawn under {self.scheme}"

    @property
    def zeros(self) -> frozenset[str]:
        """Leaf names that start at zero: the biases, and what a scheme adds."""
        return frozenset(n for n, value in self.constants.items() if value == 0.0)

    def __call__(self, key: jax.Array) -> PyTree:
        """Returns one set of parameters; traceable, and determined by `key` alone."""
        flat, tree = jax.tree_util.tree_flatten_with_path(self._abstract)
        likes = {leaf_name(path): like for path, like in flat}
        leaves = self._own(key) if self.others else {}
        leaves |= self._drawn(key, likes)
        for name, value in self.constants.items():
            leaves[name] = jnp.full(likes[name].shape, value, likes[name].dtype)
        drawn = jax.tree.unflatten(tree, [leaves[name] for name in likes])
        return drawn if self._adjust is None else jax.jit(self._adjust)(drawn)

    def place(self, params: PyTree) -> PyTree:
        """Returns parameters on the devices on which the model holds its own.

        That is known where it holds them (NNX, a function's ``params``), and where a
        leaf's box names its mesh.
        """

        def boxed(x: Any) -> bool:
            return getattr(x, "mesh", None) is not None and hasattr(x, "get_sharding")

        def put(x: Any, own: Any) -> Any:
            if boxed(x):
                return jax.device_put(x, x.get_sharding(x.mesh))
            sharding = getattr(own, "sharding", None)
            placed = isinstance(sharding, jax.sharding.NamedSharding)
            return jax.device_put(x, sharding) if placed else x

        own = self._abstract if self._model.params is None else self._model.params
        return jax.tree.map(put, params, own, is_leaf=boxed)

    def _drawn(self, key: jax.Array, likes: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Draws the weights: independent entries in one call, kernels one by one."""
        if self.distribution in SAMPLERS:
            return normal_leaves(key, likes, self.stddev, self.distribution)
        out: dict[str, jax.Array] = {}
        for name, stddev in self.stddev.items():
            like, weight = likes[name], self._weights[name]
            own = jax.random.fold_in(key, zlib.crc32(name.encode()))
            if weight.lookup:
                unit = SAMPLERS["normal"](own, like.shape)
            else:
                unit = structured(own, like.shape, weight.nameless, self.distribution)
            out[name] = (unit * stddev).astype(like.dtype)
        return out

    def _own(self, key: jax.Array) -> dict[str, jax.Array]:
        """Returns what the model's own init decides; the rest is not compiled."""
        init = self._model.init

        def others(key: jax.Array) -> dict[str, jax.Array]:
            tree = self._model.params if init is None else init(key, *self._inputs)
            flat = jax.tree_util.tree_flatten_with_path(tree)[0]
            named = {leaf_name(p): x for p, x in flat}
            return {n: x for n, x in named.items() if n in self.others}

        return others(key) if init is None else jax.jit(others)(key)


def make(scheme: Scheme, problem: Problem, answer: Assignment, default: str) -> Law:
    """Returns the law that a scheme's answer amounts to.

    Args:
        scheme: The scheme.
        problem: What it was asked.
        answer: What it said.
        default: The distribution where the answer leaves it open.

    Raises:
        UnsupportedModelError: If a variance is zero, infinite or NaN.
        ParametersError: If a leaf that the scheme leaves to the model has no value.
    """
    traced = problem.traced
    stddev: dict[str, Any] = {}
    used: dict[str, Weight] = {}
    left = dict(answer.left_alone)
    for w in weights(traced):
        if w.leaf is None:
            for layer in traced.all_layers():
                if layer.path == w.path:
                    reason = "its weight is made of several leaves"
                    left |= dict.fromkeys(layer.weight_leaves, reason)
            continue
        variance = answer.variances.get(w.path)
        if variance is None or w.leaf in stddev or w.leaf in left:
            continue
        _check_variance(scheme.name, traced, w, variance)
        stddev[w.leaf] = np.sqrt(variance)  # a shared weight is scaled at first use
        used[w.leaf] = w
    constants = {n: 0.0 for n in _biases(traced) if n not in stddev and n not in left}
    constants |= answer.constants
    for name in answer.constants:
        stddev.pop(name, None)
    flat = jax.tree_util.tree_flatten_with_path(problem.abstract)[0]
    names = {leaf_name(p) for p, _ in flat}
    others = names - set(stddev) - set(constants)
    _check_others(traced.model, others)
    return Law(
        scheme=scheme.name,
        stddev=stddev,
        constants=constants,
        others=frozenset(others),
        left_alone=left,
        variances=dict(answer.variances) if answer.exact else {},
        distribution=answer.distribution or default,
        _weights=used,
        _model=traced.model,
        _abstract=problem.abstract,
        _inputs=problem.inputs,
        _adjust=answer.adjust,
    )


def _check_variance(scheme: str, traced: TracedModel, w: Weight, variance: Any) -> None:
    if np.all(np.asarray(variance) > 0.0) and np.all(np.isfinite(variance)):
        return
    source = next((y.source for y in traced.all_layers() if y.path == w.path), "")
    raise UnsupportedModelError(
        message(
            f"{scheme} gives {w.path} (at {source}) the weight variance {variance}.",
            "No finite scale keeps the signal through this layer.",
            "Use another scheme, or cap=3.0 with an asv scheme.",
        )
    )


def _biases(traced: TracedModel) -> list[str]:
    """Returns the leaves that are added to a layer, one entry for each output at most.

    What has more entries (positions of a transformer) is no bias.
    """
    found = []
    for layer, w in _layers_with_weights(traced):
        channels = np.prod([w.shape[a] for a in (*w.outs, *w.batched)], dtype=int)
        for name in layer.bias_leaves:
            value = traced.leaf_values.get(name)
            size = 0 if value is None else traced.graph.avals[value].size
            loops = (
                max(1, size // max(channels, 1)) if layer not in traced.layers else 1
            )
            if size <= channels * loops:
                found.append(name)
    return found


def _layers_with_weights(traced: TracedModel) -> list[tuple[Any, Weight]]:
    by_path = {w.path: w for w in weights(traced) if not w.lookup}
    return [(y, by_path[y.path]) for y in traced.all_layers()]


def _check_others(model: ModelFunction, others: set[str]) -> None:
    if model.init is not None or not others:
        return
    flat = jax.tree_util.tree_flatten_with_path(model.params)[0]
    for path, leaf in flat:
        if leaf_name(path) in others and isinstance(leaf, jax.ShapeDtypeStruct):
            raise ParametersError(
                message(
                    f"Parameter {leaf_name(path)!r} is a shape, and no weight or bias.",
                    "What a scheme does not draw stays as it is given.",
                    "Pass arrays: params=<the parameter tree>.",
                )
            )
