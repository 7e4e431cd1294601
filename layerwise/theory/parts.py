"""Runs of alike channels: those of two values side by side."""

import dataclasses

from layerwise.theory.refusal import NoSoundRule
from layerwise.theory.state import Field, State, mix


def aligned(a: State, b: State) -> tuple[tuple[int, Field, Field], ...]:
    """Returns the channel runs of two states of one shape, cut where either is."""
    runs, i, j = [], 0, 0
    left, right = a.parts[0][0], b.parts[0][0]
    while True:
        n = min(left, right)
        runs.append((n, a.parts[i][1], b.parts[j][1]))
        left, right = left - n, right - n
        if left == 0:
            i += 1
        if right == 0:
            j += 1
        if i == len(a.parts) or j == len(b.parts):
            break
        left = left or a.parts[i][0]
        right = right or b.parts[j][0]
    if left or right:
        raise NoSoundRule("operands with different numbers of channels")
    return tuple(runs)


def fit_parts(cotangent: State, value: State) -> State:
    """Returns a cotangent cut into the channel runs of `value`."""
    counts = [n for n, _ in value.parts]
    if [n for n, _ in cotangent.parts] == counts:
        return cotangent
    blank = dataclasses.replace(value)
    merged: list[tuple[int, Field]] = []
    runs = list(aligned(blank, cotangent))
    for n in counts:
        taken, fields, sizes = 0, [], []
        while taken < n:
            m, _, f = runs.pop(0)
            fields.append(f)
            sizes.append(m)
            taken += m
        merged.append((n, mix(fields, [m / n for m in sizes])))
    return dataclasses.replace(cotangent, parts=tuple(merged))
