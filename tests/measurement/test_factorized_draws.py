import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import layerwise as lw


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a matter of CPUs")
def test_orthogonal_kernels_are_drawn_one_network_at_a_time():
    """Side by side, jax 0.10 on CPU never returns from drawing many of them."""
    layer = lambda init: nn.Sequential([nn.Dense(8, kernel_init=init)] * 2)
    x = jnp.ones((2, 8))
    measured = [
        lw.measure(layer(init), None, x, draws=2)
        for init in (nn.initializers.orthogonal(), nn.initializers.lecun_normal())
    ]
    assert measured[0].batch_size == 1
    assert measured[1].batch_size > 1
