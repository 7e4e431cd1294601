"""The only file that touches JAX internals.

Everything else sees programs through the names here, so that a JAX release that renames
a primitive, changes a bind signature or moves a class is met in one place.
"""

import contextlib
import functools
import pathlib
import types
from collections.abc import Hashable, Sequence
from typing import Any

import jax
from jax.extend.core import (
    ClosedJaxpr,
    Jaxpr,
    JaxprEqn,
    Literal,
    Var,
    jaxpr_as_fun,
)
from jax.extend.source_info_util import (
    register_exclusion,
    summarize,
)


__all__ = [
    "ClosedJaxpr",
    "Jaxpr",
    "JaxprEqn",
    "Literal",
    "Var",
    "bind",
    "closed",
    "derivative_rule",
    "evaluate",
    "is_key_dtype",
    "is_tracer",
    "parameters",
    "part",
    "primitive_name",
    "scan_counts",
    "source_line",
    "sub_jaxprs",
    "while_counts",
    "with_params",
    "x64",
]

# Old name -> the name used throughout layerwise. Names are keyed, not primitive
# objects: the object may live in another module in the next release.
_ALIASES = {
    "pjit": "jit",
    "core_call": "jit",
    "closed_call": "jit",
    "core_closed_call": "jit",
    "checkpoint": "remat",
    "remat2": "remat",
    "custom_jvp_call_jaxpr": "custom_jvp_call",
    "custom_vjp_call_jaxpr": "custom_vjp_call",
}

# Where each primitive with a body keeps it.
_BODIES = {
    "jit": ("jaxpr", "call_jaxpr"),
    "remat": ("jaxpr",),
    "scan": ("jaxpr",),
    "while": ("cond_jaxpr", "body_jaxpr"),
    "cond": ("branches",),
    "custom_jvp_call": ("call_jaxpr",),
    "custom_vjp_call": ("call_jaxpr", "fun_jaxpr"),
}


def primitive_name(eqn: JaxprEqn) -> str:
    """Returns the primitive's name, the same in every supported JAX."""
    name = eqn.primitive.name
    return _ALIASES.get(name, name)


def closed(jaxpr: Jaxpr | ClosedJaxpr) -> ClosedJaxpr:
    """Returns `jaxpr` with its constants attached (an open one has none)."""
    return jaxpr if isinstance(jaxpr, ClosedJaxpr) else ClosedJaxpr(jaxpr, ())


def sub_jaxprs(eqn: JaxprEqn) -> tuple[ClosedJaxpr, ...]:
    """Returns the bodies of a call, loop or branch; empty for a plain primitive."""
    found = []
    for key in _BODIES.get(primitive_name(eqn), ()):
        body = eqn.params.get(key)
        if body is not None:
            bodies = body if isinstance(body, tuple | list) else (body,)
            found.extend(closed(b) for b in bodies)
    return tuple(found)


def parameters(eqn: JaxprEqn) -> Hashable:
    """Returns what an equation does to its operands; bodies are told by identity."""
    name = primitive_name(eqn)
    bodies = _BODIES.get(name, ())
    own = [(k, str(v)) for k, v in eqn.params.items() if k not in bodies]
    return name, tuple(own), tuple(id(b.jaxpr) for b in sub_jaxprs(eqn))


def part(
    jaxpr: ClosedJaxpr,
    eqns: Sequence[JaxprEqn],
    inputs: Sequence[Var],
    outputs: Sequence[Var | Literal],
) -> ClosedJaxpr:
    """Returns the program of some values from others, made by some equations."""
    alone = jaxpr.jaxpr.replace(
        eqns=list(eqns), invars=list(inputs), outvars=list(outputs)
    )
    return ClosedJaxpr(alone, jaxpr.consts)


def scan_counts(eqn: JaxprEqn) -> tuple[int, int]:
    """Returns how many constants and how many carries a scan's operands begin with."""
    if "num_consts" in eqn.params:  # before jax 0.12
        return eqn.params["num_consts"], eqn.params["num_carry"]
    groups = eqn.params["ft_in"].update(range(len(eqn.invars))).unpack()
    consts, carries, _ = (list(group) for group in groups)
    return len(consts), len(carries)


def with_params(eqn: JaxprEqn, like: JaxprEqn, params: dict[str, Any]) -> JaxprEqn:
    """Returns `eqn` with some parameters changed, at the source line of `like`."""
    return eqn.replace(params={**eqn.params, **params}, source_info=like.source_info)


def evaluate(jaxpr: ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
    """Runs a closed jaxpr."""
    return jaxpr_as_fun(jaxpr)(*args)


def while_counts(eqn: JaxprEqn) -> tuple[int, int]:
    """Returns how many constants of a while's condition and body come first."""
    return eqn.params["cond_nconsts"], eqn.params["body_nconsts"]


def bind(eqn: JaxprEqn, values: list[Any]) -> list[Any]:
    """Applies the equation's primitive to `values`, keeping its derivative rules."""
    bind_params = eqn.primitive.get_bind_params(eqn.params)
    if isinstance(bind_params, tuple):  # before jax 0.10: (subfuns, params)
        subfuns, params = bind_params
        out = eqn.primitive.bind(*subfuns, *values, **params)
    else:
        out = eqn.primitive.bind(*values, **bind_params)
    return list(out) if eqn.primitive.multiple_results else [out]


def derivative_rule(eqn: JaxprEqn) -> Hashable:
    """Returns what a custom derivative rule is known by, the same wherever it is used.

    JAX wraps the rule anew at each call; within the wrappers is the one function that
    the user defined. The equation itself where it cannot be found.
    """
    keys = ("jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd")
    found: list[Hashable] = []
    for root in (eqn.params[k] for k in keys if k in eqn.params):
        seen: set[int] = set()
        stack, own = [root], []
        while stack:
            at = stack.pop()
            if id(at) in seen:
                continue
            seen.add(id(at))
            if type(at).__name__ == "WrappedFun":
                own.append(at.f)
                stack.append(at.f)
                stack.extend(p for _, ps in at.transforms for p in ps)
            elif isinstance(at, types.FunctionType):
                for cell in at.__closure__ or ():
                    with contextlib.suppress(ValueError):  # an empty cell
                        stack.append(cell.cell_contents)
        lasting = [f for f in own if "_memoize" not in getattr(f, "__qualname__", "")]
        if not lasting:
            return eqn
        found.extend(lasting)
    return tuple(found) or eqn


@functools.cache
def _hide_other_frames() -> None:
    """Makes `summarize` point at the user's line instead of at flax/linen/linear.py.

    Nor at what stands between a module and its call.
    """
    import flax

    register_exclusion(flax.__path__[0])
    register_exclusion(str(pathlib.Path(__file__).parent / "tracing" / "linen.py"))


def source_line(eqn: JaxprEqn) -> str:
    """Returns ``file.py:12 (Net.__call__)``: the user's own line, not Flax's."""
    _hide_other_frames()
    line = summarize(eqn.source_info)
    place, _, function = line.partition(" (")
    parts = place.split(":")
    if len(parts) > 2:  # drop the column
        place = ":".join(parts[:2])
    return f"{place} ({function}" if function else place


def is_key_dtype(dtype: Any) -> bool:
    """Returns whether `dtype` is that of a typed PRNG key."""
    return jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)


def is_tracer(x: Any) -> bool:
    """Returns whether `x` stands for an array in a function that is being traced."""
    return isinstance(x, jax.core.Tracer)


def x64() -> contextlib.AbstractContextManager[Any]:
    """Returns a context in which this thread computes in float64."""
    return jax.enable_x64(True)
