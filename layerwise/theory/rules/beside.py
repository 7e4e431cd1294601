"""Channels or positions put side by side; exact.

Positions side by side (a class token in front of patches) are a sum of the operands,
each padded with zeros to the whole length.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from layerwise.theory import data
from layerwise.theory.context import Node, RuleContext
from layerwise.theory.parts import aligned, fit_parts
from layerwise.theory.registry import NoSoundRule, rule
from layerwise.theory.rules.elementwise import add_fields, worst
from layerwise.theory.rules.positions import map_axis
from layerwise.theory.state import Field, State, share_roots


@rule("concatenate", family="shape")
class Concatenate:
    """Puts channels or positions side by side, zeros or parameters too; exact."""

    @staticmethod
    def forward(ctx: RuleContext, node: Node, states: Sequence[State]) -> State:
        """Exact, but for the marginal law of positions that have different ones."""
        if states[0].axes[_axis(node)] == "s":
            return _positions(ctx, node, states)
        _check_channels(ctx, node, states)
        return _joined(states, tuple(p for s in states for p in s.parts))

    @staticmethod
    def backward(
        ctx: RuleContext,
        node: Node,
        states: Sequence[State],
        out: State,
        cotangent: State,
    ) -> Sequence[State | None]:
        """Each operand's own channels or positions."""
        if states[0].axes[_axis(node)] == "s":
            axis = states[0].axes[: _axis(node)].count("s")
            places = [m for a, m in _places(ctx, node) if a in node.inputs]
            return [
                fit_parts(cotangent.map(lambda f, m=m: map_axis(ctx, f, axis, m.T)), s)
                for m, s in zip(places, states, strict=True)
            ]
        fitted = list(fit_parts(cotangent, out).parts)
        back: list[State | None] = []
        for s in states:
            mine = tuple(fitted[: len(s.parts)])
            del fitted[: len(s.parts)]
            back.append(dataclasses.replace(cotangent, parts=mine))
        return back


def _axis(node: Node) -> int:
    return int(node.equations[0].params["dimension"])


def _joined(states: Sequence[State], parts: tuple[tuple[int, Field], ...]) -> State:
    return State(
        states[0].axes,
        parts,
        worst(*(s.mean_grade for s in states)),
        worst(*(s.grade for s in states)),
        frozenset().union(*(s.sources for s in states)),
        frozenset().union(*(s.roots for s in states)),
        tolerance=max(s.tolerance for s in states),
        pair_tolerance=max(s.pair_tolerance for s in states),
    )


def _check_channels(ctx: RuleContext, node: Node, states: Sequence[State]) -> None:
    if len(states) != len(node.equations[0].inputs):
        raise NoSoundRule("a parameter or constant put beside a signal")
    if any(s.axes[_axis(node)] != "c" for s in states):
        raise NoSoundRule("examples put side by side")
    if len({s.axes for s in states}) > 1:
        raise NoSoundRule("operands whose axes have different roles")


def _places(ctx: RuleContext, node: Node) -> list[tuple[object, np.ndarray]]:
    """Returns (operand, its positions among all, ``(new, old)``)."""
    total = np.eye(ctx.shape(node.output)[_axis(node)])
    found, first = [], 0
    for atom in node.equations[0].inputs:
        size = ctx.shape(atom)[_axis(node)] if isinstance(atom, int) else 0
        found.append((atom, total[:, first : first + size]))
        first += size
    return found


def _positions(ctx: RuleContext, node: Node, states: Sequence[State]) -> State:
    like = states[0]
    axis = like.axes[: _axis(node)].count("s")
    if len({s.axes for s in states}) > 1 or len(set(node.inputs)) < len(states):
        raise NoSoundRule("operands whose axes have different roles")
    if share_roots(states):
        raise NoSoundRule("positions of one origin put side by side")
    known = dict(zip(node.inputs, states, strict=True))
    total: State | None = None
    for atom, place in _places(ctx, node):
        own = known.get(atom) if isinstance(atom, int) else None  # type: ignore[arg-type]
        term = _constant(ctx, atom, like) if own is None else own
        term = term.map(lambda f, m=place: map_axis(ctx, f, axis, m))
        if total is not None:
            runs = aligned(total, term)
            parts = tuple((n, _beside(f, g)) for n, f, g in runs)
            term = dataclasses.replace(term, parts=parts)
        total = term
    assert total is not None
    return _joined(states, total.parts)


def _beside(f: Field, g: Field) -> Field:
    """Returns the sum of two fields none of whose positions are in both."""
    laws = {id(x.shape): x for x in (f, g) if np.any(x.table)}
    if len(laws) > 1:
        raise NoSoundRule("positions with different laws put side by side")
    got = add_fields(f, g)
    shape = next(iter(laws.values())).shape if laws else None
    return got.replace(shape=shape, weights=max(f.weights, g.weights))


def _constant(ctx: RuleContext, atom: object, like: State) -> State:
    """Returns the state of an operand that is no signal, zero or a parameter."""
    if not isinstance(atom, int):
        raise NoSoundRule("a number put beside a signal")
    moments, shape = ctx.weight(atom), ctx.shape(atom)
    if moments.value is not None:
        array = np.broadcast_to(moments.value, shape)
        fields = data.constant(ctx, array, like, shape)
        parts = zip(like.parts, fields, strict=True)
        return dataclasses.replace(like, parts=tuple((n, f) for (n, _), f in parts))
    array = ctx.sample(atom)
    order = [a for a, r in enumerate(like.axes) if r == "b"]
    if moments.mean or any(np.ptp(array, axis=a).any() for a in order):
        raise NoSoundRule("a parameter of non-zero mean put beside a signal")
    sizes = [n for n, r in zip(shape, like.axes, strict=True) if r == "s"]
    if np.prod(sizes) != 1:
        raise NoSoundRule("several positions of parameters put beside a signal")

    def random(f: Field) -> Field:
        lags = ((0,),) * f.rank
        table = np.full((ctx.classes, *([1] * 2 * f.rank)), moments.second)
        return Field(np.zeros(sizes), table, lags, symmetric=True)

    return like.map(random)
