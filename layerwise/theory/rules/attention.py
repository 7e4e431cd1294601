"""Attention: a block of equations between projections and what follows them.

Given the tokens, queries, keys and values behind fresh weights are independent and
normal, so that the moments of the result are those of the block on draws from their
kernels (`layerwise.theory.simulation`). Kernels are averages over the examples, and
attention is not linear in them: where examples differ, the pairs' tolerance says so.
Backward the cotangent is drawn likewise, independent of queries, keys and values as it
is in the wide limit.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from layerwise.theory import simulation
from layerwise.theory.attention import Block
from layerwise.theory.context import Node, RuleContext
from layerwise.theory.registry import NoSoundRule, rule
from layerwise.theory.rules.elementwise import worst
from layerwise.theory.state import Field, Grade, State, share_roots


FORWARD, BACKWARD = 0.02, 0.1
"""Stated errors: how kernels fluctuate, beyond what tokens of a finite width do."""


@rule("attention", family="attention")
class Attention:
    """Two products of signals behind fresh weights, with all between: simulated."""

    @staticmethod
    def forward(ctx: RuleContext, node: Node, states: Sequence[State]) -> State:
        """Draws queries, keys and values; approximate."""
        block: Block = node.data
        given = _given(block, states)
        if block.inside:
            return _summarized(given, *simulation.summary(ctx, block, given))
        got, error = simulation.forward(ctx, block, given)
        return dataclasses.replace(
            got,
            mean_grade=worst(*(s.grade for s in given), Grade.APPROXIMATE),
            grade=worst(*(s.grade for s in given), Grade.APPROXIMATE),
            sources=frozenset().union(*(s.sources for s in given)),
            tolerance=_stated(given) + FORWARD + 2 * error,
        )

    @staticmethod
    def backward(
        ctx: RuleContext,
        node: Node,
        states: Sequence[State],
        out: State,
        cotangent: State,
    ) -> Sequence[State | None]:
        """Pulls a drawn cotangent back through the block; approximate."""
        block: Block = node.data
        if block.inside:
            return [None] * len(states)
        given = _given(block, states)
        back, inside, error = simulation.backward(ctx, block, given, out, cotangent)
        own = cotangent.tolerance + cotangent.pair_tolerance + _stated(given)

        def stated(state: State, more: float = 0.0) -> State:
            return dataclasses.replace(
                state,
                mean_grade=worst(cotangent.mean_grade, Grade.APPROXIMATE),
                grade=worst(
                    cotangent.grade, *(s.grade for s in given), Grade.APPROXIMATE
                ),
                sources=cotangent.sources.union(*(s.sources for s in given)),
                tolerance=own + BACKWARD + 2 * error + more,
                coherent=True,
            )

        reported = [_summarized(given, *moments) for moments in inside]
        together = max(
            _together(ctx, v, state, cotangent.heeds)
            for v, state in zip(block.inputs, given, strict=True)
        )
        return [
            *(stated(s, together) for s in back),
            *(stated(s) for s in reported),
        ]


def _together(ctx: RuleContext, value: int, state: State, heeds: float) -> float:
    """Returns what a cotangent adds that goes with the tokens, as a logarithm.

    A key's and a value's are sums over queries. The tokens of C channels correlate by
    chance, by 1/C in square, and so do queries and, where slopes follow the tokens,
    cotangents.
    """
    shape = ctx.shape(value)
    tokens = math.prod(n for n, role in zip(shape, state.axes) if role == "s")
    return float(np.log1p(heeds * tokens / state.average().weights))


def _given(block: Block, states: Sequence[State]) -> Sequence[State]:
    """Returns the states of the block's inputs.

    Raises:
        NoSoundRule: If they depend on each other.
    """
    given = states[: len(block.inputs)]
    if share_roots(given):
        raise NoSoundRule("queries, keys or values that share weights")
    return given


def _stated(given: Sequence[State]) -> float:
    return max(s.tolerance + s.pair_tolerance for s in given)


def _summarized(given: Sequence[State], mean: float, second: float) -> State:
    """Returns the moments of a value inside a block, which nothing else reads."""
    field = Field(np.asarray(mean), np.asarray([second]), ())
    return State(
        (),
        ((1, field),),
        worst(*(s.grade for s in given), Grade.APPROXIMATE),
        worst(*(s.grade for s in given), Grade.APPROXIMATE),
        frozenset().union(*(s.sources for s in given)),
        tolerance=_stated(given) + FORWARD,
    )
