"""Interleaved timing: variants take turns, so that a busy machine is shared fairly.

The order is shuffled for every round, and a turn can begin with a call that is not
counted: what ran before leaves memory and caches as it used them, and the next pays.
"""

import dataclasses
import itertools
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
        """Returns medians, minima and the number of rounds."""
        return {
            "wall_median": float(np.median(self.wall)),
            "wall_min": float(self.wall.min()),
            "cpu_median": float(np.median(self.cpu)),
            "cpu_min": float(self.cpu.min()),
            "rounds": len(self.wall),
        }

    def over(self, base: "Times") -> dict[str, float]:
        """Returns what this took over what `base` took in the same rounds.

        The median of the rounds' ratios: a machine's pace changes by a quarter within
        minutes, but little within a round. ``wall_error`` is its standard error, by
        resampling the rounds.
        """
        wall, cpu = self.wall / base.wall, self.cpu / base.cpu
        draws = random.Random(0).choices(wall, k=1000 * len(wall))
        medians = np.median(np.reshape(draws, (1000, len(wall))), axis=1)
        return {
            "wall": float(np.median(wall)),
            "wall_error": float(medians.std()),
            "cpu": float(np.median(cpu)),
        }


def interleaved(
    variants: Mapping[str, tuple[Callable[[], Any], int]],
    rounds: int,
    seconds: float = 0.0,
    *,
    again: bool = True,
) -> dict[str, Times]:
    """Times every variant once per round.

    Args:
        variants: Name -> (function that returns when its work is done, units of work).
        rounds: The fewest rounds.
        seconds: More rounds until so much time has passed.
        again: In each turn, call once more before the call that is timed. Without it
            one more round is run, and thrown away.
    """
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    order, shuffler = list(variants.items()), random.Random(0)
    start, least = time.perf_counter(), rounds + (not again)
    for number in itertools.count():
        if number >= least and time.perf_counter() - start >= seconds:
            break
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
