"""Whether the talker who was asked for is in what the model lets through: the encoder of voices, run along, and a gate.

The encoder was taught to tell talkers apart and does it with a second and a half of speech, also where a mask that was learned from mixtures keeps anybody of
the same sex. Its convolutions look ahead, so what is compared is 0.28 s old; its statistics are forgotten over one and over four seconds. Trained by
tools.train_gate, all else standing still.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, linear, normalize, pad, silu

from ..config import HOPS_PER_FRAME
from .causal import State, scoped, within
from .level import Level
from .scan import linear_scan
from .voice import Residual, VoiceEncoder

MEMORIES_FRAMES = (50, 200)
HIDDEN = 64
LOUD = 0.3  # power of a talker who goes on, over the square of the level, which follows the loud moments
QUIET = 0.03  # of the level of what comes in: what lets less through is not made loud


class Recogniser(nn.Module):
    """y: [B, hops, 160, 2] what is let through, level: [B, hops] of what came in, voice: [B, voice_dim] (zeros: nobody is asked for), h: [B, frames,
    trunk_dim] of the trunk → how far to open, [B, frames, 1] in (0, 1]; 1 where nobody is asked for, and until something was heard.

    State: `u0` … and `x0` …: what the convolutions still need, [B, channels, frames]; `level.power`; `sums`: [B, memories, 3, channels]; `sure`: [B, memories]
    how much is in them, up to 1; `voice` that is asked for, and `last`, the one they are about: who was let through for somebody else says nothing.
    """

    def __init__(self, encoder: VoiceEncoder, trunk_dim: int) -> None:
        super().__init__()
        self.channels, self.dim = encoder.inp.out_channels, encoder.dim
        self.dilations = [cast(Residual, layer).conv.dilation[0] for layer in encoder.body]
        self.level = Level(HOPS_PER_FRAME)
        self.weigh = nn.Linear(len(MEMORIES_FRAMES) * (self.dim + 2) + 1 + trunk_dim, HIDDEN)
        self.open = nn.Linear(HIDDEN, 1)
        nn.init.zeros_(self.open.weight)
        nn.init.constant_(self.open.bias, 3.0)
        self.register_buffer("forget", torch.tensor([1 - 1 / n for n in MEMORIES_FRAMES]), persistent=False)
        self.forget: Tensor

    def init_state(self, batch: int, voice: Tensor | None) -> State:
        state: State = scoped("level", self.level.init_state(batch))
        for i, d in enumerate(self.dilations):
            state[f"u{i}"] = torch.zeros(batch, self.channels, 4 * d)
            state[f"x{i}"] = torch.zeros(batch, self.channels, 2 * d)
        state["sums"] = torch.zeros(batch, len(MEMORIES_FRAMES), 3, self.channels)
        state["sure"] = torch.zeros(batch, len(MEMORIES_FRAMES))
        state["last"] = torch.zeros(batch, self.dim)
        state["voice"] = torch.zeros(batch, self.dim) if voice is None else voice.detach().expand(batch, -1).clone()
        return state

    # -- parts shared by step and forward --------------------------------------------------------------------------------------
    def _power(self, y: Tensor, own: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """→ what the encoder reads, [B, frames, hops * 160], and how loud that is beside what came in, [B, frames, 1]"""
        loud = torch.maximum(own, QUIET * level)
        b, t = loud.shape
        power = y.square().sum(-1) / (LOUD * loud.square()[..., None])
        power = 0.2 * (power + 1e-5).log().view(b, t // HOPS_PER_FRAME, -1)
        return power, (loud / level).log().view(b, -1, HOPS_PER_FRAME).mean(-1, keepdim=True)

    def _terms(self, z: Tensor, attention: Tensor, known: Tensor) -> Tensor:
        """z, attention: [B, T, C], known: [.., T, 1], 0 for frames that are none → what is summed up, [B, T, 3, C]"""
        w = attention.clamp(-15, 15).exp() * known
        return torch.stack([w, w * z, w * z.square()], 2)

    def _compared(self, sums: Tensor, sure: Tensor, voice: Tensor, encoder: VoiceEncoder) -> Tensor:
        """sums: [B, T, memories, 3, C], sure: [B or 1, T, memories], voice: [B, dim] → [B, T, memories * (dim + 2)]: products of the voice heard and that
        asked for, their sum, and how much was heard to know it, 0 where nobody is asked for"""
        sure = sure[..., None]
        weight = sums[..., 0, :] + 1e-9
        mean = sums[..., 1, :] / weight
        spread = (sums[..., 2, :] / weight - mean.square()).clamp_min(1e-6).sqrt()
        both = torch.cat([mean, spread], -1)
        heard = normalize(encoder.out(encoder.norm(both.flatten(0, -2))), dim=-1).view(*both.shape[:-1], self.dim)
        v = voice[:, None, None] / self.dim**0.5
        asked = (v.square().sum(-1, keepdim=True) > 0.5).to(heard.dtype)
        product = heard * v * sure
        told = torch.cat([self.dim * product, 4 * product.sum(-1, keepdim=True), (sure * asked).expand(*product.shape[:-1], 1)], -1)
        return told.flatten(-2)

    def gate(self, compared: Tensor, loud: Tensor, h: Tensor) -> Tensor:
        """→ how likely it is that the talker is there, [B, frames, 1]; what the loss of tools.train_gate is about"""
        there = torch.sigmoid(self.open(silu(self.weigh(torch.cat([compared, loud, h], -1)))))
        gate: Tensor = 1 + (compared[..., -1:] > 0).to(there.dtype) * (there - 1)
        return gate

    def along(self, power: Tensor, encoder: VoiceEncoder) -> tuple[Tensor, int]:
        """power: [B, frames, hops * 160] → what the encoder's convolutions make of every frame, [B, channels, frames], and by how many frames it is late."""
        z, n, late = encoder.inp(power.transpose(1, 2)), power.shape[1], 0
        at = torch.arange(n, device=z.device)
        for layer, d in zip(encoder.body, self.dilations, strict=True):
            layer = cast(Residual, layer)
            u = silu(layer.norm(z)) * (at >= late)
            u = conv1d(pad(u, (4 * d, 0)), layer.conv.weight, layer.conv.bias, dilation=d)
            z = pad(z, (2 * d, 0))[..., :n] + layer.out(silu(u))
            late += 2 * d
        return z, late

    def evidence(self, y: Tensor, level: Tensor, voice: Tensor, encoder: VoiceEncoder) -> tuple[Tensor, Tensor]:
        """What `gate` reads beside h: `_compared`, and how loud what is let through is."""
        power, loud = self._power(y, self.level(y.square().sum(-1).mean(-1)), level)
        z, late = self.along(power, encoder)
        at = torch.arange(z.shape[-1], device=z.device)
        terms = self._terms(z.transpose(1, 2), encoder.attention(z).transpose(1, 2), (at >= late).to(z.dtype)[:, None])[:, :, None]
        decay = self.forget[:, None, None].expand(*terms.shape[:2], len(MEMORIES_FRAMES), *terms.shape[3:]).contiguous()
        terms = terms.expand_as(decay).contiguous()
        sure = 1 - self.forget ** (at + 1 - late).clamp_min(0)[None, :, None].to(z.dtype)
        return self._compared(linear_scan(decay, terms, torch.zeros_like(terms[:, 0])), sure, voice, encoder), loud

    def forward(self, y: Tensor, level: Tensor, voice: Tensor, h: Tensor, encoder: VoiceEncoder) -> Tensor:
        return _opened(self.gate(*self.evidence(y, level, voice, encoder), h))

    def step(self, y: Tensor, level: Tensor, pos: Tensor, h: Tensor, encoder: VoiceEncoder, state: State) -> tuple[Tensor, State]:
        """pos: [B] int64 frames seen before this one. Of one frame convolutions are products of matrices, which is what runtimes are quick at."""
        own, s = self.level.step(y.square().sum(-1).mean(-1), within("level", state))
        new = scoped("level", s)
        power, loud = self._power(y, own, level)
        z, late = _product(encoder.inp, power[:, 0]), 0
        for i, (layer, d) in enumerate(zip(encoder.body, self.dilations, strict=True)):
            layer = cast(Residual, layer)
            u = silu(layer.norm(z)) * (pos >= late)[:, None]
            around, then = torch.cat([state[f"u{i}"], u[..., None]], -1), torch.cat([state[f"x{i}"], z[..., None]], -1)
            z = then[..., 0] + _product(layer.out, silu(_product(layer.conv, around[..., ::d].flatten(1))))
            new |= {f"u{i}": around[..., 1:], f"x{i}": then[..., 1:]}
            late += 2 * d
        known = (pos >= late)[:, None].to(z.dtype)
        first, _, second = encoder.attention
        terms = self._terms(z[:, None], _product(second, torch.tanh(_product(first, z)))[:, None], known[..., None])[:, 0]
        same = (state["last"] - state["voice"]).abs().sum(-1, keepdim=True) < 1e-3
        new["last"], kept = torch.where(same, state["last"], state["voice"]), same.to(z.dtype) * self.forget
        new["sums"] = kept[..., None, None] * state["sums"] + terms[:, None]
        new["sure"] = kept * state["sure"] + (1 - self.forget) * known
        return _opened(self.gate(self._compared(new["sums"][:, None], new["sure"][:, None], state["voice"], encoder), loud, h)), new


def _opened(gate: Tensor) -> Tensor:
    """Wholly open unless the talker is less likely to be there than not: a gate that trembles above that spoils a good separation for nothing."""
    return (2 * gate).clamp_max(1)


def _product(conv: nn.Module, x: Tensor) -> Tensor:
    """x: [B, channels * taps], all that one result of a convolution is made of → [B, channels]"""
    assert isinstance(conv, nn.Conv1d)
    return linear(x, conv.weight.flatten(1), conv.bias)
