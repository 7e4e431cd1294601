"""A model that is one chain of layers, as the formulas of the literature know it.

He, Glorot and Henmi & Kato treat a network as layers in a row: a weight operation, an
activation, at most one pooling. `chain` reads that form off a traced model, or says at
which layer and for what reason the model does not have it.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from layerwise.errors import UnsupportedModelError, message
from layerwise.moments.activations import cached_float64
from layerwise.moments.pooling import PoolConstants, pool_constants
from layerwise.tracing.layers import Layer, TracedModel
from layerwise.types import Activation


@dataclasses.dataclass(frozen=True)
class ChainLayer:
    """What eq. (4) to (7) need to know of a layer.

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


def chain(traced: TracedModel) -> tuple[ChainLayer, ...]:
    """Returns the layers of a traced model, if it is a chain of them.

    Raises:
        UnsupportedModelError: If the model is not one chain of weight operations, each
            followed by an activation and at most one kind of pooling.
    """
    for loop in traced.loops:
        raise _unsupported(
            f"{loop.layers[0].path if loop.layers else 'A layer'} runs inside a scan "
            f"at {loop.equation.source}",
            "layers in a loop",
        )
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


def _layer(layer: Layer) -> ChainLayer:
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
    return ChainLayer(
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
            f"Eq. (4) to (7) know a chain of layers; they have no term for {what}.",
            "Measure this model instead: layerwise.measure(model, params, inputs).",
        )
    )
