"""Contractions in groups of channels that are not alike."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

from layerwise.theory.parts import fit_parts
from layerwise.theory.registry import NoSoundRule
from layerwise.theory.state import State, both_readers


def runs(state: State, fan: int) -> list[State]:
    """Returns the runs of alike channels that groups of `fan` channels are cut from.

    Raises:
        NoSoundRule: If a group reads channels of two runs.
    """
    if fan == state.channels or len(state.parts) == 1:
        return [state]
    if any(n % fan for n, _ in state.parts):
        raise NoSoundRule("groups of unlike channels")
    return [dataclasses.replace(state, parts=(part,)) for part in state.parts]


def beside(states: Sequence[State]) -> State:
    """Returns the channels of several states, one run behind the other."""
    whole = functools.reduce(both_readers, states)
    return dataclasses.replace(whole, parts=tuple(p for s in states for p in s.parts))


def each(
    value: State,
    fan: int,
    out: State,
    cotangent: State,
    rule: Callable[[State, State, State], State],
) -> State:
    """Returns the cotangent of `value`, by a rule for each run of alike channels."""
    mine = runs(value, fan)
    if len(mine) == 1:
        return rule(value, out, cotangent)
    fitted = fit_parts(cotangent, out)
    alone = lambda state, i: dataclasses.replace(state, parts=(state.parts[i],))
    return beside(
        [rule(run, alone(out, i), alone(fitted, i)) for i, run in enumerate(mine)]
    )
