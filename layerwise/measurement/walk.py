"""Running a graph with taps in it, through its loops and branches.

A scan's body is read iteration by iteration, the branch that a cond takes once, and a
while's body on average over its iterations.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from layerwise import _jax
from layerwise.measurement.statistics import Statistic
from layerwise.measurement.taps import Reading, absent_like, read, tap
from layerwise.tracing.dataflow import body_operands
from layerwise.tracing.graph import Equation, Evaluator, Graph, evaluate
from layerwise.tracing.layers import Loop


Readings = dict[int, Reading]
"""Value -> its reading, with a leading axis for each scan around it."""

Arrays = dict[int, jax.Array]
"""Value -> its frames, or its sum of squares, with such leading axes."""


def squares(arrays: Mapping[int, jax.Array]) -> dict[int, jax.Array]:
    """Returns the sum of each array's squared entries, as constants."""
    return {
        v: read(jax.lax.stop_gradient(x), None, ()).square for v, x in arrays.items()
    }


@dataclasses.dataclass(frozen=True)
class Walk:
    """Evaluates a graph with taps, and the bodies of its loops with theirs.

    Attributes:
        loops: The loops and branches to look into.
        sites: Values that are read.
        used: Values that hold weights and biases, whose squares' sums are returned.
        override: Faster equivalents of some equations, or None.
        statistics: What is asked of sites beside their moments.
    """

    loops: tuple[Loop, ...]
    sites: frozenset[int]
    used: frozenset[int]
    override: Evaluator | None
    statistics: tuple[Statistic, ...]

    def graph(
        self,
        graph: Graph,
        args: Sequence[Any],
        sinks: Readings,
        frames: Arrays | None,
    ) -> tuple[list[Any], Readings, Arrays]:
        """Returns the outputs, the readings of sites and parameters' squares."""
        seen: Readings = {}
        second: Arrays = {}
        used: dict[int, jax.Array] = {}

        def on_value(value: int, x: Any) -> Any:
            if value in self.used:
                used[value] = x
                return tap(x, sinks[value], None, ()) if value in sinks else x
            if value not in self.sites:
                return x
            ahead, back = (None, None) if frames is None else frames[value]
            seen[value] = read(jax.lax.stop_gradient(x), ahead, self.statistics)
            if value not in sinks:
                return x
            return tap(x, sinks[value], back, self.statistics)

        def override(equation: Equation, operands: list[Any]) -> list[Any] | None:
            inside = {y.body: y for y in self.loops if y.equation is equation}
            if not inside and equation.name != "while":
                return (
                    None if self.override is None else self.override(equation, operands)
                )
            enter = {"scan": self.scan, "cond": self.cond, "while": self.while_}
            outs, inner, parameters = enter[equation.name](
                equation, inside, operands, sinks, frames
            )
            seen.update(inner)
            second.update(parameters)
            return outs

        outs = evaluate(graph, args, override=override, on_value=on_value)
        return outs, seen, second | squares(used)

    def _inside(self, loop: Loop | None) -> "Walk":
        return dataclasses.replace(self, loops=loop.loops if loop else ())

    def scan(
        self,
        equation: Equation,
        inside: dict[int, Loop],
        operands: list[Any],
        sinks: Readings,
        frames: Arrays | None,
    ) -> tuple[list[Any], Readings, Arrays]:
        """Runs a scan with taps in its body.

        Sinks and frames go in by iteration, and readings come out by iteration.
        """
        loop, p = inside[0], equation.params
        _, first, carries = body_operands(equation)
        after = first + carries
        values = {v for g in loop.graphs() for v in g.avals}
        own = {v: s for v, s in sinks.items() if v in values}
        framed = frames and {v: f for v, f in frames.items() if v in values}
        inner = self._inside(loop)

        def body(carry: list[Any], x: Any) -> tuple[list[Any], Any]:
            slices, sinks, frames = x
            args = [*operands[:first], *carry, *slices]
            outs, seen, second = inner.graph(loop.graph, args, sinks, frames)
            return outs[:carries], (outs[carries:], seen, second)

        carry, (ys, seen, second) = jax.lax.scan(
            body,
            operands[first:after],
            (operands[after:], own, framed),
            length=p["length"],
            reverse=p["reverse"],
            unroll=p["unroll"],
        )
        return [*carry, *ys], seen, second

    def cond(
        self,
        equation: Equation,
        inside: dict[int, Loop],
        operands: list[Any],
        sinks: Readings,
        frames: Arrays | None,
    ) -> tuple[list[Any], Readings, Arrays]:
        """Runs a cond with taps in its branches: those not taken read as absent."""
        branches = [
            functools.partial(
                self._inside(inside.get(i)).graph, body, sinks=sinks, frames=frames
            )
            for i, body in enumerate(equation.bodies)
        ]
        shapes = [jax.eval_shape(f, operands[1:]) for f in branches]
        nothing: tuple[Readings, Arrays] = ({}, {})
        for _, seen, second in shapes:
            nothing[0].update({v: absent_like(x) for v, x in seen.items()})
            nothing[1].update(
                {v: jnp.full(x.shape, jnp.nan, x.dtype) for v, x in second.items()}
            )

        def complete(f: Callable[..., Any]) -> Callable[..., Any]:
            def run(args: list[Any]) -> Any:
                outs, seen, second = f(args)
                return outs, nothing[0] | seen, nothing[1] | second

            return run

        return jax.lax.switch(
            operands[0], [complete(f) for f in branches], operands[1:]
        )

    def while_(
        self,
        equation: Equation,
        inside: dict[int, Loop],
        operands: list[Any],
        sinks: Readings,
        frames: Arrays | None,
    ) -> tuple[list[Any], Readings, Arrays]:
        """Runs a while with its body read: the average over its iterations.

        JAX has no reverse derivative of a while, so that nothing is differentiated in
        it, and no cotangent leaves it.
        """
        tested, constant = _jax.while_counts(equation.eqn)
        operands = [
            jax.lax.stop_gradient(x) if jnp.issubdtype(x.dtype, jnp.inexact) else x
            for x in map(jnp.asarray, operands)
        ]
        carry = operands[tested + constant :]
        inner = self._inside(inside.get(1))

        def test(state: Any) -> jax.Array:
            return evaluate(equation.bodies[0], [*operands[:tested], *state[0]])[0]

        def step(carry: list[Any]) -> tuple[list[Any], Readings, Arrays]:
            constants = operands[tested : tested + constant]
            return inner.graph(equation.bodies[1], [*constants, *carry], {}, frames)

        def body(state: Any) -> Any:
            carry, counts, totals, held = state
            outs, seen, second = step(carry)
            for v, x in seen.items():
                ran = ~(x.square < 0)
                counts = counts | {v: counts[v] + ran}
                zero = jax.tree.map(jnp.zeros_like, x)
                more = jax.tree.map(jnp.add, totals[v], _where(ran, x, zero))
                totals = totals | {v: more}
            held = {v: jnp.where(jnp.isnan(x), held[v], x) for v, x in second.items()}
            return outs, counts, totals, held

        _, seen, second = jax.eval_shape(step, carry)
        start = (
            carry,
            {v: jnp.zeros(x.square.shape, jnp.int32) for v, x in seen.items()},
            {v: jax.tree.map(jnp.zeros_like, x) for v, x in seen.items()},
            {v: jnp.full(x.shape, jnp.nan, x.dtype) for v, x in second.items()},
        )
        outs, counts, totals, held = jax.lax.while_loop(test, body, start)
        means = {
            v: _where(counts[v] > 0, _over(x, counts[v]), absent_like(x))
            for v, x in totals.items()
        }
        return outs, means, held


def _where(condition: jax.Array, reading: Reading, other: Reading) -> Reading:
    return Reading(
        jnp.where(condition, reading.total, other.total),
        jnp.where(condition, reading.square, other.square),
        jnp.where(condition[..., None], reading.others, other.others),
    )


def _over(reading: Reading, count: jax.Array) -> Reading:
    count = jnp.maximum(count, 1)
    return Reading(
        reading.total / count, reading.square / count, reading.others / count[..., None]
    )
