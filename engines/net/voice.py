"""A voice as a vector: the enrolment of one talker, a sentence that asks for a sound, or a place among unknown talkers; and how the model is turned towards it.

The encoder hears the whole enrolment at once (it is not causal and runs once): three dilated convolutions over frames of two hops, 0.6 s of context, then
attentive statistics (Okabe et al. 2018), trained so that two recordings of one talker meet and those of others part (tools.train_voice).
The turn is a pinned row in the trunk's attention, and gains and offsets of bands and channels (FiLM, Perez et al. 2018).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, silu

from ..config import CORE_BINS, HOPS_PER_FRAME, ModelConfig


class Residual(nn.Module):
    """Dilated convolution over time, [B, C, T] → same shape."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)
        self.conv = nn.Conv1d(channels, channels, 5, padding=2 * dilation, dilation=dilation)
        self.out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.out(silu(self.conv(silu(self.norm(x)))))
        return y


class VoiceEncoder(nn.Module):
    """x: [B, hops, 160, 2] float32 spectrum of one talker, hops even, any level → [B, voice_dim], length sqrt(voice_dim)."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        c = cfg.voice_channels
        self.dim = cfg.voice_dim
        self.inp = nn.Conv1d(HOPS_PER_FRAME * CORE_BINS, c, 1)
        self.body = nn.Sequential(*(Residual(c, d) for d in (1, 2, 4)))
        self.attention = nn.Sequential(nn.Conv1d(c, c // 2, 1), nn.Tanh(), nn.Conv1d(c // 2, c, 1))
        self.norm = nn.BatchNorm1d(2 * c)
        self.out = nn.Linear(2 * c, cfg.voice_dim)

    def forward(self, x: Tensor) -> Tensor:
        b, t = x.shape[:2]
        power = x.square().sum(-1)
        power = power / (power.mean((1, 2), keepdim=True) + 1e-12)
        z = (power + 1e-5).log().view(b, t // HOPS_PER_FRAME, -1).transpose(1, 2)
        z = self.body(self.inp(0.2 * z))
        w = torch.softmax(self.attention(z), -1)
        mean = (w * z).sum(-1)
        spread = ((w * z.square()).sum(-1) - mean.square()).clamp_min(1e-6).sqrt()
        y: Tensor = normalize(self.out(self.norm(torch.cat([mean, spread], -1))), dim=-1) * self.dim**0.5
        return y


class Asked(nn.Module):
    """sentence: [B, query_dim] float32, unit length → [B, voice_dim], length sqrt(voice_dim): a sound asked for in words, where a voice would be."""

    def __init__(self, query_dim: int, voice_dim: int) -> None:
        super().__init__()
        self.dim = voice_dim
        self.out = nn.Linear(query_dim, voice_dim, bias=False)  # linear: wordings that were never heard land near those that were

    def forward(self, sentence: Tensor) -> Tensor:
        y: Tensor = normalize(self.out(sentence), dim=-1) * self.dim**0.5
        return y


class Places(nn.Module):
    """Who is who among talkers that nobody enrolled: learned vectors where a voice would be. place [B] int64 → [B, voice_dim], length sqrt(voice_dim).

    What a place means is whatever makes the loss smallest over all ways to share the talkers out (permutation-invariant training, Kolbæk et al. 2017).
    """

    def __init__(self, places: int, voice_dim: int) -> None:
        super().__init__()
        self.dim = voice_dim
        self.voices = nn.Parameter(torch.randn(places, voice_dim))

    def forward(self, place: Tensor) -> Tensor:
        y: Tensor = normalize(self.voices, dim=-1)[place] * self.dim**0.5
        return y


class Turn(nn.Module):
    """voice: [B, voice_dim] → gains [B, blocks, bands, width] and offsets [B, blocks, width] of what follows every recurrence; zeros change nothing.

    They do not change while a stream runs, so they are part of its state and cost a step next to nothing.
    """

    def __init__(self, voice_dim: int, blocks: int, bands: int, width: int) -> None:
        super().__init__()
        self.shape = (blocks, bands, width)
        self.band = nn.Linear(voice_dim, blocks * bands * width, bias=False)
        self.channel = nn.Linear(voice_dim, 2 * blocks * width, bias=False)
        for layer in (self.band, self.channel):
            nn.init.normal_(layer.weight, std=0.01)

    def none(self, batch: int) -> tuple[Tensor, Tensor]:
        blocks, bands, width = self.shape
        return torch.zeros(batch, blocks, bands, width), torch.zeros(batch, blocks, width)

    def forward(self, voice: Tensor) -> tuple[Tensor, Tensor]:
        blocks, bands, width = self.shape
        gain, offset = self.channel(voice).view(-1, 2, blocks, 1, width).unbind(1)
        return gain + self.band(voice).view(-1, blocks, bands, width), offset[:, :, 0]
