"""Whose voice it is, with a gradient: what the released voice encoder and Resemblyzer hear. For training the converter; both stay as they are."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from voicewire.engines.config import CORE_BINS
from voicewire.engines.export import load_weights
from voicewire.engines.net.spectrum import stft

FRAMES = 160  # of 10 ms: what Resemblyzer (GE2E, Wan et al. 2018) hears at a time
RATE, SIZE, HOP, MELS = 16000, 400, 160, 40


class Resemblyzer(nn.Module):
    """[B, samples at 16 kHz] → [B, 256] of length one, from `FRAMES` in the middle. Same numbers as the package's, but with a gradient."""

    def __init__(self) -> None:
        super().__init__()
        try:
            import librosa
            from resemblyzer import VoiceEncoder
        except ImportError:
            raise ValueError("[train] likeness needs Resemblyzer: pip install 'voicewire[eval]', or set likeness = 0") from None
        self.net = VoiceEncoder("cpu", verbose=False)
        self.register_buffer("bank", torch.from_numpy(librosa.filters.mel(sr=RATE, n_fft=SIZE, n_mels=MELS)).t().contiguous(), persistent=False)
        self.register_buffer("window", torch.hann_window(SIZE), persistent=False)
        self.bank: Tensor
        self.window: Tensor

    def mels(self, x: Tensor) -> Tensor:
        spec = torch.stft(x, SIZE, HOP, window=self.window, center=True, pad_mode="constant", return_complex=True)
        y: Tensor = torch.view_as_real(spec).square().sum(-1).transpose(1, 2) @ self.bank
        return y

    def forward(self, x: Tensor) -> Tensor:
        m = self.mels(x)
        first = max(0, (m.shape[1] - FRAMES) // 2)
        _, (hidden, _) = self.net.lstm(m[:, first : first + FRAMES])
        y: Tensor = normalize(torch.relu(self.net.linear(hidden[-1])), dim=-1, eps=1e-5)
        return y


def at_one_level(x: Tensor) -> Tensor:
    """[B, samples], any level → at about the level of speech whose peaks are at half of full scale, as `tools.metrics` has it."""
    return x * (10**-1.3 / (x.square().mean(1, keepdim=True) + 1e-9).sqrt())


class Likeness(nn.Module):
    """`voice` and `judge`: what two listeners say whose voice it is, the released encoder and Resemblyzer."""

    def __init__(self, weights: Path) -> None:
        """weights: folder of a model that knows voices."""
        super().__init__()
        voice = load_weights(weights).core.voice
        if voice is None:
            raise ValueError(f"the model in {weights} knows no voices")
        self.encoder, self.judge = voice, Resemblyzer()
        self.eval().requires_grad_(False)

    def voice(self, x: Tensor) -> Tensor:
        """[B, samples] → [B, voice_dim], what a voiceprint holds."""
        y: Tensor = self.encoder(stft(x, HOP)[:, :, :CORE_BINS])
        return y

    def train(self, mode: bool = True) -> Likeness:
        """Never: the statistics of its norms are those of the released encoder."""
        return super().train(False)
