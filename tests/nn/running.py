"""Runs Flax modules as one compiled program each: `from tests.nn.running import ...`.

Run eagerly, a module compiles every operation by itself, which is most of the time of
a test. These programs run once, so they are compiled without optimization.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


COMPILER_OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


# Threefry, the default, takes longer to compile than the layer that it initializes.
FAST_KEY = jax.random.key(0, impl="unsafe_rbg")


def compile_once(function):
    return jax.jit(function, compiler_options=COMPILER_OPTIONS)


def init_with_output(module, *args, key=None, **kwargs) -> tuple[Any, Any]:
    key = FAST_KEY if key is None else key

    def run(*args):
        return module.init_with_output(key, *args, **kwargs)

    return compile_once(run)(*args)


def init(module, *args, key=None, **kwargs) -> Any:
    # Without the output, the forward pass is not compiled at all.
    key = FAST_KEY if key is None else key
    return compile_once(lambda *args: module.init(key, *args, **kwargs))(*args)


def apply(module, variables, *args, **kwargs) -> Any:
    def run(variables, *args):
        return module.apply(variables, *args, **kwargs)

    return compile_once(run)(variables, *args)


def constant_he_normal():
    """As the default, but constants of the program: ten times faster to compile."""
    generator = np.random.default_rng(0)  # noqa: TID251

    def he_normal(key, shape, dtype=jnp.float32):
        del key
        stddev = (2 / np.prod(shape[:-1])) ** 0.5
        return jnp.asarray(stddev * generator.standard_normal(shape), dtype)

    return he_normal
