"""All bins to 24 kHz: the core model below 8 kHz, sixteen 1 kHz bands above it.

The bands above 8 kHz get a gain each, and an excitation: the fine structure of the restored 4 ... 8 kHz, repeated upwards and set to
a predicted size (spectral band replication), for what the microphone did not carry. One input shape serves every rate from
8 to 48 kHz: bins a rate does not have are zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from ..config import CORE_BINS, HIGH_BAND_BINS, HIGH_BANDS, HOPS_PER_FRAME, ModelConfig
from .causal import Causal, State, scoped, within
from .model import POWER, Model
from .scan import GatedRecurrence
from .trunk import write_rows

BINS = CORE_BINS + HIGH_BANDS * HIGH_BAND_BINS  # 480
CORE_BANDS = CORE_BINS // HIGH_BAND_BINS


def band_power(x: Tensor) -> Tensor:
    """[B, T, bins, 2] → mean power of every 1 kHz band [B, T, bins / 20]"""
    p = x.square().sum(-1)
    return p.view(*p.shape[:-1], -1, HIGH_BAND_BINS).mean(-1)


class HighBands(nn.Module):
    """Gains and excitation sizes of the bands above 8 kHz, from their own energies, the core's gains and the trunk's h."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        d = cfg.high_dim
        self.inp = nn.Linear(HOPS_PER_FRAME * (HIGH_BANDS + 2 * CORE_BANDS) + cfg.trunk_dim, d)
        self.time = GatedRecurrence(1, d)
        self.norm = nn.LayerNorm(d)
        self.out = nn.Linear(d, HOPS_PER_FRAME * HIGH_BANDS * 2)
        with torch.no_grad():  # start: follow the core's gain at 4 ... 8 kHz, add next to nothing
            self.out.weight.zero_()
            self.out.bias.view(HOPS_PER_FRAME, HIGH_BANDS, 2)[..., 0] = 4.0
            self.out.bias.view(HOPS_PER_FRAME, HIGH_BANDS, 2)[..., 1] = -6.0

    def features(self, x: Tensor, core_in: Tensor, core_out: Tensor, h: Tensor, level: Tensor) -> Tensor:
        """→ [B, frames, 1, high_dim]"""
        scale = level.square()[..., None]
        high = (band_power(x) / scale + 1e-8) ** (POWER / 2)
        before, after = band_power(core_in) / scale + 1e-8, band_power(core_out) / scale + 1e-8
        f = torch.cat([high, after ** (POWER / 2), (after / before).sqrt().clamp_max(2)], -1)
        f = f.reshape(f.shape[0], -1, HOPS_PER_FRAME * f.shape[2])
        y: Tensor = silu(self.inp(torch.cat([f, h], -1)))[:, :, None]
        return y

    def apply_gains(self, z: Tensor, x: Tensor, core_in: Tensor, core_out: Tensor, level: Tensor) -> Tensor:
        """z: [B, frames, 1, high_dim], x: [B, hops, 320, 2] → [B, hops, 320, 2]"""
        o = self.out(silu(self.norm(z[:, :, 0]))).view(x.shape[0], -1, HIGH_BANDS, 2)
        # what the core keeps of 4 ... 8 kHz tells how much of this hop is speech; the head corrects it band by band
        kept, had = (band_power(c[:, :, CORE_BINS // 2 :]).mean(-1, keepdim=True) for c in (core_out, core_in))
        presence = ((kept + 1e-6 * level[..., None].square()) / (had + 1e-6 * level[..., None].square())).sqrt().clamp_max(1)
        gain = (presence * torch.sigmoid(o[..., 0])).repeat_interleave(HIGH_BAND_BINS, -1)[..., None]
        size = (softplus(o[..., 1]) ** (1 / POWER) * level[..., None]).repeat_interleave(HIGH_BAND_BINS, -1)[..., None]
        upper = core_out[:, :, CORE_BINS // 2 :]
        unit = upper / (band_power(upper).sqrt() + 1e-3 * level[..., None]).repeat_interleave(HIGH_BAND_BINS, -1)[..., None]
        return gain * x + size * torch.cat([unit] * (HIGH_BANDS * HIGH_BAND_BINS // (CORE_BINS // 2)), 2)


class FullBand(Causal):
    """x: [B, hops, 480, 2] float32 (hops even; bins beyond the stream's rate zero) → same shape.

    State: the core's, and `high.h`.
    """

    step_size = HOPS_PER_FRAME

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.core = Model(cfg)
        self.high = HighBands(cfg)

    def init_state(self, batch: int, task: str = "restore", voice: Tensor | None = None) -> State:
        return {**self.core.init_state(batch, task, voice), **scoped("high", self.high.time.init_state(batch))}

    def forward(self, x: Tensor, task: str = "restore", voice: Tensor | None = None) -> Tensor:
        low, top = x[:, :, :CORE_BINS], x[:, :, CORE_BINS:]
        y, h, level = self.core.forward_features(low, task, voice)
        z = self.high.time(self.high.features(top, low, y, h, level))
        return torch.cat([y, self.high.apply_gains(z, top, low, y, level)], 2)

    def step_rows(self, x: Tensor, state: State) -> tuple[Tensor, State, Tensor, Tensor]:
        """One frame, attention rings read only: (y, new small states, new k rows, new v rows)."""
        low, top = x[:, :, :CORE_BINS], x[:, :, CORE_BINS:]
        y, h, level, new, k, v = self.core.step_rows(low, state)
        z, s = self.high.time.step(self.high.features(top, low, y, h, level), within("high", state))
        return torch.cat([y, self.high.apply_gains(z, top, low, y, level)], 2), {**new, **scoped("high", s)}, k, v

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, new, k, v = self.step_rows(x, state)
        trunk = scoped("trunk", write_rows(within("trunk", state), k, v))
        return y, {key: {**state, **trunk, **new}[key] for key in state}
