"""Which axes of a block's values are examples, positions and channels."""

import math
from collections.abc import Mapping, Sequence

from layerwise.theory.attention import Block
from layerwise.theory.refusal import NoSoundRule
from layerwise.tracing import primitives
from layerwise.tracing.graph import Equation


Roles = tuple[str | None, ...]
"""Per axis "b", "s" or "c"; None for copies along a new axis."""


def of_output(block: Block, roles: Mapping[int, Sequence[str]]) -> tuple[str, ...]:
    """Returns the roles of a block's output, from those of its inputs.

    Raises:
        NoSoundRule: If examples are mixed, or an equation is not known.
    """
    known: dict[int, Roles] = {v: tuple(r) for v, r in roles.items()}
    shapes = {v: tuple(a.shape) for v, a in block.graph.avals.items()}
    for equation in block.equations:
        got = _step(equation, known, shapes)
        known.update((v, got) for v in equation.outputs)
    shape = shapes[block.output]
    out = known[block.output]
    if any(r is None and n > 1 for r, n in zip(out, shape, strict=True)):
        raise NoSoundRule("copies along a new axis")
    if out.count("b") != 1:
        raise NoSoundRule("a result without examples")
    return tuple(r or "c" for r in out)


def _merged(options: Sequence[Roles]) -> Roles:
    out = []
    for roles in zip(*options, strict=True):
        named = {r for r in roles if r is not None}
        if len(named) > 1:
            raise NoSoundRule("operands whose axes have different roles")
        out.append(named.pop() if named else None)
    return tuple(out)


_KEEPING = frozenset(
    ["slice", "pad", "rev", "concatenate", "split", "cumsum", "cummax", "cumlogsumexp"]
)
_SAME = primitives.ELEMENTWISE | primitives.WRAPPERS | {"copy", "copy_p"}


def _step(
    e: Equation, known: Mapping[int, Roles], shapes: Mapping[int, tuple[int, ...]]
) -> Roles:
    """Returns the roles of one equation's results."""
    signals = [v for v in e.values_in if v in known]
    p, first = e.params, known[signals[0]]
    shape, new = shapes[signals[0]], shapes[e.outputs[0]]
    match e.name:
        case "dot_general":
            return _product(e, known, shapes)
        case "transpose":
            return tuple(first[a] for a in p["permutation"])
        case "reshape":
            return _reshaped(first, shape, new)
        case "squeeze":
            return tuple(r for a, r in enumerate(first) if a not in p["dimensions"])
        case "broadcast_in_dim":
            place = {to: a for a, to in enumerate(p["broadcast_dimensions"])}
            return tuple(
                first[place[a]] if a in place and shape[place[a]] == n else None
                for a, n in enumerate(new)
            )
        case "reduce_sum" | "reduce_max" | "reduce_min" | "reduce_prod" | "argmax":
            _check_no_examples([first[a] for a in p["axes"]])
            return tuple(r for a, r in enumerate(first) if a not in p["axes"])
    if e.name in _KEEPING:
        if any(r == "b" and shape[a] != new[a] for a, r in enumerate(first)):
            raise NoSoundRule("examples that are cut")
        along = p.get("axis", p.get("dimension"))
        if e.name != "split" and along is not None:
            _check_no_examples([first[along]])
        return first
    if e.name in _SAME or e.name in ("convert_element_type", "reduce_precision"):
        return _merged([known[v] for v in signals if len(known[v]) == len(new)])
    raise NoSoundRule(f"{e.name} inside an attention")


def _check_no_examples(roles: Sequence[str | None]) -> None:
    if "b" in roles:
        raise NoSoundRule("a sum or maximum over examples")


def _product(
    e: Equation, known: Mapping[int, Roles], shapes: Mapping[int, tuple[int, ...]]
) -> Roles:
    contract, batched = e.params["dimension_numbers"]
    sides: list[Roles] = []
    for a in e.inputs:
        assert isinstance(a, int)
        sides.append(known.get(a, (None,) * len(shapes[a])))
    for side, over in zip(sides, contract, strict=True):
        _check_no_examples([side[a] for a in over])
    both = [tuple(s[a] for a in over) for s, over in zip(sides, batched, strict=True)]
    free = [
        tuple(r for a, r in enumerate(s) if a not in (*c, *b))
        for s, c, b in zip(sides, contract, batched, strict=True)
    ]
    return _merged(both) + free[0] + free[1]


def _reshaped(roles: Roles, old: Sequence[int], new: Sequence[int]) -> Roles:
    """Roles behind a reshape that splits or merges axes of one role each."""
    out: list[str | None] = []
    i = j = 0
    while i < len(old) or j < len(new):
        a, b = [i], [j]
        if i == len(old) or (j < len(new) and new[j] == 1 != old[i]):
            out.append(None)
            j += 1
            continue
        if j == len(new) or (old[i] == 1 != new[j]):
            i += 1
            continue
        while math.prod(old[k] for k in a) != math.prod(new[k] for k in b):
            if math.prod(old[k] for k in a) < math.prod(new[k] for k in b):
                a.append(a[-1] + 1)
            else:
                b.append(b[-1] + 1)
        named = {roles[k] for k in a if old[k] > 1 and roles[k] is not None}
        copies = any(roles[k] is None and old[k] > 1 for k in a)
        named = named or {roles[a[0]]}
        if len(named) > 1 or (copies and named != {"c"} and len(a) > 1):
            raise NoSoundRule("a reshape that mixes axes of different roles")
        (role,) = named
        out += [role] * len(b)
        i, j = a[-1] + 1, b[-1] + 1
    return tuple(out)
