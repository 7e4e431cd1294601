"""What all NNX twins share: names of layers, and variables from Linen."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx, traverse_util

from layerwise.errors import ParametersError, message


class Twin(nnx.Module):
    """An NNX module whose layers have the names that they have in Linen."""

    def add(self, name: str, layer: nnx.Module) -> None:
        """Makes `layer` an attribute; its parameters' path starts with `name`."""
        setattr(self, name, layer)

    def run(self, name: str, *args: Any, **kwargs: Any) -> jax.Array:
        """Returns the output of a layer, which runs under its own name."""
        with jax.named_scope(name):
            return getattr(self, name)(*args, **kwargs)


def load(model: nnx.Module, variables: Mapping[str, Any]) -> None:
    """Copies the variables of the Linen module into its twin.

    Args:
        model: The twin, changed in place.
        variables: What `init` of the Linen module returned.

    Raises:
        ParametersError: Names or shapes differ.
    """
    given: dict[Any, Any] = {}
    for collection in variables.values():
        given.update(traverse_util.flatten_dict(collection))
    state = nnx.state(model, (nnx.Param, nnx.BatchStat))
    own = dict(nnx.to_flat_state(state))
    shapes = {path: tuple(leaf.get_value().shape) for path, leaf in own.items()}
    other = {path: tuple(value.shape) for path, value in given.items()}
    if shapes != other:
        differing = sorted(
            "/".join(map(str, path))
            for path in shapes.keys() | other.keys()
            if shapes.get(path) != other.get(path)
        )
        raise ParametersError(
            message(
                f"{len(differing)} variables of {type(model).__name__} have no "
                f"counterpart of their shape, the first is {differing[0]}.",
                "A twin takes the variables of the Linen module it was built from.",
                "Build both with the same arguments.",
            )
        )
    for path, leaf in own.items():
        leaf.set_value(given[path])
    nnx.update(model, state)
