"""The index-set form of a layer, eq. (1a) to (2c), written as slowly as it reads.

The paper describes a convolution without ever saying convolution: output i has a set of
inputs s(i), the weights that meet them, and input i has the set of outputs j(i) that it
feeds. This is that text as loops over index sets, in float64, as the reference that
`jax.lax` and the connection counts are held against. It is meant to be read, not run on
anything large.

References:
    [Henmi2020] eq. (1a), (1b), (1c), (2a), (2b), (2c).
"""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Geometry:
    """A convolution or pooling over any number of axes, channels last."""

    size: tuple[int, ...]
    taps: tuple[int, ...]
    stride: tuple[int, ...]
    pad: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    c_in: int = 1
    c_out: int = 1
    groups: int = 1

    @property
    def out_size(self):
        return tuple(
            (n + sum(p) - ((k - 1) * d + 1)) // s + 1
            for n, k, s, p, d in zip(
                self.size, self.taps, self.stride, self.pad, self.dilation, strict=True
            )
        )

    def window(self, position):
        """Yields (tap, input position) for each tap that lands inside the input."""
        for tap in itertools.product(*map(range, self.taps)):
            place = tuple(
                o * s + t * d - p[0]
                for o, s, t, d, p in zip(
                    position, self.stride, tap, self.dilation, self.pad, strict=True
                )
            )
            if all(0 <= x < n for x, n in zip(place, self.size, strict=True)):
                yield tap, place

    def outputs(self):
        """Yields every output index, (position, channel)."""
        for position in itertools.product(*map(range, self.out_size)):
            for channel in range(self.c_out):
                yield position, channel

    def s(self, position, channel):
        """The connections of one output: (weight index, input index) pairs."""
        per_in, per_out = self.c_in // self.groups, self.c_out // self.groups
        first = channel // per_out * per_in
        for tap, place in self.window(position):
            for c in range(per_in):
                yield (*tap, c, channel), (*place, first + c)

    def j(self):
        """Input index -> its (weight index, output index) pairs: s read backwards."""
        table = {}
        for position, channel in self.outputs():
            for weight, source in self.s(position, channel):
                table.setdefault(source, []).append((weight, (*position, channel)))
        return table


def forward(g: Geometry, z, w, b, f: Callable, pool: Geometry, reduce: Callable):
    """Returns u, v and the pooled z of one layer; eq. (1a), (1b), (1c)."""
    u = np.zeros((*g.out_size, g.c_out))
    for position, channel in g.outputs():
        pairs = g.s(position, channel)
        u[(*position, channel)] = b[channel] + sum(w[i] * z[k] for i, k in pairs)
    v = f(u)
    out = np.zeros((*pool.out_size, g.c_out))
    for position in itertools.product(*map(range, pool.out_size)):
        for channel in range(g.c_out):
            t = [(*place, channel) for _, place in pool.window(position)]
            out[(*position, channel)] = reduce([v[k] for k in t])
    return u, v, out


def backward(g: Geometry, w, u, v, df: Callable, pool: Geometry, dreduce, dz):
    """Returns the cotangents of v, u and the layer's input; eq. (2c), (2b), (2a).

    (2c) is taken in its general form, a sum over all windows that a unit is in; as the
    paper prints it there is one.
    """
    dv = np.zeros_like(v)
    for position in itertools.product(*map(range, pool.out_size)):
        for channel in range(g.c_out):
            t = [(*place, channel) for _, place in pool.window(position)]
            slopes = dreduce([v[k] for k in t])
            for k, slope in zip(t, slopes, strict=True):
                dv[k] += dz[(*position, channel)] * slope
    du = dv * df(u)
    dx = np.zeros((*g.size, g.c_in))
    for source, pairs in g.j().items():
        dx[source] = sum(w[i] * du[k] for i, k in pairs)
    return dv, du, dx


def maximum(values):
    return max(values)


def d_maximum(values):
    first = int(np.argmax(values))
    return [float(i == first) for i in range(len(values))]


def connections(g: Geometry) -> int:
    """epsilon, as the sum of |s(i)| over outputs."""
    return sum(len(list(g.s(p, c))) for p, c in g.outputs())
