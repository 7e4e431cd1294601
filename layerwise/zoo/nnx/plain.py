"""F34 and F50 as NNX modules."""

from typing import Any

import jax
from flax import nnx

from layerwise.nn.blocks.plain import finish_row
from layerwise.nn.kernels import per_layer
from layerwise.nn.modules import global_average_pool
from layerwise.zoo import plain
from layerwise.zoo.nnx.twin import Twin


class PlainNet(Twin):
    """The twin of `layerwise.zoo.plain.PlainNet`."""

    def __init__(self, linen: plain.PlainNet, *, rngs: nnx.Rngs):
        """Builds the layers.

        Args:
            linen: The architecture.
            rngs: Keys of the parameters.
        """
        self.input_shape = linen.input_shape
        self.rows = linen.table
        *conv_inits, dense_init = per_layer(linen.kernel_init, len(self.rows) + 1)
        channels = linen.input_shape[-1]
        for number, (row, init) in enumerate(
            zip(self.rows, conv_inits, strict=True), 1
        ):
            convolution = nnx.Conv(
                channels,
                row.features,
                (row.kernel, row.kernel),
                strides=row.stride,
                padding=row.pad,
                feature_group_count=row.groups,
                kernel_init=init,
                dtype=linen.dtype,
                rngs=rngs,
            )
            self.add(f"Conv_{number}", convolution)
            channels = row.features
        self.head = f"Dense_{len(self.rows) + 1}"
        dense = nnx.Linear(
            channels,
            linen.num_classes,
            kernel_init=dense_init,
            dtype=linen.dtype,
            rngs=rngs,
        )
        self.add(self.head, dense)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits, `(batch, num_classes)`, for images `(batch, h, w, 3)`."""
        for number, row in enumerate(self.rows, 1):
            x = finish_row(self.run(f"Conv_{number}", x), row)
        return self.run(self.head, global_average_pool(x))


def f34(*, rngs: nnx.Rngs, **kwargs: Any) -> PlainNet:
    """Returns the twin of `layerwise.zoo.f34(**kwargs)`."""
    return PlainNet(plain.f34(**kwargs), rngs=rngs)


def f50(*, rngs: nnx.Rngs, **kwargs: Any) -> PlainNet:
    """Returns the twin of `layerwise.zoo.f50(**kwargs)`."""
    return PlainNet(plain.f50(**kwargs), rngs=rngs)
