"""What is left of rows of equal layers: by their steps, or by single positions."""

from collections.abc import Mapping, Sequence
from typing import Any

from layerwise.theory.context import Node, RuleContext
from layerwise.theory.periods import Periods, Row
from layerwise.theory.relaxation import Relaxation
from layerwise.theory.repeats import Repeats
from layerwise.theory.state import State


class Rest:
    """Fills in what is left of rows that have settled, all of them or their pairs.

    Args:
        ctx: The context.
        nodes: See `Periods`.
        repeats: What answers them.
        apart: See `Periods`.
        pairs_from: First value whose cotangent is held in pairs of positions.
    """

    def __init__(
        self,
        ctx: RuleContext,
        nodes: Sequence[Node],
        repeats: Repeats,
        apart: frozenset[int],
        pairs_from: int,
    ):
        self.periods = Periods(nodes, repeats.kinds, apart)
        self.repeats, self.pairs_from = repeats, pairs_from
        self.relaxation = Relaxation(ctx, self.periods, repeats, pairs_from)
        self.through, self.behind = Row(self.periods, 1), Row(self.periods, -1)
        # Node -> the run of rows that its result was found to be a step of.
        self.run: dict[int, int] = {}

    def forward(self, node: Node, recalled: bool, known: dict[int, State]) -> None:
        """Fills in results.

        Args:
            node: The node just done.
            recalled: Whether by an equal one.
            known: Results by value, to which others are added.
        """
        i, length = self.periods.at[node.output], None
        if recalled:
            length = self.through.add(i, (known[node.output],))
        else:
            self.through.clear()
        if length is None:
            for v, state in self.relaxation.forward(node, known):
                known[v] = state
            return
        self.run.update(dict.fromkeys(self.through.found, i))
        for k in self.periods.after(i, length):
            (known[self.periods.nodes[k].output],) = self.through.ahead(i, k, length)
            self.run[k] = i
        self.through.clear()

    def back(
        self,
        node: Node,
        recalled: bool,
        total: dict[int, State],
        cotangents: dict[int, list[State]],
        known: Mapping[int, State],
    ) -> set[int]:
        """Fills in cotangents.

        Args:
            node: The node just done.
            recalled: Whether by an equal one.
            total: Cotangents by value, to which others are added.
            cotangents: What each reader of a value gave to that; likewise.
            known: Results by value.

        Returns:
            The nodes, by their results, that have nothing left to give.
        """
        if not recalled:
            self.behind.clear()
            return set()
        i, v, nodes = self.periods.at[node.output], node.output, self.periods.nodes
        length = self.behind.add(i, (total[v], *cotangents[v]))
        if length is None:
            return set()

        still = all(f.response.is_zero for _, f in total[v].parts)

        def setting(k: int) -> list[Any]:
            values = (nodes[k].output, *nodes[k].inputs)
            runs = [self.run.get(self.periods.at[v]) for v in values]
            if still and nodes[k].output < self.pairs_from:
                states = [known[v] for v in nodes[k].inputs]
                runs = [-1] if self.repeats.passes_alike(nodes[k], states) else runs
            return [
                *runs,
                *(v < self.pairs_from for v in (nodes[k].output - 1, *values)),
            ]

        filled = {}
        for k in self.periods.before(i, length):
            here = setting(k)
            if None in here or here != setting(k + length):
                break
            filled[nodes[k].output] = k
        inside = {v: [u in filled for u in nodes[k].inputs] for v, k in filled.items()}
        if any(any(x) and not all(x) for x in inside.values()):
            return set()
        for v, k in filled.items():
            total[v], *cotangents[v] = self.behind.ahead(i, k, length)
        self.behind.clear()
        return {v for v, x in inside.items() if all(x)}
