"""What the codec is trained on: spectra at several resolutions, loudness, the teacher's features; discriminators are in `discriminator`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, mse_loss

from voicewire.engines.net.codec_source import lag_octaves

from .losses import LOUD, Loudness

MEL_BANDS = 64
SIZES = (512, 1024, 2048)
LEVEL = 0.2  # weight of the difference in level, in the logarithm of power
SPAN = 48  # hops of 8 ms: STOI's 384 ms


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


def third_octaves(n_fft: int, rate: int = 16000) -> Tensor:
    """STOI's bands (Taal et al. 2011): 15 third octaves from 150 Hz, [n_fft / 2 + 1, 15] of zeros and ones."""
    f = torch.linspace(0, rate / 2, n_fft // 2 + 1)[:, None]
    mid = 150 * 2 ** (torch.arange(15) / 3)
    return ((f >= mid * 2 ** (-1 / 6)) & (f < mid * 2 ** (1 / 6))).float()


class CodecLoss(nn.Module):
    """Distance of two sounds [B, samples] at 16 kHz, each brought to the target's loudness. → (loss, parts for the log).

    Of magnitudes alone: the codec's harmonics follow a pitch, not the target's wave. spectral: compressed; mel: logarithmic; perceptual: loudness
    as PESQ has it; envelopes: one minus their correlation in third octaves over 384 ms, as STOI has it.
    """

    def __init__(self, mel: float, perceptual: float, envelopes: float) -> None:
        super().__init__()
        self.mel, self.perceptual, self.envelopes = mel, perceptual, envelopes
        self.loudness = Loudness()
        for n in SIZES:
            self.register_buffer(f"bank{n}", mel_bank(n, MEL_BANDS), persistent=False)
            self.register_buffer(f"window{n}", torch.hann_window(n), persistent=False)
        self.register_buffer("thirds", third_octaves(SIZES[0]), persistent=False)
        self.thirds: Tensor

    def _power(self, x: Tensor, n: int) -> Tensor:
        spec = torch.stft(x, n, n // 4, window=getattr(self, f"window{n}"), return_complex=True)
        power: Tensor = torch.view_as_real(spec).square().sum(-1).transpose(1, 2) / (n / 4) ** 2
        return power

    def _unlike(self, y: Tensor, target: Tensor) -> Tensor:
        """Powers [B, hops, bins] → one minus the correlation of their envelopes, where somebody speaks."""
        ye, te = (((p @ self.thirds) + 1e-7).sqrt().unfold(1, SPAN, SPAN // 4) for p in (y, target))  # [B, spans, 15, SPAN]
        loud = (te.square().mean((-1, -2)) > 1e-5).to(y.dtype)[..., None]
        ye, te = ye - ye.mean(-1, keepdim=True), te - te.mean(-1, keepdim=True)
        alike = (ye * te).sum(-1) * (ye.square().sum(-1) * te.square().sum(-1) + 1e-10).rsqrt()
        return ((1 - alike) * loud).sum() / (loud.sum() * alike.shape[-1]).clamp_min(1)

    def forward(self, y: Tensor, target: Tensor) -> tuple[Tensor, dict[str, float]]:
        power = target.square().mean(1)
        speaks = (power > 1e-8).to(y.dtype)
        gain = (LOUD / (power + 1e-8).sqrt()).clamp_max(100.0)[:, None]
        y, target = y * gain, target * gain
        spectral = mel = unlike = y.new_zeros(())
        for n in SIZES:
            py, pt = self._power(y, n), self._power(target, n)
            spectral = spectral + ((py + 1e-9) ** 0.15 - (pt + 1e-9) ** 0.15).square().mean() / len(SIZES)
            ly, lt = ((((p + 1e-10).sqrt() @ getattr(self, f"bank{n}")) + 1e-4).log() for p in (py, pt))
            mel = mel + (ly - lt).abs().mean() / len(SIZES)
            if n == SIZES[0] and self.envelopes:
                unlike = self._unlike(py, pt)
        loud = (self.loudness(y, target) * speaks).sum() / speaks.sum().clamp_min(1)
        # the other terms are content with too little: what is wrong anyway costs less when it is quiet
        off = (((y.square().mean(1) + 1e-7) / (target.square().mean(1) + 1e-7)).log().abs() * speaks).sum() / speaks.sum().clamp_min(1)
        total = 20 * spectral + self.mel * mel + self.perceptual * loud + self.envelopes * unlike + LEVEL * off
        return total, {"spectral": spectral.item(), "mel": mel.item(), "loudness": loud.item(), "unlike": unlike.item(), "level": off.item()}


def pitch_loss(told: Tensor, heard: Tensor) -> tuple[Tensor, float]:
    """told, heard: [B, hops] Hz, 0 where there is no voice → (mean error in octaves, share of hops of voice that are more than a semitone off)."""
    voiced = heard > 0
    off = (told.log2() - heard.clamp_min(1).log2()).abs()[voiced]
    return off.sum() / max(1, len(off)), float((off.detach() > 1 / 12).float().mean()) if len(off) else 0.0


def hearing_loss(heard: Tensor, pitch: Tensor) -> Tensor:
    """Cross-entropy of the encoder's ear, [B, frames, 2, 96] log-probabilities, on hops of voice. pitch: [B, hops] Hz, 0 where there is none."""
    heard = heard.flatten(1, 2)[:, : pitch.shape[1]]
    grid = lag_octaves().to(pitch.device)
    near = (-0.5 * ((pitch.clamp_min(1).log2()[..., None] - grid) / (grid[1] - grid[0])).square()).exp()
    voiced = pitch > 0
    return -(heard * near / near.sum(-1, keepdim=True).clamp_min(1e-3)).sum(-1)[voiced].sum() / voiced.sum().clamp_min(1)


def semantic_loss(told: Tensor, features: Tensor, known: Tensor, lag: int) -> tuple[Tensor, Tensor]:
    """told: [B, T, dim] from the tokens, features: the teacher's, `lag` frames later in `told`; known: [B, T] bool.
    → (loss, mean cosine). Features are centred, so a constant answer has cosine 0."""
    told, features, known = told[:, lag:], features[:, : features.shape[1] - lag], known[:, : known.shape[1] - lag].to(told.dtype)
    n = known.sum().clamp_min(1)
    cosine = (cosine_similarity(told, features, -1, 1e-4) * known).sum() / n
    size = (features.square().mean(-1) * known).sum() / n + 1e-4
    error = (mse_loss(told, features, reduction="none").mean(-1) * known).sum() / n / size
    return 1 - cosine + 0.5 * error, cosine
