"""Many devices and several processes measure what one device measures."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layerwise as lw
from layerwise.errors import InvalidArgumentError
from layerwise.measurement.sharding import layout


PROGRAM = Path(__file__).with_name("mesh_program.py")
ROOT = PROGRAM.parents[2]


def start(devices, *args):
    environment = {
        k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")
    }
    environment |= {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *map(str, args)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    try:
        output, _ = process.communicate(timeout=400)
    finally:
        process.kill()
    assert process.returncode == 0, output[-3000:]


@pytest.fixture(scope="module")
def eight_devices(tmp_path_factory):
    file = tmp_path_factory.mktemp("mesh") / "eight.npz"
    finish(start(8, file))
    return dict(np.load(file))


@pytest.mark.slow
def test_eight_devices_equal_one(eight_devices):
    one = eight_devices["one device"]
    assert len(eight_devices) == 7
    for name, curves in eight_devices.items():
        np.testing.assert_allclose(curves, one, rtol=1e-5, err_msg=name)
    np.testing.assert_array_equal(eight_devices["draws"], eight_devices["again"])


@pytest.mark.slow
def test_two_processes_equal_one_device(eight_devices, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    file = tmp_path / "two.npz"
    both = [start(2, file, address, 2, i) for i in range(2)]
    for process in both:
        finish(process)
    found = dict(np.load(file))
    for name, curves in found.items():
        np.testing.assert_allclose(
            curves, eight_devices["one device"], rtol=1e-5, err_msg=name
        )
    np.testing.assert_array_equal(found["draws"], found["again"])


def test_a_mesh_of_one_device_is_one_device(key):
    x = jax.random.normal(key, (4, 5))
    params = {"a": jax.random.normal(key, (5, 5)), "b": jax.random.normal(key, (5, 3))}
    model = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]
    mesh = jax.make_mesh((1, 1), ("draws", "batch"))
    one = lw.measure(model, params, x, draws=5)
    got = lw.measure(model, params, x, draws=5, mesh=mesh, chunk=4)
    for direction in ("forward", "backward"):
        np.testing.assert_allclose(
            got.second_moment(direction), one.second_moment(direction), rtol=1e-5
        )


def test_meshes_that_do_not_fit():
    mesh = jax.make_mesh((1, 1, 1), ("draws", "batch", "more"))
    with pytest.raises(InvalidArgumentError, match="first takes the draws"):
        layout(mesh, (np.ones((2, 3)),), None)
