"""STFT and its inverse for training and reference: 20 ms square-root Hann window, 10 ms hop, bins 50 Hz apart at any rate.

The streaming twin in NumPy is `voicewire.engines.stft`; both use the same framing: hop t covers samples [(t-1) H, (t+1) H),
with H zeros before the first sample, so hop t is complete when H (t+1) samples have come in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import HOPS_PER_FRAME


def window(hop: int, like: Tensor) -> Tensor:
    return torch.hann_window(2 * hop, device=like.device, dtype=like.dtype).sqrt()


def stft(x: Tensor, hop: int) -> Tensor:
    """x: [B, samples] → [B, hops, hop + 1, 2], hops even; scaled so that a bin's size does not depend on the rate."""
    n = x.shape[1]
    frame = HOPS_PER_FRAME * hop
    hops = -(-(n + hop) // frame) * HOPS_PER_FRAME  # one more hop than whole blocks: the last sample needs two windows
    x = torch.nn.functional.pad(x, (hop, hops * hop - n))
    frames = x.unfold(1, 2 * hop, hop)[:, :hops] * window(hop, x)
    return torch.view_as_real(torch.fft.rfft(frames)) / hop


def istft(spec: Tensor, hop: int, n: int) -> Tensor:
    """Inverse of `stft`: [B, hops, hop + 1, 2] → [B, n]."""
    y = torch.fft.irfft(torch.view_as_complex(spec.contiguous()), 2 * hop) * (window(hop, spec) * hop)
    b = y.shape[0]
    first, second = y[..., :hop], y[..., hop:]
    zero = y.new_zeros(b, 1, hop)
    out = torch.cat([first, zero], 1) + torch.cat([zero, second], 1)  # 50 % overlap of sin^2: sums to one
    return out.reshape(b, -1)[:, hop : hop + n]
