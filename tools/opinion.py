"""A loss that asks listeners: what DNSMOS's two networks think of the enhanced signal must be no less than what they think of the clean one.

The networks are those of speechmos (Reddy et al. 2021, P.808; Reddy et al. 2022, P.835: MIT), read from their ONNX files into PyTorch because a gradient has to
come back through them; they do not change. They also judge in `tools.evaluate`, so a model trained with this loss is to be judged by something else as well.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, max_pool2d

from .metrics import MOS_FITTED, mos_folder
from .words import mel_bank

HOP = 160
ASKED = 2  # clips of a batch that P.835 hears: a quarter of a second of a core each
_P835 = (False, False, False, True, True, True, False)  # pooled after this layer?
_P808 = (True, True, False, True, False)


class _Network(nn.Module):
    """Convolutions of 3 × 3, the greatest value of every channel anywhere, three linear layers. x: [B, frames, bands] → [B, ratings]."""

    def __init__(self, path: Path, pooled: tuple[bool, ...]) -> None:
        super().__init__()
        import onnx

        graph = onnx.load(path).graph
        read = {i.name: torch.from_numpy(np.array(onnx.numpy_helper.to_array(i))) for i in graph.initializer}
        nodes = graph.node
        convolutions = [n.input for n in nodes if n.op_type == "Conv" and len(n.input) == 3]
        waves = [read[n.input[1]][:, :, 0] for n in nodes if n.op_type == "Conv" and len(n.input) == 2]
        matrices = [n.input[1] for n in nodes if n.op_type == "MatMul"]
        biases = [n.input[1] for n in nodes if n.op_type == "Add" and n.input[1].endswith("resource:0")]
        if len(convolutions) != len(pooled) or len(matrices) != 3 or len(biases) != 3:
            raise ValueError(f"{path} is not the network that is known here: take speechmos 0.0.1.1")
        self.pooled = pooled
        # its own Fourier transform, a little off the true one: [2 × 161, 320]
        self.register_buffer("waves", torch.cat(waves) if waves else None, persistent=False)
        for i, (_, weight, bias) in enumerate(convolutions):
            self.register_buffer(f"kernel{i}", read[weight], persistent=False)
            self.register_buffer(f"bias{i}", read[bias], persistent=False)
        for i, (weight, bias) in enumerate(zip(matrices, biases, strict=True)):
            self.register_buffer(f"matrix{i}", read[weight].T.contiguous(), persistent=False)
            self.register_buffer(f"offset{i}", read[bias], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = x[:, None].contiguous(memory_format=torch.channels_last)
        for i, pool in enumerate(self.pooled):
            y = conv2d(y, getattr(self, f"kernel{i}"), getattr(self, f"bias{i}"), padding=1).relu()
            y = max_pool2d(y, 2) if pool else y
        y = y.amax((2, 3))
        for i in range(3):
            y = linear(y, getattr(self, f"matrix{i}"), getattr(self, f"offset{i}"))
            y = y.relu() if i < 2 else y
        return y


class Listeners(nn.Module):
    """x: [B, samples at 16 kHz] float32, at the level it is heard at → ratings from 1 to 5: `quality` [B], P.808; `three` [B, 3], SIG, BAK and OVRL of P.835,
    thirty times as much work.

    As the greatest values of all times count, a clip is rated nearly as it is when it is repeated until it has the nine seconds of `tools.metrics.dnsmos`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.p835 = _Network(mos_folder() / "sig_bak_ovr.onnx", _P835)
        self.p808 = _Network(mos_folder() / "model_v8.onnx", _P808)
        self.register_buffer("bank", mel_bank(120, 321), persistent=False)
        self.register_buffer("window", torch.hann_window(321), persistent=False)
        self.register_buffer("fitted", torch.tensor(MOS_FITTED).T, persistent=False)

    def quality(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            spec = torch.stft(x, 321, HOP, window=self.window, pad_mode="constant", return_complex=True)
            mel = (torch.view_as_real(spec).square().sum(-1).transpose(1, 2) @ self.bank.T).clamp_min(1e-10)
            top = mel.detach().amax((1, 2), keepdim=True)
            decibels = (10 * (mel / top).log10()).clamp_min(-80)
        rating: Tensor = self.p808((decibels + 40) / 40)[:, 0].float()
        return rating

    def three(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            power = (x.unfold(1, 320, HOP) @ self.p835.waves.T).square()
            loud = (power[:, :, :161] + power[:, :, 161:]).clamp_min(1e-12).log10()
        raw = self.p835(loud).float()
        a, b, c = self.fitted
        rating: Tensor = (a * raw + b) * raw + c
        return rating


def disliked(listeners: Listeners, y: Tensor, clean: Tensor) -> Tensor:
    """y, clean: [B, samples] → [B]: how much lower y is rated than the clean signal, in P.808 and in the mean of the three of P.835. Nothing is gained by being
    rated higher. P.835 is asked about the first ASKED of the batch, whose mean counts for all."""
    with torch.no_grad():
        quality, three = listeners.quality(clean), listeners.three(clean[:ASKED])
    worse = (quality - listeners.quality(y)).relu()
    return worse + (three - listeners.three(y[:ASKED])).relu().mean()
