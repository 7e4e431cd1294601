"""What a user types on the command line, as a model and its inputs."""

import importlib
import importlib.util
import inspect
import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from layerwise.errors import LayerwiseError, did_you_mean, message


class UsageError(LayerwiseError, ValueError):
    """A command line that cannot be carried out as it was typed."""

    def __init__(self, found: str, why: str, fix: str) -> None:
        super().__init__(message(found, why, f"Type: {fix}"))


def load_model(spec: str, arguments: str | None, seed: int, command: str) -> Any:
    """Returns the model that ``package.module:Name`` or ``file.py:Name`` names.

    Args:
        spec: Where it is; ``zoo:resnet50`` is short for ``layerwise.zoo:resnet50``.
        arguments: JSON: an object of keyword arguments or a list of positional ones.
        seed: For the parameters that NNX modules draw when they are made.
        command: What was typed so far, for messages.

    Raises:
        UsageError: If it cannot be imported or made.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise UsageError(
            f"{spec!r} does not say where the model is.",
            "A model is named by its module and the name in it.",
            f"package.module:{spec or 'Name'}, or path/to/file.py:{spec or 'Name'}",
        )
    module = _import(place, spec)
    try:
        target: Any = module
        for part in name.split("."):
            target = getattr(target, part)
    except AttributeError:
        names = [n for n in dir(module) if not n.startswith("_")]
        raise UsageError(
            f"{place} has no {name!r}.{did_you_mean(name, names)}",
            "It was imported, and nothing of that name is in it.",
            f"{place}:NAME, with one of {', '.join(_models(module) or names[:8])}",
        ) from None
    return _construct(target, spec, parse_json(arguments, "--args"), seed, command)


def _import(place: str, spec: str) -> ModuleType:
    if place == "zoo":
        place = "layerwise.zoo"
    try:
        if place.endswith(".py"):
            return _from_file(Path(place))
        return importlib.import_module(place)
    except FileNotFoundError:
        raise UsageError(
            f"There is no file {place}.",
            "Paths are relative to the current folder.",
            f"ls {Path(place).parent}",
        ) from None
    except ModuleNotFoundError as error:
        missing = str(error.name)
        if place == missing or place.startswith(f"{missing}."):
            raise UsageError(
                f"There is no module {missing!r}.",
                f"Python looked in {Path.cwd()} and in the environment of "
                f"{sys.executable}.",
                f"cd to the folder that holds {missing.partition('.')[0]}, or name the "
                f"file: path/to/{place.rpartition('.')[2]}.py:"
                f"{spec.rpartition(':')[2]}",
            ) from None
        raise UsageError(
            f"{place} imports {missing!r}, which is not installed.",
            "The model's module must be importable here.",
            f"{Path(sys.executable).name} -m pip install {missing.partition('.')[0]}",
        ) from None
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise UsageError(
            f"{place} failed to import: {type(error).__name__}: {error} "
            f"({last.filename}:{last.lineno}).",
            "The module's own code raised this.",
            f"{Path(sys.executable).name} -c 'import {place}'   # to see it alone",
        ) from error


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(path)
    sys.path.insert(0, str(path.parent.resolve()))
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[path.stem] = module
    found.loader.exec_module(module)
    return module


def _models(module: ModuleType) -> list[str]:
    from flax import linen, nnx

    kinds = (linen.Module, nnx.Module)
    return [
        n
        for n, v in vars(module).items()
        if isinstance(v, kinds) or (isinstance(v, type) and issubclass(v, kinds))
    ][:8]


def _construct(target: Any, spec: str, arguments: Any, seed: int, command: str) -> Any:
    """Returns the model: `target` itself, or what it makes of the arguments."""
    from flax import linen, nnx

    name = spec.rpartition(":")[2]
    if isinstance(target, linen.Module | nnx.Module):
        return target
    if not callable(target):
        raise UsageError(
            f"{spec} is a {type(target).__name__}.",
            "A model is a Flax module, its class, or a function that returns one.",
            f"{spec.rpartition(':')[0]}:NAME",
        )
    positional = arguments if isinstance(arguments, list) else []
    keyword = dict(arguments) if isinstance(arguments, dict) else {}
    signature = inspect.signature(target)
    if isinstance(target, type) and issubclass(target, nnx.Module):
        own = inspect.signature(target.__init__)  # the class's own says *args
        parameters = list(own.parameters.values())[1:]
        signature = signature.replace(parameters=parameters)
    rngs = signature.parameters.get("rngs")
    if rngs is not None and "rngs" not in keyword:
        keyword["rngs"] = nnx.Rngs(seed)
    try:
        signature.bind(*positional, **keyword)
    except TypeError as error:
        raise UsageError(
            f"{name}{_shown(signature)} {error}.",
            "Only with its arguments does it have layers.",
            f"{command} --args '{_example(signature)}'",
        ) from None
    model = target(*positional, **keyword)
    if isinstance(model, linen.Module | nnx.Module):
        return model
    raise UsageError(
        f"{spec} returned a {type(model).__name__}.",
        "A factory must return a Flax module (Linen or NNX).",
        f"{spec.rpartition(':')[0]}:NAME, a class or a function that returns one",
    )


def _own(signature: inspect.Signature) -> list[inspect.Parameter]:
    left_out = ("self", "parent", "name")
    return [p for p in signature.parameters.values() if p.name not in left_out]


def _shown(signature: inspect.Signature) -> str:
    shown = [
        p.name if p.default is p.empty else f"{p.name}=..." for p in _own(signature)
    ]
    return f"({', '.join(shown)}):"


def _example(signature: inspect.Signature) -> str:
    needed = [p for p in _own(signature) if p.default is p.empty and p.name != "rngs"]
    kinds: dict[Any, Any] = {int: 64, float: 1.0, str: "...", bool: True}
    return json.dumps({p.name: kinds.get(p.annotation, 64) for p in needed})


def parse_json(text: str | None, flag: str) -> Any:
    """Returns what a JSON flag says; lists within it become tuples, as shapes are."""
    if text is None:
        return {}
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{flag} {text!r} is not JSON: {error}.",
            "Names and strings are in double quotes, the whole in single ones.",
            f"{flag} '{{\"features\": 64}}'",
        ) from None
    if not isinstance(parsed, dict | list):
        raise UsageError(
            f"{flag} {text!r} is a {type(parsed).__name__}.",
            "It must be an object of keyword arguments, or a list of positional ones.",
            f"{flag} '{{\"features\": 64}}'",
        )
    if isinstance(parsed, dict):
        return {k: _tuples(v) for k, v in parsed.items()}
    return [_tuples(v) for v in parsed]


def _tuples(x: Any) -> Any:
    return tuple(map(_tuples, x)) if isinstance(x, list) else x


def make_inputs(specs: Sequence[str] | None, seed: int) -> Any:
    """Returns the inputs: None for none, one array for one, a tuple for several."""
    if not specs:
        return None
    made = tuple(_input(s, jax.random.key(seed + 1 + i)) for i, s in enumerate(specs))
    return made[0] if len(made) == 1 else made


def _input(spec: str, key: jax.Array) -> Any:
    if spec.endswith(".npy"):
        return np.load(spec)
    parts = spec.split(":")
    named, shape, extra = "float32", parts[0], parts[1:]
    if parts and not parts[0][:1].isdigit():
        named, shape, extra = parts[0], parts[1] if len(parts) > 1 else "", parts[2:]
    named = {"int": "int32", "float": "float32"}.get(named, named)
    try:
        dtype = jnp.dtype(named)
        size = tuple(int(n) for n in shape.split(","))
        options = dict(e.split("=", 1) for e in extra)
        vocabulary = int(options.pop("vocab", 0))
        if options or min(size) < 1:
            raise ValueError
    except (TypeError, ValueError):
        raise UsageError(
            f"--input {spec!r} is not an input.",
            "It is [dtype:]shape[:vocab=N], with the batch first, or a .npy file.",
            "--input 8,224,224,3, or --input int:8,128:vocab=1000",
        ) from None
    if not jnp.issubdtype(dtype, jnp.integer):
        return jax.random.normal(key, size, dtype)
    if vocabulary < 1:
        raise UsageError(
            f"--input {spec!r} does not say how many integers there are.",
            "Tokens are drawn from 0 to vocab - 1; beyond the embedding they would "
            "read nothing.",
            f"--input {spec}:vocab=1000",
        )
    return jax.random.randint(key, size, 0, vocabulary, dtype)


def check_callable_on(model: Any, inputs: Any, kwargs: Any, command: str) -> None:
    """Raises `UsageError` where a model is to be called without what it needs."""
    if not isinstance(kwargs, dict):
        raise UsageError(
            f"--kwargs is a {type(kwargs).__name__}.",
            "What is passed by position are the inputs.",
            f"{command} --kwargs '{{\"train\": false}}'",
        )
    if inputs is None and getattr(model, "input_shape", None) is None:
        raise UsageError(
            f"{type(model).__name__} declares no input_shape, and there is no --input.",
            "Moments are those of a signal; without one there is nothing to propagate.",
            f"{command} --input 8,224,224,3",
        )
    call = inspect.signature(type(model).__call__)
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    try:
        call.bind(model, *given, **kwargs)
    except TypeError as error:
        named = [p for p in call.parameters.values() if p.name != "self"]
        rest = [p for p in named[len(given) :] if p.default is p.empty]
        missing = [p for p in rest if p.name not in kwargs]
        flags = [p for p in missing if p.annotation in (bool, "bool")]
        known = {p.name: True for p in flags} | kwargs
        more = " --input SHAPE" * (len(given) + len(missing) - len(flags))
        raise UsageError(
            f"{type(model).__name__}.__call__{_shown(call)} {error}.",
            "Each --input is one positional argument, in order; --kwargs has the rest.",
            f"{command}{more}" + (f" --kwargs '{json.dumps(known)}'" if known else ""),
        ) from None
