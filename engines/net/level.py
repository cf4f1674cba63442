"""Slow level follower: the model sees every stream at about the same loudness, and gives it back at its own.

A causal gain control (seeds §7: replaces per-clip normalisation). Because the mask acts on the raw spectrum the
gain cancels out of it; it only scales the features and the generated part G. Silence takes G down with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import HOPS_PER_SECOND
from .causal import Causal, State

ATTACK_S, RELEASE_S = 0.05, 1.5
FLOOR = 1e-12  # power; about -120 dB re full scale a bin


class Level(Causal):
    """Power follower with fast attack and slow release.

    power: [B, T] mean |X|^2 a hop → level [B, T] (amplitude, > 0). State `power`: [B, 1]; 0 means "not yet started".
    """

    def __init__(self, hops: int = 1) -> None:
        super().__init__()
        self.step_size = hops
        self.attack = 1 - float(torch.exp(torch.tensor(-1 / (ATTACK_S * HOPS_PER_SECOND))))
        self.release = 1 - float(torch.exp(torch.tensor(-1 / (RELEASE_S * HOPS_PER_SECOND))))

    def init_state(self, batch: int) -> State:
        return {"power": torch.zeros(batch, 1)}

    def _next(self, last: Tensor, power: Tensor) -> Tensor:
        rate = torch.where(power > last, self.attack, self.release)
        return torch.where(last > 0, last + rate * (power - last), power)

    def forward(self, power: Tensor) -> Tensor:
        last, out = torch.zeros_like(power[:, 0]), []
        for p in power.unbind(1):
            last = self._next(last, p)
            out.append(last)
        return (torch.stack(out, 1) + FLOOR).sqrt()

    def step(self, power: Tensor, state: State) -> tuple[Tensor, State]:
        last, out = state["power"], []
        for t in range(self.step_size):
            last = self._next(last, power[:, t : t + 1])
            out.append(last)
        return (torch.cat(out, 1) + FLOOR).sqrt(), {"power": last}
