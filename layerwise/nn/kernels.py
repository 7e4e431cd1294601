"""Which initializer goes to which weight layer."""

from collections.abc import Sequence

from flax.linen import initializers

from layerwise.errors import InvalidArgumentError, message
from layerwise.types import Initializer


HE_NORMAL: Initializer = initializers.he_normal()
"""The zoo's default: variance 2 / fan_in, which keeps E[u^2] under ReLU [He2015]."""


def per_layer(
    kernel_init: Initializer | Sequence[Initializer], count: int
) -> tuple[Initializer, ...]:
    """Returns one kernel initializer for each of `count` weight layers.

    Args:
        kernel_init: One initializer for all layers, or one per layer in the order of
            the forward pass.
        count: The number of weight layers.

    Raises:
        InvalidArgumentError: A sequence of another length than `count`.
    """
    if callable(kernel_init):
        return (kernel_init,) * count
    if len(kernel_init) != count:
        raise InvalidArgumentError(
            message(
                f"kernel_init has {len(kernel_init)} initializers for "
                f"{count} weight layers.",
                "A sequence gives one initializer to each weight layer, in the order "
                "of the forward pass, the last dense layer included.",
                f"Pass {count} initializers, or a single one for all layers.",
            )
        )
    return tuple(kernel_init)
