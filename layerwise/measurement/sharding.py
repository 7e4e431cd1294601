"""Draws, batch and parameters over many devices.

The first axis of a mesh takes the draws: each of its devices (or groups of devices)
draws and measures networks of its own, and nothing is exchanged but the few numbers at
the end. A second axis takes the batch, whose sums XLA then adds up across it.
Parameters that are sharded over the mesh stay so, those that are drawn take the places
of those given; where both want the same axis, the parameters have it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from layerwise.errors import InvalidArgumentError, message
from layerwise.types import PyTree


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where what a measurement reads and makes is to be.

    Attributes:
        mesh: The devices.
        draws: Mesh axis over which draws are dealt; None if each call is one group's.
        batch: Mesh axis over which the inputs' first axis is cut, or None.
    """

    mesh: Mesh
    draws: str | None
    batch: str | None

    @property
    def groups(self) -> int:
        """How many draws are measured at the same time."""
        return self.mesh.shape[self.draws] if self.draws else 1

    def spread(self, many: Callable[..., Any], operands: int) -> Callable[..., Any]:
        """Returns `many` run by every group on its own part of the first operand.

        Args:
            many: Function of arrays whose first axes count draws, and of others.
            operands: How many others there are.
        """
        if self.draws is None:
            return many
        own, all_of_it = PartitionSpec(self.draws), PartitionSpec()
        return jax.shard_map(
            many,
            mesh=self.mesh,
            in_specs=(own, *(all_of_it,) * operands),
            out_specs=own,
            axis_names={self.draws},
            check_vma=False,
        )

    def put(self, x: Any, *axes: str | None) -> jax.Array:
        """Returns `x` on the mesh, cut along these axes."""
        return jax.device_put(x, self.sharding(*axes))

    def sharding(self, *axes: str | None) -> NamedSharding:
        """Returns the sharding that cuts the leading array axes along these."""
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def put_inputs(self, inputs: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        """Returns the inputs on the mesh, batches cut if an axis is for them."""
        return tuple(
            self.put(
                x if _spans(x) else np.asarray(x), *((self.batch,) if x.ndim else ())
            )
            for x in inputs
        )

    def put_params(self, params: PyTree) -> PyTree:
        """Returns parameters on the mesh: those sharded over it as they are."""
        return jax.tree.map(
            lambda x: (
                self.put(x, *x.sharding.spec) if _spans(x) else self.put(np.asarray(x))
            ),
            params,
        )

    def like(self, drawn: PyTree, given: PyTree) -> PyTree:
        """Returns drawn parameters, each sharded as the given one is."""
        if given is None:
            return drawn
        leaves, tree = jax.tree.flatten(drawn)
        placed = [
            jax.lax.with_sharding_constraint(x, self.sharding(*y.sharding.spec))
            if _spans(y)
            else x
            for x, y in zip(leaves, jax.tree.leaves(given), strict=True)
        ]
        return jax.tree.unflatten(tree, placed)


def _spans(x: Any) -> bool:
    """Returns whether an array is on more than one device."""
    return isinstance(x, jax.Array) and len(x.sharding.device_set) > 1


def layout(mesh: Mesh | None, inputs: Sequence[Any], params: PyTree) -> Layout | None:
    """Returns where everything goes; None where one device is all there is.

    Args:
        mesh: What the user passed. None for the mesh that the parameters are sharded
            over, if they are.
        inputs: The inputs.
        params: The parameters given, or None.

    Raises:
        InvalidArgumentError: If the mesh has too many axes, does not divide the batch,
            or is not the mesh that the parameters are on.
    """
    shardings = [x.sharding for x in jax.tree.leaves(params) if _spans(x)]
    named: list[Any] = [s for s in shardings if isinstance(s, NamedSharding)]
    if len(named) < len(shardings):
        raise InvalidArgumentError(
            message(
                f"A parameter is sharded by a {type(shardings[0]).__name__}.",
                "Only a NamedSharding says which axes of a mesh its parts lie along.",
                "Put it: jax.device_put(params, NamedSharding(mesh, spec)).",
            )
        )
    if mesh is None:
        return Layout(_automatic(named[0].mesh), None, None) if named else None
    used = {axis for s in named for axis in jax.tree.leaves(tuple(s.spec))}
    draws, *rest = mesh.axis_names
    same = all(s.mesh.device_ids.tolist() == mesh.device_ids.tolist() for s in named)
    if not same:
        raise InvalidArgumentError(
            message(
                f"The parameters are on {named[0].mesh}, and mesh={mesh}.",
                "One program runs on one mesh.",
                "Pass the mesh that the parameters are sharded over.",
            )
        )
    if draws in used:
        raise InvalidArgumentError(
            message(
                f"Parameters are sharded over {draws!r}, the first axis of the mesh.",
                "That axis takes the draws: each of its devices has whole networks.",
                f"Put an axis before it: jax.make_mesh((1, n), ('draws', {draws!r})).",
            )
        )
    free = [axis for axis in rest if axis not in used]
    if len(free) > 1:
        raise InvalidArgumentError(
            message(
                f"The mesh has axes {mesh.axis_names}.",
                "The first takes the draws and the second the batch; further ones "
                "would repeat the same work, unless parameters are sharded over them.",
                "Pass jax.make_mesh((n, m), ('draws', 'batch')).",
            )
        )
    batch = free[0] if free else None
    ways = mesh.shape[batch] if batch else 1
    for i, x in enumerate(inputs):
        if batch and np.ndim(x) and x.shape[0] % ways:
            raise InvalidArgumentError(
                message(
                    f"Input {i} has {x.shape[0]} examples, and axis {batch!r} of the "
                    f"mesh {ways} devices.",
                    "Every device takes the same number of examples.",
                    f"Pass a batch that is a multiple of {ways}, or a mesh of draws "
                    "only.",
                )
            )
    return Layout(_automatic(mesh), draws, batch)


def _automatic(mesh: Mesh) -> Mesh:
    """Returns the mesh with axes along which XLA places what is computed."""
    types = (AxisType.Auto,) * len(mesh.axis_names)
    return Mesh(mesh.devices, mesh.axis_names, axis_types=types)
