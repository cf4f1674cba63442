"""Gated linear recurrence over time, parallel over everything else.

h_t = a_t h_{t-1} + (1 - a_t) v_t with a_t computed from the input alone (minGRU, Feng et al. 2024; RG-LRU of
Griffin, De et al. 2024): a learned, per-band, per-channel smoothing, which is what following a noise floor is. Unlike a GRU
its matrix products run over all frames at once, in training and on a GPU.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .causal import Causal, State, parts


class _Scan(torch.autograd.Function):
    """h_t = a_t h_{t-1} + b_t on [B, T, ...]; the backward pass is the same recurrence, run from the end."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, h0: Tensor) -> Tensor:
        out = _scan(a, b, h0)
        ctx.save_for_backward(a, out, h0)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, out, h0 = ctx.saved_tensors
        a_next = torch.cat([a[:, 1:], torch.zeros_like(a[:, :1])], 1).flip(1)
        grad_b = _scan(a_next, grads[0].flip(1), torch.zeros_like(h0)).flip(1)
        before = torch.cat([h0[:, None], out[:, :-1]], 1)
        return grad_b * before, grad_b, a[:, 0] * grad_b[:, 0]


def scan_doubling(a: Tensor, b: Tensor, h0: Tensor) -> Tensor:
    """log2(T) passes over everything instead of T small ones (Hillis & Steele 1986): for GPUs, where launches cost most."""
    h = torch.cat([torch.addcmul(b[:, :1], a[:, :1], h0[:, None]), b[:, 1:]], 1)
    shift = 1
    while shift < a.shape[1]:
        h = torch.cat([h[:, :shift], torch.addcmul(h[:, shift:], a[:, shift:], h[:, :-shift])], 1)
        a = torch.cat([a[:, :shift], a[:, shift:] * a[:, :-shift]], 1)
        shift *= 2
    return h


def scan_sequential(a: Tensor, b: Tensor, h0: Tensor) -> Tensor:
    """One multiply-add a frame: for CPUs."""
    out = torch.empty_like(b)
    h = h0
    for t in range(b.shape[1]):
        h = torch.addcmul(b[:, t], a[:, t], h)
        out[:, t] = h
    return out


def _scan(a: Tensor, b: Tensor, h0: Tensor) -> Tensor:
    return scan_doubling(a, b, h0) if a.is_cuda else scan_sequential(a, b, h0)


def linear_scan(a: Tensor, b: Tensor, h0: Tensor) -> Tensor:
    """All h_t of h_t = a_t h_{t-1} + b_t.  a, b: [B, T, ...], h0: [B, ...] → [B, T, ...]."""
    out: Tensor = _Scan.apply(a, b, h0)  # type: ignore[no-untyped-call]
    return out


class GatedRecurrence(Causal):
    """Residual layer with one gated linear recurrence a band, weights shared by the bands.

    x: [B, T, bands, width] float32 → same shape. State `h`: [B, bands, width].
    """

    def __init__(self, bands: int, width: int) -> None:
        super().__init__()
        self.bands, self.width = bands, width
        self.norm = nn.LayerNorm(width)
        self.inp = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        # start with memories of 2 to 100 frames (40 ms ... 2 s), spread over the channels
        frames = torch.logspace(math.log10(2), 2, width)
        self.memory = nn.Parameter(torch.logit(1 - 1 / frames))
        nn.init.normal_(self.out.weight, std=0.3 / math.sqrt(width))
        nn.init.zeros_(self.out.bias)

    def init_state(self, batch: int) -> State:
        return {"h": torch.zeros(batch, self.bands, self.width)}

    def _gates(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        v, z, o = parts(self.inp(self.norm(x)).float(), 3)  # a memory near 1 does not fit into bf16
        a = torch.sigmoid(z + self.memory)
        return a, (1 - a) * v, nn.functional.silu(o)

    def forward(self, x: Tensor) -> Tensor:
        a, b, o = self._gates(x)
        h = linear_scan(a, b, torch.zeros_like(b[:, 0]))
        y: Tensor = x + self.out(h * o)
        return y

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        a, b, o = self._gates(x)
        h = a[:, 0] * state["h"] + b[:, 0]
        return x + self.out(h[:, None] * o), {"h": h}
