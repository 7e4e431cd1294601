"""What a rule sees: the node it is asked about, and one frozen context."""

import dataclasses
import functools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from layerwise.theory import weights
from layerwise.theory.law import ENOUGH, Law
from layerwise.theory.state import State
from layerwise.theory.weights import Pattern
from layerwise.tracing import TracedModel, primitives
from layerwise.tracing.graph import Equation, evaluate


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One step of the interpreter: an equation, or several that are one function.

    Attributes:
        name: The primitive, or "pointwise", "normalization", "attention", "opaque".
        inputs: The signal values it reads.
        output: The value it defines.
        equations: Its equations, in order.
        data: What the planner found out: a scalar function, a normalization, a
            block.
    """

    name: str
    inputs: tuple[int, ...]
    output: int
    equations: tuple[Equation, ...]
    data: Any = None

    @property
    def source(self) -> str:
        """The user's line."""
        return self.equations[-1].source

    def is_like(self, other: "Node") -> bool:
        """Whether both do the same, so that a rule will likely refuse both."""
        return (
            self.name == other.name
            and len(self.inputs) == len(other.inputs)
            and str(self.equations[-1].params) == str(other.equations[-1].params)
        )

    @property
    def label(self) -> str:
        """``add at model.py:12 (Net.__call__)``."""
        names = list(dict.fromkeys(e.name for e in self.equations))
        what = self.name if self.name != "opaque" else "+".join(names[:4])
        return f"{what} at {self.source}" if self.source else what


@dataclasses.dataclass(frozen=True, eq=False)
class WeightMoments:
    """Moments of a parameter-made value.

    Attributes:
        second: Second moment of its entries.
        mean: Mean, 0.0 where it is zero within sampling error.
        value: The array itself, where it is the same in every network.
        draws: ``(draw, *shape)`` samples where the entries are not known to be
            independent and alike, else None.
        shape: Standardized law of an entry; None is normal.
    """

    second: float
    mean: float
    value: np.ndarray | None
    draws: np.ndarray | None = None
    shape: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class RuleContext:
    """What holds for the whole prediction.

    Attributes:
        traced: The model.
        law: The law of its parameters.
        batch: Number of examples.
        classes: 1: pairs within an example only; 2: also pairs of two examples.
        level: How many lags are held: see `layerwise.theory.lags`.
        data: Values that no weight has touched, as arrays.
        white: Whether inputs are taken for independent zero-mean entries.
        producer: Value -> the node that makes it.
        state_of: Value -> its moments.
        group: Which group of examples this is, and of how many.
        single_back: Whether pairs of cotangents at the operands are not needed.
        joint: Whether moments of cotangents together with values are (`Field.joint`).
    """

    traced: TracedModel
    law: Law
    batch: int
    classes: int
    level: int
    data: Mapping[int, np.ndarray]
    white: bool
    producer: Callable[[int], Node | None]
    state_of: Callable[[int], State]
    group: tuple[int, int] = (0, 1)
    single_back: bool = False
    joint: bool = True

    def shape(self, value: int) -> tuple[int, ...]:
        """Shape of a value."""
        return tuple(self.traced.graph.avals[value].shape)

    def weight(self, atom: Any) -> WeightMoments:
        """Returns the moments of an operand that no signal enters."""
        if not isinstance(atom, int):
            array = np.asarray(atom.val, np.float64)
            return WeightMoments(float(np.mean(array**2)), 0.0, array)
        return self._weights(atom)

    def pattern(
        self, atom: Any, fan: Sequence[int], taps: Sequence[int] = ()
    ) -> Pattern:
        """Returns how the entries of a kernel are distributed.

        Args:
            atom: The operand, of a mean near zero.
            fan: Its axes that are summed over, taps left out.
            taps: Its axes along positions.

        Raises:
            NoSoundRule: If they are neither independent nor of a known pattern.
        """
        moments = self.weight(atom)
        if moments.draws is None:
            whole = tuple((0, self.shape(atom)[a]) for a in taps)
            return Pattern(
                moments.second, whole, shape=moments.shape, mean=moments.mean
            )
        key = (id(moments.draws), tuple(fan), tuple(taps))
        if key not in self._patterns:
            found = weights.pattern(moments.draws, fan, taps)
            if not found.centred:
                found = dataclasses.replace(found, mean=moments.mean)
            self._patterns[key] = moments.draws, found
        return self._patterns[key][1]

    def back(self, single: bool, level: int) -> "RuleContext":
        """Returns the context of the backward rules, for every node the same object."""
        if (single, level) not in self._back:
            changed = dataclasses.replace(self, single_back=single, level=level)
            self._back[single, level] = changed
        return self._back[single, level]

    def sample(self, atom: Any) -> np.ndarray:
        """Returns one draw of a parameter-made operand, to see along what it varies."""
        if not isinstance(atom, int):
            return np.asarray(atom.val, np.float64)
        return self._sample(atom, 1)[0]

    @functools.cached_property
    def _level(self) -> Callable[[str], float | None]:
        """Leaf name -> the one value of all its entries, if it is fixed and has one."""

        @functools.cache
        def level(name: str) -> float | None:
            leaf = self.law.leaves.get(name)
            if leaf is None or leaf.value is None or leaf.value.size == 0:
                return None
            first = leaf.value.flat[0]
            if not np.issubdtype(leaf.value.dtype, np.number):
                return None
            return float(first) if np.all(leaf.value == first) else None

        return level

    @functools.cached_property
    def _weights(self) -> Callable[[int], WeightMoments]:
        return functools.cache(self._weight_of)

    @functools.cached_property
    def _patterns(self) -> dict[Hashable, tuple[np.ndarray, Pattern]]:
        return {}  # with the samples, so that no others get their identity

    @functools.cached_property
    def _back(self) -> dict[tuple[bool, int], "RuleContext"]:
        return {}

    def between(self, first: int, last: int) -> tuple[Node, ...]:
        """Returns the nodes that make one value of another, if they do; else none.

        With what else `last` is made of, after `first`.
        """
        found: dict[int, Node] = {}
        stack, reached = [last], False
        while stack:
            at = stack.pop()
            node = self.producer(at) if at > first and at not in found else None
            if node is not None:
                found[at] = node
                stack.extend(node.inputs)
                reached = reached or first in node.inputs
        return tuple(found.values()) if reached else ()

    @functools.cached_property
    def _producers(self) -> Mapping[int, Equation]:
        return self.traced.graph.producers()

    @functools.cached_property
    def _leaf_of(self) -> Mapping[int, str]:
        return {v: n for n, v in self.traced.leaf_values.items()}

    def is_random(self, atom: Any) -> bool:
        """Whether a value that no weight has touched is made of random bits."""
        made_by = self._makers(atom) if isinstance(atom, int) else ()
        return any(e.name.startswith(("random_", "threefry")) for e in made_by)

    def leaf(self, atom: Any) -> str | None:
        """Returns the parameter leaf that an operand is a rearrangement of, if one."""
        at = atom if isinstance(atom, int) else -1
        while at in self._producers:
            equation = self._producers[at]
            if equation.name not in primitives.LAYOUT | {"slice"}:
                return None
            at = equation.values_in[0] if equation.values_in else -1
        return self._leaf_of.get(at)

    def _makers(self, value: int) -> tuple[Equation, ...]:
        """Returns the equations that a value depends on, in order."""
        found: dict[int, Equation] = {}
        stack = [value]
        while stack:
            equation = self._producers.get(stack.pop())
            if equation is not None and equation.outputs[0] not in found:
                found[equation.outputs[0]] = equation
                stack.extend(equation.values_in)
        return tuple(found[k] for k in sorted(found))

    def _weight_of(self, value: int) -> WeightMoments:
        name = self.leaf(value) or ""
        leaf = self.law.leaves.get(name)
        if leaf is not None and leaf.value is None and leaf.drawn is None:
            return WeightMoments(leaf.second, leaf.mean, None, shape=leaf.shape)
        real = jnp.issubdtype(self.traced.graph.avals[value].dtype, jnp.floating)
        level = self._level(name) if real else None
        if level is not None:  # whatever its rearrangement: nothing to evaluate
            array = np.broadcast_to(np.float64(level), self.shape(value))
            return WeightMoments(level**2, 0.0, array)
        leaves = self.traced.flow.leaves_of(value)
        if all(self.law.leaves[n].value is not None for n in leaves):
            array = np.asarray(self._sample(value, 1)[0], np.float64)
            return WeightMoments(float(np.mean(array**2)), 0.0, array)
        if value in self._leaf_of and leaf is not None and leaf.drawn is not None:
            return WeightMoments(leaf.second, leaf.mean, None, leaf.drawn)
        size = math.prod(self.shape(value))
        draws = self._sample(value, int(np.clip(ENOUGH // max(size, 1), 4, 64)))
        mean = float(np.mean(draws))
        second = float(np.mean(np.square(draws)))
        sem = np.sqrt(second / draws.size)
        return WeightMoments(second, mean if abs(mean) > 6 * sem else 0.0, None, draws)

    def _sample(self, value: int, draws: int) -> np.ndarray:
        """Evaluates a parameter-made value on `draws` draws of its leaves."""
        graph = self.traced.graph
        kept = self._makers(value)
        needed = {value}.union(*(e.values_in for e in kept))
        read = [v for v in self._leaf_of if v in needed]
        part = dataclasses.replace(
            graph, inputs=tuple(read), equations=kept, outputs=(value,)
        )
        rows = []
        for i in range(draws):
            args = []
            for at, v in enumerate(read):
                leaf, aval = self.law.leaves[self._leaf_of[v]], graph.avals[v]
                if leaf.value is not None:
                    args.append(jnp.asarray(leaf.value, aval.dtype))
                    continue
                if leaf.drawn is not None:
                    one = leaf.drawn[(i + at) % len(leaf.drawn)]
                    args.append(jnp.asarray(one, aval.dtype))
                    continue
                own = jax.random.fold_in(jax.random.key(7 + i), v)
                unit = jax.random.normal(own, aval.shape)
                args.append((unit * np.sqrt(leaf.second)).astype(aval.dtype))
            got = evaluate(part, args)[0]
            number = jnp.issubdtype(got.dtype, jnp.number)
            rows.append(np.asarray(got, np.float64) if number else np.asarray(got))
        return np.stack(rows)
