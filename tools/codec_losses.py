"""What the codec is trained on: spectra at several resolutions, loudness, the teacher's features; discriminators are in `discriminator`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, mse_loss

from .losses import LOUD, RESOLUTIONS, Loudness
from .losses import _compressed as compressed

MEL_BANDS = 64
MEL_SIZES = (512, 1024, 2048)


def mel_bank(n_fft: int, bands: int, rate: int = 16000) -> Tensor:
    """Triangles on the mel scale (O'Shaughnessy 1987), [n_fft / 2 + 1, bands], each summing to one."""
    top = 2595 * torch.log10(torch.tensor(1 + rate / 2 / 700))
    edges = 700 * (10 ** (torch.linspace(0, 1, bands + 2) * top / 2595) - 1)
    f = torch.linspace(0, rate / 2, n_fft // 2 + 1)[:, None]
    low, mid, high = edges[:-2], edges[1:-1], edges[2:]
    width = torch.tensor(rate / n_fft)
    up, down = (f - low) / (mid - low).clamp_min(width), (high - f) / (high - mid).clamp_min(width)
    bank = torch.minimum(up, down).clamp_min(0)
    return bank / bank.sum(0, keepdim=True).clamp_min(1e-6)


class CodecLoss(nn.Module):
    """Distance of two sounds [B, samples] at 16 kHz, each brought to the target's loudness. → (loss, parts for the log)."""

    def __init__(self, complex_share: float, mel: float, perceptual: float) -> None:
        super().__init__()
        self.complex_share, self.mel, self.perceptual = complex_share, mel, perceptual
        self.loudness = Loudness()
        for n in MEL_SIZES:
            self.register_buffer(f"bank{n}", mel_bank(n, MEL_BANDS), persistent=False)

    def _log_mel(self, x: Tensor, n: int) -> Tensor:
        power = torch.stft(x, n, n // 4, window=torch.hann_window(n, device=x.device), return_complex=True).abs() / (n / 4)
        bands: Tensor = (power.transpose(1, 2) @ getattr(self, f"bank{n}") + 1e-4).log()
        return bands

    def forward(self, y: Tensor, target: Tensor) -> tuple[Tensor, dict[str, float]]:
        power = target.square().mean(1)
        speaks = (power > 1e-8).to(y.dtype)
        gain = (LOUD / (power + 1e-8).sqrt()).clamp_max(100.0)[:, None]
        y, target = y * gain, target * gain
        spectral = mel = y.new_zeros(())
        for n_fft, hop in RESOLUTIONS:
            (yc, ym), (tc, tm) = compressed(y, n_fft, hop), compressed(target, n_fft, hop)
            spectral = spectral + self.complex_share * (yc - tc).square().sum(-1).mean() + (1 - self.complex_share) * (ym - tm).square().mean()
        for n in MEL_SIZES:
            mel = mel + (self._log_mel(y, n) - self._log_mel(target, n)).abs().mean() / len(MEL_SIZES)
        loud = (self.loudness(y, target) * speaks).sum() / speaks.sum().clamp_min(1)
        total = 20 * spectral / len(RESOLUTIONS) + self.mel * mel + self.perceptual * loud
        return total, {"spectral": spectral.item(), "mel": mel.item(), "loudness": loud.item()}


def semantic_loss(told: Tensor, features: Tensor, known: Tensor, lag: int) -> tuple[Tensor, Tensor]:
    """told: [B, T, dim] from the tokens, features: the teacher's, `lag` frames later in `told`; known: [B, T] bool.
    → (loss, mean cosine). Features are centred, so a constant answer has cosine 0."""
    told, features, known = told[:, lag:], features[:, : features.shape[1] - lag], known[:, : known.shape[1] - lag].to(told.dtype)
    n = known.sum().clamp_min(1)
    cosine = (cosine_similarity(told, features, -1, 1e-4) * known).sum() / n
    size = (features.square().mean(-1) * known).sum() / n + 1e-4
    error = (mse_loss(told, features, reduction="none").mean(-1) * known).sum() / n / size
    return 1 - cosine + 0.5 * error, cosine
