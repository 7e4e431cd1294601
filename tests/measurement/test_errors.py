"""What goes wrong outside of the numbers: tracers, memory, Ctrl-C."""

import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import layerwise as lw
from layerwise.errors import (
    InvalidArgumentError,
    OutOfMemoryError,
    UnsupportedModelError,
)


PARAMS = {"w": jnp.eye(3)}
X = jnp.ones((2, 3))


def test_a_model_that_keeps_a_tracer():
    kept = []

    def stateful(p, x):
        h = x @ p["w"] + (kept[-1] if kept else 0.0)
        kept.append(h)
        return h

    jax.eval_shape(stateful, PARAMS, X)
    with pytest.raises(UnsupportedModelError, match="keeps a tracer"):
        lw.measure(stateful, PARAMS, X, draws=1)


def test_called_under_jit():
    model = lambda p, x: x @ p["w"]
    with pytest.raises(InvalidArgumentError, match=r"under jax\.jit"):
        jax.jit(lambda p: lw.measure(model, p, X, draws=1).draws)(PARAMS)


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        (
            {"draws": 4, "batch_size": 4, "chunk": 4},
            r"(?s)3 networks at once .* batch_size=1\.",
        ),
        pytest.param(
            {"draws": 1}, "Pass 1 examples instead of 2", marks=pytest.mark.slow
        ),
    ],
)
def test_what_does_not_fit(options, fix):
    def huge(p, x):
        h = x @ p["w"]
        big = jnp.broadcast_to(h[:, :1, None], (2, 2**17, 2**18))  # 256 GiB
        seen = jnp.sin(big) @ jnp.ones((2**18, 3))  # a product needs it in memory
        return h + seen[:, 0]

    with pytest.raises(OutOfMemoryError, match=fix):
        lw.measure(huge, PARAMS, X, redraw=lambda key: PARAMS, **options)


PROGRAM = """
import jax.numpy as jnp, layerwise as lw
m = lw.measure(lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"], {"w": jnp.eye(3) + 0.1},
    jnp.ones((2, 3)), draws=10**7, chunk=16, batch_size=1,
    progress=lambda done, total: print(done, flush=True))
print("returned", m.draws_done, len(m.draws))
"""


@pytest.mark.slow
def test_ctrl_c_returns_what_is_done():
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    word, done, rows = rest.split()[-3:]
    assert (word, process.returncode) == ("returned", 0)
    assert 32 <= int(done) < 10**7
    assert int(rows) == int(done) + 1
