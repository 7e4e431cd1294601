"""A Flax Linen module as two pure functions, and what its calls can be watched for."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax

from layerwise.tracing.initializers import Initializers
from layerwise.types import PyTree


# Collections that Linen fills while it runs: outputs, not state that a call reads.
TRANSIENT = ("intermediates", "perturbations")


class NotAloneError(Exception):
    """A call whose parameters have to be there before it: it reads more than each."""


def functions(
    model: Any, kwargs: Mapping[str, Any], rngs: Mapping[str, jax.Array] | None
) -> tuple[Callable[..., Any], Callable[..., PyTree], Callable[..., Any]]:
    """Returns a module as pure functions: ``apply``, ``init`` and both at once.

    Args:
        model: The module.
        kwargs: Keyword arguments of its call.
        rngs: Keys of the random streams that the call draws from, by name.

    Returns:
        ``apply(variables, *inputs)``, ``init(key, *inputs)``, and
        ``both(key, *inputs)``: the variables as they are made, the same as they are
        read, and the output of `apply` on them. That one raises `NotAloneError` where a
        call that makes its variables could differ from one that is given them.
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

    def both(key: jax.Array, *inputs: Any) -> tuple[PyTree, PyTree, Any]:
        making = _Making(key)
        run = functools.partial(making.run, model, inputs, kwargs, rngs)
        try:
            out = run(mutable=False)
        except NotAloneError:
            if not making.stateful:
                raise
            out, state = run(mutable=DenyList("params"))
            making.check_unchanged(state)
        return *making.variables(), out

    return apply, init, both


class _Making:
    """Makes the variables that a call asks for, where `_reading_params` reads them.

    The modules see what they see of a call that is given its variables: parameters
    cannot be changed, and there is no random stream of that name. What they could see
    the absence of is refused.

    Attributes:
        stateful: Whether a variable was asked for that is no parameter.
    """

    def __init__(self, key: jax.Array):
        self.stateful = False
        self._key = key
        self._initializers = Initializers()
        self._mutable: Any = False
        self._made: dict[tuple[str, ...], Any] = {}
        self._read: dict[tuple[str, ...], Any] = {}
        self._root: Any = None
        self._refused = False

    def run(
        self, model: Any, inputs: Any, kwargs: Any, rngs: Any, *, mutable: Any
    ) -> Any:
        """Calls a model that is given nothing."""
        from flax import linen as nn

        self._made, self._read = {}, {}
        self._root, self._refused, self._mutable = None, False, mutable
        with nn.intercept_methods(self._call_on):
            out = model.apply(
                {"params": {}}, *inputs, rngs=rngs, mutable=mutable, **kwargs
            )
        if self._refused:
            raise NotAloneError
        return out

    def variables(self) -> tuple[PyTree, PyTree]:
        """Returns the variables as they were made, and as they were read."""
        from flax.traverse_util import unflatten_dict

        return unflatten_dict(self._made), unflatten_dict(self._read)

    def check_unchanged(self, state: Mapping[str, PyTree]) -> None:
        """Refuses a state that the call changed: the model's own init may do so too."""
        from flax.traverse_util import flatten_dict

        for place, value in flatten_dict(state).items():
            if place[0] not in TRANSIENT and value is not self._read.get(place):
                self._refuse()

    def _call_on(self, call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        scope = context.module.scope
        if scope is not None and "param" not in vars(scope):
            if self._root is None:
                self._root = scope.root
            scope.param = functools.partial(self._param, scope)
            scope.variable = functools.partial(self._variable, scope, scope.variable)
            for name in ("has_variable", "get_variable"):
                own = getattr(scope, name)
                setattr(scope, name, functools.partial(self._known, scope, own))
            scope.variables = self._refuse
        return call(*args, **kwargs)

    def _param(
        self,
        scope: Any,
        name: str,
        init: Callable[..., Any],
        *args: Any,
        unbox: bool = True,
        **kwargs: Any,
    ) -> Any:
        from flax.core import meta

        scope.reserve(name, "params")
        place = ("params", *scope.path, name)
        if place not in self._read:
            key = jax.random.fold_in(self._key, len(self._read))
            draw = functools.partial(init, **kwargs) if kwargs else init
            make = functools.partial(self._initializers.call, draw, key, *args)
            self._make(scope, place, make)
        value = self._read[place]
        return meta.unbox(value) if unbox else value

    def _variable(
        self,
        scope: Any,
        own: Callable[..., Any],
        collection: str,
        name: str,
        init: Callable[..., Any] | None = None,
        *args: Any,
        unbox: bool = True,
        **kwargs: Any,
    ) -> Any:
        place = (collection, *scope.path, name)
        if collection not in TRANSIENT and place not in self._read:
            self.stateful = True
            if init is None or not self._mutable:
                self._refuse()
            self._make(scope, place, functools.partial(init, *args, **kwargs))
            scope.put_variable(collection, name, self._read[place])
        return own(collection, name, init, *args, unbox=unbox, **kwargs)

    def _make(self, scope: Any, place: tuple[str, ...], init: Callable) -> None:
        if scope.root is not self._root:  # of a lifted transformation
            self._refuse()
        self._made[place] = init()
        # A value of its own, that nothing has read which was there before it.
        self._read[place] = jax.lax.optimization_barrier(self._made[place])

    def _known(
        self, scope: Any, own: Callable, collection: str, name: str, *default: Any
    ) -> Any:
        there = (collection, *scope.path, name) in self._read
        if collection == "params" or not (there or collection in TRANSIENT):
            self._refuse()
        return own(collection, name, *default)

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refused = True  # the module may catch what is raised
        raise NotAloneError


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
