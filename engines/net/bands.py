"""Layers along frequency. None has a memory, so they are the same in `step` and `forward`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class FreqConv(nn.Sequential):
    """Convolution over frequency + batch norm + SiLU on [N, C, F]; the norm folds into the weights at export."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv1d(c_in, c_out, kernel, stride, (kernel - stride) // 2, bias=False),
            nn.BatchNorm1d(c_out),
            nn.SiLU(),
        )


class BandMix(nn.Module):
    """Residual mixing over bands: one learned [bands, bands] matrix a group of channels, then over channels.

    x: [B, T, bands, width] → same shape.
    """

    def __init__(self, bands: int, width: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Parameter(torch.randn(groups, bands, bands) / math.sqrt(bands))
        self.bias = nn.Parameter(torch.zeros(bands, width))
        self.out = nn.Linear(width, width)
        nn.init.normal_(self.out.weight, std=0.3 / math.sqrt(width))
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        b, t, f, c = x.shape
        n = self.norm(x).view(b * t, f, self.groups, c // self.groups).permute(2, 1, 0, 3)
        y = torch.bmm(self.mix, n.reshape(self.groups, f, -1)).view(self.groups, f, b * t, -1)
        y = y.permute(2, 1, 0, 3).reshape(b, t, f, c) + self.bias
        out: Tensor = x + self.out(nn.functional.silu(y))
        return out
