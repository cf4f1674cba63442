"""Whom one hears just now, compared with whom one was asked for: the encoder of voices, run along.

The encoder was taught to tell talkers apart and does it with a second and a half of speech, also where a mask that was learned from mixtures alone keeps
anybody of the same sex. Its convolutions look ahead, so what is compared is 0.28 s old; its statistics are forgotten over one and over four seconds.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, normalize, pad, silu

from ..config import HOPS_PER_FRAME
from .causal import State
from .scan import linear_scan
from .voice import Residual, VoiceEncoder

MEMORIES_FRAMES = (50, 200)
TAPS = 5  # of the encoder's convolutions
HIDDEN = 64
SCALE = 64.0  # what the trunk reads is of this size
LOUD = 0.3  # power of a talker who goes on, over the square of the level, which follows the loud moments


class Recogniser(nn.Module):
    """x: [B, hops, 160, 2] spectrum, level: [B, hops], voice: [B, voice_dim] (zeros: nobody is asked for) → what the trunk is told, [B, frames, trunk_dim].

    State: `u0` … and `x0` …: what the convolutions still need, [B, channels, frames]; `sums`: [B, memories, 3, channels]; `voice`.
    """

    def __init__(self, encoder: VoiceEncoder, trunk_dim: int) -> None:
        super().__init__()
        self.channels, self.dim = encoder.inp.out_channels, encoder.dim
        self.dilations = [cast(Residual, layer).conv.dilation[0] for layer in encoder.body]
        self.weigh = nn.Linear(len(MEMORIES_FRAMES) * (self.dim + 2), HIDDEN)
        self.tell = nn.Linear(HIDDEN, trunk_dim, bias=False)
        self.judge = nn.Linear(len(MEMORIES_FRAMES) * (self.dim + 2) + trunk_dim, HIDDEN)
        self.open = nn.Linear(HIDDEN, 1)
        nn.init.zeros_(self.tell.weight)
        nn.init.zeros_(self.open.weight)
        nn.init.constant_(self.open.bias, 2.5)
        self.register_buffer("forget", torch.tensor([1 - 1 / n for n in MEMORIES_FRAMES]), persistent=False)
        self.forget: Tensor

    def init_state(self, batch: int, voice: Tensor | None) -> State:
        state: State = {}
        for i, d in enumerate(self.dilations):
            state[f"u{i}"] = torch.zeros(batch, self.channels, 4 * d)
            state[f"x{i}"] = torch.zeros(batch, self.channels, 2 * d)
        state["sums"] = torch.zeros(batch, len(MEMORIES_FRAMES), 3, self.channels)
        state["voice"] = torch.zeros(batch, self.dim) if voice is None else voice.detach().expand(batch, -1).clone()
        return state

    # -- parts shared by step and forward: frames on the last axis ---------------------------------------------------------
    def _heard(self, x: Tensor, level: Tensor, encoder: VoiceEncoder) -> Tensor:
        """[B, hops, 160, 2], [B, hops] → [B, channels, frames]"""
        b, t = x.shape[:2]
        power = x.square().sum(-1) / (LOUD * level.square()[..., None])
        z: Tensor = encoder.inp(0.2 * (power + 1e-5).log().view(b, t // HOPS_PER_FRAME, -1).transpose(1, 2))
        return z

    def _layer(self, layer: Residual, x: Tensor, u: Tensor) -> Tensor:
        """x: [B, C, T] of some frames ago, u: [B, C, T + 4 dilation] around them"""
        y: Tensor = x + layer.out(silu(conv1d(u, layer.conv.weight, layer.conv.bias, dilation=layer.conv.dilation)))
        return y

    def _terms(self, z: Tensor, known: Tensor, encoder: VoiceEncoder) -> Tensor:
        """z: [B, C, T], known: [.., T], 0 for frames that are none → what is summed up, [B, T, 3, C]"""
        w = encoder.attention(z).clamp(-15, 15).exp() * known
        return torch.stack([w, w * z, w * z.square()], 1).permute(0, 3, 1, 2)

    def _voices(self, sums: Tensor, encoder: VoiceEncoder) -> Tensor:
        """[B, T, memories, 3, C] → [B, T, memories, dim], length one"""
        weight = sums[..., 0, :] + 1e-9
        mean = sums[..., 1, :] / weight
        spread = (sums[..., 2, :] / weight - mean.square()).clamp_min(1e-6).sqrt()
        both = torch.cat([mean, spread], -1)
        return normalize(encoder.out(encoder.norm(both.flatten(0, -2))), dim=-1).view(*both.shape[:-1], self.dim)

    def _compared(self, heard: Tensor, voice: Tensor, frames: Tensor) -> Tensor:
        """heard: [B, T, memories, dim], voice: [B, dim], frames: [B or 1, T] heard so far → [B, T, memories * (dim + 2)]: products, their sum,
        and how much was heard to know it"""
        v = voice[:, None, None] / self.dim**0.5
        sure = (1 - self.forget ** frames.clamp_min(0)[..., None].to(heard.dtype))[..., None]
        asked = (v.square().sum(-1, keepdim=True) > 0.5).to(heard.dtype)
        product = heard * v * sure
        told = torch.cat([self.dim * product, 4 * product.sum(-1, keepdim=True), (sure * asked).expand(*product.shape[:-1], 1)], -1)
        return told.flatten(-2)

    def told(self, compared: Tensor) -> Tensor:
        """→ what the trunk is told, [B, frames, trunk_dim]"""
        y: Tensor = SCALE * self.tell(silu(self.weigh(compared))) * _asked(compared)
        return y

    def gate(self, compared: Tensor, h: Tensor) -> Tensor:
        """h: [B, frames, trunk_dim] of the trunk → how far what was asked for is there, 0 to 1; 1 where nothing was. [B, frames, 1]"""
        there = torch.sigmoid(self.open(silu(self.judge(torch.cat([compared, h], -1)))).float())
        y: Tensor = 1 + _asked(compared) * (there - 1)
        return y

    def along(self, x: Tensor, level: Tensor, encoder: VoiceEncoder) -> tuple[Tensor, int]:
        """What the encoder's convolutions make of every frame, [B, channels, frames], and by how many frames it is late."""
        z, late = self._heard(x, level, encoder), 0
        n = z.shape[-1]
        at = torch.arange(n, device=z.device)
        for layer, d in zip(encoder.body, self.dilations, strict=True):
            layer = cast(Residual, layer)
            u = silu(layer.norm(z)) * (at >= late)
            z = self._layer(layer, pad(z, (2 * d, 0))[..., :n], pad(u, (4 * d, 0)))
            late += 2 * d
        return z, late

    def forward(self, x: Tensor, level: Tensor, voice: Tensor, encoder: VoiceEncoder) -> Tensor:
        """voice: [n B, voice_dim] for n voices in every mixture → [n B, frames, trunk_dim]"""
        with torch.no_grad():
            z, late = self.along(x, level, encoder)
            at = torch.arange(z.shape[-1], device=z.device)
            terms = self._terms(z, (at >= late).to(z.dtype), encoder)[:, :, None]
            decay = self.forget[:, None, None].expand(*terms.shape[:2], len(MEMORIES_FRAMES), *terms.shape[3:]).contiguous()
            terms = terms.expand_as(decay).contiguous()
            heard = self._voices(linear_scan(decay, terms, torch.zeros_like(terms[:, 0])), encoder)
        return self._compared(heard.repeat(len(voice) // len(heard), 1, 1, 1), voice, at[None] + 1 - late)

    def step(self, x: Tensor, level: Tensor, pos: Tensor, encoder: VoiceEncoder, state: State) -> tuple[Tensor, State]:
        """pos: [B] int64 frames seen before this one"""
        z, late = self._heard(x, level, encoder), 0
        new: State = {}
        for i, (layer, d) in enumerate(zip(encoder.body, self.dilations, strict=True)):
            layer = cast(Residual, layer)
            u = silu(layer.norm(z)) * (pos >= late)[:, None, None]
            around, then = torch.cat([state[f"u{i}"], u], -1), torch.cat([state[f"x{i}"], z], -1)
            z = self._layer(layer, then[..., :1], around)
            new |= {f"u{i}": around[..., 1:], f"x{i}": then[..., 1:]}
            late += 2 * d
        terms = self._terms(z, (pos >= late)[:, None, None].to(z.dtype), encoder)
        new["sums"] = self.forget[:, None, None] * state["sums"] + terms
        return self._compared(self._voices(new["sums"][:, None], encoder), state["voice"], (pos + 1 - late)[:, None]), new


def _asked(compared: Tensor) -> Tensor:
    """1 where a voice was asked for. (Its last number says how much was heard of it, and is 0 without.)"""
    return (compared[..., -1:] > 0).to(compared.dtype)
