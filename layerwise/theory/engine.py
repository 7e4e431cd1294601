"""The interpreter: one sweep forward, one back. It knows no primitive.

What a node does is in its rule (`layerwise.theory.rules`); here is the order of
things: the moments of every node's result, then, from independent cotangents of unit
variance at
the outputs, the moments of every value's cotangent. Where there is no rule, or a rule
says that its assumptions do not hold, the node is sampled.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from layerwise.theory import data, lags as lagging, profile, registry, rules
from layerwise.theory.context import Node, RuleContext
from layerwise.theory.law import Law
from layerwise.theory.parts import aligned, fit_parts
from layerwise.theory.plan import Planner
from layerwise.theory.reach import EVERYTHING, Reach, why, without_rule
from layerwise.theory.refusal import NoSoundRule, check_certain, check_numbers
from layerwise.theory.repeats import Repeats
from layerwise.theory.resolution import (
    DENSE_BUDGET,
    PAIRS_BACK,
    PAIRS_BACK_BUDGET,
    count_classes,
    held_lags,
    is_curved,
)
from layerwise.theory.rest import Rest
from layerwise.theory.rules.elementwise import add_fields, worst
from layerwise.theory.sampling import Sampler
from layerwise.theory.sharing import Sharing
from layerwise.theory.state import Field, Grade, State, both_readers, share_roots, white
from layerwise.tracing import TracedModel


assert rules.__all__  # imported to register them

Direction = Literal["forward", "backward"]


class _Unsampled(Exception):
    """A node has no sound rule, and nothing is to be sampled."""


class Engine:
    """Predicts one model.

    Args:
        traced: The model.
        law: The law of its parameters.
        inputs: The data inputs.
        cuts: Values whose moments are wanted.
        independent: Take inputs for independent zero-mean entries (`sitewise`).
        draws: Networks to run where something has to be sampled; with 0, what would
            depend on it stays unknown.
        scaled: The direction in which whoever runs the sweep changes the moments of
            weight operations as it gets there: nothing behind may be sampled before.
        budget: Table entries in all, above which fewer lags are held.
        arrays: What no weight has touched, in place of what the inputs make of it.
        group: Which group of examples that is, and of how many.
        within: How far to go by rules at most.
        progress: Called with (nodes done, nodes in all) over both sweeps.
    """

    def __init__(
        self,
        traced: TracedModel,
        law: Law,
        inputs: Sequence[Any],
        cuts: frozenset[int],
        *,
        independent: bool = False,
        draws: int = 48,
        scaled: Direction | None = None,
        budget: float = DENSE_BUDGET,
        arrays: Mapping[int, np.ndarray] | None = None,
        group: tuple[int, int] = (0, 1),
        within: Reach = EVERYTHING,
        progress: Callable[[int, int], None] | None = None,
    ):
        self.traced, self.inputs = traced, tuple(inputs)
        self.scaled, self.budget, self.within = scaled, budget, within
        # Leaf name -> logarithm of the factor that whoever scales has found for it.
        self.scales: dict[str, float] = {}
        self.progress = progress or (lambda *_: None)
        self.known: dict[int, State] = {}
        self.cotangents: dict[int, list[State]] = {}
        self.total: dict[int, State] = {}
        self.sampled: dict[int, str] = {}
        self.reasons: dict[str, str] = {}
        self.makers: dict[int, Node] = {}
        self.measured: dict[int, State] = {}
        self.drawn_back: dict[int, State] = {}
        self.fixed: frozenset[int] = frozenset()
        self.filled: set[int] = set()
        self.by_rule: set[int] = set()  # sampled, but for the cotangent
        self.cuts = cuts
        self.measured_below = 0
        if arrays is None:
            arrays = data.deterministic(traced, self.inputs)
        first = next((x for x in self.inputs if np.ndim(x)), None)
        base = RuleContext(
            traced=traced,
            law=law,
            batch=1 if first is None else first.shape[0],
            classes=1,
            level=lagging.DENSE,
            data=arrays,
            white=independent,
            producer=self.makers.get,
            state_of=self.state_of,
            group=group,
        )

        def constant(value: int) -> np.ndarray | None:
            if traced.flow.is_signal(value):
                return None
            leaves = traced.flow.leaves_of(value)
            if any(law.leaves[n].value is None for n in leaves):
                return None
            return base.weight(value).value

        self.folded = data.read_without_weights(traced, arrays)
        self.nodes = Planner(traced, cuts, frozenset(arrays), constant).plan()
        self.makers.update((n.output, n) for n in self.nodes)
        self.first_use = {v: n.output for n in self.nodes[::-1] for v in n.inputs}
        classes = count_classes(self.nodes)
        level, self.entries = held_lags(base, self.nodes, classes, self.budget)
        self.ctx = dataclasses.replace(
            base,
            classes=classes,
            level=level,
            joint=any(n.name == "normalization" for n in self.nodes),
        )
        readers = [n.output for n in self.nodes if self._reads_pairs(n)]
        self.first_reader = min(readers, default=10**12)
        self.sharing = Sharing(self.ctx, self.nodes)
        self.repeats = Repeats(self.ctx, self.nodes)
        ends = {a for a in traced.graph.outputs if isinstance(a, int)}
        apart = frozenset(ends.union(self.sharing.first))
        self.rest = Rest(self.ctx, self.nodes, self.repeats, apart, self.first_reader)
        self.undisturbed = scaled is None and within is EVERYTHING
        # A sum that may be far off is sampled where examples cannot be told apart.
        self.certain = classes > 1 and scaled is None and draws > 0
        self.sampler = Sampler(self.ctx, self.inputs, draws, log_scale=self.scales)

    def _reads_pairs(self, node: Node) -> bool:
        """Whether the cotangents behind a node are needed in pairs of positions."""
        small = self.entries < PAIRS_BACK_BUDGET and self.ctx.level >= lagging.DENSE
        if small and node.name == "conv_general_dilated":
            return True  # weights and masks depend on each other: order 1/width
        return node.name in PAIRS_BACK or is_curved(node)

    def state_of(self, value: int) -> State:
        """Returns the moments of a value that has been reached."""
        if value not in self.known:
            array = self.ctx.data[value]
            big = np.prod(array.shape[1:-1], dtype=float) > 5000
            readers = self.traced.graph.consumers().get(value, [])
            only_conv = all(e.name == "conv_general_dilated" for e in readers)
            lags = None
            if big or only_conv:  # a convolution reads the array itself
                axes = data.roles(array.shape, self.ctx.batch)
                lags = ((0,),) * axes.count("s")
            self.known[value] = data.state(self.ctx, value, lags)
        return self.known[value]

    def reach(self) -> Reach:
        """Returns how far the rules went."""
        made = (n.output for n in self.nodes if n.output not in self.known)
        sampled = min(self.sampled, default=np.inf)
        last = next(reversed(self.reasons.values()), "")
        return Reach(min(next(made, np.inf), sampled), self.measured_below or -1, last)

    def run(self) -> None:
        """Runs both sweeps, as far as they go."""
        for _ in self.forward():
            pass
        for _ in self.backward():
            pass

    def backward(self) -> Iterator[Node]:
        """Runs the backward sweep, if the other came to its end; yields each node."""
        if any(n.output not in self.known for n in self.nodes):
            return
        self._seed()
        count = len(self.nodes)
        for i, node in enumerate(reversed(self.nodes)):
            if self.measured_below:  # everything before depends on what was measured
                break
            self.progress(count + i, 2 * count)
            if node.output not in self.filled:
                self._backward(node)
            yield node

    def forward(self) -> Iterator[Node]:
        """Runs the forward sweep; yields each node when its result is known.

        Stops at a node without a sound rule where nothing is to be sampled.
        """
        last = {v: n.output for n in self.nodes for v in n.inputs}
        sums = any(n.name in ("add", "sub") and len(n.inputs) > 1 for n in self.nodes)
        for i, node in enumerate(self.nodes):
            self.progress(i, 2 * len(self.nodes))
            if node.output in self.known:  # it continues a row of equal layers
                yield node
                continue
            try:
                recalled = self._forward(node)
            except _Unsampled:
                return
            if self.undisturbed:
                self.rest.forward(node, recalled, self.known)
            yield node
            if node.output >= self.first_reader or sums:
                continue
            for v in node.inputs:  # pairs that neither direction will read again
                if v in self.known and last[v] == node.output:
                    self.known[v] = self.known[v].map(Field.single)

    @np.errstate(over="ignore", invalid="ignore")  # `check_numbers` says so
    def _forward(self, node: Node) -> bool:
        """Finds a node's result; returns whether by an equal one before it."""
        rule, recalled = registry.find(node.name), False
        try:
            if node.output == self.within.forward:
                raise NoSoundRule(self.within.why)
            if rule is None:
                raise NoSoundRule(without_rule(node))
            states = [self.state_of(v) for v in node.inputs]
            self.sharing.check(node)
            got = self.repeats.forward(node, states)
            recalled = got is not None
            if got is None:
                got = rule.forward(self.ctx, node, states)
                check_numbers([got], states)
                if self.certain:
                    check_certain(node.name, got, states)
                self.repeats.remember(node, "forward", states, [got])
            roots = self.sharing.roots(node, states)
            got = self.sharing.graded(node, got)
            self.known[node.output] = dataclasses.replace(got, roots=roots)
        except Exception as error:
            self._sample(node, why(error))
            if isinstance(error, NoSoundRule) and error.forward_only:
                self.by_rule.add(node.output)
        return recalled

    def _sample(self, node: Node, reason: str) -> None:
        label = self._label(node)
        self.reasons[label] = reason
        if not self.sampler.draws:
            raise _Unsampled
        self.sampled[node.output] = label
        if node.output not in self.measured:
            wanted = {node.output: label}
            later = () if self.scaled == "forward" else self.nodes
            for other in later:  # those likely to be sampled too, in the same run
                likely = registry.find(other.name) is None or node.is_like(other)
                new = other.output > node.output and other.output not in self.measured
                if likely and new and self._is_float(other.output):
                    wanted[other.output] = self._label(other)
            self.measured.update(self.sampler.forward(list(wanted), wanted))
        self.known[node.output] = self.measured[node.output]

    def _seed(self) -> None:
        for atom in self.traced.graph.outputs:
            if not isinstance(atom, int) or atom not in self.known:
                continue
            if not jnp.issubdtype(self.traced.graph.avals[atom].dtype, jnp.floating):
                continue
            value = self.known[atom]

            def unit(f: Field) -> Field:
                return white(
                    f.sizes, self.ctx.classes, np.ones(f.sizes), self.ctx.level
                )

            start = value.map(
                unit,
                grade=Grade.EXACT,
                mean_grade=Grade.EXACT,
                sources=frozenset(),
                terms=(),
                roots=frozenset([atom]),
                tolerance=0.0,
                pair_tolerance=0.0,
            )
            self.cotangents.setdefault(atom, []).append(start)
        if self.scaled != "backward":
            return  # the sweep measures what is before a sampled node as it gets there
        wanted = {}
        for value, label in self.sampled.items():
            for v in self.makers[value].inputs:
                if v not in self.ctx.data:
                    wanted[v] = label
        if wanted:
            found = self.sampler.backward(list(wanted), wanted)
            for v, state in found.items():
                self.cotangents[v] = [state]
        self.fixed = frozenset(wanted)

    def combined(self, value: int) -> State | None:
        """Returns the cotangent of a value, all of its readers' contributions added."""
        if value not in self.total:
            parts = self.cotangents.get(value)
            if not parts or not self._reached(value):
                return None
            if value < self.first_reader:
                parts = [p.map(Field.single) for p in parts]
            if value in self.folded:
                return self._drawn(value, "equations without weights read it too")
            if share_roots(parts) and not self.sharing.in_pieces(value):
                return self._drawn(value, "cotangents of one origin meet here")
            try:
                total = parts[0]
                for other in parts[1:]:
                    total = self._added(value, total, other)
            except Exception as error:
                return self._drawn(value, why(error))
            self.total[value] = total
        return self.total[value]

    def _drawn(self, value: int, reason: str) -> State | None:
        """Samples the cotangent of a value, for all of its readers together."""
        node = self.makers.get(value)
        label = node.label if node is not None else f"value {value}"
        if self.scaled != "backward":
            self._measure_back(value, label, reason, value)
            return self.total.get(value)
        self.reasons[label] = reason
        if value not in self.drawn_back:
            self.drawn_back.update(self.sampler.backward([value], {value: label}))
        self.cotangents[value] = [self.drawn_back[value]]
        self.total[value] = self.drawn_back[value]
        return self.total[value]

    def _added(self, value: int, a: State, b: State) -> State:
        own = self.known.get(value)
        runs = []
        for n, f, g in aligned(a, b):
            got = add_fields(f, g)
            if f.joint is not None or g.joint is not None:
                # Where one is independent of the value, the moments multiply.
                scale = got.log_scale
                joint = None
                if own is not None:
                    x = own.average()
                    x = x.single() if value < self.first_reader else x
                    unit = float(np.exp(np.clip(x.log_scale, -700, 700)))
                    joint = sum(
                        h.table * x.table * unit if h.joint is None else h.joint
                        for h in (f.rescaled(scale), g.rescaled(scale))
                    )
                got = got.replace(joint=joint)
            runs.append((n, got))
        total = dataclasses.replace(
            both_readers(a, b),
            parts=tuple(runs),
            grade=worst(a.grade, b.grade, Grade.APPROXIMATE),
        )
        return fit_parts(total, own) if own is not None else total

    @np.errstate(over="ignore", invalid="ignore")
    def _backward(self, node: Node) -> None:
        if node.output in self.sampled and node.output not in self.by_rule:
            if self.scaled != "backward":
                self._sample_back(node, self.reasons[self._label(node)])
            return
        rule = registry.find(node.name)
        contributions = self.cotangents.get(node.output)
        if not contributions or rule is None:
            return
        if node.output <= self.within.backward:
            self._sample_back(node, self.within.why)
            return
        if not hasattr(rule, "backward"):
            self._sample_back(node, "its rule has no backward method")
            return
        states = [self.state_of(v) for v in node.inputs]
        out = self.known[node.output]
        # Before the first node that sums cotangents, single positions suffice.
        alone = node.output < self.first_reader
        ctx = self.ctx.back(
            single=node.output <= self.first_reader,
            level=lagging.NONE if alone else self.ctx.level,
        )
        if alone:
            states = [s.map(Field.single) for s in states]
            out = out.map(Field.single)
            contributions = [c.map(Field.single) for c in contributions]
            self.cotangents[node.output] = contributions
            self.total.pop(node.output, None)
        whole = self.combined(node.output)
        if self.measured_below:
            return
        given = self.cotangents[node.output]
        if node.name != "pointwise" or len(given) == 1:
            # Only an activation gains by each reader's cotangent on its own.
            assert whole is not None
            given = [whole]
        recalled = len(given) == 1
        for cotangent in given:
            try:
                fitted = fit_parts(cotangent, out)
                flags = (alone, ctx.single_back)
                back = self.repeats.backward(node, states, flags, fitted)
                recalled = recalled and back is not None
                if back is None:
                    back = rule.backward(ctx, node, states, out, fitted)
                    check_numbers(back, (*states, fitted))
                    self.repeats.remember_back(node, states, flags, fitted, back)
            except Exception as error:
                self._sample_back(node, why(error))
                return
            for v, ct in zip(node.inputs, back, strict=True):
                if ct is not None and v not in self.fixed:
                    origin = cotangent.roots
                    if not self.sharing.has_weights(node):
                        ct = profile.unknown_unless_said(node.name, fitted, ct)
                    else:
                        ct = ct.map(functools.partial(_without, name="profile"))
                        origin = self.sharing.roots(node, ())
                    ct = dataclasses.replace(ct, terms=(), roots=origin)
                    if v < self.first_reader:
                        ct = ct.map(Field.single)
                    if not ctx.joint or v < self.first_reader:  # nothing reads it
                        ct = ct.map(functools.partial(_without, name="joint"))
                    self.cotangents.setdefault(v, []).append(ct)
        self.filled |= self.rest.back(
            node,
            recalled and self.undisturbed and not self.sampled,
            self.total,
            self.cotangents,
            self.known,
        )

    def _reached(self, value: int) -> bool:
        """Whether the sweep has come to all that reads a value."""
        return self.first_use.get(value, 10**12) > self.measured_below

    def _measure_back(self, node: int, label: str, reason: str, *also: int) -> None:
        """Measures the cotangents of every wanted value that is not reached, and more.

        They depend on the node's, or on others that were not reached: one run of the
        model gives them all, and what is given up is the grade of parallel branches.
        """
        self.reasons.setdefault(label, reason)
        self.measured_below = max(node, self.measured_below)
        if not self.sampler.draws:
            return
        below = {v for v in self.cuts if not self._reached(v) and v not in self.total}
        wanted = [v for v in sorted(below.union(also)) if self._is_float(v)]
        try:
            self.total.update(self.sampler.moments_back(wanted, label))
        except Exception as error:  # whatever a derivative rule raises, or its lack
            first = str(error).strip().partition("\n")[0]
            self.reasons[label] = f"{reason}; no derivative: {first}"

    def _is_float(self, value: int) -> bool:
        return jnp.issubdtype(self.traced.graph.avals[value].dtype, jnp.floating)

    def _label(self, node: Node) -> str:
        """The node with its primitive, the user's line, and the layer it is behind."""
        before = [y.path for y in self.traced.layers if y.root < node.output]
        return node.label + (f", behind {before[-1]}" if before else "")

    def _sample_back(self, node: Node, reason: str) -> None:
        if self.scaled != "backward":
            if any(v not in self.ctx.data for v in node.inputs):
                self._measure_back(node.output, self._label(node), reason)
            return
        self.reasons[node.label] = reason
        wanted = {v: node.label for v in node.inputs if v not in self.ctx.data}
        if not wanted.keys() <= self.drawn_back.keys():
            # Others of the kind may be refused too: have theirs from the same run.
            more = dict(wanted)
            for other in self.nodes:
                if other.name == node.name and other.output < node.output:
                    more |= {
                        v: other.label for v in other.inputs if v not in self.ctx.data
                    }
            self.drawn_back.update(self.sampler.backward(list(more), more))
        for v in wanted:
            self.cotangents[v] = [self.drawn_back[v]]
            self.total.pop(v, None)
        self.fixed = self.fixed | frozenset(wanted)


def _without(field: Field, name: str) -> Field:
    """Returns a field without one of its parts."""
    return field if getattr(field, name) is None else field.replace(**{name: None})
