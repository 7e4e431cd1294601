"""Normalizations that random architectures are made of: operations, by name."""

import jax

from tests.theory.operations import Constant, op, positions


def normalize(x, axes, centred=True):
    if centred:
        x = x - x.mean(axes, keepdims=True)
    return x * jax.lax.rsqrt((x**2).mean(axes, keepdims=True) + 1e-5)


@op
def rectified_norm(net, x):
    return net.conv(jax.nn.relu(normalize(x, (x.ndim - 1,))))


@op
def norm_of_powers(net, x):
    return net.conv(normalize(net.act(x), (x.ndim - 1,), centred=False))


@op
def batch_norm(net, x):
    return net.conv(net.act(normalize(x, (0, *positions(x)))))


@op
def layer_norm(net, x):
    return net.conv(net.act(normalize(x, (x.ndim - 1,))))


@op
def rms_norm(net, x):
    return x + net.block(normalize(x, (x.ndim - 1,), centred=False))


@op
def instance_norm(net, x):
    return net.conv(net.act(normalize(x, positions(x)))) if x.ndim > 2 else None


@op
def group_norm(net, x):
    if x.shape[-1] % 2:
        return None
    y = x.reshape(*x.shape[:-1], 2, -1)
    axes = (*positions(x), x.ndim)
    return net.conv(net.act(normalize(y, axes).reshape(x.shape)))


@op
def norm_last(net, x):
    """A post-norm block, with the scale and shift that are learnt."""
    scale, shift = (net.parameter(Constant((x.shape[-1],), v)) for v in (1.0, 0.0))
    return normalize(x + net.block(x), (x.ndim - 1,)) * scale + shift
