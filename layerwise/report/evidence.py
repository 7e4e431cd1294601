"""What a verdict rests on: ensemble means with their errors, along the trunk."""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence

import numpy as np

from layerwise import _jax
from layerwise.measurement.result import Measurement
from layerwise.report.places import short_line
from layerwise.report.trunk import trunk_sites
from layerwise.tracing.layers import Layer, Step
from layerwise.tracing.sites import LayerRun, NamedValue, layer_runs


CONFIDENCE = 2.0
"""Standard errors that an estimate may be off before a finding rests on it."""

OF_LAYERS = ("u", "v", "z")
"""Kinds of site that a layer has; others, as sums, stand between layers."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its standard error over networks (NaN where it has none)."""

    value: float | int
    sem: float = math.nan

    def __str__(self) -> str:
        text = f"{self.value:.3g}"
        return f"{text} ± {self.sem:.1g}" if math.isfinite(self.sem) else text


@dataclasses.dataclass(frozen=True, eq=False)
class Series:
    """One quantity at successive places of the trunk, network by network.

    Attributes:
        columns: Positions of the places among the measurement's sites, in the order in
            which the signal meets them.
        samples: ``(draw, place)``, finite networks only.
    """

    columns: np.ndarray
    samples: np.ndarray

    @functools.cached_property
    def mean(self) -> np.ndarray:
        """Mean over networks."""
        return self.samples.mean(axis=0)

    @functools.cached_property
    def log(self) -> np.ndarray:
        """Logarithm of the mean over networks."""
        with np.errstate(divide="ignore"):
            return np.log(self.mean)

    @functools.cached_property
    def log_error(self) -> np.ndarray:
        """How far `log` may be off, at `CONFIDENCE` standard errors; 0 for one."""
        n = len(self.samples)
        if n < 2:
            return np.zeros(self.samples.shape[1])
        sem = self.samples.std(axis=0, ddof=1) / math.sqrt(n)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log1p(CONFIDENCE * np.where(self.mean > 0, sem / self.mean, 0.0))

    @functools.cached_property
    def typical(self) -> np.ndarray:
        """Mean over networks of the logarithm: a typical network."""
        with np.errstate(divide="ignore"):
            return np.log(self.samples).mean(axis=0)

    @functools.cached_property
    def typical_error(self) -> np.ndarray:
        """How far `typical` may be off, at `CONFIDENCE` standard errors."""
        n = len(self.samples)
        if n < 2:
            return np.zeros(self.samples.shape[1])
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = np.log(self.samples).std(axis=0, ddof=1)
        return CONFIDENCE * np.nan_to_num(spread, nan=0.0) / math.sqrt(n)

    def at_places(self, chosen: np.ndarray) -> "Series":
        """Returns the series at some of its places, a mask."""
        return Series(self.columns[chosen], self.samples[:, chosen])

    def at(self, place: int) -> Estimate:
        """Returns the mean at a place, with its standard error."""
        x = self.samples[:, place]
        sem = x.std(ddof=1) / math.sqrt(len(x)) if len(x) > 1 else math.nan
        return Estimate(float(x.mean()), float(sem))

    def rate(self) -> Estimate:
        """Returns the factor per place, of the geometric mean, by least squares."""
        n = self.samples.shape[1]
        with np.errstate(divide="ignore"):
            logs = np.log(np.where(self.samples > 0, self.samples, np.nan))
        kept = np.isfinite(logs).all(axis=1)
        if n < 2 or not kept.any():
            return Estimate(math.nan)
        t = np.arange(n) - (n - 1) / 2
        slopes = logs[kept] @ t / (t @ t)
        factor = float(np.exp(slopes.mean()))
        if len(slopes) < 2:
            return Estimate(factor)
        return Estimate(factor, factor * slopes.std(ddof=1) / math.sqrt(len(slopes)))


class Evidence:
    """A measurement, arranged for the questions that a verdict asks."""

    def __init__(self, measurement: Measurement, rows: np.ndarray | None = None):
        m = self.measurement = measurement
        rows = m.ensemble if rows is None else rows
        finite = np.ones(len(m.draws), bool)
        for direction in ("forward", "backward"):
            known = np.isfinite(m.second_moment(direction)) | ~m.read[direction]
            finite &= known.all(axis=1)
        self.rows = rows & finite
        self.lost = rows & ~finite
        self.second = {
            d: m.second_moment(d)[self.rows] for d in ("forward", "backward")
        }
        self.mean = {d: m.mean[d][self.rows] for d in ("forward", "backward")}
        self.runs: tuple[LayerRun, ...] = layer_runs(m.traced)

    @property
    def count(self) -> int:
        """Number of finite networks."""
        return int(np.count_nonzero(self.rows))

    @property
    def sites(self) -> tuple[NamedValue, ...]:
        """Where was measured."""
        return self.measurement.sites

    @functools.cached_property
    def index(self) -> dict[tuple[str, int], int]:
        """(kind, layer) -> position among the sites, for the input and for layers."""
        return {
            (s.kind, s.layer): i
            for i, s in enumerate(self.sites)
            if s.kind in ("input", *OF_LAYERS)
        }

    @functools.cached_property
    def trunk(self) -> list[int]:
        """Sites that all of the signal passes through.

        Where there are fewer than three (long skips go around everything), the places
        of repeated blocks are compared with each other instead.
        """
        m = self.measurement
        read = m.read["forward"] & m.read["backward"]
        always = np.all(read[self.rows], axis=0)
        cut = [i for i in trunk_sites(m.traced, self.sites) if always[i]]
        if len({self.sites[i].layer for i in cut}) >= 3:
            return cut
        return max([cut, *self._repeated()], key=len)

    def _repeated(self) -> list[list[int]]:
        groups: dict[tuple, list[int]] = {}
        for i, site in enumerate(self.sites):
            if site.kind in OF_LAYERS:
                alike = (re.sub(r"\d+", "#", site.path), site.kind, site.shape)
                groups.setdefault(alike, []).append(i)
        return list(groups.values())

    @functools.cached_property
    def head(self) -> LayerRun | None:
        """The last layer, where the model ends with one."""
        run = self.runs[-1]
        ends = any(self.sites[i].value == run.layer.u for i in self.trunk[-3:])
        return run if ends else None

    @functools.cached_property
    def normalized(self) -> bool:
        """Whether most layers of the trunk are followed by a normalization.

        Then their weights' scale changes nothing, and gradients are as large as it is
        small: steps adapt themselves.
        """
        numbers = {self.sites[i].layer for i in self.trunk}
        numbers -= {self.head.number} if self.head else set()
        some = [self.layer(n) for n in numbers if ("u", n) in self.index]
        return 2 * sum(map(is_normalized, some)) > len(some)

    def hidden(self, direction: str) -> Series:
        """Returns the trunk's second moment, or its cotangents' energy.

        Forward: E[z^2], what the next layer reads, from the first layer on. Backward:
        the sum over one example's entries of E[(dE/dv)^2], going back; unlike the mean
        over entries it does not change with the size of the map. What average pooling
        takes is given back: all layers before it share it.

        The last layer is left out: its scale is free, and often small on purpose.
        """
        order = "zvu" if direction == "forward" else "vzu"
        chosen: dict[object, int] = {}
        for i in self.trunk:
            site = self.sites[i]
            of_head = self.head is not None and site.layer == self.head.number
            if of_head and site.kind in OF_LAYERS:
                continue
            if site.kind not in OF_LAYERS:
                chosen[site.value, site.iteration] = i
                continue
            held = chosen.get(site.layer)
            rank = order.index(site.kind)
            if held is None or rank < order.index(self.sites[held].kind):
                chosen[site.layer] = i
        columns = np.array(sorted(chosen.values()), int)
        if direction == "backward":
            columns = columns[::-1]
        samples = self.second[direction][:, columns]
        if direction == "backward" and len(columns):
            samples = samples * self._energy(columns)
        return Series(columns, samples)

    def _energy(self, columns: np.ndarray) -> np.ndarray:
        batch = max(
            self.measurement.traced.graph.avals[v].shape[0]
            if self.measurement.traced.graph.avals[v].shape
            else 1
            for v in self.measurement.traced.input_values
        )
        out, shared = [], 1.0
        last = self.head.number if self.head else len(self.runs) + 1
        for column in columns:
            site = self.sites[column]
            # Pooling comes after a layer's u and v, before its z and before a sum.
            first = site.layer if site.kind in "uv" else site.layer + 1
            for number in range(last - 1, first - 1, -1):
                if ("u", number) in self.index and self.index[
                    "u", number
                ] in self.trunk:
                    shared *= _averaged(self.runs[number - 1].layer)
            last = min(last, first)
            out.append(math.prod(site.shape) / batch * shared)
        return np.array(out)

    def place(self, column: int) -> str:
        """Names a site for a reader: a layer's path, or a sum with where it is."""
        site = self.sites[column]
        if site.kind != "merge":
            return site.path
        at = short_line(site.source) or f"after {self.runs[site.layer - 1].path}"
        return f"{site.path} ({at})"

    @functools.cached_property
    def repeated(self) -> set[int]:
        """Values in loops whose every iteration uses the same weights: in time."""
        found: set[int] = set()
        for loop in self.measurement.traced.loops:
            if loop.equation.name != "scan":
                continue
            first, carries = _jax.scan_counts(loop.equation.eqn)
            sliced = frozenset[str]().union(
                *(loop.flow.leaves_of(v) for v in loop.graph.inputs[first + carries :])
            )
            if not any(sliced & set(y.weight_leaves) for y in loop.layers):
                found.update(v for g in loop.graphs() for v in g.avals)
        return found

    @functools.cached_property
    def averages(self) -> bool:
        """Whether the trunk is averaged over positions somewhere."""
        numbers = {self.sites[i].layer for i in self.trunk}
        return any(_averaged(self.layer(n)) > 1 for n in numbers)

    @functools.cached_property
    def recurrent(self) -> bool:
        """Whether most of the trunk repeats with the same weights."""
        inside = [self.sites[i].value in self.repeated for i in self.trunk]
        return 2 * sum(inside) > len(inside)

    @functools.cached_property
    def on_sums(self) -> bool:
        """Whether most of the trunk are sums, of branches or of states and inputs."""
        merges = sum(self.sites[i].kind == "merge" for i in self.trunk)
        return 2 * merges > len(self.trunk)

    @functools.cached_property
    def composed(self) -> bool:
        """Whether most layers' weights are made of several leaves: out of reach."""
        return self._most(lambda y: len(y.weight_leaves) > 1)

    @functools.cached_property
    def tied(self) -> bool:
        """Whether most layers use the weights of another one."""
        layers = self.measurement.traced.all_layers()
        uses = collections.Counter(n for y in layers for n in y.weight_leaves)
        return self._most(lambda y: any(uses[n] > 1 for n in y.weight_leaves))

    def _most(self, holds: Callable[[Layer], bool]) -> bool:
        layers = [
            self.layer(n) for n in sorted({self.sites[i].layer for i in self.trunk})
        ]
        return 2 * sum(map(holds, layers)) > len(layers)

    def layer(self, number: int) -> Layer:
        """Returns the layer of that number."""
        return self.runs[number - 1].layer

    def weight_variance(self, number: int) -> np.ndarray:
        """Returns the second moment of a layer's weights, network by network."""
        return self.measurement.weight_variance[self.rows, number - 1]

    def biased(self, number: int) -> bool:
        """Whether a layer adds a bias that is not zero, in any network."""
        return bool((self.measurement.bias_variance[self.rows, number - 1] > 0).any())

    def gain(self, number: int) -> float:
        """Returns fan-in times weight variance: what the weights multiply by."""
        fan_in = self.layer(number).connections.fan_in
        return float(fan_in * self.weight_variance(number).mean())

    def statistic(self, name: str, direction: str = "forward") -> np.ndarray | None:
        """Returns a statistic, ``(draw, site)``, or None if it was not measured."""
        m = self.measurement
        if name not in m.statistic_names:
            return None
        return m.statistic(name, direction)[self.rows]

    def step(self, kinds: Sequence[str], direction: str, number: int) -> float | None:
        """Returns the ratio of second moments between two kinds of site of a layer."""
        first, last = (self.index.get((k, number)) for k in kinds)
        if first is None or last is None:
            return None
        below = self.second[direction][:, first].mean()
        return float(self.second[direction][:, last].mean() / below) if below else None


def is_normalized(layer: Layer) -> bool:
    """Whether a normalization by the signal's own moments follows the layer."""
    return any(map(normalizes, layer.steps))


def normalizes(step: Step) -> bool:
    """Whether a step divides by moments of the signal."""
    names = set(step.names)
    return (
        step.kind == "other"
        and "reduce_sum" in names
        and bool(names & {"rsqrt", "sqrt"})
    )


def _averaged(layer: Layer) -> float:
    return float(math.prod(s.window for s in layer.steps if s.kind == "sum_pool"))
