"""Random parameters drawn by one small kernel.

A network's init draws every leaf by itself: bits from a counter-based generator, then a
dozen elementwise operations that turn them into, say, truncated normals. XLA's CPU
backend compiles each leaf's chain anew and runs the generator in loops over the whole
leaf: compiling F34's init takes longer than compiling its measurement, and running it
longer than running a 64-pixel forward pass.

The chains of all leaves are the same program but for their scalars. Here the init is
traced, equal chains are found and evaluated together, block by block, by one kernel
that takes a block's key, first counter and scalars. Bits are the same to the last,
values equal up to rounding.

The generator is Threefry-2x32 with 20 rounds, in its partitionable form, which is JAX's
default: entry i of an array is hashed from (key, i) alone [Salmon2011]. Where another
one is configured nothing is replaced.
"""

import dataclasses
import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from layerwise import _jax
from layerwise.random import threefry
from layerwise.tracing.graph import Equation, Graph, from_jaxpr
from layerwise.types import PyTree


# Entries of a block, and of the steps in which its bits are drawn. The two loops keep
# the generator and what follows in kernels of their own, which fit the registers: one
# fused loop takes half as long again.
_BLOCKS = (256, 1024, 4096, 16384)
_STEP = 4096
# What a block costs beside its entries, in entries.
_PER_BLOCK = 200

# fmt: off
_ELEMENTWISE = frozenset((
    "abs", "add", "and", "bitcast_convert_type", "clamp", "convert_element_type",
    "cos", "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor",
    "ge", "gt", "integer_pow", "is_finite", "le", "log", "log1p", "lt", "max",
    "min", "mul", "ne", "neg", "not", "or", "pow", "rem", "round", "rsqrt",
    "select_n", "shift_left", "shift_right_arithmetic", "shift_right_logical",
    "sign", "sin", "sqrt", "square", "sub", "tan", "tanh", "xor",
))
# fmt: on


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """Elementwise equations from one leaf's random bits to the leaf.

    Attributes:
        bits: The equation that draws the bits.
        steps: The equations after it, in order.
        scalars: Operands from outside the chain, each of one entry.
        output: The value that leaves the chain.
        signature: Equal for chains that differ in shape and scalars alone.
    """

    bits: Equation
    steps: tuple[Equation, ...]
    scalars: tuple[Any, ...]
    output: int
    signature: tuple

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the leaf."""
        return tuple(self.bits.params["shape"])

    @property
    def size(self) -> int:
        """Entries of the leaf."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Chains of one signature, drawn one behind the other into one array.

    Attributes:
        chains: The chains.
        block: Entries of a block.
        counts: Blocks of each chain.
    """

    chains: tuple[Chain, ...]
    block: int
    counts: np.ndarray

    @classmethod
    def of(cls, chains: Sequence[Chain]) -> "Group":
        """Returns the group, in blocks of the size that takes least time."""
        sizes = np.array([c.size for c in chains])
        block = min(_BLOCKS, key=lambda b: (-(-sizes // b) * (b + _PER_BLOCK)).sum())
        return cls(tuple(chains), block, -(-sizes // block))

    @property
    def starts(self) -> np.ndarray:
        """First block of each chain, ``(n,)`` int32."""
        return (np.cumsum(self.counts) - self.counts).astype(np.int32)


def fast_draw(draw: Callable[[jax.Array], PyTree]) -> Callable[[jax.Array], PyTree]:
    """Returns ``key -> params`` that draws what `draw` does, faster on CPU.

    Args:
        draw: ``key -> params``, traceable.

    Returns:
        A function of the same values up to rounding; `draw` itself where none of it can
        be drawn faster. It is a `jax.tree_util.Partial` of where each leaf begins: if
        that is an argument of what is compiled, all leaves of one shape are cut out of
        what was drawn by one kernel, else by one for each.
    """
    if not jax.config.values["jax_threefry_partitionable"]:
        return draw
    key = jax.eval_shape(lambda: jax.random.key(0))
    jaxpr, shape = jax.make_jaxpr(draw, return_shape=True)(key)
    graph = from_jaxpr(jaxpr)
    groups = _groups(graph)
    if not groups:
        return draw
    tree = jax.tree.structure(shape)

    def drawn(places: list[list[Any]], key: jax.Array) -> PyTree:
        return jax.tree.unflatten(tree, _evaluate(graph, groups, places, key))

    return jax.tree_util.Partial(drawn, [list(g.starts * g.block) for g in groups])


def _groups(graph: Graph) -> list[Group]:
    """Returns the chains that can be drawn together, grouped."""
    follow = _Follow(graph)
    found: dict[tuple, list[Chain]] = {}
    for equation in graph.equations:
        if equation.name == "random_bits" and _is_drawable(graph, equation):
            chain = follow.chain(equation)
            found.setdefault(chain.signature, []).append(chain)
    # A chain whose scalars come from another chain's values would have to wait for it.
    random = {c.output for chains in found.values() for c in chains}
    for equation in graph.equations:
        if not random.isdisjoint(equation.values_in):
            random.update(equation.outputs)
    groups = [
        _that_fit([c for c in chains if random.isdisjoint(_outside(c))])
        for chains in found.values()
    ]
    return [Group.of(g) for g in groups if g]


def _that_fit(chains: list[Chain]) -> list[Chain]:
    """Returns the first chains, as many as int32 can number the entries of."""
    ends = itertools.accumulate(c.size + _BLOCKS[-1] for c in chains)
    return [c for c, end in zip(chains, ends, strict=True) if end < 2**31]


def _outside(chain: Chain) -> set[int]:
    return {a for a in (*chain.scalars, *chain.bits.inputs) if isinstance(a, int)}


def _is_drawable(graph: Graph, equation: Equation) -> bool:
    (key,) = equation.inputs
    size = math.prod(equation.params["shape"])
    return (
        isinstance(key, int)
        and str(graph.avals[key].dtype) == "key<fry>"
        and graph.avals[key].shape == ()
        and equation.params["bit_width"] == 32
        and size > 0
    )


class _Follow:
    """Follows random bits through what consumes them, as far as it is elementwise."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.consumers = graph.consumers()
        self.number = {id(e): i for i, e in enumerate(graph.equations)}
        self.results = {a for a in graph.outputs if isinstance(a, int)}

    def chain(self, bits: Equation) -> Chain:
        """Returns the longest chain from `bits` that a single value leaves."""
        inside = {bits.outputs[0]: 0}
        steps: list[Equation] = []
        scalars: list[Any] = []
        signature: list[tuple] = []
        lengths = (0, 0)
        waiting = self._numbers(bits.outputs[0])
        seen = set(waiting)
        while waiting:
            number = heapq.heappop(waiting)
            equation = self.graph.equations[number]
            operands = self._operands(equation, inside, len(scalars))
            if operands is None or not self._is_elementwise(equation, bits):
                continue
            kinds, new = operands
            scalars += new
            signature.append((equation.name, _static(equation), kinds))
            steps.append(equation)
            inside[equation.outputs[0]] = len(inside)
            if self._leaves(inside) == {equation.outputs[0]}:
                lengths = (len(steps), len(scalars))
            for later in self._numbers(equation.outputs[0]):
                if later not in seen:
                    seen.add(later)
                    heapq.heappush(waiting, later)
        n_steps, n_scalars = lengths
        return Chain(
            bits,
            tuple(steps[:n_steps]),
            tuple(scalars[:n_scalars]),
            steps[n_steps - 1].outputs[0] if n_steps else bits.outputs[0],
            tuple(signature[:n_steps]),
        )

    def _numbers(self, value: int) -> list[int]:
        return sorted(self.number[id(e)] for e in self.consumers.get(value, ()))

    def _is_elementwise(self, equation: Equation, bits: Equation) -> bool:
        shape = tuple(bits.params["shape"])
        return (
            equation.name in _ELEMENTWISE
            and tuple(self.graph.avals[equation.outputs[0]].shape) == shape
        )

    def _operands(
        self, equation: Equation, inside: dict[int, int], n_scalars: int
    ) -> tuple[tuple, list[Any]] | None:
        """Returns where the operands come from and the new scalars among them."""
        kinds, new = [], []
        for atom in equation.inputs:
            if isinstance(atom, int) and atom in inside:
                kinds.append(("value", inside[atom]))
                continue
            aval: Any = self.graph.avals[atom] if isinstance(atom, int) else atom.aval
            if math.prod(aval.shape) != 1 or _jax.is_key_dtype(aval.dtype):
                return None
            kinds.append(("scalar", n_scalars + len(new), str(aval.dtype)))
            new.append(atom)
        return tuple(kinds), new

    def _leaves(self, inside: dict[int, int]) -> set[int]:
        """Returns the values that are used outside of the chain."""
        return {
            value
            for value in inside
            if value in self.results
            or any(e.outputs[0] not in inside for e in self.consumers.get(value, ()))
        }


def _static(equation: Equation) -> tuple:
    return tuple(sorted((k, str(v)) for k, v in equation.params.items()))


def _evaluate(
    graph: Graph, groups: list[Group], places: list[list[Any]], key: jax.Array
) -> list[Any]:
    """Runs the graph, its chains group by group."""
    env = _Values(graph, key)
    chains = [c for group in groups for c in group.chains]
    skipped = {id(e) for c in chains for e in (c.bits, *c.steps)}
    late: set[int] = {c.output for c in chains}
    waiting = []
    for equation in graph.equations:
        if id(equation) in skipped:
            continue
        if late.isdisjoint(equation.values_in):
            env.bind(equation)
        else:
            late.update(equation.outputs)
            waiting.append(equation)
    for group, own in zip(groups, places, strict=True):
        flat = _draw_group(group, env.read)
        for chain, at in zip(group.chains, own, strict=True):
            leaf = jax.lax.dynamic_slice(flat, (at,), (chain.size,))
            env.write([chain.output], [jnp.reshape(leaf, chain.shape)])
    for equation in waiting:
        env.bind(equation)
    return [env.read(a) for a in graph.outputs]


class _Values:
    """The values of a graph whose keys are hashed together.

    Each leaf's key is hashed from that of the draw and a number: one by one, a kernel
    of twenty rounds for every leaf, which take longer to compile than the one that
    draws. So they wait until one is read, and all that can be are hashed with it.
    """

    def __init__(self, graph: Graph, key: jax.Array) -> None:
        self._avals = graph.avals
        self._known: dict[int, Any] = dict(graph.constants)
        self._known[graph.inputs[0]] = key
        self._waiting: dict[int, Equation] = {}

    def read(self, atom: Any) -> Any:
        """Returns the value of an operand."""
        if not isinstance(atom, int):
            return atom.val
        while atom in self._waiting:
            self._hash()
        return self._known[atom]

    def write(self, values: Sequence[int], arrays: Sequence[Any]) -> None:
        """Says what values are."""
        self._known.update(zip(values, arrays, strict=True))

    def bind(self, equation: Equation) -> None:
        """Evaluates an equation; one that hashes a single key, when it is read."""
        key = equation.outputs[0] if equation.name == "random_fold_in" else None
        if key is not None and self._avals[key].shape == ():
            self._waiting[key] = equation
            return
        outs = _jax.bind(equation.eqn, [self.read(a) for a in equation.inputs])
        self.write(equation.outputs, outs)

    def _hash(self) -> None:
        """Hashes waiting keys of one generator that wait for no other key."""
        ready = [
            e
            for e in self._waiting.values()
            if self._waiting.keys().isdisjoint(e.values_in)
        ]
        kind = self._avals[ready[0].outputs[0]].dtype
        together = [e for e in ready if self._avals[e.outputs[0]].dtype == kind]
        keys, numbers = zip(*([self.read(a) for a in e.inputs] for e in together))
        hashed = jax.vmap(jax.random.fold_in)(jnp.stack(keys), jnp.stack(numbers))
        self.write([e.outputs[0] for e in together], list(hashed))
        for equation in together:
            del self._waiting[equation.outputs[0]]


def _draw_group(group: Group, read: Callable[[Any], Any]) -> jax.Array:
    """Returns the entries of all chains, each filled up to whole blocks."""
    chains, block, total = group.chains, group.block, int(group.counts.sum())
    owner = jnp.asarray(np.repeat(np.arange(len(chains)), group.counts))
    first = (np.arange(total) - np.repeat(group.starts, group.counts)) * block
    first = jnp.asarray(first.astype(np.uint32))
    keys = jnp.stack([jax.random.key_data(read(c.bits.inputs[0])) for c in chains])
    scalars = [
        jnp.stack([jnp.reshape(jnp.asarray(read(c.scalars[i])), ()) for c in chains])
        for i in range(len(chains[0].scalars))
    ]
    kernel = chains[0]

    def one_block(i: jax.Array, flat: jax.Array) -> jax.Array:
        key, own = keys[owner[i]], [s[owner[i]] for s in scalars]
        values = [_bits(key, first[i], block)]
        for step, (_, _, kinds) in zip(kernel.steps, kernel.signature, strict=True):
            operands = [values[k[1]] if k[0] == "value" else own[k[1]] for k in kinds]
            shaped = jnp.broadcast_arrays(*operands) if len(operands) > 1 else operands
            values += _jax.bind(step.eqn, list(shaped))
        return jax.lax.dynamic_update_slice(flat, values[-1], (i * block,))

    last: Any = (kernel.steps or (kernel.bits,))[-1].eqn.outvars[0].aval
    flat = jnp.zeros(total * block, last.dtype)
    return jax.lax.fori_loop(0, total, one_block, flat)


def _bits(key: jax.Array, first: jax.Array, block: int) -> jax.Array:
    """Returns the bits of entries `first`, `first` + 1, ... of one leaf."""
    step = min(_STEP, block)

    def body(j: jax.Array, bits: jax.Array) -> jax.Array:
        counter = first + j.astype(jnp.uint32) * np.uint32(step)
        counter = counter + jax.lax.iota(jnp.uint32, step)
        return jax.lax.dynamic_update_slice(bits, threefry(key, counter), (j * step,))

    return jax.lax.fori_loop(0, block // step, body, jnp.zeros(block, jnp.uint32))
