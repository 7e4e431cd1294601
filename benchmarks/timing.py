"""Interleaved timing: variants take turns, so that a busy machine is shared fairly.

The order is shuffled for every round, and a turn can begin with a call that is not
counted: what ran before leaves memory and caches as it used them, and the next pays.
"""

import dataclasses
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds per unit of work, one entry per round.

    Attributes:
        wall: By the clock.
        cpu: Of all threads of this process.
    """

    wall: np.ndarray
    cpu: np.ndarray

    def summary(self) -> dict[str, float]:
        """Returns medians and minima."""
        return {
            "wall_median": float(np.median(self.wall)),
            "wall_min": float(self.wall.min()),
            "cpu_median": float(np.median(self.cpu)),
            "cpu_min": float(self.cpu.min()),
        }


def interleaved(
    variants: Mapping[str, tuple[Callable[[], Any], int]],
    rounds: int,
    *,
    again: bool = True,
) -> dict[str, Times]:
    """Times every variant once per round.

    Args:
        variants: Name -> (function that returns when its work is done, units of work).
        rounds: Number of rounds.
        again: In each turn, call once more before the call that is timed. Without it
            one more round is run, and thrown away.
    """
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    order, shuffler = list(variants.items()), random.Random(0)
    for number in range(rounds + (not again)):
        shuffler.shuffle(order)
        for name, (call, units) in order:
            if again:
                call()
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if again or number:
                seen[name].append((wall / units, cpu / units))
    return {name: Times(*np.array(t).T) for name, t in seen.items()}
