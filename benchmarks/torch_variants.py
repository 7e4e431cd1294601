"""What a careful PyTorch user writes: hooks on every module, weights redrawn in place.

The hooks keep two numbers per tensor, forward by a forward hook and backward by a hook
on the output tensor, which is lighter than a module's full backward hook. Without
weight gradients, parameters have `requires_grad` off and the backward pass computes
input gradients alone.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from benchmarks.torch_models import TWINS


class Hooked:
    """A network whose modules report moments, redrawn before each pass."""

    def __init__(self, name: str, data: np.ndarray, *, weight_gradients: bool) -> None:
        torch.manual_seed(0)
        self.model = TWINS[name]()
        self.model.requires_grad_(weight_gradients)
        x = torch.from_numpy(np.array(data))
        if x.ndim == 4:
            # Channels first is the faster layout here: weights that are stored channels
            # last take ten times as long to redraw.
            x = x.permute(0, 3, 1, 2).contiguous()
        self.data = x if x.is_floating_point() else x.long()
        self.weights = [
            m.weight
            for m in self.model.modules()
            if isinstance(m, nn.Conv2d | nn.Linear | nn.Embedding)
        ]
        self.forward: list[torch.Tensor] = []
        self.backward: list[torch.Tensor] = []
        for module in self.model.modules():
            if not list(module.children()):
                module.register_forward_hook(self._hook)
            if isinstance(module, nn.Embedding) and not weight_gradients:
                # Something must ask for gradients, or there is no backward pass.
                module.register_forward_hook(lambda m, i, o: o.requires_grad_())

    def _hook(self, module: nn.Module, inputs: tuple, out: torch.Tensor) -> None:
        self.forward.append(_moments(out.detach()))
        if out.requires_grad:
            out.register_hook(self._on_gradient)

    def _on_gradient(self, gradient: torch.Tensor) -> None:
        self.backward.append(_moments(gradient))

    def redraw(self) -> None:
        """Draws every weight anew, in place."""
        with torch.no_grad():
            for w in self.weights:
                fan_in = w[0].numel() if w.ndim > 1 else w.numel()
                w.normal_(0.0, math.sqrt(2.0 / fan_in))

    def one(self) -> np.ndarray:
        """Measures one new network."""
        self.redraw()
        self.forward.clear()
        self.backward.clear()
        x = self.data
        if x.is_floating_point():
            x = x.detach().requires_grad_()
        self.model.zero_grad(set_to_none=True)
        y = self.model(x)
        signs = torch.randint(0, 2, y.shape).mul_(2).sub_(1).to(y.dtype)
        (y * signs).sum().backward()
        return torch.stack(self.forward + self.backward).numpy()


def _moments(x: torch.Tensor) -> torch.Tensor:
    variance, mean = torch.var_mean(x, correction=0)
    return torch.stack([mean, variance])


def variants(
    name: str, data: np.ndarray, cores: int
) -> dict[str, Callable[[], np.ndarray]]:
    """Returns the variants, each measuring one network per call.

    One is also run on a single thread: where other programs want the cores, two threads
    that wait for each other after every layer take several times longer than on an idle
    machine, and so does their CPU time, as they wait actively.
    """
    hooked = {flag: Hooked(name, data, weight_gradients=flag) for flag in (True, False)}

    def on(threads: int, weight_gradients: bool) -> Callable[[], np.ndarray]:
        def call() -> np.ndarray:
            torch.set_num_threads(threads)
            return hooked[weight_gradients].one()

        return call

    return {
        "torch hooks": on(cores, True),
        "torch hooks, no weight gradients": on(cores, False),
        "torch hooks, no weight gradients, 1 thread": on(1, False),
    }
