"""Compiling programs that are run a few times, for the CPU they will run on."""

import functools
import os

import jax


_QUICK: dict[str, bool | str] = {
    # What LLVM does beyond these takes a quarter of the compile time; what it would
    # save in running F34, ResNet-50, a transformer or a 20-layer network is noise.
    "xla_backend_optimization_level": "1",
    "xla_llvm_disable_expensive_passes": True,
    # The default without convolutions, which that library runs on one thread where XLA
    # itself takes all: a 20-layer network at 32 pixels took twice as long.
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,"
    "LIBRARY_FUSION_TYPE_REDUCE",
}


def compile_once(program: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles a program that is run a few times, on CPU in less time than by default.

    What the environment's XLA_FLAGS say stays as they say it, and options that this
    version of XLA does not have are left out.
    """
    if jax.default_backend() != "cpu":
        return program.compile()
    given = os.environ.get("XLA_FLAGS", "")
    return program.compile(
        {k: v for k, v in _QUICK.items() if k not in given and _is_known(k)}
    )


@functools.cache
def _is_known(option: str) -> bool:
    try:
        jax.jit(lambda: 0).lower().compile({option: _QUICK[option]})
    except jax.errors.JaxRuntimeError:
        return False
    return True
