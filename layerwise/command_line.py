"""What a user types on the command line, as a model and its inputs."""

import importlib
import importlib.util
import inspect
import json
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from layerwise.errors import LayerwiseError, closest, did_you_mean, message


FIGURES = (".png", ".pdf", ".svg", ".jpg", ".webp", ".eps")


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
    given = parse_json(arguments, "--args")
    return _construct(target, spec, given, seed, command, _models(module))


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
    except (Exception, SystemExit) as error:
        alone = place if place.endswith(".py") else f"-c 'import {place}'"
        raise UsageError(
            f"{place} failed to import: {_said(error)}.",
            "The module's own code raised this.",
            f"{Path(sys.executable).name} {alone}   # to see it alone",
        ) from error


def _said(error: BaseException) -> str:
    """Returns an error on one line, with where it was raised."""
    first = (str(error).splitlines() or [""])[0][:300]
    last = traceback.extract_tb(error.__traceback__)[-1]
    file, line = last.filename, last.lineno
    if isinstance(error, SyntaxError):
        first, file, line = error.msg, error.filename or file, error.lineno or line
    return f"{type(error).__name__}: {first} ({file}:{line})"


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


def _construct(
    target: Any,
    spec: str,
    arguments: Any,
    seed: int,
    command: str,
    models: Sequence[str],
) -> Any:
    """Returns the model: `target` itself, or what it makes of the arguments."""
    from flax import linen, nnx

    place, _, name = spec.rpartition(":")
    if isinstance(target, linen.Module | nnx.Module):
        return target
    other = command.replace(spec, f"{place}:{models[0] if models else 'NAME'}")
    if not callable(target):
        raise UsageError(
            f"{spec} is an object of type {type(target).__name__}.",
            "A model is a Flax module, its class, or a function that returns one.",
            other,
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
            f"{name}{_shown(signature)} {error}.{_meant(signature, keyword)}",
            "Only with its arguments does it have layers.",
            f"{command} --args '{_example(signature, positional, keyword)}'",
        ) from None
    try:
        model = target(*positional, **keyword)
    except LayerwiseError:
        raise
    except Exception as error:
        raise UsageError(
            f"{name}{_shown(signature)} {_said(error)}.",
            "It could not be made of these arguments: its own code raised this.",
            f"{command} --args '{_example(signature, positional, keyword)}'",
        ) from error
    if isinstance(model, linen.Module | nnx.Module):
        return model
    raise UsageError(
        f"{spec} returned an object of type {type(model).__name__}.",
        "A factory must return a Flax module (Linen or NNX).",
        other,
    )


def _own(signature: inspect.Signature) -> list[inspect.Parameter]:
    left_out = ("self", "parent", "name")
    return [p for p in signature.parameters.values() if p.name not in left_out]


def _shown(signature: inspect.Signature) -> str:
    shown = [
        p.name if p.default is p.empty else f"{p.name}=..." for p in _own(signature)
    ]
    return f"({', '.join(shown)}):"


def _example(
    signature: inspect.Signature, positional: Sequence[Any], keyword: dict[str, Any]
) -> str:
    """Returns arguments that a signature takes, those given among them."""
    own = [p for p in _own(signature) if p.name != "rngs"]
    names = [p.name for p in own]
    given = dict(zip(names, positional, strict=False))
    given |= {k if k in names else closest(k, names): v for k, v in keyword.items()}
    kinds: dict[Any, Any] = {int: 64, float: 1.0, str: "...", bool: True}
    kinds |= {kind.__name__: value for kind, value in kinds.items()}
    shown = {
        p.name: given.get(p.name, kinds.get(p.annotation, 64))
        for p in own
        if p.name in given or p.default is p.empty
    }
    return json.dumps(shown)


def _meant(signature: inspect.Signature, keyword: dict[str, Any]) -> str:
    names = [p.name for p in _own(signature)]
    unknown = [k for k in keyword if k not in signature.parameters]
    return did_you_mean(unknown[0], names) if unknown else ""


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
        return _array(spec)
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
    integers = jnp.issubdtype(dtype, jnp.integer)
    if integers and vocabulary < 1:
        raise UsageError(
            f"--input {spec!r} does not say how many integers there are.",
            "Tokens are drawn from 0 to vocab - 1; beyond the embedding they would "
            "read nothing.",
            f"--input {parts[0]}:{shape}:vocab=1000",
        )
    if vocabulary and not integers:
        raise UsageError(
            f"--input {spec!r} is {dtype} and has a vocabulary.",
            "Only integers are drawn from one.",
            f"--input int:{shape}:vocab={vocabulary}",
        )
    if not integers:
        return jax.random.normal(key, size, dtype)
    return jax.random.randint(key, size, 0, vocabulary, dtype)


def _array(path: str) -> np.ndarray:
    try:
        return np.load(path)
    except (OSError, ValueError, EOFError) as error:
        what = getattr(error, "strerror", None) or "it holds something else"
        raise UsageError(
            f"--input {path} cannot be read: {what}.",
            "It must be one array of numbers, as numpy.save writes it.",
            "--input array.npy, written in Python by numpy.save('array.npy', inputs)",
        ) from None


def fewer_tokens(specs: Sequence[str] | None, rows: int) -> str:
    """Returns the flags of inputs whose tokens all find a row in a table."""

    def fewer(spec: str) -> str:
        size = re.search(r":vocab=(\d+)", spec)
        many = size is not None and int(size[1]) > rows
        return re.sub(r":vocab=\d+", f":vocab={rows}", spec) if many else spec

    return " ".join(f"--input {fewer(s)}" for s in specs or ())


def check_scheme(name: str | None, known: Sequence[str], command: str) -> None:
    """Raises `UsageError` unless a scheme is known, or None."""
    if name is None or name in known:
        return
    raise UsageError(
        f"--scheme {name} is not known.{did_you_mean(name, list(known))}",
        f"The schemes are {', '.join(known)}.",
        f"{command} --scheme {closest(name, list(known)) or known[0]}",
    )


def check_path(path: str, flag: str, *, figure: bool) -> None:
    """Raises `UsageError` where a file could not be written.

    Args:
        path: Where it is to be.
        flag: What it was given with.
        figure: Whether its ending says what kind of figure it is.
    """
    folder, why = Path(path).parent, "Nothing was measured."
    ending = "png" if figure else flag[2:]
    if not folder.is_dir():
        raise UsageError(
            f"{flag} {path}: there is no folder {folder}.", why, f"mkdir -p {folder}"
        )
    if Path(path).is_dir() or not os.access(folder, os.W_OK):
        what = (
            f"{path} is a folder" if Path(path).is_dir() else f"{folder} is read-only"
        )
        raise UsageError(f"{flag}: {what}.", why, f"{flag} report.{ending}")
    if figure and Path(path).suffix.lower() not in FIGURES:
        raise UsageError(
            f"{flag} {path}: no figure ends in {Path(path).suffix or 'nothing'!r}.",
            f"They end in {', '.join(FIGURES)}.",
            f"{flag} {Path(path).with_suffix('.png')}",
        )


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
        named = {p.name: p for p in call.parameters.values() if p.name != "self"}
        places = [p for p in named.values() if p.kind is not p.KEYWORD_ONLY]
        rest = [p for p in named.values() if p not in places[: len(given)]]
        missing = [p for p in rest if p.default is p.empty and p.name not in kwargs]
        flags = [p for p in missing if p.annotation in (bool, "bool")]
        flags += [p for p in missing if p not in flags and p not in places]
        known = {p.name: p.annotation in (bool, "bool") or 1.0 for p in flags}
        known |= {k: v for k, v in kwargs.items() if k in named}
        arrays = len(given) + len(missing) - len(flags)
        more = " --input SHAPE" * min(arrays, len(places))
        raise UsageError(
            f"{type(model).__name__}.__call__{_shown(call)} {error}."
            f"{_meant(call, kwargs)}",
            "Each --input is one positional argument, in order; --kwargs has the rest.",
            f"{command}{more}" + (f" --kwargs '{json.dumps(known)}'" if known else ""),
        ) from None
