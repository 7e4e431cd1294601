"""What the interpreter carries along an edge: moments, not arrays.

A value of the program is a `State`: which of its axes are examples, positions and
channels, and for each run of alike channels a `Field`. A field holds the mean at every
position and the table of pair moments (`layerwise.theory.lags`), averaged over examples
and over its channels, with the scale kept apart as a logarithm so that values down to
1e-300 and up to 1e300 stay right.
"""

import dataclasses
import enum
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from layerwise.theory import lags as lagging
from layerwise.theory.coherence import INDEPENDENT, Coherence
from layerwise.theory.response import NO_RESPONSE, Response, log_normal
from layerwise.theory.settled import UNSETTLED, Settled


HARDLY = 0.02
"""Spread beside known powers that moves a second moment by less than 1 %."""
UNKNOWN = np.full(1, np.nan)
"""The profile of a cotangent that a rule has not followed."""


class Grade(enum.IntEnum):
    """How a number was come by; what depends on several has the worst of theirs."""

    EXACT = 0
    APPROXIMATE = 1
    MEASURED = 2

    @property
    def label(self) -> str:
        """The grade in lower case."""
        return self.name.lower()


@dataclasses.dataclass(frozen=True, eq=False)
class Field:
    """Moments of one run of alike channels.

    Attributes:
        mean: ``(*positions,)``, times ``exp(-log_scale / 2)``.
        table: ``(class, *lags, *positions)`` raw second moments of pairs, times
            ``exp(-log_scale)``. Class 1 (two examples) is absent where not needed.
        lags: The lags held, per axis.
        log_scale: Logarithm of the factor taken out.
        shape: Standardized marginal law as a non-decreasing function of a standard
            normal, on the nodes of `layerwise.theory.marginal`; None is normal.
        own_law: The law within one unit, as `shape`, where units differ by gains; None
            where it is that.
        peaked: Excess kurtosis of what is nearly normal, and taken for normal where
            slopes are two; 0.0 beside a `shape`.
        symmetric: Whether the law is that of its negative (fresh zero-mean weights).
        comb: Per axis: pairs at lags that are no multiple of it have nothing to do with
            those that are; they come from inputs that are not `comb` apart.
        joint: Cotangents only: ``E[ct ct' x x']`` with the values x where they stand,
            as a table like `table`; None where they are independent of each other.
        through: Cotangents only: the table behind the activation that made the value,
            where whatever chose the cotangent looked at the value (max pooling).
        weights: Random weights that one channel is made of (its fan-in); a statistic of
            one channel has no more degrees of freedom than these.
        spread: ``(*lags,)``: relative covariance of the second moments of a pair of
            positions, over networks and examples; 0.0 for none.
        mixture: The same of the second moments of one unit and another, given all that
            is the same for both.
        scatter: Variance from unit to unit, at most, of the correlation of a pair of
            positions, as Fisher's z; of units that read few channels.
        settled: What of its channels a normalization took from fluctuating.
        empty: Probability that a value is zero, because all that it sums is.
        lost: Cotangents only: what such zeros behind took of the logarithm. An entry
            that an activation passes on is not zero, so that it is given back there.
        powers: Equally likely factors of the second moments, of mean 1, where their
            law over the examples is known; None where it is taken for log-normal.
        uneven: The largest relative variance of second moments over examples at one
            position, behind the first weights and of data; 0.0 elsewhere.
        response: Cotangents only: what they gain by such fluctuations of the value.
        coherence: Cotangents only: how far channels go together.
        profile: Cotangents only: ``(node,)``, their power given the value, at the nodes
            of its marginal law, of mean 1 (`layerwise.theory.profile`); None where they
            are independent of it.
        amplitude: Cotangents only: ``(node,)``, the slopes in it, with their signs, of
            mean square 1 likewise; None where that is not known.
    """

    mean: Any  # arrays; NumPy makes scalars of those without axes
    table: Any
    lags: tuple[tuple[int, ...], ...]
    log_scale: float = 0.0
    shape: np.ndarray | None = None
    own_law: tuple[np.ndarray | None] | None = None
    peaked: float = 0.0
    symmetric: bool = False
    comb: tuple[int, ...] = ()
    joint: Any = None
    through: Any = None
    weights: float = np.inf
    spread: Any = 0.0
    mixture: float = 0.0
    scatter: float = 0.0
    settled: Settled = UNSETTLED
    empty: float = 0.0
    lost: float = 0.0
    powers: np.ndarray | None = None
    uneven: float = 0.0
    response: Response = NO_RESPONSE
    coherence: Coherence = INDEPENDENT
    profile: np.ndarray | None = None
    amplitude: np.ndarray | None = None

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.lags)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Positions per axis."""
        return np.shape(self.mean)

    @property
    def combs(self) -> tuple[int, ...]:
        """The comb, filled in."""
        return self.comb or (1,) * self.rank

    @functools.cached_property
    def second(self) -> np.ndarray:
        """``(*positions,)``: scaled second moments."""
        return np.asarray(self.table[(0, *lagging.zero(self.lags))])

    @functools.cached_property
    def levels(self) -> tuple[float, float]:
        """Mean and second moment over all positions, scaled."""
        return float(np.mean(self.mean)), float(np.mean(self.second))

    @property
    def spreads(self) -> np.ndarray:
        """``(*lags,)``: the spread, filled in."""
        return np.broadcast_to(self.spread, [len(v) for v in self.lags])

    @functools.cached_property
    def own_spread(self) -> float:
        """The spread of single positions."""
        if np.ndim(self.spread) == 0:
            return float(self.spread)
        return float(self.spreads[lagging.zero(self.lags)])

    @property
    def is_centred_normal(self) -> bool:
        """Whether entries are normal and of mean zero."""
        return self.shape is None and not np.any(self.mean)

    @property
    def apart(self) -> float:
        """How far positions fluctuate apart: the spread of one less what all share.

        As a logarithm; all of it where no pairs are held to tell.
        """
        own = float(np.log1p(self.own_spread))
        if np.ndim(self.spread) == 0 or np.size(self.spread) == 1:
            return own
        return own - float(np.log1p(np.min(self.spread)))

    @property
    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        """Factors of the second moments, of mean 1, and their probabilities.

        Those known over examples first; what networks add to them is log-normal.
        """
        if self.powers is None:
            return log_normal(self.own_spread)
        known = float(np.var(self.powers))
        rest = max((1.0 + self.own_spread) / (1.0 + known) - 1.0, 0.0)
        more, chances = log_normal(rest if rest > HARDLY else 0.0, nodes=3)
        factors = np.multiply.outer(self.powers, more)
        return factors.ravel(), np.tile(chances / len(self.powers), len(self.powers))

    @functools.cached_property
    def correlations(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean square, size and value of a pair's correlation, each ``(*lags,)``."""
        sd = np.sqrt(np.maximum(self.second - np.square(self.mean), 0.0))
        half = lagging.half(self.lags)
        covariance = lagging.half_of(self.table, self.lags)[0]
        if np.any(self.mean):
            covariance = covariance - lagging.pairs_of(self.mean, half)
        rho = covariance * lagging.pairs_of(inverse(sd), half)
        rho = np.clip(rho, -1.0, 1.0).reshape(*map(len, half), -1)
        live = lagging.inside(half, self.sizes)
        if not np.all(sd > 0):
            live = lagging.pairs_of(sd > 0, half)
        count = np.maximum(live.reshape(rho.shape).sum(axis=-1), 1)
        square, value = np.einsum("...p,...p->...", rho, rho), rho.sum(axis=-1)
        size = np.abs(rho, out=rho).sum(axis=-1)
        square, size, value = (
            lagging.mirrored(np.asarray(v / count)) for v in (square, size, value)
        )
        return square, size, value

    def single(self) -> "Field":
        """Returns the field with single positions only, pairs forgotten."""
        if all(len(v) == 1 for v in self.lags):
            return self
        at = (slice(None), *(slice(v.index(0), v.index(0) + 1) for v in self.lags))
        cut = lambda x: None if x is None else x[at].copy()
        return self.replace(
            table=cut(self.table),
            lags=((0,),) * self.rank,
            joint=cut(self.joint),
            through=cut(self.through),
            spread=self.own_spread,
            response=self.response.single(lagging.zero(self.lags)),
        )

    def replace(self, **changes: object) -> "Field":
        """Returns a copy with changes."""
        return _replaced(self, changes)

    def advanced(self, log_scale: float, spread: float) -> "Field":
        """Returns the field at another scale, with more spread."""
        wider = np.maximum(self.spread + spread, 0.0) if spread else self.spread
        got = self.replace(log_scale=self.log_scale + log_scale, spread=wider)
        for name in ("second", "levels", "correlations"):  # of the tables alone
            if name in self.__dict__:
                got.__dict__[name] = self.__dict__[name]
        return got

    def scaled(self, factor: float) -> "Field":
        """Returns the field of the value times a constant of square `factor` > 0."""
        return self.replace(log_scale=self.log_scale + float(np.log(factor)))

    def scaled_safe(self, factor: float) -> "Field":
        """`scaled`, where the factor may be zero (weights initialized at zero)."""
        if factor > 0.0:
            return self.scaled(factor)
        return self.replace(
            mean=0.0 * self.mean, table=0.0 * self.table, log_scale=0.0, joint=None
        )

    def normalized(self) -> "Field":
        """Returns the same field, its largest second moment taken into the scale."""
        top = float(np.max(self.second, initial=0.0))
        if not 0.0 < top < np.inf or 1e-3 < top < 1e3:
            return self
        return self.rescaled(self.log_scale + float(np.log(top)))

    def rescaled(self, log_scale: float) -> "Field":
        """Returns the same field at another scale."""
        factor = float(np.exp(np.clip(self.log_scale - log_scale, -700, 700)))
        if factor == 1.0:
            return self.replace(log_scale=log_scale)
        return self.replace(
            mean=self.mean * np.sqrt(factor),
            table=self.table * factor,
            log_scale=log_scale,
            joint=None if self.joint is None else self.joint * factor,
            through=None if self.through is None else self.through * factor,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class State:
    """Moments of one value.

    Attributes:
        axes: Role of each array axis: "b" example, "s" position, "c" channel.
        parts: (channels, field), in the order of the channels.
        mean_grade: How the mean was come by.
        grade: How the second moment was come by.
        sources: Sampled equations that this depends on.
        roots: Random roots that it is a function of, weights of its own left out:
            values with disjoint roots are independent in a wide network.
        terms: The value as a sum of others, ``(value, coefficient)``.
        tolerance: Bound on the error of the logarithm of the second moment: what the
            rules on the way state for themselves, added up.
        pair_tolerance: The same for the pair moments, on top of it.
        chosen: Cotangents only: bound on what the logarithm of a second moment may be
            above its average where they stand, as a maximum has chosen that.
        heeds: Cotangents only: how far they follow the values of a sum on the way: the
            squared correlation of the slopes behind with the sum.
        coherent: Cotangents only: whether those of different positions depend on each
            other, so that the weights between them and the masks matter together.
    """

    axes: tuple[str, ...]
    parts: tuple[tuple[int, Field], ...]
    mean_grade: Grade = Grade.EXACT
    grade: Grade = Grade.EXACT
    sources: frozenset[str] = frozenset()
    roots: frozenset[int] = frozenset()
    terms: tuple[tuple[int, float], ...] = ()
    tolerance: float = 0.0
    pair_tolerance: float = 0.0
    chosen: float = 0.0
    heeds: float = 0.0
    coherent: bool = False

    @property
    def channels(self) -> int:
        """Number of channels of all parts."""
        return sum(n for n, _ in self.parts)

    def average(self) -> Field:
        """Returns the field averaged over all channels."""
        if len(self.parts) == 1:
            return self.parts[0][1]
        return mix(
            [f for _, f in self.parts], [n / self.channels for n, _ in self.parts]
        )

    def moments(self) -> tuple[float, float, float]:
        """Returns (mean, log E[x^2], E[x^2]) over everything; -inf for zero."""
        return self._moments

    @functools.cached_property
    def _moments(self) -> tuple[float, float, float]:
        field = self.average()
        mean, second = field.levels
        log = -math.inf if second == 0.0 else math.nan
        if second > 0.0:
            log = math.log(second) + field.log_scale
        return mean * _exp(0.5 * field.log_scale), log, _exp(log)

    def map(self, function: object, **changes: object) -> "State":
        """Returns the state with `function` applied to every part's field."""
        assert callable(function)
        parts = tuple((n, function(f)) for n, f in self.parts)
        if not changes and all(a[1] is b[1] for a, b in zip(parts, self.parts)):
            return self
        return _replaced(self, {"parts": parts, **changes})


def _replaced(value: Any, changes: Mapping[str, object]) -> Any:
    """`dataclasses.replace` without ``__init__``: states are copied often."""
    made = object.__new__(type(value))
    names = _names(type(value))
    made.__dict__.update({name: value.__dict__[name] for name in names})
    assert changes.keys() <= made.__dict__.keys(), changes.keys()
    made.__dict__.update(changes)
    return made


@functools.cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(kind))


def _exp(x: float) -> float:
    """Returns exp(x), infinite where float64 has no such number."""
    return math.inf if x >= LARGEST else math.exp(x)


LARGEST = math.log(np.finfo(np.float64).max)


def inverse(values: np.ndarray | np.floating) -> np.ndarray:
    """Returns 1 / values, and 0 for 0."""
    whole = np.asarray(values)
    return np.divide(1.0, whole, out=np.zeros(whole.shape), where=whole > 0)


def share_roots(states: Sequence[State]) -> bool:
    """Whether any two values have a random root in common, and so may be dependent."""
    roots = [s.roots for s in states]
    return sum(map(len, roots)) > len(frozenset().union(*roots))


def both_readers(a: State, b: State) -> State:
    """Returns the cotangent `a` with what is to be said of it and another reader's."""
    return dataclasses.replace(
        a,
        grade=Grade(max(a.grade, b.grade)),
        mean_grade=Grade(max(a.mean_grade, b.mean_grade)),
        sources=a.sources | b.sources,
        roots=a.roots | b.roots,
        tolerance=max(a.tolerance, b.tolerance),
        pair_tolerance=max(a.pair_tolerance, b.pair_tolerance),
        chosen=max(a.chosen, b.chosen),
        heeds=max(a.heeds, b.heeds),
        coherent=a.coherent or b.coherent,
    )


def common(shares: Sequence[float], spreads: Sequence[Any]) -> np.ndarray:
    """Returns the spread of a sum whose terms rise and fall together."""
    roots = [
        s * np.sqrt(np.maximum(v, 0.0)) for s, v in zip(shares, spreads, strict=True)
    ]
    return np.asarray(np.square(sum(roots)))


def mix(fields: Sequence[Field], weights: Sequence[float]) -> Field:
    """Returns the average of fields, weighted: what a channel taken at random has."""
    live = [(f, w) for f, w in zip(fields, weights, strict=True) if w > 0]
    scale = max(f.log_scale for f, _ in live)
    at = [(f.rescaled(scale), w) for f, w in live]
    first = at[0][0]
    comb = tuple(
        int(np.gcd.reduce([f.combs[a] for f, _ in at])) for a in range(first.rank)
    )
    joint = None
    if any(f.joint is not None for f, _ in at):
        joint = sum(w * (f.table if f.joint is None else f.joint) for f, w in at)
    power = [w * float(np.mean(f.second)) for f, w in at]
    shares = [p / sum(power) for p in power] if sum(power) > 0 else [w for _, w in at]
    return Field(
        mean=np.asarray(sum(w * f.mean for f, w in at)),
        table=np.asarray(sum(w * f.table for f, w in at)),
        lags=first.lags,
        log_scale=scale,
        shape=first.shape if len(at) == 1 else None,
        symmetric=all(f.symmetric for f, _ in at),
        comb=comb,
        joint=None if joint is None else np.asarray(joint),
        weights=min(f.weights for f, _ in at),
        spread=common(shares, [f.spread for f, _ in at]),
        response=Response.average([f.response for f, _ in at], shares),
        coherence=Coherence.average([f.coherence for f, _ in at], shares),
        profile=average_profile([f.profile for f, _ in at], shares),
        amplitude=average_amplitude([f for f, _ in at], shares),
    )


UNLIKE_COMBS = 0.05
"""Pairs interpolated where one of two maps correlates at multiples of a lag alone."""


def comb_error(fields: Sequence[Field]) -> float:
    """Returns how far off, as a logarithm, pairs of a sum or average are for that."""
    first = fields[0]
    alike = all(f.combs == first.combs for f in fields)
    return (
        0.0 if alike or lagging.is_complete(first.lags, first.sizes) else UNLIKE_COMBS
    )


def average_profile(
    profiles: Sequence[np.ndarray | None], shares: Sequence[float]
) -> np.ndarray | None:
    """Returns the profile of a sum of cotangents, by their shares of its power."""
    if all(p is None for p in profiles):
        return None
    known = [1.0 if p is None else p for p in profiles]
    return np.asarray(sum(s * p for s, p in zip(shares, known, strict=True)))


def average_amplitude(
    fields: Sequence[Field], shares: Sequence[float]
) -> np.ndarray | None:
    """Returns the slopes in a sum of cotangents, about, by shares of its power."""
    if all(f.profile is None for f in fields):
        return None
    if any(f.amplitude is None and f.profile is not None for f in fields):
        return None
    return average_profile([f.amplitude for f in fields], shares)


def white(
    sizes: tuple[int, ...], classes: int, second: np.ndarray, level: int
) -> Field:
    """Returns the field of independent zero-mean entries of given second moments."""
    lags = tuple(lagging.lag_values(n, level) for n in sizes)
    table = np.zeros((classes, *map(len, lags), *sizes))
    table[(0, *lagging.zero(lags))] = second
    return Field(np.zeros(sizes), table, lags, symmetric=True)
