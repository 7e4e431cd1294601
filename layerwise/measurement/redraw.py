"""How the networks of an ensemble are drawn.

From the model's own init; or leaf by leaf, from a zero-mean normal law with the given
leaf's own second moment; or by a function of a key that the caller passes (a scheme);
or not at all, from parameters stacked over draws.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from layerwise.errors import InvalidArgumentError, message
from layerwise.measurement.compiling import compile_once
from layerwise.measurement.fast_cpu import faster_draw
from layerwise.random import normal_leaves
from layerwise.tracing.model import ModelFunction, leaf_name
from layerwise.types import PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class Redraw:
    """A law of networks.

    Attributes:
        draw: ``key -> params``, traceable.
        label: What it is, in a few words, for the report.
    """

    draw: Callable[[jax.Array], PyTree]
    label: str


def choose(
    redraw: str | Callable[[jax.Array], PyTree],
    model: ModelFunction,
    params: PyTree,
    inputs: Sequence[Any],
) -> Redraw:
    """Returns the law that `redraw` names; it draws in the dtypes of `params`.

    Args:
        redraw: "init", "resample", "auto", or a function of a key. "auto" is "init"
            where the model has an init and `params` (if given) could be one of its
            draws, else "resample".
        model: The model.
        params: The given parameters, or None.
        inputs: The data inputs.

    Raises:
        InvalidArgumentError: If the law cannot be had.
    """
    law = _named(redraw, model, params, inputs)
    if params is None:
        return law
    dtypes = [jnp.result_type(x) for x in jax.tree.leaves(params)]

    def draw(key: jax.Array) -> PyTree:
        leaves, tree = jax.tree.flatten(law.draw(key))
        cast = [x.astype(d) for x, d in zip(leaves, dtypes, strict=True)]
        return jax.tree.unflatten(tree, cast)

    return Redraw(draw, law.label)


def _named(
    redraw: str | Callable[[jax.Array], PyTree],
    model: ModelFunction,
    params: PyTree,
    inputs: Sequence[Any],
) -> Redraw:
    if callable(redraw):
        return Redraw(redraw, getattr(redraw, "label", "drawn by the function given"))
    if redraw not in ("auto", "init", "resample"):
        raise InvalidArgumentError(
            message(
                f"redraw={redraw!r}.",
                "The laws are 'init' (the model's own), 'resample' (leaf by leaf, with "
                "the given leaf's second moment) and 'auto'.",
                "Pass one of them, or a function key -> params.",
            )
        )
    if redraw == "init" or (redraw == "auto" and params is None):
        if model.init is None and params is None and model.params is None:
            raise InvalidArgumentError(
                message(
                    f"`params` is missing, and {model.name} has no init.",
                    "There is nothing to draw networks from.",
                    "Pass params=<the parameter tree>.",
                )
            )
        if model.init is not None:
            return _from_init(model, inputs)
        params = model.params if params is None else params
    elif redraw == "auto" and model.init is not None:
        init = _from_init(model, inputs)
        odd = unlike_init(_one(init.draw), params)
        if odd is None:
            return init
        return Redraw(
            resampler(params), f"redrawn leaf by leaf ({odd} is not as the init draws)"
        )
    elif params is None:
        raise InvalidArgumentError(
            message(
                "redraw='resample' without `params`.",
                "The scale of each leaf is that of the parameters given.",
                "Pass params, or redraw='init'.",
            )
        )
    return Redraw(resampler(params), "redrawn leaf by leaf, scales as given")


def _from_init(model: ModelFunction, inputs: Sequence[Any]) -> Redraw:
    init = model.init
    assert init is not None
    return Redraw(lambda key: init(key, *inputs), "drawn by the model's own init")


def _one(draw: Callable[[jax.Array], PyTree]) -> PyTree:
    """Draws one network, the way that takes least time with what is compiled for it."""
    key = jax.random.key(0)
    law = faster_draw(draw, True)
    program = jax.jit(lambda law, key: law(key)).lower(law, key)
    return compile_once(program)(law, key)


def _is_constant(leaf: Any) -> bool:
    if leaf.size < 2:
        return True
    if getattr(leaf, "is_fully_addressable", True):
        leaf = np.asarray(leaf)
        return bool(np.all(leaf == leaf.flat[0]))
    return bool(jnp.min(leaf) == jnp.max(leaf))  # parts are on other hosts


def _second_moment(leaf: Any) -> float:
    if getattr(leaf, "is_fully_addressable", True):
        return float(np.mean(np.asarray(leaf, np.float64) ** 2))
    return float(jnp.mean(jnp.square(leaf)))


def resampler(params: PyTree, ensemble: PyTree = None) -> Callable[[jax.Array], PyTree]:
    """Returns ``key -> params``: each leaf normal with the given leaf's second moment.

    Leaves that are constant (biases at zero, scales at one), of one entry, or not of
    floating point stay as they are.

    Args:
        params: One network.
        ensemble: Many like it, stacked; second moments are over them all.
    """
    flat, tree = jax.tree_util.tree_flatten_with_path(params)
    given = {leaf_name(path): leaf for path, leaf in flat}
    networks = [[x] for x in given.values()]
    if ensemble is not None:
        networks = jax.tree.leaves(ensemble)
    scales = {
        name: float(np.sqrt(np.mean([_second_moment(x) for x in leaves])))
        for name, leaves in zip(given, networks, strict=True)
        if jnp.issubdtype(leaves[0].dtype, jnp.floating)
        and not all(map(_is_constant, leaves))
    }

    def draw(key: jax.Array) -> PyTree:
        drawn = given | normal_leaves(key, given, scales)
        return jax.tree.unflatten(tree, list(drawn.values()))

    return draw


def unlike_init(drawn: PyTree, params: PyTree) -> str | None:
    """Returns the first leaf whose scale could not come from the law that drew `drawn`.

    Both leaves' second moments are sample means of n squares; for a normal law their
    ratio is within 1 +- 6 sqrt(4/n) but for one time in a billion.
    """
    for (path, a), b in zip(
        jax.tree_util.tree_flatten_with_path(drawn)[0],
        jax.tree.leaves(params),
        strict=True,
    ):
        if not jnp.issubdtype(a.dtype, jnp.floating):
            continue
        x, y = _second_moment(a), _second_moment(b)
        if abs(x - y) > 6.0 * np.sqrt(4.0 / max(a.size, 1)) * max(x, y):
            return leaf_name(path)
    return None
