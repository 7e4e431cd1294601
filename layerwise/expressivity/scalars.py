"""Elementwise equations composed into scalar functions, with exact tables.

A `Scalar` is what a run of elementwise equations does to one number: a JAX function,
and, where every step allows it, a `PiecewiseLinear` table.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from layerwise import _jax
from layerwise.expressivity import piecewise
from layerwise.expressivity.graph import RELU, Activation, Node
from layerwise.expressivity.piecewise import PiecewiseLinear
from layerwise.tracing import primitives
from layerwise.tracing.graph import Equation


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """``left >= right``, or its negation."""

    left: PiecewiseLinear
    right: PiecewiseLinear
    negated: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Scalar:
    """A function of one number.

    Attributes:
        function: In JAX, of an array of any shape.
        table: Its pieces; a `Comparison` if it is boolean; None if neither is known.
    """

    function: Callable[[jax.Array], jax.Array]
    table: PiecewiseLinear | Comparison | None

    @classmethod
    def identity(cls) -> "Scalar":
        """Returns x -> x."""
        return cls(lambda x: x, piecewise.IDENTITY)

    def activation(self, name: str) -> Activation:
        """Returns the function as an activation called `name`."""
        table = self.table if isinstance(self.table, PiecewiseLinear) else None
        if table is not None and not table.is_continuous:
            table = None
        if table is None:
            return Activation(name, functools.partial(_by_jax, self), self.function)
        if _same_table(table, piecewise.RELU):
            return RELU
        return Activation(name, table, self.function, table)


def _by_jax(scalar: Scalar, x: np.ndarray) -> np.ndarray:
    """Evaluates a function without a table, in JAX's own precision."""
    return np.asarray(scalar.function(jnp.asarray(x)), np.float64)


def _same_table(a: PiecewiseLinear, b: PiecewiseLinear) -> bool:
    fields = ("breaks", "slopes", "intercepts")
    return all(getattr(a, f) == getattr(b, f) for f in fields)


@dataclasses.dataclass(frozen=True)
class Applied:
    """An elementwise equation as a function of each common source of its operands.

    Attributes:
        views: Source -> the value as a function of it, oldest source first.
        is_affine_step: Whether the equation itself is affine in its one signal, so that
            no activation is needed for it.
    """

    views: Mapping[Node, Scalar]
    is_affine_step: bool


def apply_scalar(equation: Equation, operands: Sequence[Any]) -> Applied | None:
    """Returns an elementwise equation as scalar functions, if it is that.

    Args:
        equation: The equation.
        operands: Per operand its views (a mapping), or its constant value.

    Returns:
        None if the equation is not elementwise, an operand is a constant that is not
        uniform, or the signals have no common source of this shape.
    """
    is_layout = equation.name in ("convert_element_type", "copy", "copy_p")
    if equation.name not in primitives.ELEMENTWISE and not is_layout:
        return None
    signals = [x for x in operands if isinstance(x, Mapping)]
    fixed = [x if isinstance(x, Mapping) else _uniform(x) for x in operands]
    if any(x is None for x in fixed):
        return None
    shape = tuple(_aval(equation).shape)
    common = [
        s for s in signals[0] if s.shape == shape and all(s in v for v in signals)
    ]
    if not common:
        return None
    views = {s: _composed(equation, [_at(x, s) for x in fixed]) for s in common}
    return Applied(views, _is_affine_step(equation, operands))


def _is_affine_step(equation: Equation, operands: Sequence[Any]) -> bool:
    name = equation.name
    count = sum(isinstance(x, Mapping) for x in operands)
    if name in ("neg", "stop_gradient", "copy", "copy_p"):
        return True
    if name == "convert_element_type":
        new = _aval(equation).dtype
        old = cast(Any, equation.eqn.invars[0].aval).dtype
        return np.issubdtype(new, np.floating) and np.issubdtype(old, np.floating)
    if name in ("add", "sub", "mul", "add_any"):
        return count == 1
    return name == "div" and count == 1 and isinstance(operands[0], Mapping)


def _aval(equation: Equation) -> Any:
    return equation.eqn.outvars[0].aval


def _at(operand: Any, source: Node) -> Any:
    return operand[source] if isinstance(operand, Mapping) else operand


def _uniform(x: Any) -> Any:
    """The constant with one value, keeping its rank (0 or more); None if it varies."""
    array = np.asarray(x)
    if array.size == 0 or (array != array.flat[0]).any():
        return None
    return array


def _composed(equation: Equation, operands: Sequence[Any]) -> Scalar:
    eqn = equation.eqn

    def function(x: jax.Array) -> jax.Array:
        values = []
        for operand in operands:
            if isinstance(operand, Scalar):
                values.append(operand.function(x))
            elif operand.ndim:
                one = jnp.asarray(operand.flat[0], operand.dtype)
                values.append(jnp.broadcast_to(one, x.shape))
            else:
                values.append(jnp.asarray(operand))
        return _jax.bind(eqn, values)[0]

    tables = [
        x.table if isinstance(x, Scalar) else piecewise.constant(float(x.flat[0]))
        for x in operands
    ]
    return Scalar(function, _table(equation, tables))


def _table(
    equation: Equation, tables: Sequence[PiecewiseLinear | Comparison | None]
) -> PiecewiseLinear | Comparison | None:
    """The table of one primitive applied to tables; None where there is none."""
    name = equation.name
    if any(t is None for t in tables):
        return None
    if name == "select_n":
        return _selected(tables)
    lines = [t for t in tables if isinstance(t, PiecewiseLinear)]
    if len(lines) != len(tables):
        return None
    match name, lines:
        case (("add" | "add_any"), [a, b]):
            return a + b
        case "sub", [a, b]:
            return a + b.scaled(-1.0)
        case "neg", [a]:
            return a.scaled(-1.0)
        case "mul", [a, b]:
            return _product(a, b)
        case "div", [a, b] if _constant(b):
            return a.scaled(1.0 / b.intercepts[0])
        case "max", [a, b]:
            return a.maximum(b)
        case "min", [a, b]:
            return a.minimum(b)
        case "abs", [a]:
            return a.maximum(a.scaled(-1.0))
        case "clamp", [low, a, high]:
            return a.maximum(low).minimum(high)
        case "integer_pow", [a] if equation.params["y"] == 1:
            return a
        case (("stop_gradient" | "copy" | "copy_p"), [a]):
            return a
        case "convert_element_type", [a]:
            new = _aval(equation).dtype
            return a if np.issubdtype(new, np.floating) else None
        case (("ge" | "lt"), [a, b]):
            return Comparison(a, b, negated=name == "lt")
        case (("le" | "gt"), [a, b]):
            return Comparison(b, a, negated=name == "gt")
    return None


def _selected(tables: Sequence[Any]) -> PiecewiseLinear | None:
    """``select_n(which, if_false, if_true)`` with a comparison of tables."""
    match tables:
        case [
            Comparison() as which,
            PiecewiseLinear() as if_false,
            PiecewiseLinear() as if_true,
        ]:
            if which.negated:
                if_false, if_true = if_true, if_false
            return which.left.select(which.right, if_true, if_false)
    return None


def _constant(a: PiecewiseLinear) -> bool:
    return a.is_affine and a.slopes[0] == 0.0


def _product(a: PiecewiseLinear, b: PiecewiseLinear) -> PiecewiseLinear | None:
    if _constant(a):
        return b.scaled(a.intercepts[0])
    if _constant(b):
        return a.scaled(b.intercepts[0])
    return None
