"""The contract every causal module keeps (DESIGN §4), and how states of parts are put together.

init_state(batch) -> State                  tensors only, slot on axis 0
step(x, state)    -> (y, state)             pure; one frame for every slot
forward(x)        -> y                      whole sequence, not a loop of step
latency           : int                     in steps of the module's own time axis
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


class Causal(nn.Module):
    """Base of all streaming modules. Time is axis 1; `step` takes `step_size` entries of it."""

    latency: int = 0
    step_size: int = 1

    def init_state(self, batch: int) -> State:
        raise TypeError(f"{type(self).__name__} must define init_state")

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        raise TypeError(f"{type(self).__name__} must define step")


def parts(x: Tensor, n: int) -> tuple[Tensor, ...]:
    """`chunk` along the last axis. Exported it is slices: the exporter turns `chunk` into sequence operators, slow and unknown to TensorRT.
    Trained it is one node, as the gradient of every slice is a whole tensor, most of it zeros: a tenth of a step."""
    if not torch.onnx.is_in_onnx_export():
        return x.chunk(n, -1)
    size = x.shape[-1] // n
    return tuple(x[..., i * size : (i + 1) * size] for i in range(n))


def scoped(name: str, state: State) -> State:
    """Prefix every key: {"h": t} → {"name.h": t}."""
    return {f"{name}.{k}": v for k, v in state.items()}


def within(name: str, state: State) -> State:
    """The entries of a part, prefix removed: the inverse of `scoped`."""
    head = name + "."
    return {k[len(head) :]: v for k, v in state.items() if k.startswith(head)}
