"""A jaxpr with its calls inlined and every value numbered.

Jaxprs nest: `jit` inside `jit`, constants at every level, variables that are equal only
within their scope. A `Graph` is the same program made flat, as analysis wants it:

* values are integers, unique across nested bodies and increasing along the program, so
  that a value's number orders it after everything it depends on;
* `jit` and `remat` are inlined (equations keep the names and source lines they had;
  what `remat` saves is memory, not mathematics);
* `scan`, `while` and `cond` keep their bodies, as graphs of their own;
* `custom_jvp_call` and `custom_vjp_call` stay one equation, so that their derivative
  rules survive evaluation;
* equations that no output depends on are dropped.

Evaluating a graph binds the original primitives: it traces, differentiates, vmaps and
jits as the model itself does.
"""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from layerwise import _jax


Atom = int | _jax.Literal
"""A numbered value, or a literal constant."""

_INLINED = ("jit", "remat")
_WITH_BODIES = ("scan", "while", "cond")


@dataclasses.dataclass(frozen=True, eq=False)
class Equation:
    """One primitive applied to numbered values.

    Attributes:
        eqn: The jaxpr equation that it came from.
        name: The primitive's name, the same in every supported JAX.
        inputs: Operands: numbered values or literals.
        outputs: The values that it defines.
        bodies: Graphs of the loop body or the branches.
        scope: Flax module path as JAX's name stack has it, outer scopes included.
        call: The call that it was inlined from, outermost first, or None.
    """

    eqn: _jax.JaxprEqn
    name: str
    inputs: tuple[Atom, ...]
    outputs: tuple[int, ...]
    bodies: tuple["Graph", ...]
    scope: str
    call: _jax.JaxprEqn | None = None

    @property
    def params(self) -> dict[str, Any]:
        """Static parameters of the primitive."""
        return self.eqn.params

    @property
    def source(self) -> str:
        """The user's source line, as ``file.py:12 (Net.__call__)``.

        Within a function of JAX's own that is jitted (`jnp.pad`), that is where it was
        called from: JAX traces such a function once, and the lines of its equations are
        those of whoever called it first.
        """
        own = _jax.source_line(self.eqn)
        if self.call is None or own.endswith(f"({self.call.params.get('name')})"):
            return own
        return _jax.source_line(self.call)

    @functools.cached_property
    def values_in(self) -> tuple[int, ...]:
        """The operands that are values, without the literals."""
        return tuple(a for a in self.inputs if isinstance(a, int))


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """A flat program: inputs, constants, equations in order, outputs.

    Attributes:
        inputs: The values that an evaluation must be given, in order.
        constants: Value -> array, for what the program closes over.
        equations: In an order that evaluates; each value is defined once.
        outputs: What an evaluation returns, in order.
        avals: Value -> its abstract shape and dtype, for this graph's own values.
    """

    inputs: tuple[int, ...]
    constants: dict[int, Any]
    equations: tuple[Equation, ...]
    outputs: tuple[Atom, ...]
    avals: dict[int, Any]

    def all_equations(self) -> Iterator[Equation]:
        """Yields every equation, those of nested bodies included, in order."""
        for equation in self.equations:
            yield equation
            for body in equation.bodies:
                yield from body.all_equations()

    def consumers(self) -> dict[int, list[Equation]]:
        """Returns value -> the equations of this graph that read it."""
        return self._consumers

    def producers(self) -> dict[int, Equation]:
        """Returns value -> the equation of this graph that defines it."""
        return self._producers

    @functools.cached_property
    def _consumers(self) -> dict[int, list[Equation]]:
        table: dict[int, list[Equation]] = {}
        for equation in self.equations:
            for value in dict.fromkeys(equation.values_in):
                table.setdefault(value, []).append(equation)
        return table

    @functools.cached_property
    def _producers(self) -> dict[int, Equation]:
        return {v: e for e in self.equations for v in e.outputs}


class _Builder:
    def __init__(self) -> None:
        self.counter = itertools.count()

    def graph(self, jaxpr: _jax.ClosedJaxpr, scope: str) -> Graph:
        avals: dict[int, Any] = {}
        constants: dict[int, Any] = {}
        equations: list[Equation] = []

        def new(var: _jax.Var) -> int:
            value = next(self.counter)
            avals[value] = var.aval
            return value

        def inline(
            jaxpr: _jax.ClosedJaxpr,
            args: Sequence[Atom],
            scope: str,
            call: _jax.JaxprEqn | None,
        ) -> list[Atom]:
            env: dict[_jax.Var, Atom] = dict(zip(jaxpr.jaxpr.invars, args, strict=True))
            for var, constant in zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True):
                value = env[var] = new(var)
                constants[value] = constant

            def read(atom: Any) -> Atom:
                return atom if isinstance(atom, _jax.Literal) else env[atom]

            for eqn in jaxpr.jaxpr.eqns:
                name = _jax.primitive_name(eqn)
                inner = _join_scope(scope, str(eqn.source_info.name_stack))
                inputs = tuple(read(a) for a in eqn.invars)
                bodies = _jax.sub_jaxprs(eqn)
                if name in _INLINED and bodies:
                    outer = call or (eqn if name == "jit" else None)
                    outs = inline(bodies[0], inputs, inner, outer)
                    env.update(zip(eqn.outvars, outs, strict=True))
                    continue
                graphs = (
                    tuple(self.graph(b, inner) for b in bodies)
                    if name in _WITH_BODIES
                    else ()
                )
                outputs = tuple(new(v) for v in eqn.outvars)
                env.update(zip(eqn.outvars, outputs, strict=True))
                equations.append(
                    Equation(eqn, name, inputs, outputs, graphs, inner, call)
                )
            return [read(a) for a in jaxpr.jaxpr.outvars]

        inputs = tuple(new(v) for v in jaxpr.jaxpr.invars)
        outputs = tuple(inline(jaxpr, inputs, scope, None))
        kept = needed_for(equations, outputs, effects=True)
        return Graph(inputs, constants, kept, outputs, avals)


def _join_scope(outer: str, inner: str) -> str:
    return "/".join(part for part in (outer, inner) if part)


def needed_for(
    equations: Sequence[Equation], outputs: Sequence[Atom], *, effects: bool = False
) -> tuple[Equation, ...]:
    """Returns the equations that some output depends on, in order.

    Args:
        equations: All of them, in order.
        outputs: What is wanted.
        effects: Keep those with effects too.
    """
    needed = {a for a in outputs if isinstance(a, int)}
    kept = []
    for equation in reversed(equations):
        if (effects and equation.eqn.effects) or not needed.isdisjoint(
            equation.outputs
        ):
            kept.append(equation)
            needed.update(equation.values_in)
    return tuple(reversed(kept))


def from_jaxpr(jaxpr: _jax.ClosedJaxpr) -> Graph:
    """Returns the flat form of `jaxpr`."""
    return _Builder().graph(jaxpr, "")


Evaluator = Callable[[Equation, list[Any]], list[Any] | None]
"""Given an equation and its operands: its outputs, or None to bind it as it is."""


def evaluate(
    graph: Graph,
    args: Sequence[Any],
    *,
    override: Evaluator | None = None,
    on_value: Callable[[int, Any], Any] | None = None,
) -> list[Any]:
    """Runs a graph on `args`, under any JAX transformation.

    Args:
        graph: The program.
        args: One array per graph input.
        override: Asked first for every equation; may return the outputs itself.
        on_value: Called with every computed value; what it returns takes its place.

    Returns:
        One array per graph output.
    """
    env: dict[int, Any] = dict(graph.constants)
    env.update(zip(graph.inputs, args, strict=True))
    if on_value is not None:
        env.update((v, on_value(v, env[v])) for v in graph.inputs)

    def read(atom: Atom) -> Any:
        return env[atom] if isinstance(atom, int) else atom.val

    for equation in graph.equations:
        operands = [read(a) for a in equation.inputs]
        outs = override(equation, operands) if override is not None else None
        if outs is None:
            with (
                jax.named_scope(equation.scope)
                if equation.scope
                else contextlib.nullcontext()
            ):
                outs = _jax.bind(equation.eqn, operands)
        for value, out in zip(equation.outputs, outs, strict=True):
            env[value] = out if on_value is None else on_value(value, out)
    return [read(a) for a in graph.outputs]
