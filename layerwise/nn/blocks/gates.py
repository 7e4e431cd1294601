"""What multiplies a branch: squeeze-and-excitation, stochastic depth, highway gates."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from layerwise.errors import InvalidArgumentError, message
from layerwise.nn.kernels import HE_NORMAL
from layerwise.nn.modules import global_average_pool
from layerwise.types import Activation, Initializer


class SqueezeExcite(nn.Module):
    """x * s with s = sigmoid(W2 ReLU(W1 GAP(x))), one factor per channel.

    Trap: at initialization s is near 1/2, so the block halves the amplitude of what
    it gates; the two dense layers have biases, which published counts include.

    Attributes:
        ratio: Channels of `x` per hidden unit, 16 in the paper.
        kernel_init: Initializer of both dense kernels.
        dtype: Computation dtype.

    References:
        [Hu2018].
    """

    ratio: int = 16
    kernel_init: Initializer = HE_NORMAL
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the gated map."""
        features = x.shape[-1]
        if features < self.ratio:
            raise InvalidArgumentError(
                message(
                    f"SqueezeExcite(ratio={self.ratio}) on {features} channels.",
                    "It would have no hidden unit.",
                    f"Pass a ratio of at most {features}.",
                )
            )
        hidden = nn.Dense(
            features // self.ratio, kernel_init=self.kernel_init, dtype=self.dtype
        )(global_average_pool(x))
        gate = nn.Dense(features, kernel_init=self.kernel_init, dtype=self.dtype)(
            nn.relu(hidden)
        )
        return x * nn.sigmoid(gate)[..., None, None, :]


class StochasticDepth(nn.Module):
    """b * x in training with P(b = 1) = survival, survival * x otherwise.

    Both have the same mean over b. Trap: later libraries ("drop path") divide by
    `survival` in training and do nothing otherwise. That is another network at
    initialization: its second moment in training is larger by 1 / survival**2.

    Attributes:
        survival: Probability that the branch is used in a training step.
        per_example: True draws b for each example; the paper draws one b for the
            whole mini-batch, so that the computation can be left out.

    References:
        [Huang2016].
    """

    survival: float
    per_example: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the branch `x`, dropped or scaled."""
        if not 0.0 < self.survival <= 1.0:
            raise InvalidArgumentError(
                message(
                    f"StochasticDepth(survival={self.survival}).",
                    "It is a probability, and a block that never survives is none.",
                    "Pass a number in (0, 1].",
                )
            )
        if self.survival == 1.0:
            return x
        if not train:
            return x * self.survival
        shape = (x.shape[0],) if self.per_example else ()
        keep = jax.random.bernoulli(self.make_rng("dropout"), self.survival, shape)
        keep = keep.reshape(shape + (1,) * (x.ndim - len(shape)))
        return jnp.where(keep, x, jnp.zeros_like(x))


def linear_survival(depth: int, last: float = 0.5) -> list[float]:
    """Returns p_l = 1 - (l / depth) (1 - last) for l = 1, ..., depth.

    References:
        [Huang2016].
    """
    return [1.0 - (l + 1) / depth * (1.0 - last) for l in range(depth)]


class Highway(nn.Module):
    """T(x) * H(x) + (1 - T(x)) * x, the gate T a sigmoid of its own weights.

    Not a residual block: the identity is gated, so a product of (1 - T) stands on the
    path through all blocks. Trap: the gate's bias starts negative (the paper: -1 to
    -4), which makes the block nearly an identity; with bias 0 half is lost per block.

    Attributes:
        kernel: None for a dense block, else the size of the convolutions.
        gate_bias: Initial bias of the gate.
        activation: Of H.
        kernel_init: Initializer of the kernels of H and T.
        dtype: Computation dtype.

    References:
        [Srivastava2015].
    """

    kernel: int | None = None
    gate_bias: float = -2.0
    activation: Activation = nn.relu
    kernel_init: Initializer = HE_NORMAL
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the block's output, of the shape of `x`."""
        bias = nn.initializers.constant(self.gate_bias)
        gate = nn.sigmoid(self._weigh(x, "gate", bias_init=bias))
        return gate * self.activation(self._weigh(x, "transform")) + (1 - gate) * x

    @nn.nowrap
    def _weigh(self, x: jax.Array, name: str, **kwargs: Any) -> jax.Array:
        kwargs = {"kernel_init": self.kernel_init, "dtype": self.dtype, **kwargs}
        if self.kernel is None:
            return nn.Dense(x.shape[-1], name=name, **kwargs)(x)
        window = (self.kernel, self.kernel)
        return nn.Conv(x.shape[-1], window, name=name, **kwargs)(x)
