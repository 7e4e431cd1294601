"""A Flax Linen module as two pure functions, and what its calls can be watched for."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from layerwise.types import PyTree


# Collections that Linen fills while it runs: outputs, not state that a call reads.
TRANSIENT = ("intermediates", "perturbations")


def functions(
    model: Any, kwargs: Mapping[str, Any], rngs: Mapping[str, jax.Array] | None
) -> tuple[Callable[..., Any], Callable[..., PyTree]]:
    """Returns ``apply(variables, *inputs)`` and ``init(key, *inputs)`` of a module.

    Args:
        model: The module.
        kwargs: Keyword arguments of its call.
        rngs: Keys of the random streams that the call draws from, by name.
    """
    from flax.core import DenyList

    def apply(variables: PyTree, *inputs: Any) -> Any:
        mutable = [c for c in variables if c != "params"]
        with _reading_params():
            out = model.apply(
                variables,
                *inputs,
                rngs=rngs,
                mutable=DenyList("params") if mutable else False,
                **kwargs,
            )
        return out[0] if mutable else out

    def init(key: jax.Array, *inputs: Any) -> PyTree:
        streams: dict[str, jax.Array] = {"params": key}
        for i, name in enumerate(rngs or ()):
            streams[name] = jax.random.fold_in(key, i + 1)
        variables = model.init(streams, *inputs, **kwargs)
        return {k: v for k, v in variables.items() if k not in TRANSIENT}

    return apply, init


@contextlib.contextmanager
def _reading_params() -> Iterator[None]:
    """Has the modules called here read a parameter that they were given, and no more.

    Linen traces the initializer again, to compare shapes, which takes longer than the
    layer does. Shapes have been compared with those of the model's own init before
    (`layerwise.tracing.model.check_params`).
    """
    from flax import linen as nn

    def call_on(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        scope = context.module.scope
        if scope is not None and "param" not in vars(scope):
            scope.param = functools.partial(_param, scope, scope.param)
        return call(*args, **kwargs)

    with nn.intercept_methods(call_on):
        yield


def _param(
    scope: Any,
    make: Callable[..., Any],
    name: str,
    init: Callable[..., Any],
    *args: Any,
    unbox: bool = True,
    **kwargs: Any,
) -> Any:
    """Returns a scope's parameter, as ``make`` does if there is none yet."""
    from flax.core import meta

    if not scope.has_variable("params", name):
        return make(name, init, *args, unbox=unbox, **kwargs)
    scope.reserve(name, "params")
    value = scope.get_variable("params", name)
    return meta.unbox(value) if unbox else value


@contextlib.contextmanager
def noting_failures(paths: list[str]) -> Iterator[None]:
    """Appends the paths of the modules that an exception passes, inner first."""
    from flax import linen as nn

    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except Exception:
            paths.append("/".join(context.module.path))
            raise

    with nn.intercept_methods(note):
        yield
