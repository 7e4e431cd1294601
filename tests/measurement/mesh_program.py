"""Measures a small network on meshes of all devices; writes the curves to a file.

python mesh_program.py FILE                        # the devices of this process
python mesh_program.py FILE ADDRESS PROCESSES ID   # those of several
"""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import layerwise as lw
from layerwise.errors import InvalidArgumentError
from layerwise.measurement.sharding import layout


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), strides=2)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=False)(x))
        x = nn.max_pool(x, (2, 2), (1, 1))
        return nn.Dense(8)(jnp.tanh(nn.Dense(16)(x.reshape(x.shape[0], -1))))


def curves(m):
    assert m.draws_done == 11
    return np.concatenate(
        [m.second_moment("forward"), m.second_moment("backward"), m.weight_variance], 1
    )


def main(file, *distributed):
    if distributed:
        address, count, number = distributed
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, int(count), int(number))
    n = len(jax.devices())
    x = np.asarray(jax.random.normal(jax.random.key(1), (4, 8, 8, 3)))
    params = jax.device_get(jax.jit(Net().init)(jax.random.key(2), x))
    on = lambda **options: curves(lw.measure(Net(), params, x, draws=11, **options))
    found = {}
    meshes = {
        "draws": jax.make_mesh((n,), ("draws",)),
        "draws and batch": jax.make_mesh((n // 2, 2), ("draws", "batch")),
    }
    for name, mesh in meshes.items():
        found[name] = on(mesh=mesh)
    found["again"] = on(mesh=meshes["draws"])
    with pytest.raises(InvalidArgumentError, match="multiple of 2"):
        layout(meshes["draws and batch"], (x[:3],), None)
    if not distributed:
        found["one device"] = on()
        found["in chunks"] = on(mesh=meshes["draws"], chunk=5, batch_size=2)
        mesh = jax.make_mesh((2, n // 2), ("draws", "model"))

        def shard(leaf):
            along = [None] * (leaf.ndim - 1) + ["model"] if leaf.ndim > 1 else []
            return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*along)))

        whole, params = params, jax.tree.map(shard, params)
        found["sharded parameters"] = on(mesh=mesh)
        kept = layout(mesh, (x,), params)
        assert kept is not None
        for a, b in zip(*map(jax.tree.leaves, (params, kept.put_params(params)))):
            assert (
                a.addressable_shards[0].data.shape == b.addressable_shards[0].data.shape
            )
        found["sharded parameters, no mesh"] = on()
        line = jax.make_mesh((n,), ("model",))
        on_first = jax.device_put(
            np.ones((n, 2)), NamedSharding(line, PartitionSpec("model"))
        )
        with pytest.raises(InvalidArgumentError, match="Put an axis before it"):
            layout(line, (x,), on_first)
        with pytest.raises(InvalidArgumentError, match="One program runs on one mesh"):
            layout(jax.make_mesh((2,), ("draws",)), (x,), params)
        m = lw.measure(Net(), None, x, draws=11, redraw=lambda key: whole, mesh=mesh)
        assert m.draws.tolist() == list(range(11))
    if jax.process_index() == 0:
        np.savez(file, **found)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
