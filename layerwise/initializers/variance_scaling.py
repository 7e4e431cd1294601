r"""The classics: weight variance as a constant over a fan.

Each scheme is here twice: as a function of a shape, ``(key, shape, dtype) -> array``,
for ``nn.Dense(kernel_init=...)``; and as a rule for a whole model, where fans are those
of the real linear operation (`layerwise.tracing.connections`): weights that one output
sums over, outputs that one input reaches, padding and stride ignored, as all of these
schemes do. The two agree but where a kernel's shape does not tell: groups, contractions
over other axes, transposed convolutions (an output sees a stride's share of the taps),
and embeddings, where one row is read and fan_in is 1.

======================  ==========================  =============================
scheme                  :math:`\sigma_w^2`           keeps, for a ReLU chain
======================  ==========================  =============================
``lecun``               1/fan_in                    forward, without activation
``glorot``              2/(fan_in + fan_out)        a compromise of both
``kaiming_fan_in``      2/fan_in                    forward
``kaiming_fan_out``     2/fan_out                   backward
``kaiming_fan_avg``     4/(fan_in + fan_out)        a compromise of both
======================  ==========================  =============================

References:
    [LeCun1998]; [Glorot2010] eq. (12), whose normal form is the default here;
    [He2015] eq. (10) and (14).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax

from layerwise.errors import InvalidArgumentError, did_you_mean, message
from layerwise.initializers.orthogonality import semi_orthogonal
from layerwise.initializers.registry import Assignment, Scheme, register
from layerwise.initializers.weights import weights
from layerwise.moments.gain import gain
from layerwise.tracing import TracedModel
from layerwise.types import Activation, Initializer


Axes = int | Sequence[int]

_JAX_DISTRIBUTIONS: dict[str, Any] = {
    "normal": "normal",
    "truncated": "truncated_normal",
    "uniform": "uniform",
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """Variance = scale / fan.

    Attributes:
        scale: The constant.
        fan: "fan_in", "fan_out" or "fan_avg".
    """

    scale: float
    fan: Literal["fan_in", "fan_out", "fan_avg"]

    def variance(self, fan_in: float | int, fan_out: float | int) -> float:
        """Returns the weight variance at these fans."""
        fans = {"fan_in": fan_in, "fan_out": fan_out}
        return self.scale / fans.get(self.fan, 0.5 * (fan_in + fan_out))


RULES = {
    "lecun": Rule(1.0, "fan_in"),
    "glorot": Rule(1.0, "fan_avg"),
    "kaiming_fan_in": Rule(2.0, "fan_in"),
    "kaiming_fan_out": Rule(2.0, "fan_out"),
    "kaiming_fan_avg": Rule(2.0, "fan_avg"),
}


def _factory(name: str) -> Callable[..., Initializer]:
    def make(
        distribution: str = "normal",
        *,
        phi: Activation | None = None,
        in_axis: Axes = -2,
        out_axis: Axes = -1,
        batch_axis: Axes = (),
    ) -> Initializer:
        rule = RULES[name]
        scale = rule.scale if phi is None else float(gain(phi)) ** 2
        if distribution == "orthogonal":
            return _orthogonal(Rule(scale, rule.fan), in_axis, out_axis, batch_axis)
        check_distribution(distribution, (*_JAX_DISTRIBUTIONS, "orthogonal"), name)
        return jax.nn.initializers.variance_scaling(
            scale,
            rule.fan,
            _JAX_DISTRIBUTIONS[distribution],
            in_axis=in_axis,
            out_axis=out_axis,
            batch_axis=batch_axis,
        )

    make.__name__ = make.__qualname__ = name
    make.__doc__ = f"""Returns an initializer of variance {_formula(RULES[name])}.

    Equal to ``jax.nn.initializers.variance_scaling({RULES[name].scale},
    "{RULES[name].fan}", distribution)``; the variance is exact for every distribution.

    Args:
        distribution: "normal", "truncated" (at two standard deviations), "uniform", or
            "orthogonal" (orthonormal rows or columns, times what gives the entries
            this variance).
        phi: Activation of the layer before, whose gain takes the place of the constant.
        in_axis: Axes that the operation sums over.
        out_axis: Axes of its outputs.
        batch_axis: Axes that it does neither with.

    Returns:
        A function ``(key, shape, dtype) -> array``.

    Raises:
        InvalidArgumentError: If the distribution is unknown.

    Example:
        >>> init = lw.initializers.{name}("uniform")
        >>> init(jax.random.key(0), (4, 8), jnp.float32).shape
        (4, 8)

    References:
        [LeCun1998], [Glorot2010], [He2015].
    """
    return make


def _formula(rule: Rule) -> str:
    if rule.fan == "fan_avg":
        return f"{2 * rule.scale:g}/(fan_in + fan_out)"
    return f"{rule.scale:g}/{rule.fan}"


def _orthogonal(rule: Rule, in_axis: Axes, out_axis: Axes, batch: Axes) -> Initializer:
    """Orthonormal along the operation's axes, with the entries' variance of a rule."""

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = None) -> jax.Array:
        shape = tuple(shape)
        n = len(shape)
        outs, batched = _positions(out_axis, n), _positions(batch, n)
        ins = _positions(in_axis, n)
        taps = [a for a in range(n) if a not in (*outs, *batched, *ins)]
        field = math.prod(shape[a] for a in taps)
        fan_in = field * math.prod(shape[a] for a in ins)
        fan_out = math.prod(shape[a] for a in outs)
        stddev = math.sqrt(rule.variance(fan_in, fan_out * field))
        kernel = semi_orthogonal(key, shape, outs, batched) * stddev
        return kernel.astype(dtype or kernel.dtype)

    return init


def _positions(axes: Axes, n: int) -> tuple[int, ...]:
    many = (axes,) if isinstance(axes, int) else tuple(axes)
    return tuple(a % n for a in many)


def check_distribution(name: str, known: Sequence[str], scheme: str) -> None:
    """Raises `InvalidArgumentError` unless a scheme can be drawn from it."""
    if name not in known:
        raise InvalidArgumentError(
            message(
                f"distribution={name!r} with {scheme}."
                f"{did_you_mean(str(name), list(known))}",
                f"{scheme} is drawn from {', '.join(known)}.",
                f"Pass distribution={known[0]!r}, or leave it out.",
            )
        )


lecun = _factory("lecun")
glorot = _factory("glorot")
kaiming_fan_in = _factory("kaiming_fan_in")
kaiming_fan_out = _factory("kaiming_fan_out")
kaiming_fan_avg = _factory("kaiming_fan_avg")


def variances(traced: TracedModel, scheme: str) -> dict[str, float]:
    """Returns layer path -> weight variance under one of `RULES`."""
    rule, found = RULES[scheme], {}
    for w in weights(traced):
        found.setdefault(w.path, rule.variance(w.fan_in, w.fan_out))
    return found


def _register(name: str, preserves: str, supports: tuple[str, ...], source: str):
    register(
        Scheme(
            name,
            lambda p: Assignment(variances(p.traced, name)),
            needs="a shape",
            preserves=preserves,
            supports=supports,
            source=source,
        )
    )


_register("glorot", "a compromise of both directions", ("dense",), "[Glorot2010]")
_register("kaiming_fan_in", "E[u^2] forward", ("dense", "ReLU"), "[He2015]")
_register("kaiming_fan_out", "the cotangent backward", ("dense", "ReLU"), "[He2015]")
_register(
    "kaiming_fan_avg", "a compromise of both directions", ("dense", "ReLU"), "[He2015]"
)
_register("lecun", "E[u^2] forward, no activation", ("dense",), "[LeCun1998]")
