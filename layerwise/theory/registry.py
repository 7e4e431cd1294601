"""Which primitive has which rule: registration, look-up, and the coverage table.

A rule is a class with two static methods: `forward` takes the moments of a node's
operands to those of its result, `backward` takes those of the result's cotangent to
those of the operands'. It raises `NoSoundRule` wherever its assumptions do not hold;
the engine then samples the node and grades what depends on it `measured`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from layerwise.errors import InvalidArgumentError, message
from layerwise.theory.context import Node, RuleContext
from layerwise.theory.refusal import NoSoundRule as NoSoundRule
from layerwise.theory.state import State


class Rule(Protocol):
    """What `rule` registers."""

    @staticmethod
    def forward(ctx: RuleContext, node: Node, states: Sequence[State]) -> State:
        """Returns the moments of the node's result."""
        ...

    @staticmethod
    def backward(
        ctx: RuleContext,
        node: Node,
        states: Sequence[State],
        out: State,
        cotangent: State,
    ) -> Sequence[State | None]:
        """Returns the moments of each operand's cotangent."""
        ...


@dataclasses.dataclass(frozen=True)
class Entry:
    """A registered rule, as the coverage table shows it."""

    name: str
    family: str
    rule: Any
    summary: str


_ENTRIES: dict[str, Entry] = {}


def rule(*names: str, family: str = "user") -> Callable[[Any], Any]:
    """Registers a class of static methods as the moment rule of primitives.

    The contract:

    * ``forward(ctx, node, states)`` gets one `State` per signal operand and returns
      that of the result. `State.map` applies a function to each run of alike channels,
      a `Field`; `Field.scaled` multiplies its second moments.
    * ``backward(ctx, node, states, out, cotangent)`` gets the moments of the result's
      cotangent and returns one `State` (or None, for no cotangent) per signal operand.
      Without this method the backward numbers are sampled, graded `measured`.
    * ``node.equations[0].params`` are the primitive's static parameters,
      ``node.equations[0].inputs`` its operands, ``ctx.shape(value)`` the shape of one.
    * Where its assumptions do not hold it raises `NoSoundRule` with the reason; the
      equation is then sampled.
    * Grades only get worse: return the operand's own where the rule is exact, at least
      `Grade.APPROXIMATE` where it is not.

    Args:
        *names: Primitive names as on a jaxpr's equations, or names of the interpreter's
            own nodes ("pointwise", "normalization").
        family: Heading in the coverage table.

    Raises:
        InvalidArgumentError: If a name has a rule already.

    Example:
        >>> @rule("my_primitive")
        ... class MyPrimitive:
        ...     "Doubles its operand."
        ...     @staticmethod
        ...     def forward(ctx, node, states):
        ...         return states[0].map(lambda f: f.scaled(4.0))
        ...     @staticmethod
        ...     def backward(ctx, node, states, out, cotangent):
        ...         return [cotangent.map(lambda f: f.scaled(4.0))]
        >>> unregister("my_primitive")
    """

    def register(cls: Any) -> Any:
        for name in names:
            if name in _ENTRIES:
                raise InvalidArgumentError(
                    message(
                        f"A second rule for primitive {name!r} "
                        f"({cls.__name__}, after {_ENTRIES[name].rule.__name__}).",
                        "Which of the two ran would depend on the order of imports.",
                        f"layerwise.theory.registry.unregister({name!r}) first, if the "
                        "new one is meant to take its place.",
                    )
                )
            summary = (cls.__doc__ or "").strip().partition("\n")[0]
            _ENTRIES[name] = Entry(name, family, cls, summary)
        return cls

    return register


def unregister(name: str) -> None:
    """Removes the rule of a primitive."""
    del _ENTRIES[name]


def find(name: str) -> Any | None:
    """Returns the rule of a primitive, or None."""
    entry = _ENTRIES.get(name)
    return None if entry is None else entry.rule


def entries() -> tuple[Entry, ...]:
    """Returns every registered rule, by family and name."""
    return tuple(sorted(_ENTRIES.values(), key=lambda e: (e.family, e.name)))


def coverage_table() -> str:
    """Returns docs/coverage.md: every primitive that has a rule, and what it does."""
    lines = [
        "# Coverage",
        "",
        "Generated from the registry by `python -m layerwise.theory.coverage`.",
        "An equation that is not here is sampled, and what depends on it is graded",
        "`measured`. Loops, branches, calls and custom derivatives are written out",
        "before (`layerwise.tracing.unroll`), and so need no rule: `jit`, `remat`,",
        "`scan`, `while` and `cond` that depend on constants or inputs alone,",
        "`custom_jvp` and `custom_vjp` whose rule is the derivative of the body.",
        "",
        "| family | primitive or node | rule |",
        "|---|---|---|",
    ]
    lines += [f"| {e.family} | `{e.name}` | {e.summary} |" for e in entries()]
    return "\n".join(lines) + "\n"
