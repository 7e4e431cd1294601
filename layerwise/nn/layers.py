"""The kinds of layers, each with what it does to a signal and where copies go wrong.

A kind is a Flax module or a JAX function; where Flax has it, it is Flax's own. What is
missing there is written here: two differentiable substitutes for sampling, and global
pooling as a module. Tests, tables and moment rules run over `kinds()`, so a kind is
added by one line.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from layerwise.errors import InvalidArgumentError, did_you_mean, message
from layerwise.nn.blocks.plain import local_response_norm
from layerwise.nn.blocks.transformer import gelu
from layerwise.nn.modules import global_average_pool


class Elementwise(nn.Module):
    """A function of the signal as a module without parameters.

    Attributes:
        function: From array to array.
    """

    function: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `function(x)`."""
        return self.function(x)


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself.

    Attributes:
        num_heads: A divisor of the features.
        causal: Whether a token sees only those before it and itself.
    """

    num_heads: int
    causal: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the tokens, `(batch, token, feature)`."""
        mask = nn.make_causal_mask(x[..., 0]) if self.causal else None
        attention = nn.MultiHeadDotProductAttention(num_heads=self.num_heads)
        return jnp.asarray(attention(x, x, mask=mask))


def sample_gaussian(
    key: jax.Array, mean: jax.Array, log_variance: jax.Array
) -> jax.Array:
    """Returns mean + exp(log_variance / 2) * noise, a sample with a gradient.

    The randomness does not depend on the parameters, so that a sample from
    N(mean, variance) is differentiable in both.

    References:
        [Kingma2014] Sec. 2.4.
    """
    noise = jax.random.normal(key, mean.shape, mean.dtype)
    return mean + jnp.exp(0.5 * log_variance) * noise


def gumbel_softmax(
    key: jax.Array, logits: jax.Array, *, temperature: float = 1.0, hard: bool = False
) -> jax.Array:
    """Returns a differentiable sample from the categorical law of `logits`.

    The largest entry is distributed as the category itself *at any temperature*; as
    the temperature falls the vector tends to that one-hot vector, and the variance of
    its gradient grows without bound.

    Args:
        key: PRNG key.
        logits: Unnormalized log probabilities, categories last.
        temperature: Positive. At infinity the sample is uniform.
        hard: Returns the one-hot vector, with the gradient of the soft one.

    Raises:
        InvalidArgumentError: The temperature is not positive.

    References:
        [Jang2017].
    """
    if not temperature > 0:
        raise InvalidArgumentError(
            message(
                f"gumbel_softmax with temperature {temperature}.",
                "It divides the logits; the limit 0 is the one-hot sample.",
                "Pass a positive temperature, or hard=True for one-hot vectors.",
            )
        )
    noise = jax.random.gumbel(key, logits.shape, logits.dtype)
    soft = jax.nn.softmax((logits + noise) / temperature)
    if not hard:
        return soft
    one_hot = jax.nn.one_hot(soft.argmax(axis=-1), soft.shape[-1], dtype=soft.dtype)
    return one_hot + soft - jax.lax.stop_gradient(soft)


class GaussianSample(nn.Module):
    """A sample from N(mean, variance) for `x` = (mean, log variance), side by side."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the sample, with half of the features of `x`."""
        mean, log_variance = jnp.split(x, 2, axis=-1)
        return sample_gaussian(self.make_rng("dropout"), mean, log_variance)


class GumbelSoftmax(nn.Module):
    """`gumbel_softmax` with the randomness of the module.

    Attributes:
        temperature: Positive.
        hard: Whether the output is one-hot.
    """

    temperature: float = 1.0
    hard: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the sample for logits `x`."""
        key = self.make_rng("dropout")
        return gumbel_softmax(key, x, temperature=self.temperature, hard=self.hard)


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """One kind of layer.

    Attributes:
        name: What `kind` takes.
        family: ``"weights"``, ``"activation"``, ``"pooling"``, ``"normalization"``,
            ``"randomness"`` or ``"attention"``.
        make: Returns the Flax module.
        example: Arguments of `make` for a small instance.
        input_shape: Shape of one example for that instance, without the batch axis.
        effect: What the layer does to the signal, in one sentence.
        random: Whether it draws from the PRNG collection ``"dropout"``.
        integer: Whether its input are indices.
    """

    name: str
    family: str
    make: Callable[..., nn.Module]
    example: Mapping[str, Any]
    input_shape: tuple[int, ...]
    effect: str
    random: bool = False
    integer: bool = False

    def build(self) -> nn.Module:
        """Returns the small instance."""
        return self.make(**self.example)


_KINDS: dict[str, LayerKind] = {}


def _register(name: str, family: str, make: Callable[..., nn.Module], **rest: Any):
    example = MappingProxyType(rest.pop("example", {}))
    _KINDS[name] = LayerKind(name, family, make, example, **rest)


def _register_function(name: str, family: str, function: Callable[..., Any], **rest):
    _register(name, family, Elementwise, example={"function": function}, **rest)


def kinds() -> tuple[LayerKind, ...]:
    """Returns every kind of layer, in the order of the documentation."""
    return tuple(_KINDS.values())


def kind(name: str) -> LayerKind:
    """Returns one kind of layer.

    Raises:
        InvalidArgumentError: There is no kind of that name.
    """
    if name not in _KINDS:
        raise InvalidArgumentError(
            message(
                f"No layer kind {name!r}.{did_you_mean(name, list(_KINDS))}",
                f"There are {len(_KINDS)}, and none has this name.",
                "List them with [k.name for k in layerwise.nn.layers.kinds()].",
            )
        )
    return _KINDS[name]


_register(
    "dense",
    "weights",
    nn.Dense,
    example={"features": 6},
    input_shape=(5,),
    effect="Sums fan_in independent terms: E[u^2] = fan_in Var[w] E[z^2].",
)
_register(
    "conv",
    "weights",
    nn.Conv,
    example={"features": 6, "kernel_size": (3, 3)},
    input_shape=(5, 5, 4),
    effect="As dense, with fewer terms at the border where the padding is zero.",
)
_register(
    "embedding",
    "weights",
    nn.Embed,
    example={"num_embeddings": 7, "features": 6},
    input_shape=(5,),
    integer=True,
    effect="Looks rows up: the dense layer of a one-hot vector, with fan-in 1.",
)
_ACTIVATIONS: dict[str, tuple[Callable[..., Any], str]] = {
    "relu": (jax.nn.relu, "Halves E[u^2] of a symmetric signal, and gives it a mean."),
    "leaky_relu": (jax.nn.leaky_relu, "Keeps (1 + slope^2) / 2 of E[u^2]."),
    "elu": (jax.nn.elu, "Saturates at -1, so that the mean is smaller than ReLU's."),
    "selu": (jax.nn.selu, "Has N(0, 1) as a fixed point: mean 0, variance 1."),
    "gelu": (gelu, "x Phi(x): keeps .4252 of E[u^2] at variance 1."),
    "silu": (
        jax.nn.silu,
        "x sigmoid(x), also called Swish: keeps .3558 at variance 1.",
    ),
    "mish": (jax.nn.mish, "x tanh(softplus(x)): smooth, not monotone."),
    "softplus": (jax.nn.softplus, "A smooth ReLU, log 2 at 0: adds a mean to zero."),
    "sigmoid": (jax.nn.sigmoid, "Has mean 1/2 and slope 1/4 at most: it saturates."),
    "tanh": (jnp.tanh, "Odd: keeps the mean zero; bounded: forgets large variances."),
    "softmax": (jax.nn.softmax, "Makes probabilities; blind to a shift of all logits."),
}
for _name, (_function, _effect) in _ACTIVATIONS.items():
    _register_function(_name, "activation", _function, input_shape=(5,), effect=_effect)
_register(
    "prelu",
    "activation",
    nn.PReLU,
    input_shape=(5,),
    effect="Leaky ReLU whose slope, 0.01 at first in Flax, is a parameter.",
)
_register_function(
    "max_pool",
    "pooling",
    lambda x: nn.max_pool(x, (2, 2), strides=(2, 2)),
    input_shape=(4, 4, 3),
    effect="Raises mean and second moment; passes the cotangent to one position.",
)
_register_function(
    "avg_pool",
    "pooling",
    lambda x: nn.avg_pool(x, (2, 2), strides=(2, 2)),
    input_shape=(4, 4, 3),
    effect="Keeps the mean, divides the variance of independent positions by T.",
)
_register_function(
    "global_avg_pool",
    "pooling",
    global_average_pool,
    input_shape=(4, 4, 3),
    effect="Keeps the mean of each channel; correlation decides the second moment.",
)
_register(
    "batch_norm",
    "normalization",
    nn.BatchNorm,
    example={"use_running_average": False},
    input_shape=(4, 4, 3),
    effect="Mean 0, variance 1 per channel over the batch. In eval mode: an affine "
    "map by stored statistics, at initialization the identity.",
)
_register(
    "layer_norm",
    "normalization",
    nn.LayerNorm,
    input_shape=(5,),
    effect="Mean 0, variance 1 over the features of each example.",
)
_register(
    "group_norm",
    "normalization",
    nn.GroupNorm,
    example={"num_groups": 2},
    input_shape=(4, 4, 6),
    effect="Mean 0, variance 1 over a group of channels of each example.",
)
_register(
    "instance_norm",
    "normalization",
    nn.InstanceNorm,
    input_shape=(4, 4, 3),
    effect="Mean 0, variance 1 over the positions of each channel of each example.",
)
_register_function(
    "local_response_norm",
    "normalization",
    local_response_norm,
    input_shape=(4, 4, 6),
    effect="Nearly a division by 1.68; not invariant to the scale of its input.",
)
_register(
    "dropout",
    "randomness",
    nn.Dropout,
    example={"rate": 0.5, "deterministic": False},
    input_shape=(5,),
    random=True,
    effect="Keeps the mean, multiplies the second moment by 1 / (1 - p).",
)
_register(
    "gaussian_sample",
    "randomness",
    GaussianSample,
    input_shape=(6,),
    random=True,
    effect="Adds noise of the given variance; differentiable in mean and variance.",
)
_register(
    "gumbel_softmax",
    "randomness",
    GumbelSoftmax,
    input_shape=(5,),
    random=True,
    effect="Samples a category, differentiably; one-hot as the temperature falls.",
)
_register(
    "attention",
    "attention",
    SelfAttention,
    example={"num_heads": 2},
    input_shape=(4, 6),
    effect="Averages values with weights from softmax: near uniform ones at small "
    "logits, which divide the variance of independent tokens by their number.",
)
