"""Any model as one pure function of its parameters and its inputs.

The library works on functions ``apply(params, *inputs)``. This file makes one out of a
Flax Linen module, a Flax NNX module or a plain function, without changing the model,
and checks that parameters and inputs belong to it before anything is computed.
"""

import dataclasses
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from layerwise.errors import (
    InputError,
    InvalidArgumentError,
    LayerwiseError,
    ParametersError,
    UnsupportedModelError,
    message,
)
from layerwise.tracing import linen
from layerwise.tracing.uncollected import uncollected
from layerwise.types import PyTree


@dataclasses.dataclass(frozen=True)
class ModelFunction:
    """A model as a pure function.

    Attributes:
        apply: ``(params, *inputs) -> output``.
        init: ``(key, *inputs) -> params``, or None where the model has none of its own.
        kind: "linen", "nnx" or "function".
        name: The class or function name.
        input_shape: Shape of one example, where the model declares one.
        params: The model's own parameters, where it holds them (NNX).
        both: `init` and `apply` in one call, see `layerwise.tracing.linen.functions`.
    """

    apply: Callable[..., Any]
    init: Callable[..., PyTree] | None
    kind: str
    name: str
    input_shape: tuple[int, ...] | None = None
    params: PyTree = None
    both: Callable[..., Any] | None = None


def as_function(
    model: Any,
    *,
    kwargs: Mapping[str, Any] | None = None,
    rngs: Mapping[str, jax.Array] | None = None,
) -> ModelFunction:
    """Returns `model` as a pure function.

    Args:
        model: A Linen module, an NNX module, or a function ``apply(params, *inputs)``.
        kwargs: Keyword arguments of the model's call, such as ``train=True``.
        rngs: Keys of the random streams that the call draws from, by name (Linen).

    Raises:
        InvalidArgumentError: If `model` is none of these.
    """
    from flax import linen as nn

    kwargs = dict(kwargs or {})
    if isinstance(model, nn.Module):
        return _from_linen(model, kwargs, rngs)
    from flax import nnx  # a third of a second that a Linen module need not wait

    if isinstance(model, nnx.Module):
        return _from_nnx(model, kwargs)
    if isinstance(model, type) and issubclass(model, nn.Module | nnx.Module):
        raise InvalidArgumentError(
            message(
                f"`model` is the class {model.__name__}, not an instance of it.",
                "Only an instance has the widths and depths that shapes come from.",
                f"Pass {model.__name__}(...) with its arguments.",
            )
        )
    if callable(model):
        name = getattr(model, "__name__", type(model).__name__)
        return ModelFunction(
            lambda params, *inputs: model(params, *inputs, **kwargs),
            None,
            "function",
            name,
            _declared_shape(model),
        )
    raise InvalidArgumentError(
        message(
            f"`model` is a {type(model).__name__}.",
            "There is no program in it to trace.",
            "Pass a Flax module (Linen or NNX) or a function apply(params, *inputs).",
        )
    )


def _declared_shape(model: Any) -> tuple[int, ...] | None:
    shape = getattr(model, "input_shape", None)
    return tuple(shape) if isinstance(shape, tuple | list) else None


def _from_linen(model: Any, kwargs: dict[str, Any], rngs: Any) -> ModelFunction:
    name = type(model).__name__
    apply, init, both = linen.functions(model, kwargs, rngs)
    shape = _declared_shape(model)
    return ModelFunction(apply, init, "linen", name, shape, both=both)


def _from_nnx(model: Any, kwargs: dict[str, Any]) -> ModelFunction:
    from flax import nnx

    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def apply(params: PyTree, *inputs: Any) -> Any:
        return nnx.merge(graphdef, params, rest, copy=True)(*inputs, **kwargs)

    name = type(model).__name__
    return ModelFunction(apply, None, "nnx", name, _declared_shape(model), params)


def leaf_name(path: Sequence[Any]) -> str:
    """Returns a parameter leaf's path as ``block_1/Conv_0/kernel``."""
    parts = []
    for entry in path:
        part = getattr(entry, "key", getattr(entry, "idx", getattr(entry, "name", "")))
        parts.append(str(part))
    if parts and parts[0] == "params":
        parts = parts[1:]
    if len(parts) > 1 and parts[-1] in ("value", "raw_value"):  # an NNX variable's box
        parts = parts[:-1]
    return "/".join(parts)


def complete(model: ModelFunction, params: PyTree) -> PyTree:
    """Returns `params` as the tree that ``model.apply`` takes.

    Linen users hold either all variables or the ``params`` collection alone.
    """
    if params is None:
        return model.params
    if model.kind == "nnx":
        from flax import nnx

        if isinstance(params, nnx.Module):
            return nnx.state(params, nnx.Param)
    if model.kind == "linen":
        from flax.core import unfreeze

        if not isinstance(params, Mapping):
            raise ParametersError(
                message(
                    f"`params` is a {type(params).__name__}.",
                    f"{model.name} is a Linen module: its variables are a dict.",
                    "Pass what model.init(key, inputs) returned.",
                )
            )
        tree = unfreeze(dict(params))
        if "params" not in tree:
            tree = {"params": tree}
        return {k: v for k, v in tree.items() if k not in linen.TRANSIENT}
    return params


@uncollected()
def abstract_params(model: ModelFunction, inputs: Sequence[Any]) -> PyTree:
    """Returns shapes and dtypes of the parameters, without computing any.

    Raises:
        InvalidArgumentError: If the model has no init and holds no parameters.
        InputError: If the model cannot be called on inputs of these shapes.
        UnsupportedModelError: If a layer has an empty weight.
    """
    if model.params is not None:
        return jax.eval_shape(lambda p: p, model.params)
    if model.init is None:
        raise InvalidArgumentError(
            message(
                f"`params` is missing, and {model.name} is a plain function.",
                "A function has no init from which parameters could be drawn.",
                "Pass params=<the parameter tree>.",
            )
        )
    failed: list[str] = []
    try:
        with linen.noting_failures(failed):
            return jax.eval_shape(model.init, jax.random.key(0), *inputs)
    except LayerwiseError:
        raise
    except ZeroDivisionError as error:  # initializers divide by fans
        raise UnsupportedModelError(
            message(
                f"{model.name} has a weight with an axis of length 0, in "
                f"{failed[0] if failed else 'one of its layers'}.",
                "A layer with fan-in 0 is zero whatever its weights are.",
                "Give every layer at least one feature.",
            )
        ) from error
    except Exception as error:
        raise call_error(model, inputs, error, failed) from error


def _raised_at(error: Exception) -> str:
    """Returns ``file.py:12 (Net.__call__)``: the last line that is a user's own."""
    import flax

    others = [str(Path(m.__file__).parent) for m in (jax, flax) if m.__file__]
    others.append(str(Path(__file__).parents[1]))
    frames = [
        (frame.f_code, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not frame.f_code.co_filename.startswith(tuple(others))
    ]
    if not frames:
        return "a line that is not known"
    code, line = frames[-1]
    return f"{code.co_filename}:{line} ({code.co_qualname})"


def call_error(
    model: ModelFunction,
    inputs: Sequence[Any],
    error: Exception,
    failed: Sequence[str] = (),
) -> LayerwiseError:
    """Says what the model objected to when it was called."""
    where = f" in {failed[0]}" if failed and failed[0] else ""
    if isinstance(error, jax.errors.ConcretizationTypeError):
        return UnsupportedModelError(
            message(
                f"{model.name} branches in Python on a traced value at "
                f"{_raised_at(error)}{where}: {str(error).splitlines()[0]}",
                "Its program depends on the data, so that there is no one set of "
                "layers.",
                "Use jnp.where or jax.lax.cond in the model, or pass the flag as a "
                "keyword: kwargs={'train': False}.",
            )
        )
    if isinstance(error, jax.errors.UnexpectedTracerError):
        return leak_error(model, str(error).splitlines()[0])
    shapes = ", ".join(f"{x.dtype}[{','.join(map(str, x.shape))}]" for x in inputs)
    first = str(error).strip().splitlines() or [type(error).__name__]
    fix = "Pass inputs of the shape and dtype that the model takes, batch axis first"
    if model.input_shape is not None:
        fix += f" (one example is {model.input_shape})"
    return InputError(
        message(
            f"{model.name} cannot be called on inputs ({shapes}): "
            f"{type(error).__name__}{where}: {first[0]} (at {_raised_at(error)})",
            "Nothing was measured: the model's own code raised this while traced.",
            fix + ", and the call's keyword arguments as kwargs={...}.",
        )
    )


def leak_error(model: ModelFunction, what: str) -> UnsupportedModelError:
    """Says that the model stored a tracer and used it in a later trace."""
    return UnsupportedModelError(
        message(
            f"{model.name} keeps a tracer from one call to the next: {what}",
            "What it stores on itself, or in a global, while it is traced means "
            "nothing in the next trace.",
            "Return it, or keep it in a Flax variable (self.variable, nnx.Variable); "
            "jax.checking_leaks() shows where it is stored.",
        )
    )


def without_place(x: Any) -> Any:
    """Returns the shape of an array that is on many devices; others as they are.

    Where parts of an array lie is part of its type on some meshes, and a model need not
    say where what it computes is to lie.
    """
    if isinstance(x, jax.Array) and len(x.sharding.device_set) > 1:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type)
    return x


def own_params(model: ModelFunction, given: PyTree, inputs: Sequence[Any]) -> PyTree:
    """Returns shapes and dtypes of the model's own parameters.

    A plain function has none: then those given, in which case a mismatch shows when the
    function is traced on them.
    """
    if model.init is None and model.params is None and given is not None:
        return given
    return abstract_params(model, inputs)


def check_params(model: ModelFunction, params: PyTree, own: PyTree) -> None:
    """Raises `ParametersError` unless `params` are finite and of the model's shapes.

    Args:
        model: The model.
        params: What was given.
        own: Shapes of the model's own, see `own_params`.

    Raises:
        ParametersError: If they are not.
        UnsupportedModelError: If there are none at all.
    """
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    if not leaves:
        raise UnsupportedModelError(
            message(
                f"{model.name} has no parameters.",
                "Without weights there is no random initialization to measure.",
                "Pass a model with at least one dense or convolution layer.",
            )
        )
    _check_shapes(model, leaves, own)
    for path, leaf in leaves:
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not isinstance(
            leaf, jax.ShapeDtypeStruct
        ):
            bad = _count_nonfinite(leaf)
            if bad:
                raise ParametersError(
                    message(
                        f"Parameter {leaf_name(path)!r} holds {bad} NaN or infinite "
                        f"of {leaf.size} values.",
                        "Every moment behind it would be NaN.",
                        "Pass finite parameters, or params=None to draw fresh ones.",
                    )
                )


def _count_nonfinite(leaf: Any) -> int:
    if getattr(leaf, "is_fully_addressable", True):
        return int(np.count_nonzero(~np.isfinite(np.asarray(leaf))))
    return int(jnp.count_nonzero(~jnp.isfinite(leaf)))  # parts are on other hosts


def _check_shapes(model: ModelFunction, leaves: Any, expected: PyTree) -> None:
    wanted = {
        leaf_name(p): tuple(x.shape)
        for p, x in jax.tree_util.tree_flatten_with_path(expected)[0]
    }
    given = {leaf_name(p): tuple(np.shape(x)) for p, x in leaves}
    problems = [f"{n!r} is missing" for n in wanted if n not in given]
    problems += [f"{n!r} is not one of the model's" for n in given if n not in wanted]
    problems += [
        f"{n!r} has shape {given[n]}, the model's has {wanted[n]}"
        for n in wanted
        if n in given and given[n] != wanted[n]
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise ParametersError(
            message(
                f"`params` do not belong to {model.name}: "
                f"{'; '.join(problems[:3])}{more}.",
                "A measurement would be of another network.",
                "Pass model.init(key, inputs) of this model at this input shape.",
            )
        )


def check_inputs(model: ModelFunction, inputs: Any) -> tuple[jax.Array, ...]:
    """Returns the inputs as a tuple of arrays, or says why they cannot be used.

    Raises:
        InputError: If inputs are missing, of a rank or dtype that the model does not
            take, NaN, infinite, empty or all zero.
    """
    if inputs is None:
        raise InputError(
            message(
                f"`inputs` is missing, and {model.name} declares no `input_shape`.",
                "Moments are those of a signal: without one there is nothing to "
                "propagate.",
                "Pass inputs=<an array, batch axis first>, or give the model an "
                "`input_shape` attribute (one example, without the batch axis).",
            )
        )
    many = inputs if isinstance(inputs, tuple | list) else (inputs,)
    arrays = tuple(_array(x, i) for i, x in enumerate(many))
    if model.input_shape is not None and len(arrays) == 1:
        _check_rank(model, arrays[0])
    for i, x in enumerate(arrays):
        _check_values(x, i)
    return arrays


def _array(x: Any, i: int) -> jax.Array:
    try:
        array = np.asarray(x) if not isinstance(x, jax.Array) else x
        if array.dtype == object or array.dtype.kind in "USV":
            raise TypeError(f"dtype {array.dtype}")
        return jnp.asarray(array)
    except (TypeError, ValueError) as error:
        raise InputError(
            message(
                f"Input {i} is a {type(x).__name__} ({error}).",
                "Moments are computed over the entries of numeric arrays.",
                "Pass a NumPy or JAX array.",
            )
        ) from error


def _check_rank(model: ModelFunction, x: jax.Array) -> None:
    shape = model.input_shape
    assert shape is not None
    if x.ndim != len(shape) + 1:
        hint = "Add it: inputs[None]." if x.shape == shape else "Reshape the inputs."
        raise InputError(
            message(
                f"Input 0 has shape {tuple(x.shape)}; {model.name} takes "
                f"(batch, {', '.join(map(str, shape))}).",
                "With another rank, axes would be taken for what they are not.",
                hint,
            )
        )


def _check_values(x: jax.Array, i: int) -> None:
    what = None
    if x.size == 0:
        what = f"is empty (shape {tuple(x.shape)})"
    elif jnp.issubdtype(x.dtype, jnp.complexfloating):
        what = f"is complex ({x.dtype})"
    elif jnp.issubdtype(x.dtype, jnp.floating):
        finite = np.isfinite(np.asarray(x, np.float32))
        if not finite.all():
            what = f"holds {np.count_nonzero(~finite)} NaN or infinite values"
        elif not np.asarray(x, np.float32).any():
            what = "is zero everywhere"
    if what is not None:
        raise InputError(
            message(
                f"Input {i} {what}.",
                "The moments of such a signal say nothing about the network.",
                "Pass finite, nonzero, real inputs: normalized data, or "
                "jax.random.normal(key, shape).",
            )
        )


def default_inputs(
    model: ModelFunction, key: jax.Array, batch: int = 2
) -> tuple[jax.Array, ...] | None:
    """Returns standard normal inputs of the declared shape, or None without one."""
    if model.input_shape is None:
        return None
    return (jax.random.normal(key, (batch, *model.input_shape)),)
