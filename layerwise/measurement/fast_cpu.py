"""Faster equivalents, on CPU, of equations that XLA's CPU backend is slow at.

The engine evaluates the model's equations anyway, so it can evaluate some of them in
another form. Each form equals the plain one up to the order of additions, in values and
in derivatives; where its conditions fail, the equation is left as it is. On other
backends nothing is replaced.
"""

from collections.abc import Callable
from typing import Any

import jax

from layerwise.measurement.convolution import convolution
from layerwise.measurement.fast_draw import fast_draw
from layerwise.measurement.max_pool import max_pool
from layerwise.measurement.outer_product import outer_product
from layerwise.tracing import TracedModel
from layerwise.tracing.graph import Equation, Evaluator
from layerwise.types import PyTree


FORMS: dict[str, Evaluator] = {
    "conv_general_dilated": convolution,
    "mul": outer_product,
    "reduce_window_max": max_pool,
}
"""Primitive -> its faster form; a form returns None where it does not apply."""


def override_for(traced: TracedModel, rewrite: bool) -> Evaluator | None:
    """Returns the evaluator of replaced equations, or None where none is replaced.

    Args:
        traced: The model.
        rewrite: False to replace nothing.
    """
    names = {e.name for e in traced.graph.all_equations()}
    if not rewrite or not on_cpu() or names.isdisjoint(FORMS):
        return None
    return faster


def faster(equation: Equation, operands: list[Any]) -> list[Any] | None:
    """Returns the outputs by the equation's faster form; None to bind it as it is."""
    form = FORMS.get(equation.name)
    if form is None:
        return None
    with jax.named_scope(equation.scope or "layerwise"):
        return form(equation, operands)


def faster_draw(
    draw: Callable[[jax.Array], PyTree], rewrite: bool
) -> jax.tree_util.Partial:
    """Returns ``key -> params`` that draws what `draw` does, on CPU by one kernel.

    Args:
        draw: ``key -> params``, traceable.
        rewrite: False to draw as `draw` itself does.

    Returns:
        A function, and a tree of numbers to be arguments of what is compiled.
    """
    law = fast_draw(draw) if rewrite and on_cpu() else draw
    if isinstance(law, jax.tree_util.Partial):
        return law
    return jax.tree_util.Partial(lambda key: draw(key))  # a user's may have no hash


def on_cpu() -> bool:
    """Returns whether programs run on CPU by default."""
    device = jax.config.values["jax_default_device"]
    if device is None:
        return jax.default_backend() == "cpu"
    return (device if isinstance(device, str) else device.platform) == "cpu"
