"""A program without loops: every `scan` written out, every known branch taken.

What is analyzed equation by equation needs no notion of a loop then. Unrolling copies
references, not arrays: ten thousand iterations take well under a second. A `while` is
unrolled where its condition depends on constants and data alone, a `cond` where its
predicate does; any other stays one equation. The body of a custom derivative rule is
written out too where the rule is the derivative of the body.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from layerwise import _jax
from layerwise.tracing import dataflow, primitives
from layerwise.tracing.graph import Atom, Equation, Graph, from_jaxpr, needed_for
from layerwise.tracing.layers import Layer, TracedModel
from layerwise.tracing.pointwise import is_elementwise
from layerwise.tracing.sites import layer_runs


LIMIT = 300_000
"""Equations, above which a loop is left as it is."""

Place = tuple[int, tuple[int, ...]]
"""A value of the program as it was, and the iteration of each loop around it."""
_Cut = dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True, eq=False)
class Unrolled:
    """A traced model without loops, and where its values are.

    Attributes:
        traced: The model; its layers are those of every iteration.
        where: Value as it was, in an iteration -> value now (a literal is left out).
    """

    traced: TracedModel
    where: Mapping[Place, int]


def unroll(traced: TracedModel, inputs: Sequence[Any]) -> Unrolled:
    """Returns the model with its loops written out.

    Args:
        traced: The model.
        inputs: Its data inputs, by whose values branches may be known.
    """
    writer = _Writer(traced, inputs)
    graph = writer.graph(traced.graph)
    new = [writer.where[v, ()] for v in traced.leaf_values.values()]
    names = dict(zip(traced.leaf_values, new, strict=True))
    data = tuple(writer.where[v, ()] for v in traced.input_values)
    given = {v: frozenset([n]) for n, v in names.items()}
    flow = dataflow.analyze(graph, data, given)
    changed = dataclasses.replace(
        traced,
        graph=graph,
        flow=flow,
        leaf_values=names,
        input_values=data,
        loops=(),
        layers=tuple(_moved(run, writer.where, flow) for run in layer_runs(traced)),
    )
    return Unrolled(changed, writer.where)


def _moved(run: Any, where: Mapping[Place, int], flow: dataflow.Dataflow) -> Layer:
    layer: Layer = run.layer
    at = lambda value: where.get((value, run.iteration), -1)
    operand = at(layer.operand)
    return dataclasses.replace(
        layer,
        index=run.number,
        path=run.path,
        operand=operand,
        operand_root=flow.root.get(operand, -1),
        root=at(layer.root),
        u=at(layer.u),
        v=at(layer.v),
        z=at(layer.z),
        weight=at(layer.weight),
        bias=None if layer.bias is None else at(layer.bias),
    )


class _Writer:
    """Writes a graph out, loops and all."""

    def __init__(self, traced: TracedModel, inputs: Sequence[Any]):
        self.counter = itertools.count()
        self.avals: dict[int, Any] = {}
        self.constants: dict[int, Any] = {}
        self.equations: list[Equation] = []
        self.producers: dict[int, Equation] = {}
        self.where: dict[Place, int] = {}
        self.data = dict(zip(traced.input_values, inputs, strict=True))
        self.known: dict[int, Any] = {}
        self.signals: set[int] = set()
        self.stacks: set[int] = set()

    def graph(self, graph: Graph) -> Graph:
        """Returns the whole graph written out."""
        inputs = tuple(self._new(graph.avals[v]) for v in graph.inputs)
        for old, new in zip(graph.inputs, inputs, strict=True):
            if old in self.data:
                self.signals.add(new)
                self.known[new] = self.data[old]
        outputs = tuple(self._body(graph, inputs, ()))
        kept = needed_for(self.equations, outputs, effects=True)
        return Graph(inputs, self.constants, kept, outputs, self.avals)

    def _new(self, aval: Any) -> int:
        value = next(self.counter)
        self.avals[value] = aval
        return value

    def _body(
        self, graph: Graph, args: Sequence[Atom], iteration: tuple[int, ...]
    ) -> list[Atom]:
        env: dict[int, Atom] = dict(zip(graph.inputs, args, strict=True))
        for value, constant in graph.constants.items():
            env[value] = new = self._new(graph.avals[value])
            self.constants[new] = self.known[new] = constant
        read = lambda atom: env[atom] if isinstance(atom, int) else atom
        for e in graph.equations:
            operands = tuple(map(read, e.inputs))
            outs = self._written(e, operands, iteration)
            if outs is None:
                outs = self._copy(e, self._same_shapes(e, operands))
            env.update(zip(e.outputs, outs, strict=True))
        for value, atom in env.items():
            if isinstance(atom, int):
                self.where[value, iteration] = atom
        return [read(a) for a in graph.outputs]

    def _same_shapes(self, e: Equation, operands: tuple[Atom, ...]) -> tuple[Atom, ...]:
        """Repeats signals along axes of one entry, as elementwise primitives do."""
        if e.name not in primitives.ELEMENTWISE or len(operands) < 2:
            return operands
        result: Any = e.eqn.outvars[0].aval
        shape = tuple(result.shape)
        out = []
        for atom in operands:
            own = tuple(self._aval(atom).shape)
            signal = isinstance(atom, int) and atom in self.signals
            if signal and own != shape and len(own) == len(shape):
                repeat = _broadcast_equation(own, shape, self._aval(atom).dtype)
                atom = self._emit(e, repeat, (atom,))
            out.append(atom)
        return tuple(out)

    def _copy(self, e: Equation, operands: tuple[Atom, ...]) -> list[Atom]:
        outs = tuple(self._new(v.aval) for v in e.eqn.outvars)
        new = Equation(e.eqn, e.name, operands, outs, e.bodies, e.scope, e.call)
        self.equations.append(new)
        if any(a in self.signals for a in operands if isinstance(a, int)):
            self.signals.update(outs)
        self.producers.update((v, new) for v in outs)
        return list(outs)

    def _written(
        self, e: Equation, operands: tuple[Atom, ...], iteration: tuple[int, ...]
    ) -> list[Atom] | None:
        """Returns the outputs of a loop, branch or call written out, if it can be."""
        match e.name:
            case "scan":
                return self._scan(e, operands, iteration)
            case "while":
                return self._while(e, operands, iteration)
            case "cond":
                which = self._value(operands[0])
                if which is None:
                    return None
                index = min(max(int(which), 0), len(e.bodies) - 1)
                return self._body(e.bodies[index], operands[1:], iteration)
            case "custom_jvp_call" | "custom_vjp_call":
                if is_elementwise(e) or not rule_is_derivative(e.eqn):
                    return None
                body = from_jaxpr(_jax.sub_jaxprs(e.eqn)[0])
                return self._nested(body, operands, iteration)
            case "reduce_sum":
                return self._sum_of_stack(e, operands)
            case "slice":
                return self._cut_of_stack(e, operands)
        return None

    def _sum_of_stack(
        self, e: Equation, operands: tuple[Atom, ...]
    ) -> list[Atom] | None:
        """A stack that is summed over its own axis is a sum of its parts."""
        made = self.producers.get(operands[0])  # type: ignore[arg-type]
        if made is None or made.name != "stack":
            return None
        if tuple(e.params["axes"]) != (made.params["axis"],):
            return None
        total, *rest = made.inputs
        aval = self._aval(total)
        for atom in rest:
            add = _add_equation(aval.shape, aval.dtype)
            total = self._emit(e, add, (total, atom))
        return [total]

    def _cut_of_stack(
        self, e: Equation, operands: tuple[Atom, ...]
    ) -> list[Atom] | None:
        """One iteration cut from what a loop stacked is that iteration's own."""
        cut = {k: e.params[k] for k in ("start_indices", "limit_indices")}
        found = self._iteration(operands[0], cut)
        if found is None:
            return None
        piece, own = found
        return [self._emit(e, e.eqn, (piece,), **own)]

    def _iteration(self, atom: Atom, cut: _Cut) -> tuple[Atom, _Cut] | None:
        """Returns the one iteration that a cut is of, and the cut of it."""
        turns, stack = [], atom
        while (turn := self._transposed(stack)) is not None:
            turns.insert(0, turn)
            stack = turn.inputs[0]
        if not isinstance(stack, int) or stack not in self.stacks:
            return None
        axis = 0
        for turn in turns:
            axis = turn.params["permutation"].index(axis)
        starts, ends = (list(cut[k]) for k in ("start_indices", "limit_indices"))
        if ends[axis] - starts[axis] != 1:
            return None
        piece = self.producers[stack].inputs[starts[axis]]
        for turn in turns:
            aval = self._aval(piece)
            moved = _transpose_equation(
                aval.shape, aval.dtype, turn.params["permutation"]
            )
            piece = self._emit(turn, moved, (piece,))
        starts[axis], ends[axis] = 0, 1
        return piece, {"start_indices": tuple(starts), "limit_indices": tuple(ends)}

    def _transposed(self, atom: Atom) -> Equation | None:
        """Returns the equation that makes a value by transposing another."""
        made = self.producers.get(atom) if isinstance(atom, int) else None
        return made if made is not None and made.name == "transpose" else None

    def _nested(
        self, body: Graph, operands: Sequence[Atom], iteration: tuple[int, ...]
    ) -> list[Atom]:
        """A body numbered on its own: its values are at no place anyone knows."""
        places, self.where = self.where, {}
        outs = self._body(body, operands, iteration)
        self.where = places
        return outs

    def _scan(
        self, e: Equation, operands: tuple[Atom, ...], iteration: tuple[int, ...]
    ) -> list[Atom] | None:
        (body,), length = e.bodies, e.params["length"]
        if length * len(body.equations) > LIMIT:
            return None
        first, n_carry = _jax.scan_counts(e.eqn)
        constants, carry = operands[:first], operands[first : first + n_carry]
        slices = operands[first + n_carry :]
        rows: list[list[Atom]] = [[] for _ in body.outputs[n_carry:]]
        order = range(length)
        if e.params["reverse"]:
            order = reversed(order)
        for i in order:
            taken = tuple(self._slice(e, a, i) for a in slices)
            outs = self._body(body, (*constants, *carry, *taken), (*iteration, i))
            carry = tuple(outs[:n_carry])
            for row, atom in zip(rows, outs[n_carry:], strict=True):
                row.append(atom)
        if e.params["reverse"]:
            rows = [row[::-1] for row in rows]
        return [*carry, *(self._stack(e, row) for row in rows)]

    def _while(
        self, e: Equation, operands: tuple[Atom, ...], iteration: tuple[int, ...]
    ) -> list[Atom] | None:
        condition, body = e.bodies
        n_cond, n_body = e.params["cond_nconsts"], e.params["body_nconsts"]
        of_condition, of_body = operands[:n_cond], operands[n_cond : n_cond + n_body]
        carry = operands[n_cond + n_body :]
        start = len(self.equations)
        for i in itertools.count():
            (going,) = self._body(condition, (*of_condition, *carry), (*iteration, i))
            answer = self._value(going)
            if answer is None or len(self.equations) - start > LIMIT:
                return None  # what was written so far is dead, and dropped
            if not answer:
                return list(carry)
            carry = tuple(self._body(body, (*of_body, *carry), (*iteration, i)))
        return None

    def _slice(self, loop: Equation, atom: Atom, i: int) -> Atom:
        aval = self._aval(atom)
        if 0 in aval.shape:
            return self._emit(loop, _zeros(aval.shape[1:], aval.dtype), ())
        cut, drop = _slice_equations(aval.shape, aval.dtype)
        where: _Cut = {
            "start_indices": (i, *(0,) * (len(aval.shape) - 1)),
            "limit_indices": (i + 1, *aval.shape[1:]),
        }
        atom, where = self._iteration(atom, where) or (atom, where)
        piece = self._emit(loop, cut, (atom,), **where)
        return self._emit(loop, drop, (piece,))

    def _stack(self, loop: Equation, row: list[Atom]) -> Atom:
        aval = self._aval(row[0])
        lift, join = _stack_equations(aval.shape, aval.dtype, len(row))
        lifted = [self._emit(loop, lift, (a,)) for a in row]
        stack = self._emit(loop, join, tuple(lifted))
        self.stacks.add(stack)
        return stack

    def _emit(
        self, loop: Equation, eqn: Any, operands: tuple[Atom, ...], **params: Any
    ) -> int:
        eqn = _jax.with_params(eqn, loop.eqn, params)
        name = _jax.primitive_name(eqn)
        new = Equation(eqn, name, operands, (), (), loop.scope, loop.call)
        (out,) = self._copy(new, operands)
        assert isinstance(out, int)
        return out

    def _aval(self, atom: Atom) -> Any:
        return self.avals[atom] if isinstance(atom, int) else atom.aval

    def _value(self, atom: Atom) -> Any | None:
        """Returns the array of a value made of constants and data, else None."""
        if not isinstance(atom, int):
            return atom.val
        stack = [atom]
        while stack:
            at = stack[-1]
            if at in self.known:
                stack.pop()
                continue
            e = self.producers.get(at)
            if e is None:
                return None
            missing = [v for v in e.values_in if v not in self.known]
            if missing:
                stack.extend(missing)
                continue
            operands = [
                self.known[a] if isinstance(a, int) else a.val for a in e.inputs
            ]
            self.known.update(zip(e.outputs, _jax.bind(e.eqn, operands), strict=True))
        return self.known[atom]


@functools.cache
def _slice_equations(shape: tuple[int, ...], dtype: Any) -> tuple[Any, Any]:
    like = jax.ShapeDtypeStruct(shape, dtype)
    made = jax.make_jaxpr(
        lambda x: jax.lax.squeeze(jax.lax.slice_in_dim(x, 0, 1, axis=0), (0,))
    )(like)
    cut = [e for e in made.jaxpr.eqns if e.primitive.name == "slice"]
    drop = made.jaxpr.eqns[-1]
    if cut:
        return cut[0], drop
    # One row: JAX slices nothing. Take the equation of two, at this shape.
    two = jax.make_jaxpr(lambda x: x[:1])(jax.ShapeDtypeStruct((2, *shape[1:]), dtype))
    return two.jaxpr.eqns[0], drop


@functools.cache
def _stack_equations(shape: tuple[int, ...], dtype: Any, n: int) -> tuple[Any, Any]:
    like = jax.ShapeDtypeStruct(shape, dtype)
    dims = tuple(range(1, len(shape) + 1))
    lift = jax.make_jaxpr(lambda x: jax.lax.broadcast_in_dim(x, (1, *shape), dims))(
        like
    )
    row = [jax.ShapeDtypeStruct((1, *shape), dtype)] * n
    join = jax.make_jaxpr(lambda *xs: jax.lax.concatenate(xs, 0))(*row)
    return lift.jaxpr.eqns[-1], join.jaxpr.eqns[-1]


@functools.cache
def _add_equation(shape: tuple[int, ...], dtype: Any) -> Any:
    like = jax.ShapeDtypeStruct(shape, dtype)
    return jax.make_jaxpr(jax.lax.add)(like, like).jaxpr.eqns[-1]


@functools.cache
def _transpose_equation(
    shape: tuple[int, ...], dtype: Any, order: tuple[int, ...]
) -> Any:
    like = jax.ShapeDtypeStruct(shape, dtype)
    return jax.make_jaxpr(lambda x: jax.lax.transpose(x, order))(like).jaxpr.eqns[-1]


@functools.cache
def _broadcast_equation(
    own: tuple[int, ...], shape: tuple[int, ...], dtype: Any
) -> Any:
    dims = tuple(range(len(shape)))
    made = jax.make_jaxpr(lambda x: jax.lax.broadcast_in_dim(x, shape, dims))
    return made(jax.ShapeDtypeStruct(own, dtype)).jaxpr.eqns[-1]


@functools.cache
def _zeros(shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.make_jaxpr(lambda: jax.lax.full(shape, 0, dtype))().jaxpr.eqns[-1]


_LARGEST_CHECK = 2**20


@functools.lru_cache(maxsize=1024)
def rule_is_derivative(eqn: Any) -> bool:
    """Compares a custom derivative with that of the body, on one random vector.

    Of equations with more than 2**20 entries of operands, nothing is known.
    """
    avals = [v.aval for v in eqn.invars]
    if sum(math.prod(a.shape) for a in avals) > _LARGEST_CHECK:
        return False
    values = []
    for i, a in enumerate(avals):
        if not jnp.issubdtype(a.dtype, jnp.floating):
            return False
        key = jax.random.key(i)
        values.append(jax.random.normal(key, a.shape).astype(a.dtype))
    body = jax.jit(lambda *xs: _jax.evaluate(_jax.sub_jaxprs(eqn)[0], xs))

    def pulled(function: Any) -> Any:
        outs, pull = jax.vjp(function, *values)
        waves = [jnp.cos(jnp.arange(y.size)).reshape(y.shape) for y in outs]
        return pull([w.astype(y.dtype) for w, y in zip(waves, outs, strict=True)])

    try:
        ruled = pulled(lambda *xs: _jax.bind(eqn, list(xs)))
    except Exception:  # whatever a rule raises, it is not the body's derivative
        return False
    own = pulled(lambda *xs: list(body(*xs)))
    return all(
        np.allclose(a, b, rtol=1e-3, atol=1e-4 * (np.abs(b).max(initial=0.0) + 1e-9))
        for a, b in zip(ruled, own, strict=True)
    )
