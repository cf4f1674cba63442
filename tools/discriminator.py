"""Multi-scale STFT discriminator (EnCodec, Défossez et al. 2022), hinge losses and feature matching. Used by tools.train_codec when asked for."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, relu
from torch.nn.utils.parametrizations import weight_norm

SIZES = (1024, 512, 256)


class OneScale(nn.Module):
    """[B, samples] → score map and the features on the way to it."""

    def __init__(self, n_fft: int, channels: int) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.window: Tensor
        layers = [nn.Conv2d(2, channels, (3, 9), padding=(1, 4))]
        layers += [nn.Conv2d(channels, channels, (3, 9), (1, 2), (d, 4), (d, 1)) for d in (1, 2, 4)]
        layers += [nn.Conv2d(channels, channels, (3, 3), padding=(1, 1))]
        self.layers = nn.ModuleList(weight_norm(layer) for layer in layers)
        self.score = weight_norm(nn.Conv2d(channels, 1, (3, 3), padding=(1, 1)))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        spec = torch.stft(x, self.n_fft, self.n_fft // 4, window=self.window, return_complex=True) / (self.n_fft / 4) * 20
        h, seen = torch.view_as_real(spec).permute(0, 3, 2, 1), []  # [B, 2, T, F]
        for layer in self.layers:
            h = leaky_relu(layer(h), 0.2)
            seen.append(h)
        return self.score(h), seen


class Discriminator(nn.Module):
    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.scales = nn.ModuleList(OneScale(n, channels) for n in SIZES)

    def judge(self, real: Tensor, made: Tensor) -> Tensor:
        """Loss of the discriminator itself: real above 1, made below -1."""
        loss = real.new_zeros(())
        for d in self.scales:
            loss = loss + relu(1 - d(real)[0]).mean() + relu(1 + d(made.detach())[0]).mean()
        return loss / len(self.scales)

    def deceive(self, real: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of what made the sound: (adversarial, feature matching)."""
        fool = match = real.new_zeros(())
        for d in self.scales:
            with torch.no_grad():
                wanted = d(real)[1]
            score, seen = d(made)
            fool = fool + relu(1 - score).mean()
            for a, b in zip(seen, wanted, strict=True):
                match = match + (a - b).abs().mean() / b.abs().mean().clamp_min(1e-4) / len(seen)
        return fool / len(self.scales), match / len(self.scales)
