"""The JAX side: the engine, and what one writes without it."""

import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.models import Case
from layerwise.measurement import ensemble
from layerwise.measurement.compiling import compile_once
from layerwise.measurement.fast_cpu import faster_draw, override_for
from layerwise.measurement.measure import automatic_batch
from layerwise.measurement.tapped_model import TappedModel
from layerwise.tracing import trace
from layerwise.tracing.model import abstract_params, as_function
from layerwise.tracing.sites import all_values


class Bench:
    """One network's compiled variants, and what compiling them took.

    Attributes:
        compile_cpu: Variant -> CPU seconds for tracing and compiling.
        temp_mb: Variant -> megabytes of temporaries that XLA reserves for a call.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.function = as_function(case.model, kwargs=case.kwargs)
        self.key = jax.random.key(0)
        self.params = jax.jit(self._init)(self.key)
        abstract = abstract_params(self.function, (case.inputs,))
        self.traced = trace(self.function, abstract, (case.inputs,))
        self.values = tuple((s.value, s.iteration) for s in all_values(self.traced))
        self.compile_cpu: dict[str, float] = {}
        self.temp_mb: dict[str, float] = {}

    def _init(self, key: jax.Array) -> Any:
        assert self.function.init is not None
        return self.function.init(key, self.case.inputs)

    def _apply(self, params: Any, x: Any) -> Any:
        """Returns the model's output, called as Flax documents it."""
        mutable = [c for c in params if c != "params"] or False
        out = self.case.model.apply(params, x, mutable=mutable, **self.case.kwargs)
        return out[0] if mutable else out

    def compiled(
        self, name: str, f: Callable[..., Any], *args: Any
    ) -> Callable[[], Any]:
        """Compiles `f`; returns a call of it on `args` that waits for its result.

        The engine's programs are compiled as the engine compiles them.
        """
        start = time.process_time()
        program = jax.jit(f).lower(*args)
        own = name.startswith("layerwise")
        call = compile_once(program) if own else program.compile()
        self.compile_cpu[name] = time.process_time() - start
        memory: Any = call.memory_analysis()
        self.temp_mb[name] = memory.temp_size_in_bytes / 2**20
        return lambda: jax.block_until_ready(call(*args))

    def tapped(self, *, taps: int | None = None, rewrite: bool = True) -> TappedModel:
        """Returns the engine's program; with `taps`, the first so many.

        The first is the input's, where it is one of floats: a single tap there needs
        the whole backward pass that all of them need.
        """
        values = self.values[:taps]
        return TappedModel(self.traced, values, override_for(self.traced, rewrite))

    def single(
        self, only: str | None = None
    ) -> dict[str, tuple[Callable[[], Any], int]]:
        """Returns the variants that measure one given network; `only` one if named."""
        return {
            name: (self.compiled(name, f, params, self.case.inputs), 1)
            for name, (f, params) in self._programs().items()
            if only in (None, name)
        }

    def compile_again(self, rounds: int) -> None:
        """Has `compile_cpu` hold medians: of compilations from nothing, in turns.

        What a process does once, for the first program that it compiles, is in none.
        """
        programs, names = self._programs(), ("plain gradient", "layerwise")
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(rounds):
            for name in names:
                jax.clear_caches()
                f, params = programs[name]
                self.compiled(name, f, params, self.case.inputs)
                seconds[name].append(self.compile_cpu[name])
        self.compile_cpu |= {k: float(np.median(v)) for k, v in seconds.items()}

    def _programs(self) -> dict[str, tuple[Callable[..., Any], Any]]:
        """Returns what measures one given network, each with its parameters."""
        x, key = self.case.inputs, self.key
        signs = jax.random.rademacher(
            key, jax.eval_shape(self._apply, self.params, x).shape, jnp.float32
        )
        floats, ints = _split(self.params)
        loss = lambda p, x: jnp.sum(signs * self._apply(_join(p, ints), x))
        programs: dict[str, tuple[Callable[..., Any], Any]] = {
            "plain gradient": (jax.value_and_grad(loss), floats),
            "capture + perturb": (self._capture_and_perturb(signs), self.params),
        }
        for name, tapped in {
            "layerwise": self.tapped(),
            "layerwise, one tap": self.tapped(taps=1),
            "layerwise, no rewrites": self.tapped(rewrite=False),
        }.items():
            measured = lambda p, x, t=tapped: t.run(p, (x,), key, None)
            programs[name] = (measured, self.params)
        if self.case.name.startswith(("f34", "cnn")):
            programs["convolutions alone"] = (self._convolutions(), floats)
        return programs

    def many(self) -> dict[str, tuple[Callable[[], Any], int]]:
        """Returns the variants that draw and measure new networks."""
        count = self.case.draws * ensemble.workers()
        tapped, key = self.tapped(), self.key
        program = ensemble.Program(
            tapped,
            (self.case.inputs,),
            faster_draw(self._init, True),
            None,
            None,
            key,
            self.case.draws,
            automatic_batch(self.traced),
        )
        frames = np.tile([0.0, 1.0], (2, len(tapped.values), 1))
        pieces = np.split(np.arange(count), ensemble.workers())

        def engine() -> None:
            with ensemble.threads() as pool:
                for future in [program.submit(pool, p, frames) for p in pieces]:
                    future.result()

        start = time.process_time()
        program.compile(pieces[0], frames)
        self.compile_cpu["layerwise with draws"] = time.process_time() - start

        draw = self.compiled("init", self._init, key)
        floats, ints = _split(self.params)
        gradient = self.compiled(
            "gradient",
            lambda p, x: jax.value_and_grad(
                lambda p: jnp.sum(self._apply(_join(p, ints), x))
            )(p),
            floats,
            self.case.inputs,
        )

        def loop() -> None:
            for _ in range(2):
                draw()
                gradient()

        return {
            "layerwise, draws": (engine, count),
            "Python loop of gradients": (loop, 2),
        }

    def _capture_and_perturb(self, signs: jax.Array) -> Callable[..., Any]:
        """Returns moments of all module outputs and of their cotangents, Flax's way.

        `capture_intermediates` keeps what modules return. `perturb` must be written
        into a model; here an interceptor adds a zero to every module's output instead.
        Both are reduced inside the program, which is kinder than returning them.
        """
        model, kwargs = self.case.model, self.case.kwargs

        def run(variables: Any, x: jax.Array) -> Any:
            mutable = [c for c in variables if c != "params"] + ["intermediates"]

            def shapes() -> dict[str, Any]:
                found: dict[str, Any] = {}
                _intercepted(model, variables, x, kwargs, mutable, found, None)
                return found

            zeros = {
                k: jnp.zeros(v.shape, v.dtype)
                for k, v in jax.eval_shape(shapes).items()
            }

            def loss(zeros: dict[str, jax.Array]) -> Any:
                out, state = _intercepted(
                    model, variables, x, kwargs, mutable, None, zeros
                )
                kept = jax.tree.map(_moments, state["intermediates"])
                return jnp.sum(signs * out), kept

            (_, forward), cotangents = jax.value_and_grad(loss, has_aux=True)(zeros)
            return forward, jax.tree.map(_moments, cotangents)

        return run

    def _convolutions(self) -> Callable[..., Any]:
        """Returns the plain net's convolutions and their input gradients, only those.

        They take the engine's own forms; between them is nothing but the strided
        selection that stands in for a pooling.
        """
        table = [
            e for e in self.traced.graph.equations if e.name == "conv_general_dilated"
        ]
        override = override_for(self.traced, True)
        assert override is not None
        avals = self.traced.graph.avals

        def run(params: Any, x: jax.Array) -> Any:
            numbers = sorted(int(k[5:]) for k in params if k.startswith("Conv_"))
            weights = [params[f"Conv_{i}"]["kernel"] for i in numbers]

            def chain(x: jax.Array) -> jax.Array:
                for equation, w in zip(table, weights, strict=True):
                    want = avals[equation.values_in[0]].shape
                    if x.shape != want:
                        step = x.shape[1] // want[1]
                        x = x[:, ::step, ::step]
                    outs = override(equation, [x, w])
                    assert outs is not None
                    x = outs[0]
                return x

            y, transpose = jax.vjp(chain, x)
            return jnp.sum(y), jnp.sum(transpose(jnp.ones_like(y))[0])

        return run


def _moments(x: jax.Array) -> jax.Array:
    return jnp.stack([jnp.mean(x), jnp.mean(jnp.square(x))])


def _split(variables: Any) -> tuple[Any, Any]:
    """Returns the parameters and the other collections."""
    rest = {k: v for k, v in variables.items() if k != "params"}
    return variables["params"], rest


def _join(params: Any, rest: Any) -> Any:
    return {"params": params, **rest}


def _intercepted(
    model: nn.Module,
    variables: Any,
    x: jax.Array,
    kwargs: Any,
    mutable: list[str],
    found: dict[str, Any] | None,
    zeros: dict[str, jax.Array] | None,
) -> Any:
    """Applies `model`, adding `zeros` to the outputs of its modules."""

    def interceptor(f: Any, args: Any, kwargs: Any, context: Any) -> Any:
        y = f(*args, **kwargs)
        name = "/".join(context.module.path) + "." + context.method_name
        if context.method_name != "__call__" or not isinstance(y, jax.Array):
            return y
        if found is not None:
            found[name] = y
        return y if zeros is None else y + zeros[name]

    with nn.intercept_methods(interceptor):
        out = model.apply(
            variables, x, capture_intermediates=True, mutable=mutable, **kwargs
        )
    return found if found is not None else out
