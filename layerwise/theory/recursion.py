r"""The paper's recursions: eq. (4) forward, eq. (5) backward, exactly as printed.

One number per layer. With :math:`q_\ell = E[u_\ell^2]` after the bias and
:math:`r_\ell = E[(\partial E/\partial z_\ell)^2]` after the pooling,

.. math::
    q_\ell &= \sigma_b^2 + \sigma_w^2\, q_{\ell-1} \tau_{\ell-1}
              \frac{\epsilon_\ell}{M'_\ell} & (4) \\
    r_{\ell-1} &= \sigma_w^2\, r_\ell\, \gamma_\ell \frac{\epsilon_\ell}{M_{\ell-1}}
              & (5)

where :math:`\tau, \gamma` are Table 1's constants (`layerwise.moments.pooling`),
:math:`\epsilon` counts connections (`layerwise.tracing.connections`), :math:`M'` the
outputs of the operation and :math:`M` its inputs. The conventions that the paper leaves
open are those of its authors' code: :math:`\tau_0 = 1`, and a layer without activation
and pooling has :math:`\tau = \gamma = 1`.

Beyond Table 1 this file takes any traced activation, with its constants at the layer's
own :math:`q`; for ReLU that changes nothing.

What it is worth: one layer's factor is exact in expectation over weights where inputs
are uncorrelated and each pooling input has one window. Chained, it is not: the average
over a map of "connections lost to zero padding" does not compound like an average, and
at 34 layers eq. (4) and (5) are off by factors of 4 to 10. It is here as the paper has
it, to be compared with measurement.

References:
    [Henmi2020] eq. (4), (5), Table 1.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from layerwise.errors import UnsupportedModelError, message
from layerwise.moments.activations import cached_float64
from layerwise.moments.pooling import PoolConstants, pool_constants
from layerwise.tracing import Layer, TracedModel
from layerwise.types import Activation


@dataclasses.dataclass(frozen=True)
class RecursionLayer:
    """What eq. (4) and (5) need to know of a layer.

    Attributes:
        path: Name of the layer.
        total: Number of connections, epsilon.
        n_out: Outputs of the operation, M'.
        n_in: Inputs of the operation, M of the layer before.
        phi: Activation, or None.
        max_size: Entries that max pooling combines.
        average_size: Entries that average pooling combines.
        scale: Constant that the pooled signal is multiplied by.
    """

    path: str
    total: int
    n_out: int
    n_in: int
    phi: Activation | None = None
    max_size: int = 1
    average_size: int = 1
    scale: float = 1.0

    def constants(self, q: float) -> PoolConstants:
        """Returns tau and gamma of the layer at pre-activation second moment `q`."""
        got = pool_constants(
            self.phi, max_size=self.max_size, average_size=self.average_size, q=q
        )
        c = self.scale**2
        return PoolConstants(c * got.second, c * got.tau, c * got.gamma)


@dataclasses.dataclass(frozen=True)
class Recursion:
    """The two curves.

    Attributes:
        q: q_1 ... q_L.
        r: r_0 ... r_L.
        constants: Table 1's constants of layers 1 ... L.
    """

    q: np.ndarray
    r: np.ndarray
    constants: tuple[PoolConstants, ...]


def iterate(
    layers: Sequence[RecursionLayer],
    weight_variance: Sequence[float],
    *,
    bias_variance: Sequence[float] | float = 0.0,
    q_0: float = 1.0,
    r_last: float = 1.0,
) -> Recursion:
    """Iterates eq. (4) up and eq. (5) down.

    Args:
        layers: The layers in order.
        weight_variance: sigma_w^2 of each.
        bias_variance: sigma_b^2 of each, or one for all.
        q_0: Second moment of the input.
        r_last: Second moment of the cotangent at the output.

    Returns:
        Both curves, in float64.
    """
    sigma_b = np.broadcast_to(np.asarray(bias_variance, float), len(layers))
    q, constants, second = [], [], q_0  # tau_0 = 1
    for layer, sigma_w, b in zip(layers, weight_variance, sigma_b, strict=True):
        # [Henmi2020] eq. (4)
        q.append(b + sigma_w * second * layer.total / layer.n_out)
        constants.append(layer.constants(q[-1]))
        second = constants[-1].second
    r = [r_last]
    for layer, sigma_w, c in zip(
        reversed(layers), reversed(weight_variance), reversed(constants), strict=True
    ):
        # [Henmi2020] eq. (5)
        r.append(sigma_w * r[-1] * c.gamma * layer.total / layer.n_in)
    return Recursion(np.array(q), np.array(r[::-1]), tuple(constants))


def from_trace(traced: TracedModel) -> tuple[RecursionLayer, ...]:
    """Returns the layers of a traced model as the recursion knows them.

    Raises:
        UnsupportedModelError: If the model is not one chain of weight operations, each
            followed by an activation and at most one kind of pooling.
    """
    layers = tuple(_layer(y) for y in traced.layers)
    before = None
    for layer in traced.layers:
        want = traced.signal_input if before is None else before.root
        if layer.operand_root != want:
            raise _unsupported(
                f"{layer.path} (at {layer.source}) does not read the layer before it "
                "alone",
                "sums, gates, concatenations and branches",
            )
        before = layer
    return layers


def _layer(layer: Layer) -> RecursionLayer:
    functions: list[Callable] = []
    sizes = {"max_pool": 1, "sum_pool": 1}
    scale = 1.0
    for step in layer.steps:
        if step.kind == "pointwise":
            assert step.phi is not None
            if sizes["sum_pool"] > 1:
                scale *= _slope(step.phi, layer, step.source)
            else:  # before pooling, or after a maximum, with which it commutes
                functions.append(step.phi)
        elif step.kind in sizes:
            sizes[step.kind] *= step.window
        elif step.kind != "layout":
            raise _unsupported(
                f"{layer.path} is followed by {'+'.join(step.names[:4])} "
                f"at {step.source}",
                "anything between layers but activation and pooling",
            )
    if min(sizes.values()) > 1:
        raise _unsupported(
            f"{layer.path} is followed by max and sum pooling both",
            "two kinds of pooling behind one layer",
        )
    c = layer.connections
    return RecursionLayer(
        path=layer.path,
        total=c.total,
        n_out=c.n_out,
        n_in=c.n_in,
        phi=_compose(functions),
        max_size=sizes["max_pool"],
        average_size=sizes["sum_pool"],
        scale=scale * sizes["sum_pool"],  # a sum is T times an average
    )


def _slope(phi: Activation, layer: Layer, source: str) -> float:
    """Returns c if `phi` is multiplication by c, which sum pooling commutes with."""
    points = np.array([-2.0, -0.5, 0.0, 0.3, 1.0, 7.0])
    values = cached_float64(phi)[0](points)
    slope = float(values[4])
    if not np.allclose(values, slope * points, rtol=1e-5, atol=1e-7):
        raise _unsupported(
            f"{layer.path} has an activation behind its average pooling, at {source}",
            "an activation that the average has been taken before",
        )
    return slope


def _compose(functions: Sequence[Callable]) -> Activation | None:
    if not functions:
        return None
    if len(functions) == 1:
        return functions[0]

    def composed(x: object) -> object:
        for f in functions:
            x = f(x)
        return x

    return composed  # type: ignore[return-value]


def _unsupported(found: str, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        message(
            f"{found}.",
            f"Eq. (4) and (5) know a chain of layers; they have no term for {what}.",
            "Measure this model instead: layerwise.measure(model, params, inputs).",
        )
    )


def predict_recursion(
    traced: TracedModel,
    weight_variance: Mapping[str, float],
    *,
    bias_variance: Mapping[str, float] | None = None,
    q_0: float = 1.0,
) -> Recursion:
    """Predicts both curves of a traced model by eq. (4) and (5).

    Args:
        traced: The model.
        weight_variance: Layer path -> sigma_w^2 (its weight's second moment).
        bias_variance: Layer path -> sigma_b^2; absent paths have none.
        q_0: Second moment of the input.

    Raises:
        UnsupportedModelError: As `from_trace`.
    """
    layers = from_trace(traced)
    biases = bias_variance or {}
    return iterate(
        layers,
        [weight_variance[y.path] for y in layers],
        bias_variance=[biases.get(y.path, 0.0) for y in layers],
        q_0=q_0,
    )
