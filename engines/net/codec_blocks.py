"""Layers of the codec along time, at 50 Hz: a gated recurrence, then a causal ConvNeXt block (Liu et al. 2022, as in Vocos, Siuzdak 2023)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from .causal import Causal, State, scoped, within
from .scan import GatedRecurrence


class ConvBlock(Causal):
    """Depthwise causal convolution, norm, two linear layers, residual.

    x: [B, T, dim] float32 → same shape. State `past`: [B, kernel - 1, dim].
    """

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        self.dim, self.kernel = dim, kernel
        self.taps = nn.Parameter(torch.randn(kernel, dim) / kernel**0.5)
        self.norm = nn.LayerNorm(dim)
        self.up, self.down = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        nn.init.normal_(self.down.weight, std=0.3 / (2 * dim) ** 0.5)
        nn.init.zeros_(self.down.bias)

    def init_state(self, batch: int) -> State:
        return {"past": torch.zeros(batch, self.kernel - 1, self.dim)}

    def _rest(self, y: Tensor, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(silu(self.up(self.norm(y))))
        return out

    def forward(self, x: Tensor) -> Tensor:
        n, seen = x.shape[1], nn.functional.pad(x, (0, 0, self.kernel - 1, 0))
        y = seen[:, :n] * self.taps[0]
        for i in range(1, self.kernel):
            y = y + seen[:, i : i + n] * self.taps[i]
        return self._rest(y, x)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        seen = torch.cat([state["past"], x], 1)
        return self._rest((seen * self.taps).sum(1, keepdim=True), x), {"past": seen[:, 1:]}


class Stack(Causal):
    """Blocks one after the other. x: [B, T, dim] → [B, T, dim]."""

    def __init__(self, dim: int, kernel: int, blocks: int) -> None:
        super().__init__()
        self.memory = nn.ModuleList(GatedRecurrence(1, dim) for _ in range(blocks))
        self.conv = nn.ModuleList(ConvBlock(dim, kernel) for _ in range(blocks))

    def _parts(self) -> list[tuple[str, Causal]]:
        pairs = zip(self.memory, self.conv, strict=True)
        return [part for i, (m, c) in enumerate(pairs) for part in ((f"memory{i}", cast(Causal, m)), (f"conv{i}", cast(Causal, c)))]

    def init_state(self, batch: int) -> State:
        return {k: v for name, part in self._parts() for k, v in scoped(name, part.init_state(batch)).items()}

    def forward(self, x: Tensor) -> Tensor:
        for m, c in zip(self.memory, self.conv, strict=True):
            x = c(m(x[:, :, None])[:, :, 0])
        return x

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        new: State = {}
        for name, part in self._parts():
            memory = isinstance(part, GatedRecurrence)
            x, s = part.step(x[:, :, None] if memory else x, within(name, state))
            x = x[:, :, 0] if memory else x
            new.update(scoped(name, s))
        return x, new
