"""A batch in groups of examples, each with moments of its own.

A field holds averages over the examples, and a function that is not homogeneous does
not have its average at the average of its operand. The rules correct for what differs
between examples to lowest order, and state the rest as their error. Where that is too
much, the batch is cut into groups, down to single examples; each has an engine of its
own, and what is wanted are the averages over all of them. Exact where nothing mixes
examples: the second moment of a batch is the average of its examples'. Where batch
normalization mixes them and one is zero, rules go no farther than the first activation.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from layerwise.theory.engine import Engine
from layerwise.theory.reach import Reach
from layerwise.theory.resolution import DENSE_BUDGET, is_bent, is_curved
from layerwise.theory.state import Field, Grade, State


TOO_MUCH = 0.1
"""Stated error of a logarithm above which examples are told apart."""
TOGETHER = "an example that is zero, in a batch that is normalized together"
MOST = 8
"""Groups of examples, at most."""
Arrays = dict[int, np.ndarray]


class Moments(NamedTuple):
    """Moments of one value over a batch.

    Attributes:
        mean: E[x].
        log: log E[x^2]; -inf for zero.
        grade: How the second moment was come by.
        mean_grade: How the mean was.
        tolerance: Bound on the error of `log`.
    """

    mean: float
    log: float
    grade: Grade
    mean_grade: Grade
    tolerance: float


Sweep = Callable[[Sequence[Engine]], None]
"""Runs engines, in step if need be."""


def run(
    make: Callable[..., Engine], sweep: Sweep, **options: Any
) -> tuple[Engine, list[Engine]]:
    """Runs the engine of a whole batch, and those of its groups where need be.

    Those of least and most power are tried first: where they are alike, so will the
    others be. Where the rules do not go as far for a group as for the whole, the whole
    is run again, by rules no farther than that.

    Args:
        make: Makes an engine, from keyword arguments of `Engine`.
        sweep: Runs engines.
        options: Those of the whole batch's engine alone.

    Returns:
        The engine of the whole batch, and those that hold what is wanted as far as
        they go: the groups', or it alone.
    """
    whole = make(**options)
    sweep([whole])
    if whole.ctx.classes > 1 and _some_are_zero(whole):
        first = next((n.output for n in whole.nodes if is_bent(n)), None)
        if first is not None:
            whole = make(**options, within=Reach(forward=first, why=TOGETHER))
            sweep([whole])
    parts = _groups(whole)
    if not parts:
        return whole, [whole]

    def engines(arrays: Sequence[Arrays]) -> list[Engine]:
        made = [
            make(
                arrays=x,
                budget=DENSE_BUDGET / len(parts),
                draws=0,
                group=(i, len(parts)),
            )
            for i, x in enumerate(arrays)
        ]
        sweep(made)
        return made

    order = sorted(parts, key=_power)
    tried = engines([order[0], order[-1]])
    if not (_differ(*tried) or _divides_unevenly(whole)):
        return whole, [whole]
    if len(parts) > 2:
        tried = engines(parts)
    own = whole.reach()
    least = own.least([e.reach() for e in tried])
    if least is not own:
        whole = make(**options, within=least)
        sweep([whole])
    return whole, tried


def both_ways(engines: Sequence[Engine]) -> None:
    """Runs every engine, forward and backward."""
    for engine in engines:
        engine.run()


def _groups(engine: Engine) -> list[Arrays]:
    """Returns what a batch should be cut into; nothing if it should be left whole."""
    n, count = engine.ctx.batch, _count(engine.ctx.batch)
    if count == 1 or engine.ctx.classes > 1 or engine.ctx.white:
        return []
    if engine.scaled == "backward" and engine.reasons:  # groups draw nothing to go on
        return []
    if not (_told_apart(engine) or _some_are_zero(engine)):
        return []
    made = []
    for members in np.arange(n).reshape(count, -1):
        rows = np.resize(members, n)  # repeated to the size of the batch
        made.append(
            {
                v: x[rows] if x.shape[:1] == (n,) else x
                for v, x in engine.ctx.data.items()
            }
        )
    return made


def _power(arrays: Arrays) -> float:
    """Returns the mean square of the data of a group, of all arrays together."""
    found = [x for x in arrays.values() if np.issubdtype(x.dtype, np.floating)]
    return float(sum(np.mean(np.square(x, dtype=np.float64)) for x in found if x.size))


def _told_apart(engine: Engine) -> bool:
    """Whether examples may not have the average's moments behind some function."""
    if _divides_unevenly(engine):
        return True
    if not any(n.name == "attention" or is_curved(n) for n in engine.nodes):
        return False
    states = [*engine.known.values(), *engine.total.values()]
    stated = max((s.tolerance for s in states), default=0.0)
    unlike = max((f.own_spread for f in _behind_data(engine)), default=0.0)
    return max(stated, unlike) > TOO_MUCH


def _divides_unevenly(engine: Engine) -> bool:
    """Whether positions where examples differ are normalized one by one.

    The mean of 1/q at one position is not told by how q differs over all of them.
    """
    if max((f.uneven for f in _behind_data(engine)), default=0.0) <= TOO_MUCH:
        return False
    roles = [
        {engine.known[n.inputs[0]].axes[a] for a in n.data.axes}
        for n in engine.nodes
        if n.name == "normalization" and n.inputs[0] in engine.known
    ]
    return any(over == {"c"} for over in roles)


def _some_are_zero(engine: Engine) -> bool:
    """Whether an activation reads zeros in some examples, where slopes differ."""
    return any(
        f.powers is not None and np.any(f.powers == 0.0) for f in _behind_data(engine)
    )


def _behind_data(engine: Engine) -> list[Field]:
    """Returns the fields that the first weights make of the data."""
    made = [
        engine.known[n.output]
        for n in engine.nodes
        if n.output in engine.known and any(v in engine.ctx.data for v in n.inputs)
    ]
    return [f for s in made for _, f in s.parts]


def _differ(a: Engine, b: Engine) -> bool:
    """Whether the second moment of any value differs."""
    logs = [[e.known[v].moments()[1] for v in a.known if v in b.known] for e in (a, b)]
    return not np.allclose(*logs, rtol=0.0, atol=TOO_MUCH)


def _count(batch: int) -> int:
    """Returns how many groups of equal size there are, at most `MOST`."""
    return max(k for k in range(1, MOST + 1) if batch % k == 0)


def average(states: Sequence[State]) -> Moments:
    """Returns the moments of a value over groups of equal size."""
    if len(states) == 1:
        (state,) = states
        mean, log, _ = state.moments()
        grade, mean_grade = (
            Grade.MEASURED if state.sources else g
            for g in (state.grade, state.mean_grade)
        )
        return Moments(mean, log, grade, mean_grade, state.tolerance)
    rows = [s.moments()[:2] for s in states]
    logs = np.array([log for _, log in rows])
    with np.errstate(invalid="ignore"):  # NaN where a sampled value is none
        log = float(np.logaddexp.reduce(logs)) - math.log(len(logs))
    shares = np.exp(logs - logs.max()) if np.isfinite(log) else np.ones(len(logs))
    errors = np.array([s.tolerance for s in states])
    top = errors.max()  # all groups off by as much as they may be, in one direction
    error = top + math.log(float(shares @ np.exp(errors - top)) / shares.sum())
    return Moments(
        float(np.mean([mean for mean, _ in rows])),
        log,
        max(Grade.MEASURED if s.sources else s.grade for s in states),
        max(Grade.MEASURED if s.sources else s.mean_grade for s in states),
        float(error),
    )


def state_of(engine: Engine, value: int, direction: str) -> State | None:
    """Returns the moments of a value or of its cotangent; None if not reached."""
    if direction == "backward":
        return engine.combined(value)
    if value in engine.known:
        return engine.known[value]
    return engine.state_of(value) if value in engine.ctx.data else None


def moments_of(
    whole: Engine, parts: Sequence[Engine], value: int, direction: str
) -> Moments | None:
    """Returns the moments over all groups, or of the whole beyond their reach.

    None if they are not known.
    """
    found = [state_of(e, value, direction) for e in parts]
    if any(s is None for s in found):
        found = [state_of(whole, value, direction)]
    states = [s for s in found if s is not None]
    return average(states) if states else None
