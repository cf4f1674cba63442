"""An engine beside the reference: the same frames through both, frame by frame, and how far apart they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..engine import F32, Engine
from ..pcm_slots import HostPcmSlots, PcmSlots
from ..slots import HostSlots, Slots
from ..stft import BINS
from .lower import Precision

LARGEST_ERROR = 1e-4  # fp32, of the largest value
LEAST_SNR_DB = {"fp16": 45.0, "bf16": 27.0}  # half a second of `noise_pcm` on a CPU: TensorRT's graph in fp16 62.5 dB, PyTorch 55.1 and in bf16 38.6


@dataclass(frozen=True)
class Difference:
    """max_error: share of the reference's largest value; snr_db: reference over difference."""

    max_error: float
    snr_db: float

    def good(self, precision: Precision) -> bool:
        return self.max_error <= LARGEST_ERROR if precision == "fp32" else self.snr_db >= LEAST_SNR_DB[precision]


def noise(slots: int, frames: int) -> F32:
    """Bursts of noise at levels 60 dB apart, with silence between: [slots, 2 frames, 480, 2]"""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((slots, 2 * frames, BINS - 1, 2)).astype(np.float32)
    levels = np.repeat(10.0 ** rng.uniform(-4, -1, (slots, -(-frames // 10))), 20, 1)[:, : 2 * frames]
    levels[:, 40:60] = 0
    y: F32 = x * levels[..., None, None].astype(np.float32)
    return y


def noise_pcm(slots: int, frames: int, hop: int = 160) -> F32:
    """Bursts of noise at levels 60 dB apart, with silence between, as samples: [slots, frames, 2 hop]"""
    rng = np.random.default_rng(6)
    x = rng.standard_normal((slots, frames, 2 * hop)).astype(np.float32)
    levels = np.repeat(10.0 ** rng.uniform(-4, -1, (slots, -(-frames // 10))), 10, 1)[:, :frames]
    levels[:, 20:30] = 0
    y: F32 = x * levels[..., None].astype(np.float32)
    return y


class _Gauge:
    """Adds up how far apart two outputs are."""

    def __init__(self) -> None:
        self.largest = self.worst = self.signal = self.error = 0.0

    def add(self, y: F32, want: F32) -> None:
        wrong = y - want
        self.largest, self.worst = max(self.largest, float(np.abs(want).max())), max(self.worst, float(np.abs(wrong).max()))
        self.signal, self.error = self.signal + float(np.square(want, dtype=np.float64).sum()), self.error + float(np.square(wrong, dtype=np.float64).sum())

    def found(self) -> Difference:
        if not np.isfinite(self.worst) or not np.isfinite(self.error):
            return Difference(float("inf"), float("-inf"))
        return Difference(self.worst / max(self.largest, 1e-20), float(10 * np.log10(max(self.signal, 1e-30) / max(self.error, 1e-30))))


def compare(slots: Slots, reference: Engine, x: F32) -> Difference:
    """x: [n, 2 frames, 480, 2], n streams that begin on the first n slots, stepped together here and one by one in the reference."""
    rows, gauge = np.arange(len(x)), _Gauge()
    states = [reference.init_state(1) for _ in rows]
    for row in rows:
        slots.attach(int(row))
    for t in range(0, x.shape[1], 2):
        y = slots.step(rows, np.ascontiguousarray(x[:, t : t + 2]))
        for row in rows:
            want, states[row] = reference.advance(np.ascontiguousarray(x[row : row + 1, t : t + 2]), states[row])
            gauge.add(y[row], want[0])
    return gauge.found()


def compare_pcm(slots: PcmSlots, reference: Engine, x: F32, hop: int = 160, dry: float = 0.05) -> Difference:
    """x: [n, frames, 2 hop], n streams as above; samples out of both, the reference's STFT on the host."""
    n, gauge = len(x), _Gauge()
    rows, shares = np.arange(n), np.full(n, dry, np.float32)
    host = HostPcmSlots(HostSlots(reference, n), n)
    for row in range(n):
        slots.attach(row, hop)
        host.attach(row, hop)
    for t in range(x.shape[1]):
        for y, want in zip(slots.step(rows, list(x[:, t]), shares), host.step(rows, list(x[:, t]), shares), strict=True):
            gauge.add(np.asarray(y, np.float32), np.asarray(want, np.float32))
    return gauge.found()
