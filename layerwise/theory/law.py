"""The law of a model's parameters: second moments by leaf, and which are constant.

From the model's own init where no parameters are given, without drawing them: a leaf
that is an elementwise function of random bits is integrated over the bits, so that the
prediction is of the ensemble and not of one draw. From given
parameters: each leaf zero-mean with its own second moment, constant leaves as they are.
"""

import dataclasses
import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from layerwise import _jax
from layerwise.theory import marginal, random_bits
from layerwise.tracing import TracedModel
from layerwise.tracing.graph import (
    Atom,
    Equation,
    Graph,
    evaluate,
    from_jaxpr,
    needed_for,
)
from layerwise.tracing.model import leaf_name
from layerwise.tracing.once import Once
from layerwise.tracing.uncollected import uncollected
from layerwise.types import PyTree


ENOUGH = 200_000
INTEGRATED = 1e-4
"""Relative error of a moment that is integrated over random bits."""


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf:
    """The law of one parameter leaf.

    Attributes:
        second: Second moment of its entries.
        mean: Mean of its entries; 0 where it is within sampling error of 0.
        value: The array, where the leaf is the same in every network.
        drawn: ``(draw, *shape)`` samples, where the entries are not independent and
            alike by construction.
        shape: Standardized law of an entry on the nodes of
            `layerwise.theory.marginal`; None is normal.
    """

    second: float
    mean: float
    value: np.ndarray | None
    drawn: np.ndarray | None = None
    shape: np.ndarray | None = None

    def scaled_to(self, second: float) -> "Leaf":
        """Returns the leaf at another second moment, of zero mean."""
        if self.drawn is None or not self.second > 0:
            return Leaf(second, 0.0, None, shape=self.shape)
        return Leaf(second, 0.0, None, self.drawn * np.sqrt(second / self.second))


@dataclasses.dataclass(frozen=True, eq=False)
class Law:
    """The law of all parameters.

    Attributes:
        leaves: Leaf name -> its law.
        draw: ``key -> params``, for what has to be sampled.
    """

    leaves: Mapping[str, Leaf]
    draw: Callable[[jax.Array], PyTree]


def of_params(params: PyTree) -> Law:
    """Returns the law of networks that are redrawn leaf by leaf from given ones."""
    flat, tree = jax.tree_util.tree_flatten_with_path(params)
    leaves = {leaf_name(p): _given(np.asarray(x)) for p, x in flat}

    def draw(key: jax.Array) -> PyTree:
        out = []
        for path, value in flat:
            leaf = leaves[leaf_name(path)]
            if leaf.value is not None:
                out.append(jnp.asarray(value))
                continue
            own = jax.random.fold_in(key, zlib.crc32(leaf_name(path).encode()))
            unit = jax.random.normal(own, value.shape, jnp.float32)
            out.append((unit * np.sqrt(leaf.second)).astype(value.dtype))
        return jax.tree.unflatten(tree, out)

    return Law(leaves, draw)


def _given(x: np.ndarray) -> Leaf:
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    if not floating or x.size < 2 or bool(np.all(x == x.flat[0])):
        return Leaf(0.0, 0.0, x)
    return Leaf(float(np.mean(np.square(x, dtype=np.float64))), 0.0, None)


@uncollected()
def of_init(
    init: Callable[..., PyTree], inputs: Sequence[Any], once: Once | None = None
) -> Law:
    """Returns the law of the networks that ``init(key, *inputs)`` draws.

    A leaf that is an elementwise function of random bits (normal, truncated normal,
    uniform, times constants) is integrated over the bits: exact to 1e-4. Any other is
    drawn until its second moment is known to about 0.3 %.

    Args:
        init: Draws the parameters.
        inputs: What it is called on.
        once: The trace of the model whose init it is, if there is one already.
    """

    def draw(key: jax.Array) -> PyTree:
        return init(key, *inputs)

    key = jax.random.key(20201)
    if once is None:
        # Of `init` itself: what it was asked for its shapes before is in JAX's cache.
        jaxpr, shapes = jax.make_jaxpr(init, return_shape=True)(key, *inputs)
    else:
        jaxpr, shapes = once.making, once.params
    arrays = jax.tree.leaves(inputs)
    makers = _Makers(jaxpr)
    flat = jax.tree_util.tree_flatten_with_path(shapes)[0]
    known: dict[Hashable, Leaf] = {}
    leaves = {}
    for (path, aval), output in zip(flat, jaxpr.jaxpr.outvars, strict=True):
        made = tuple(aval.shape), str(aval.dtype), makers.text(output)
        if made not in known:
            graph = from_jaxpr(makers.program(output))
            data = zip(graph.inputs[1:], arrays, strict=True)
            constants = {**graph.constants, **dict(data)}
            graph = dataclasses.replace(
                graph, inputs=graph.inputs[:1], constants=constants
            )
            known[made] = _law_of(graph, aval, key, known)
        leaves[leaf_name(path)] = known[made]
    return Law(leaves, draw)


def _law_of(
    graph: Graph, aval: Any, key: jax.Array, known: dict[Hashable, Leaf]
) -> Leaf:
    """Returns the law of a program's one output; `known`: others, by what made them."""
    (atom,) = graph.outputs
    one = _iteration(graph, atom)
    stacked = None if one is None else _stacked(*one, aval)
    if stacked is not None:
        return stacked
    equations = _slice(graph, atom)
    signature = (tuple(aval.shape), str(aval.dtype), _signature(graph, equations))
    if signature not in known:
        known[signature] = _leaf(graph, atom, equations, aval, key)
    return known[signature]


class _Makers:
    """What makes each output of a program, calls not looked into.

    Most leaves of a deep network are drawn by the same few calls, which JAX has traced
    once: their laws are told to be the same without reading what they are made of.
    """

    def __init__(self, jaxpr: _jax.ClosedJaxpr):
        self.jaxpr = jaxpr
        self.eqns = jaxpr.jaxpr.eqns
        self.at: dict[_jax.Var, int] = {
            v: i for i, e in enumerate(self.eqns) for v in e.outvars
        }
        self.given: dict[_jax.Var, Hashable] = {
            v: ("input", i) for i, v in enumerate(jaxpr.jaxpr.invars)
        }
        for v, x in zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True):
            self.given[v] = ("constant", random_bits.entries(x))

    def text(self, output: _jax.Var | _jax.Literal) -> Hashable:
        """Returns what makes an output, from keys that may be any."""
        number: dict[_jax.Var, int] = {}
        found: list[Hashable] = []
        stack = [output]
        while stack:
            a = stack.pop()
            if isinstance(a, _jax.Literal):
                found.append((np.asarray(a.val).item(), str(a.aval)))
                continue
            if a in number:
                found.append(number[a])
                continue
            number[a] = len(number)
            aval: Any = a.aval
            if _jax.is_key_dtype(aval.dtype):
                found.append("key")
            elif a in self.given:
                found.append(self.given[a])
            else:
                eqn = self.eqns[self.at[a]]
                found.append((_jax.parameters(eqn), eqn.outvars.index(a)))
                stack.extend(reversed(eqn.invars))
        return tuple(found)

    def program(self, output: _jax.Var | _jax.Literal) -> _jax.ClosedJaxpr:
        """Returns the part of the program that makes an output."""
        needed: set[int] = set()
        stack = [output]
        while stack:
            a = stack.pop()
            i = None if isinstance(a, _jax.Literal) else self.at.get(a)
            if i is not None and i not in needed:
                needed.add(i)
                stack.extend(self.eqns[i].invars)
        kept = [self.eqns[i] for i in sorted(needed)]
        return _jax.part(self.jaxpr, kept, self.jaxpr.jaxpr.invars, [output])


def _slice(graph: Graph, atom: Atom) -> list[Equation]:
    """Returns the equations that make `atom`, back to the random bits."""
    producers = graph.producers()
    found: dict[int, Equation] = {}
    stack = [atom] if isinstance(atom, int) else []
    while stack:
        equation = producers.get(stack.pop())  # type: ignore[arg-type]
        if equation is None or equation.outputs[0] in found:
            continue
        found[equation.outputs[0]] = equation
        if equation.name != "random_bits":
            stack.extend(equation.values_in)
    return [found[k] for k in sorted(found)]


def _iteration(graph: Graph, atom: Atom) -> tuple[Graph, Atom] | None:
    """Returns one iteration's part of a leaf that a loop has stacked.

    None where it is no such leaf, or where iterations share their random bits.
    """
    found = None
    while isinstance(atom, int):
        equation = graph.producers().get(atom)
        if equation is None or equation.name != "scan":
            break
        consts, carries = _jax.scan_counts(equation.eqn)
        (body,) = equation.bodies
        at = equation.outputs.index(atom)
        if at < carries:
            return None
        graph, atom = body, body.outputs[at]
        kept = needed_for(graph.equations, (atom,))
        read = {atom}.union(*(e.values_in for e in kept)) & set(graph.inputs)
        if not read <= set(graph.inputs[consts + carries :]):
            return None
        found = graph, atom
    return found


def _stacked(graph: Graph, atom: Atom, aval: Any) -> Leaf | None:
    """Returns the law of a leaf whose rows are drawn alike, each from its own bits."""
    equations = _slice(graph, atom)
    bits = [e for e in equations if e.name == "random_bits"]
    if isinstance(atom, int) and len(bits) == 1:
        values = random_bits.grid_values(graph, atom, equations)
        return None if values is None else _integrated(values)
    made = {v for e in equations for v in e.outputs}
    if not {v for e in equations for v in e.values_in} <= made | set(graph.constants):
        return None
    if isinstance(atom, int) and atom not in made | set(graph.constants):
        return None
    part = dataclasses.replace(
        graph, inputs=(), equations=tuple(equations), outputs=(atom,)
    )
    row = np.asarray(evaluate(part, [])[0])
    second = float(np.mean(np.square(row, dtype=np.float64))) if row.size else 0.0
    return Leaf(second, 0.0, np.broadcast_to(row, aval.shape))


def _integrated(values: np.ndarray, drawn: np.ndarray | None = None) -> Leaf:
    """Returns the law of a leaf that is random, by values that it takes."""
    mean, second = float(values.mean()), float(np.mean(np.square(values)))
    # Floats of 16 bits are not symmetric: their uniform numbers never reach the top.
    error = 6 / np.sqrt(values.size) if drawn is not None else INTEGRATED
    shape = marginal.of_samples(values.ravel()) if drawn is None else None
    mean = mean if abs(mean) > error * np.sqrt(second) else 0.0
    return Leaf(second, mean, None, drawn, shape)


def _signature(graph: Graph, equations: Sequence[Equation]) -> Hashable:
    text: list[Hashable] = []
    for e in equations:
        literals = [
            (np.asarray(a.val).item(), str(a.aval))
            for a in e.inputs
            if not isinstance(a, int)
        ]
        constants = [
            random_bits.entries(graph.constants[v])
            for v in e.values_in
            if v in graph.constants
        ]
        text.append((e.name, *literals, *constants))
    return tuple(text)


def _leaf(
    graph: Graph,
    atom: Atom,
    equations: list[Equation],
    aval: Any,
    key: jax.Array,
) -> Leaf:
    if not isinstance(atom, int):
        value = np.full(aval.shape, np.asarray(atom.val))
        return Leaf(float(np.mean(np.square(value, dtype=np.float64))), 0.0, value)
    size = int(np.prod(aval.shape, dtype=int))
    bits = [e for e in equations if e.name == "random_bits"]
    random = bool(bits) or any(e.name.startswith("random_") for e in equations)
    if not random or size == 0:
        part = dataclasses.replace(graph, equations=tuple(equations), outputs=(atom,))
        value = np.asarray(evaluate(part, [key])[0])
        second = float(np.mean(np.square(value, dtype=np.float64))) if size else 0.0
        return Leaf(second, 0.0, value)
    values = random_bits.grid_values(graph, atom, equations) if len(bits) == 1 else None
    drawn = values is None
    if values is None:
        part = dataclasses.replace(
            graph, equations=needed_for(graph.equations, (atom,)), outputs=(atom,)
        )
        count = int(np.clip(ENOUGH // max(size, 1), 4, 256))
        run = jax.jit(lambda k: jax.lax.map(lambda one: evaluate(part, [one])[0], k))
        values = np.asarray(run(jax.random.split(key, count)), np.float64)
    return _integrated(values, values.astype(np.float32) if drawn else None)


def with_variances(
    law: Law, traced: TracedModel, variances: Mapping[str, float]
) -> Law:
    """Returns `law` with the weights of the named layers at these variances."""
    leaves = dict(law.leaves)
    for layer in traced.layers:
        if layer.path in variances:
            for name in layer.weight_leaves:
                leaves[name] = leaves[name].scaled_to(float(variances[layer.path]))

    def draw(key: jax.Array) -> PyTree:
        flat, tree = jax.tree_util.tree_flatten_with_path(law.draw(key))
        out = []
        for path, x in flat:
            old, new = law.leaves[leaf_name(path)], leaves[leaf_name(path)]
            changed = new is not old and old.second > 0
            out.append(
                x * np.float32(np.sqrt(new.second / old.second)) if changed else x
            )
        return jax.tree.unflatten(tree, out)

    return Law(leaves, draw)


AGREE = 1e-3
"""Relative difference between an integrated second moment and the scheme's own."""


def refined(law: Law, traced: TracedModel, draw: object) -> Law:
    """Returns `law` with the variances that `draw` states, where both agree.

    Integrating over random bits is exact to 1e-4, which adds up over many layers.

    Args:
        law: The law of the networks that `draw` draws.
        traced: The model.
        draw: ``key -> params``; may have ``variances``, layer path -> weight variance.
    """
    stated = getattr(draw, "variances", {})
    near = {
        y.path: float(stated[y.path])
        for y in traced.layers
        if y.path in stated
        and all(
            abs(law.leaves[n].second - stated[y.path]) <= AGREE * stated[y.path]
            for n in y.weight_leaves
        )
    }
    return with_variances(law, traced, near) if near else law
