"""What the model is trained on. All losses take waveforms [B, samples] float32 and return scalars.

Every example is first brought to the same loudness (by its target), so quiet talkers count as much as loud ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .opinion import Listeners, disliked
from .run import bf16, has_bf16
from .said import Saying, missaid
from .words import Hearing, misheard

LOUD = 0.05  # RMS that targets are brought to
MISSING = 4.0  # speech taken away costs words; noise left over costs comfort (asymmetric loss of VoiceFilter-Lite, Wang et al. 2020)
QUIET = 3e-3  # of the mixture's power may be left where there should be silence: 25 dB less is enough
STRONG, FAINT = 0.2, 0.03  # share of the mixture that is left in for listeners: 14 to 30 dB below it
RESOLUTIONS = ((320, 160), (512, 128), (1024, 256))

# ITU-T P.862.2 (wide band, 16 kHz, 512-point frames): bins a Bark band, density correction, hearing threshold (power)
# fmt: off
_BINS = [
    1, 1, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 4, 3, 4, 5, 4, 5, 6, 6, 7, 8, 9, 9, 12, 12, 15, 16,
    18, 21, 25, 20
]
# fmt: on
# fmt: off
_CORRECTION = [
    100, 100, 100, 100, 100, 100, 100, 100, 50.0, 100.0, 100.0, 100.0, 100.0, 100.0, 53.05, 110.0, 117.99, 65.0, 68.76, 70.0, 71.43, 75.0,
    76.84, 80.97, 88.65, 63.86, 68.16, 72.55, 75.58, 58.38, 80.95, 64.14, 54.38, 73.82, 64.44, 59.18, 65.52, 61.4, 58.14, 57.0, 64.13, 54.31,
    61.11, 55.08, 56.85, 55.63, 53.14, 54.99, 79.55
]
# fmt: on
# fmt: off
_THRESHOLD = [
    51286152.0, 2454709.5, 70794.59, 4897.79, 1174.9, 389.05, 104.71, 45.71, 17.78, 9.772, 4.898, 3.09, 1.905, 1.259, 0.977, 0.724, 0.562,
    0.457, 0.389, 0.331, 0.295, 0.269, 0.257, 0.251, 0.251, 0.251, 0.251, 0.263, 0.288, 0.309, 0.339, 0.372, 0.398, 0.437, 0.468, 0.49, 0.501,
    0.501, 0.513, 0.525, 0.525, 0.525, 0.513, 0.479, 0.427, 0.372, 0.363, 0.417, 0.537
]
# fmt: on


class Loudness(nn.Module):
    """Differentiable disturbance in the manner of PESQ (P.862 §10.2; Martín-Doñas et al. 2018): loudness on a Bark scale,
    masked differences, and what is added counted more than what is missing. Zwicker's law, no time alignment."""

    def __init__(self) -> None:
        super().__init__()
        bank, at = torch.zeros(257, len(_BINS)), 0
        for band, width in enumerate(_BINS):
            bank[at : at + width, band] = _CORRECTION[band] * 6.910853e-6
            at += width
        edges = torch.tensor([0, *torch.tensor(_BINS).cumsum(0).tolist()]) * 31.25
        bark = 6 * torch.asinh(edges / 600)
        self.register_buffer("bank", bank)
        self.register_buffer("threshold", torch.tensor(_THRESHOLD))
        self.register_buffer("width", bark[1:] - bark[:-1])
        self.register_buffer("window", torch.hann_window(512))
        self.bank: Tensor
        self.threshold: Tensor
        self.width: Tensor
        self.window: Tensor

    def _bark(self, x: Tensor) -> Tensor:
        spec = torch.stft(x, 512, 256, window=self.window, return_complex=True)
        power: Tensor = torch.view_as_real(spec).square().sum(-1).transpose(1, 2) @ self.bank
        return power

    def _loud(self, power: Tensor) -> Tensor:
        t = self.threshold
        s = (t / 0.5) ** 0.23 * ((0.5 + 0.5 * power / t) ** 0.23 - 1)
        return 0.1866055 * s.clamp_min(0)

    def forward(self, y: Tensor, target: Tensor) -> Tensor:
        """[B] disturbance: roughly 4.5 minus PESQ."""
        gain = 3162.0 / (target.square().mean(1, keepdim=True) + 1e-9).sqrt()  # P.862's level: mean power 1e7
        py, pt = self._bark(y * gain), self._bark(target * gain)
        audible = (pt * (pt > self.threshold)).sum(-1)
        ly, lt = self._loud(py), self._loud(pt)
        d = (ly - lt).abs() - 0.25 * torch.minimum(ly, lt)
        d = d.clamp_min(0)
        ratio = ((py + 50) / (pt + 50)) ** 1.2
        ratio = torch.where(ratio < 3, torch.zeros_like(ratio), ratio.clamp_max(12))
        w = self.width
        weight = ((audible + 1e5) / 1e7) ** 0.04
        sym = ((d * w).square().sum(-1) + 1e-9).sqrt() * w.sum().sqrt() / weight.clamp_min(0.1)
        asym = (d * ratio * w).sum(-1) / weight.clamp_min(0.1)
        sym, asym = sym.clamp_max(45), asym.clamp_max(45)
        sym_all = (sym.square().mean(1) + 1e-9).sqrt()
        asym_all = (asym.square().mean(1) + 1e-9).sqrt()
        return 0.1 * sym_all + 0.0309 * asym_all


def _compressed(x: Tensor, n_fft: int, hop: int) -> tuple[Tensor, Tensor]:
    spec = torch.view_as_real(torch.stft(x, n_fft, hop, window=torch.hann_window(n_fft, device=x.device), return_complex=True))
    spec = spec / (n_fft / 4)
    size = (spec.square().sum(-1) + 1e-9).sqrt()
    return spec * size[..., None] ** -0.7, size**0.3


class EnhanceLoss(nn.Module):
    """Compressed complex + magnitude error at three resolutions, logarithmic error ratio, loudness disturbance, what a recogniser hears otherwise,
    how much worse listeners find it than the clean signal.

    left: weight of what is left, in log10 of its share of the mixture, where the target is silent. words: weight of `misheard`, said: of `missaid`
    (a recogniser is loaded for them), opinion: of `disliked` (listeners are loaded). `parts` of the result are detached, for the log.
    """

    def __init__(
        self, snr: float, perceptual: float, missing: float = MISSING, left: float = 0.0, words: float = 0.0, said: float = 0.0, opinion: float = 0.0
    ) -> None:
        super().__init__()
        self.snr, self.perceptual, self.missing, self.left, self.words, self.said, self.opinion = snr, perceptual, missing, left, words, said, opinion
        self.loudness = Loudness()
        self.listeners = Listeners() if opinion else None
        self.hearing = Hearing() if words or said else None
        self.saying = Saying(dtype=torch.bfloat16 if has_bf16("cuda" if torch.cuda.is_available() else "cpu") else torch.float32) if said else None

    def forward(self, y: Tensor, target: Tensor, mix: Tensor, pieces: Tensor | None = None) -> tuple[Tensor, dict[str, float]]:
        """pieces: [B, t] of `said.Transcripts`, what the target says; needed where `said` counts."""
        power = target.square().mean(1)
        speaks = power > 1e-8
        ref = torch.where(speaks, power, mix.square().mean(1) + 1e-9)
        gain = LOUD / ref.sqrt()[:, None]
        y, target = y * gain, target * gain
        spectral = y.new_zeros(())
        for n_fft, hop in RESOLUTIONS:
            (yc, ym), (tc, tm) = _compressed(y, n_fft, hop), _compressed(target, n_fft, hop)
            gap = ym - tm
            spectral = spectral + 0.3 * (yc - tc).square().sum(-1).mean() + 0.7 * (gap.square() * torch.where(gap < 0, self.missing, 1.0)).mean()
        # 30 dB floor: beyond that nobody hears the error and its gradient would drown the rest
        signal = target.square().mean(1) + 1e-7
        ratio = (((y - target).square().mean(1) + 1e-3 * signal) / signal).log10()
        ratio = (ratio * speaks).sum() / speaks.sum().clamp_min(1)
        total = 20 * spectral / len(RESOLUTIONS) + self.snr * ratio
        if self.left:
            total = total + self.left * ((y.square().mean(1) / LOUD**2 + QUIET).log10() * ~speaks).mean()
        parts = {"spectral": spectral.item(), "error_db": 10 * ratio.item()}
        if self.perceptual:
            loud = (self.loudness(y, target) * speaks).sum() / speaks.sum().clamp_min(1)
            total = total + self.perceptual * loud
            parts["loudness"] = loud.item()
        # where a recogniser and listeners are both to be asked, they take turns: each costs as much time as all the rest
        recognise = torch.rand(()) < 0.5 if self.listeners is not None else True
        if self.hearing is not None and recognise:
            with bf16(y.device.type):
                with torch.no_grad():
                    clean = self.hearing(target)
                heard = self.hearing(y)
                lost = (misheard(heard, clean) * speaks).sum() / speaks.sum().clamp_min(1)
                total, parts["misheard"] = total + self.words * lost, lost.item()
                if self.saying is not None and pieces is not None:
                    lost = (missaid(self.saying, heard, clean, pieces) * speaks).sum() / speaks.sum().clamp_min(1)
                    total, parts["missaid"] = total + self.said * lost, lost.item()
        if self.listeners is not None and not (self.hearing is not None and recognise):
            # rated as it will be heard: with some of the mixture left in
            heard = y + STRONG * (FAINT / STRONG) ** torch.rand(len(y), 1, device=y.device) * (mix * gain - y)
            if speaks.any():
                with bf16(y.device.type):
                    lost = disliked(self.listeners, heard[speaks], target[speaks]).mean()
                total, parts["disliked"] = total + self.opinion * lost, lost.item()
        return total, parts
