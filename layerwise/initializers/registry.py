"""The list of schemes: what each is called, needs, preserves and supports.

A family file registers its schemes where it defines them. Names, error messages and the
table in the documentation all come from here, so that none of them can lag the others.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from layerwise.errors import InvalidArgumentError, did_you_mean, message
from layerwise.tracing import TracedModel
from layerwise.types import PyTree


FEATURES = (
    "dense",
    "ReLU",
    "other activations",
    "padding",
    "stride",
    "pooling",
    "overlap",
    "residual",
    "normalization",
    "attention",
)
"""What a network may have; a scheme supports it if its promise then still holds."""

DISTRIBUTIONS = ("normal", "truncated", "uniform", "orthogonal")


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What a scheme is asked about.

    Attributes:
        traced: The model.
        inputs: Its inputs, as arrays.
        abstract: Shapes and dtypes of its parameters.
        options: The options that were given, by name.
    """

    traced: TracedModel
    inputs: tuple[Any, ...]
    abstract: PyTree
    options: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Assignment:
    """What a scheme answers.

    Attributes:
        variances: Layer path -> variance of its weights.
        constants: Leaf name -> the value that it starts at, beside biases at zero.
        distribution: One of `DISTRIBUTIONS`, or "delta_orthogonal", "identity"; None
            for what was asked for.
        left_alone: Leaf name -> why the scheme says nothing about it.
        adjust: What is done to drawn parameters, traceable; None for nothing.
        exact: Whether `variances` are those of the weights after it.
    """

    variances: Mapping[str, Any]
    constants: Mapping[str, float] = dataclasses.field(default_factory=dict)
    distribution: str | None = None
    left_alone: Mapping[str, str] = dataclasses.field(default_factory=dict)
    adjust: Callable[[PyTree], PyTree] | None = None
    exact: bool = True


@dataclasses.dataclass(frozen=True)
class Scheme:
    """One scheme.

    Attributes:
        name: What `initialize` takes.
        solve: Problem -> assignment.
        needs: What it has to know.
        preserves: What stays constant from layer to layer.
        supports: Those of `FEATURES` with which it does.
        source: Keys into docs/notation.md.
        options: Names of the options that it takes.
        distributions: What it can be drawn from; empty where the scheme decides.
        default: What it is drawn from if nothing is said.
    """

    name: str
    solve: Callable[[Problem], Assignment]
    needs: str
    preserves: str
    supports: tuple[str, ...]
    source: str
    options: tuple[str, ...] = ()
    distributions: tuple[str, ...] = DISTRIBUTIONS
    default: str = "normal"


_SCHEMES: dict[str, Scheme] = {}

_ALIASES = {
    "xavier": "glorot",
    "he": "kaiming_fan_in",
    "kaiming": "kaiming_fan_in",
    "kaiming_forward": "kaiming_fan_in",
    "kaiming_backward": "kaiming_fan_out",
    "asv": "asv_forward",
    "auto": "kernel_forward",
}


def register(scheme: Scheme) -> Scheme:
    """Adds a scheme to the list and returns it."""
    assert set(scheme.supports) <= set(FEATURES)
    _SCHEMES[scheme.name] = scheme
    return scheme


def scheme_names() -> list[str]:
    """Returns the names that `initialize` knows, without aliases."""
    return list(_SCHEMES)


def find(name: str) -> Scheme:
    """Returns the scheme of a name or alias.

    Raises:
        InvalidArgumentError: If there is none.
    """
    known = scheme_names()
    found = _SCHEMES.get(_ALIASES.get(name, name))
    if found is None:
        raise InvalidArgumentError(
            message(
                f"Unknown scheme {name!r}."
                f"{did_you_mean(str(name), [*known, *_ALIASES])}",
                f"The schemes are {', '.join(known)}.",
                "Pass one of them, such as scheme='kernel_forward'.",
            )
        )
    return found


_TABLE_2 = ("glorot", "kaiming_fan_in", "asv_forward")


def markdown_table() -> str:
    """Returns the schemes as a table: what each needs, preserves and supports.

    The first three rows are the paper's comparison.

    References:
        [Henmi2020] Table 2.
    """
    head = ["scheme", "needs", "preserves", *FEATURES, "source"]
    rows = [
        [
            f"`{s.name}`",
            s.needs,
            s.preserves,
            *("yes" if f in s.supports else "" for f in FEATURES),
            s.source,
        ]
        for s in map(find, dict.fromkeys((*_TABLE_2, *_SCHEMES)))
    ]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
