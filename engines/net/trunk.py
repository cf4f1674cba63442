"""The LM's trunk: a decoder-only transformer over 20 ms frames with a sliding window and a pinned prefix.

Causal, window of `window` frames, ALiBi distances (Press et al. 2022: no position table, so a stream may run for ever),
and `prefix` keys that stay in view: the task token, and a voice where one is enrolled (DESIGN §3). Attention sinks for free
(Xiao et al. 2024).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from ..config import TASKS, ModelConfig
from .causal import Causal, State, parts

NEVER = -1e9  # additive mask; finite, so an empty row gives no NaN


class Layer(nn.Module):
    """Pre-norm attention + SwiGLU."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(dim, eps=1e-6), nn.RMSNorm(dim, eps=1e-6)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)
        self.up = nn.Linear(dim, 4 * dim, bias=False)
        self.down = nn.Linear(2 * dim, dim, bias=False)
        for w in (self.proj.weight, self.down.weight):
            nn.init.normal_(w, std=0.02)

    def mlp(self, x: Tensor) -> Tensor:
        gate, value = parts(self.up(self.norm2(x)), 2)
        y: Tensor = x + self.down(silu(gate) * value)
        return y


class Trunk(Causal):
    """x: [B, T, dim] → [B, T, dim], one position a frame.

    State: `k`, `v`: [B, layers, window, heads, dim/heads] rings; `prefix_k`, `prefix_v`: [B, layers, prefix, heads, dim/heads];
    `prefix_on`: [B, prefix] 0/1; `pos`: [B] int64 frames seen.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.dim, self.heads, self.window, self.slots = cfg.trunk_dim, cfg.trunk_heads, cfg.window_frames, cfg.prefix_slots
        self.layers = nn.ModuleList(Layer(cfg.trunk_dim) for _ in range(cfg.trunk_layers))
        self.norm = nn.RMSNorm(cfg.trunk_dim, eps=1e-6)
        self.task = nn.Parameter(torch.randn(len(TASKS), cfg.trunk_dim) * 0.5)
        self.voice = nn.Linear(cfg.voice_dim, cfg.trunk_dim, bias=False) if cfg.voice_dim else None
        slopes = 2.0 ** -torch.linspace(1, 8, self.heads)
        self.register_buffer("slopes", slopes, persistent=False)
        self.slopes: Tensor

    def _layers(self) -> list[Layer]:
        return [cast(Layer, layer) for layer in self.layers]

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, self.dim // self.heads)

    def _pinned(self, row: Tensor) -> tuple[Tensor, Tensor]:
        """row: [B, dim] → its keys and values in every layer, [B, layers, heads, dim/heads]. It sees itself only."""
        ks, vs = [], []
        for layer in self._layers():
            _, k, v = parts(layer.qkv(layer.norm1(row)), 3)
            ks.append(self._split(k))
            vs.append(self._split(v))
            row = layer.mlp(row + layer.proj(v))
        return torch.stack(ks, 1), torch.stack(vs, 1)

    def voice_row(self, voice: Tensor) -> tuple[Tensor, Tensor]:
        """voice: [B, voice_dim] → its pinned keys and values, [B, layers, heads, dim/heads]; the same for every task"""
        assert self.voice is not None
        return self._pinned(self.voice(voice))

    def _prefix(self, task: str, voice: Tensor | None, batch: int) -> tuple[Tensor, Tensor]:
        """[B, layers, 1 or 2, heads, dim/heads] each"""
        rows = [self._pinned(self.task[TASKS.index(task)][None].expand(batch, -1))]
        if voice is not None:
            rows.append(self.voice_row(voice))
        k, v = (torch.stack(r, 2) for r in zip(*rows, strict=True))
        return k, v

    def init_state(self, batch: int, task: str = "restore", voice: Tensor | None = None) -> State:
        """voice: [B, voice_dim]"""
        shape = (batch, len(self.layers), self.window, self.heads, self.dim // self.heads)
        prefix = torch.zeros(batch, len(self.layers), self.slots, self.heads, self.dim // self.heads)
        prefix_k, prefix_v, on = prefix, prefix.clone(), torch.zeros(batch, self.slots)
        with torch.no_grad():
            k, v = self._prefix(task, voice, batch)
            n = k.shape[2]
            prefix_k[:, :, :n], prefix_v[:, :, :n], on[:, :n] = k, v, 1
        return {
            "k": torch.zeros(shape), "v": torch.zeros(shape), "prefix_k": prefix_k, "prefix_v": prefix_v,
            "prefix_on": on, "pos": torch.zeros(batch, dtype=torch.int64),
        }  # fmt: skip

    def forward(self, x: Tensor, task: str = "restore", voice: Tensor | None = None) -> Tensor:
        b, t, _ = x.shape
        at = torch.arange(t, device=x.device)
        age = at[:, None] - at[None]
        bias = -age.to(x.dtype) * self.slopes[:, None, None]
        bias = bias.masked_fill((age < 0) | (age >= self.window + 1), NEVER)  # the ring's `window` rows and the frame itself
        prefix_k, prefix_v = self._prefix(task, voice, b)
        bias = torch.cat([bias.new_zeros(self.heads, t, prefix_k.shape[2]), bias], -1)[None]
        for i, layer in enumerate(self._layers()):
            q, k, v = (self._split(r) for r in parts(layer.qkv(layer.norm1(x)), 3))
            k, v = torch.cat([prefix_k[:, i], k], 1), torch.cat([prefix_v[:, i], v], 1)
            a = scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=bias)
            x = layer.mlp(x + layer.proj(a.transpose(1, 2).flatten(-2)))
        y: Tensor = self.norm(x)
        return y

    def step_rows(self, x: Tensor, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """One frame, caches read only: (y [B, 1, dim], new k and v rows [B, layers, heads, dim/heads])."""
        pos = state["pos"]
        slot = torch.arange(self.window, device=x.device)
        age = (pos[:, None] - 1 - slot[None]) % self.window + 1  # 1 = the frame before
        bias = -age.to(x.dtype)[:, None] * self.slopes[:, None]
        bias = torch.where((age <= pos[:, None])[:, None], bias, NEVER)
        on = ((state["prefix_on"] - 1) * -NEVER)[:, None].expand(-1, self.heads, -1)
        bias = torch.cat([on, bias, torch.zeros_like(bias[..., :1])], -1)[:, :, None]  # [B, H, 1, P + W + 1]
        ks, vs = [], []
        scale = (self.dim // self.heads) ** -0.5
        for i, layer in enumerate(self._layers()):
            q, k, v = (self._split(r) for r in parts(layer.qkv(layer.norm1(x)), 3))
            ks.append(k[:, 0])
            vs.append(v[:, 0])
            k = torch.cat([state["prefix_k"][:, i], state["k"][:, i], k], 1).permute(0, 2, 3, 1)
            v = torch.cat([state["prefix_v"][:, i], state["v"][:, i], v], 1).transpose(1, 2)
            w = torch.softmax(q.transpose(1, 2) @ k * scale + bias, -1)
            x = layer.mlp(x + layer.proj((w @ v).transpose(1, 2).flatten(-2)))
        return self.norm(x), torch.stack(ks, 1), torch.stack(vs, 1)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, k, v = self.step_rows(x, state)
        return y, write_rows(state, k, v)


def write_rows(state: State, k: Tensor, v: Tensor) -> State:
    """A new state with this frame's key and value rows in the rings and `pos` advanced."""
    window = state["k"].shape[2]
    here = (torch.arange(window, device=k.device)[None] == state["pos"][:, None] % window)[:, None, :, None, None]
    return {
        **state,
        "k": torch.where(here, k[:, :, None], state["k"]),
        "v": torch.where(here, v[:, :, None], state["v"]),
        "pos": state["pos"] + 1,
    }
