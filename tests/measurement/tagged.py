"""Small networks whose every value can be asked for by name.

`tag` is the identity where layerwise runs a model. Within `recording` it hands the
value to a function and goes on with what that returns: the plain, slow way of reading
values and of adding zeros whose gradients are the cotangents.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


_recorder: list[Callable[[str, jax.Array], jax.Array]] = []


def tag(name: str, x: jax.Array) -> jax.Array:
    """Returns `x`, or what the recorder in use makes of it."""
    return _recorder[-1](name, x) if _recorder else x


@contextlib.contextmanager
def recording(at: Callable[[str, jax.Array], jax.Array]) -> Iterator[None]:
    """Calls `at` with every tagged value."""
    _recorder.append(at)
    try:
        yield
    finally:
        _recorder.pop()


def explicit(
    apply: Callable[..., Any], params: Any, inputs: Any, loss: Callable[..., Any]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns every tagged value and its cotangent, all of them stored."""

    def run(zeros: dict[str, jax.Array], params: Any, inputs: Any) -> Any:
        values: dict[str, jax.Array] = {}

        def at(name: str, x: jax.Array) -> jax.Array:
            assert name not in values, name
            values[name] = x + zeros[name] if name in zeros else x
            return values[name]

        with recording(at):
            inputs = [
                at("input" if len(inputs) == 1 else f"input {i}", x)
                if jnp.issubdtype(x.dtype, jnp.floating)
                else x
                for i, x in enumerate(inputs)
            ]
            out = apply(params, *inputs)
        return loss(out), values

    shapes = jax.eval_shape(run, {}, params, inputs)[1]
    zeros = {k: jnp.zeros(v.shape, v.dtype) for k, v in shapes.items()}
    both = jax.jit(jax.grad(run, has_aux=True))
    cotangents, values = both(zeros, params, inputs)
    as_numpy = lambda tree: {k: np.asarray(v, np.float64) for k, v in tree.items()}
    return as_numpy(values), as_numpy(cotangents)


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, with what it is called on.

    Attributes:
        model: What layerwise is given.
        shapes: Of its inputs.
        plain: The tagged program, if it is not the model itself: ``apply(params, x)``.
        kwargs: Keyword arguments of the call.
        rngs: Random streams of the call.
        whole: Whether every site of the model is tagged.
        integers: Inputs are integers below this, if not 0.
        params: Parameters, for models without an init.
    """

    model: Any
    shapes: tuple[tuple[int, ...], ...] = ((3, 5),)
    plain: Callable[..., Any] | None = None
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    rngs: dict[str, jax.Array] | None = None
    whole: bool = True
    integers: int = 0
    params: Callable[[jax.Array], Any] | None = None


def lambda_module(call: Callable[..., Any]) -> nn.Module:
    """Returns a Linen module with this body."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, *inputs: Any, **kwargs: Any) -> Any:
            return call(self, *inputs, **kwargs)

    return Net()


CASES: dict[str, Callable[[], Case]] = {}


def case(make: Callable[[], Case]) -> Callable[[], Case]:
    """Lists a case under its function's name."""
    CASES[make.__name__] = make
    return make


def dense(name: str, width: int, x: jax.Array, **kwargs: Any) -> jax.Array:
    return tag(f"{name}.u", nn.Dense(width, name=name, **kwargs)(x))


def conv(name: str, width: int, x: jax.Array, **kwargs: Any) -> jax.Array:
    return tag(f"{name}.u", nn.Conv(width, (3, 3), name=name, **kwargs)(x))


IMAGES = ((2, 8, 8, 3),)
