"""A run of elementwise equations, as one scalar function.

GELU is eight equations without a name, SiLU a call, ReLU a ``custom_jvp_call``. Between
two values of a program that are connected by elementwise equations with one source
there is a function of one real variable; here it is, ready for quadrature in float64.
No activation is known by name.
"""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from layerwise import _jax
from layerwise.tracing import primitives
from layerwise.tracing.graph import Equation, Graph, from_jaxpr


ScalarFunction = Callable[[jax.Array], jax.Array]


def scalar_function(
    equations: Sequence[Equation],
    source: int,
    target: int,
    constant: Callable[[int], np.ndarray | None],
) -> ScalarFunction | None:
    """Returns the function of one variable that takes `source` to `target`, or None.

    Args:
        equations: The equations between them, in order.
        source: The value that varies.
        target: The value that results.
        constant: Value -> its array if it is constant, else None. Constants must be
            uniform: an array that differs by entry is no function of one variable.

    Returns:
        A function of an array of any shape, evaluated in that array's own precision,
        differentiable by JAX; or None if the equations are not elementwise, if one of
        them has a derivative rule that is not the derivative of what it computes
        (a straight-through estimator), or if they depend on anything else.
    """
    uniform: dict[int, float] = {}
    inside = {v for e in equations for v in e.outputs} | {source}
    for equation in equations:
        if not is_elementwise(equation):
            return None
        for value in equation.values_in:
            if value in inside:
                continue
            array = constant(value)
            if array is None or array.size == 0 or np.any(array != array.flat[0]):
                return None
            uniform[value] = array.flat[0].item()
    steps = tuple(equations)
    key = _signature(steps, source, target, uniform)
    if key in _FOUND:
        return _FOUND[key]

    def phi(x: jax.Array) -> jax.Array:
        env: dict[int, Any] = {k: jnp.asarray(v) for k, v in uniform.items()}
        env[source] = x
        _run(steps, env, x)
        return jnp.broadcast_to(env[target], x.shape)

    own = all(_derivative_is_own(e) for e in steps)
    if len(_FOUND) >= _REMEMBERED:
        _FOUND.clear()
    _FOUND[key] = phi if own else None
    return _FOUND[key]


_FOUND: dict[Hashable, ScalarFunction | None] = {}
_REMEMBERED = 1024


def _signature(
    equations: Sequence[Equation], source: int, target: int, uniform: dict[int, float]
) -> Hashable:
    """Returns what the function is made of: equal for equal functions of one shape.

    A call with a derivative rule of its own is told by its body and its rule.
    """
    number = {source: 0}
    text: list[Hashable] = []
    for e in equations:
        operands: list[Hashable] = []
        for a in e.inputs:
            if not isinstance(a, int):
                operands.append(("literal", str(a.val), str(a.aval)))
            elif a in number:
                operands.append(number[a])
            else:
                operands.append(("uniform", uniform[a]))
        for v in e.outputs:
            number[v] = len(number)
        text.append((e.name, _parameters(e.eqn), *operands))
    return (*text, number[target])


@functools.lru_cache(maxsize=4096)
def _parameters(eqn: _jax.JaxprEqn) -> Hashable:
    if _jax.primitive_name(eqn) in primitives.WRAPPERS:
        return _text(_unwrapped(eqn)), _jax.derivative_rule(eqn)
    return str(eqn.params)


@functools.lru_cache(maxsize=4096)
def _text(body: _jax.ClosedJaxpr) -> str:
    return str(body)


def _unwrapped(eqn: _jax.JaxprEqn) -> _jax.ClosedJaxpr:
    """Returns the body of a wrapper; if that is one jitted call alone, the call's.

    JAX traces what is jitted once, so that it is one object for all that call it.
    """
    body = _jax.sub_jaxprs(eqn)[0]
    while len(body.jaxpr.eqns) == 1 and not body.consts:
        (call,), jaxpr = body.jaxpr.eqns, body.jaxpr
        same = call.invars == jaxpr.invars and call.outvars == jaxpr.outvars
        if _jax.primitive_name(call) != "jit" or not same:
            break
        body = _jax.sub_jaxprs(call)[0]
    return body


def _run(equations: Sequence[Equation], env: dict[int, Any], like: jax.Array) -> None:
    for equation in equations:
        operands = [
            env[a] if isinstance(a, int) else jnp.asarray(a.val)
            for a in equation.inputs
        ]
        operands = [
            jnp.broadcast_to(_in_precision(a, like.dtype), like.shape) for a in operands
        ]
        if equation.name in primitives.LAYOUT:
            outs = [operands[0]]
            if equation.name == "convert_element_type":
                outs = [_converted(operands[0], equation.params["new_dtype"])]
        elif equation.name in primitives.WRAPPERS:
            outs = _run_graph(_body(equation), operands, like)
        else:
            outs = _jax.bind(equation.eqn, operands)
        env.update(zip(equation.outputs, outs, strict=True))


def _run_graph(graph: Graph, args: list[Any], like: jax.Array) -> list[Any]:
    env: dict[int, Any] = {k: jnp.asarray(v) for k, v in graph.constants.items()}
    env.update(zip(graph.inputs, args, strict=True))
    _run(graph.equations, env, like)
    return [env[a] if isinstance(a, int) else jnp.asarray(a.val) for a in graph.outputs]


def _in_precision(x: jax.Array, dtype: Any) -> jax.Array:
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    return x.astype(dtype) if floating else x


def _converted(x: jax.Array, dtype: Any) -> jax.Array:
    """A change of float format is the identity here; to int or bool it is not."""
    both_float = jnp.issubdtype(x.dtype, jnp.floating) and jnp.issubdtype(
        dtype, jnp.floating
    )
    return x if both_float else x.astype(dtype)


def _body(equation: Equation) -> Graph:
    return from_jaxpr(_jax.sub_jaxprs(equation.eqn)[0])


def is_elementwise(equation: Equation) -> bool:
    """Whether each output entry depends on the same entry of the operands alone."""
    if equation.name in primitives.WRAPPERS:
        return _body_is_elementwise(_unwrapped(equation.eqn))
    return equation.name in primitives.ELEMENTWISE or equation.name in primitives.LAYOUT


@functools.lru_cache(maxsize=4096)
def _body_is_elementwise(body: _jax.ClosedJaxpr) -> bool:
    return all(is_elementwise(e) for e in from_jaxpr(body).equations)


_PROBES = np.array([-3.7, -1.3, -0.6, -0.21, 0.13, 0.47, 0.9, 1.6, 3.1], np.float32)


def _derivative_is_own(equation: Equation) -> bool:
    """Compares a custom derivative rule with the derivative of the body at points.

    A custom rule is usually a stabler form of the derivative, but a straight-through
    estimator or a gradient reversal is not: then what flows back is not what the
    scalar function says.
    """
    if equation.name not in primitives.WRAPPERS:
        return True
    if len(equation.outputs) != 1:
        return False

    aval: Any = equation.eqn.outvars[0].aval
    like = jax.ShapeDtypeStruct(aval.shape, aval.dtype)

    def at(x: jax.Array) -> list[jax.Array]:
        """Every operand that is a value is set to `x`; literals stay."""
        return [
            x if isinstance(a, int) else jnp.asarray(a.val) for a in equation.inputs
        ]

    def with_rule(x: jax.Array, dx: jax.Array) -> jax.Array:
        return jax.jvp(lambda y: _jax.bind(equation.eqn, at(y))[0], (x,), (dx,))[1]

    ruled = from_jaxpr(jax.make_jaxpr(with_rule)(like, like))
    if not all(is_elementwise(e) for e in ruled.equations):
        return False

    def without_rule(x: jax.Array) -> jax.Array:
        return _run_graph(_body(equation), at(x), x)[0]

    @jax.jit  # one program: equation by equation takes three times as long to compile
    def slopes(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        slope = _run_graph(ruled, [x, jnp.ones_like(x)], x)[0]
        return slope, jax.vmap(jax.grad(without_rule))(x)

    return bool(np.allclose(*slopes(jnp.asarray(_PROBES)), rtol=1e-3, atol=1e-5))
