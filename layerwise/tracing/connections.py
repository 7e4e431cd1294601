r"""How many inputs an output is connected to, exactly, for any window geometry.

A convolution along one axis of length :math:`n` with :math:`k` taps connects output
:math:`i` to input :math:`i s + j d - p` for each tap :math:`j`, if there is an input at
that place: padding has none, and an input dilated by :math:`e` (a transposed
convolution) has one only at multiples of :math:`e`. The number of connections of an
axis is the number of such pairs, and the connections of the layer are

.. math::
    \epsilon = \frac{C_\text{in}}{G} C_\text{out} \prod_\text{axes} c(n, k, s, p),

Henmi & Kato's :math:`\epsilon_\ell = \sum_i |s(\ell, i)|`. For :math:`k=3, s=1, p=1`,
:math:`c = 3n - 2`:

>>> Axis(size=56, taps=3, stride=1, pad=(1, 1)).connections
166
"""

import dataclasses
import functools
import math

import numpy as np

from layerwise.tracing.graph import Equation


@dataclasses.dataclass(frozen=True)
class Axis:
    """One spatial axis of a convolution or pooling window.

    Attributes:
        size: Number of inputs along the axis, before dilation and padding.
        taps: Number of kernel taps.
        stride: Step between outputs.
        pad: Padding before and after; negative crops, as in JAX.
        kernel_dilation: Step between taps.
        input_dilation: Step between inputs (above 1 in a transposed convolution).
    """

    size: int
    taps: int
    stride: int = 1
    pad: tuple[int, int] = (0, 0)
    kernel_dilation: int = 1
    input_dilation: int = 1

    @property
    def n_outputs(self) -> int:
        """Number of outputs along the axis."""
        reach = (self.taps - 1) * self.kernel_dilation + 1
        extent = max((self.size - 1) * self.input_dilation + 1, 0) if self.size else 0
        return max((extent + sum(self.pad) - reach) // self.stride + 1, 0)

    @functools.cached_property
    def sources(self) -> np.ndarray:
        """Input index seen by each (output, tap), or -1 where there is none."""
        out = np.arange(self.n_outputs)[:, None] * self.stride
        place = out + np.arange(self.taps)[None, :] * self.kernel_dilation - self.pad[0]
        index, rest = np.divmod(place, self.input_dilation)
        return np.where((rest == 0) & (index >= 0) & (index < self.size), index, -1)

    @functools.cached_property
    def runs(self) -> tuple[tuple[slice, slice], ...]:
        """The outputs and the inputs that each tap connects, one to one."""
        found = []
        for source in self.sources.T:
            outputs = np.flatnonzero(source >= 0)
            if outputs.size:
                found.append((_slice(outputs), _slice(source[outputs])))
        return tuple(found)

    @functools.cached_property
    def reach(self) -> np.ndarray:
        """``(output, input)``: 1.0 where a tap connects them, else 0.0."""
        out = np.zeros((self.n_outputs, self.size))
        o, t = np.nonzero(self.sources >= 0)
        out[o, self.sources[o, t]] = 1.0
        return out

    @property
    def step(self) -> float:
        """Inputs between two neighbouring outputs."""
        return self.stride / self.input_dilation

    def between_taps(self, lag: int) -> np.ndarray:
        """Returns the lag of every pair of inputs, read by outputs p and p + `lag`."""
        n = max(self.n_outputs - abs(lag), 0)
        first, second = self.sources[:n, :, None], self.sources[abs(lag) :, None, :]
        apart = (second - first)[(first >= 0) & (second >= 0)]
        return apart if lag >= 0 else -apart

    @functools.cached_property
    def connections(self) -> int:
        """Number of (output, input) pairs that a tap connects."""
        return int(np.count_nonzero(self.sources >= 0))


def _slice(progression: np.ndarray) -> slice:
    first, last = int(progression[0]), int(progression[-1])
    step = int(progression[1]) - first if progression.size > 1 else 1
    return slice(first, last + 1, step)


@dataclasses.dataclass(frozen=True)
class Connections:
    """The linear map of one weight operation, counted.

    All counts are per example where the operation has a batch axis of the model's batch
    size, else in all; ratios do not depend on it.

    Attributes:
        axes: Its spatial axes; empty for a dense layer.
        total: Number of connections, the paper's epsilon.
        n_out: Number of outputs (the paper's M').
        n_in: Number of inputs (the paper's M of the layer before).
        fan_in: Weights that one output sums over, padding ignored.
        fan_out: Weights that one input meets, padding and stride ignored.
        weights: Number of weights.
    """

    axes: tuple[Axis, ...]
    total: int
    n_out: int
    n_in: int
    fan_in: int
    fan_out: int
    weights: int


@functools.lru_cache(maxsize=1024)
def _shared(axis: Axis) -> Axis:
    """Returns one object for all equal axes: what it has found serves all layers."""
    return axis


def conv_axes(
    equation: Equation, lhs: tuple[int, ...], rhs: tuple[int, ...]
) -> tuple[Axis, ...]:
    """Returns the spatial axes of a ``conv_general_dilated`` equation."""
    p = equation.params
    dims = p["dimension_numbers"]
    return tuple(
        _shared(Axis(lhs[a], rhs[b], stride, tuple(pad), dilation, input_dilation))
        for a, b, stride, pad, dilation, input_dilation in zip(
            dims.lhs_spec[2:],
            dims.rhs_spec[2:],
            p["window_strides"],
            p["padding"],
            p["rhs_dilation"],
            p["lhs_dilation"],
            strict=True,
        )
    )


def conv_connections(
    equation: Equation, lhs: tuple[int, ...], rhs: tuple[int, ...]
) -> Connections:
    """Counts the connections of one example through a convolution."""
    dims = equation.params["dimension_numbers"]
    axes = conv_axes(equation, lhs, rhs)
    c_out, c_in_group = rhs[dims.rhs_spec[0]], rhs[dims.rhs_spec[1]]
    groups = equation.params["feature_group_count"]
    taps = math.prod(axis.taps for axis in axes)
    return Connections(
        axes=axes,
        total=c_out * c_in_group * math.prod(axis.connections for axis in axes),
        n_out=c_out * math.prod(axis.n_outputs for axis in axes),
        n_in=lhs[dims.lhs_spec[1]] * math.prod(axis.size for axis in axes),
        fan_in=c_in_group * taps,
        fan_out=c_out // groups * taps,
        weights=math.prod(rhs),
    )


def dot_connections(
    equation: Equation,
    signal: tuple[int, ...],
    weight: tuple[int, ...],
    signal_first: bool,
    batch: int,
) -> Connections:
    """Counts the connections of a ``dot_general`` of a signal with a weight.

    Axes of the signal that are not contracted share the weight, as positions share a
    convolution's; axes batched together with the weight's are separate groups.
    """
    contract, batched = equation.params["dimension_numbers"]
    signal_axes = contract[0 if signal_first else 1]
    weight_batch = batched[1 if signal_first else 0]
    fan_in = math.prod(signal[a] for a in signal_axes)
    groups = math.prod(weight[a] for a in weight_batch)
    weights = math.prod(weight)
    fan_out = weights // max(fan_in * groups, 1)
    shared = math.prod(signal) // max(fan_in * groups, 1)
    if shared % batch == 0 and signal and signal[0] == batch:
        shared //= batch
    return Connections(
        axes=(),
        total=shared * weights,
        n_out=shared * groups * fan_out,
        n_in=shared * groups * fan_in,
        fan_in=fan_in,
        fan_out=fan_out,
        weights=weights,
    )
