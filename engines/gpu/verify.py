"""An engine beside the reference: the same frames through both, frame by frame, and how far apart they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..engine import F32, Engine
from ..slots import Slots
from ..stft import BINS
from .lower import Precision

LARGEST_ERROR = 1e-4  # fp32, of the largest value
LEAST_SNR_DB = {"fp16": 45.0, "bf16": 27.0}  # the same over 160 frames of `noise` on a CPU: 57.6 and 33.2 dB; of speech 76 and 53.5


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


def compare(slots: Slots, reference: Engine, x: F32) -> Difference:
    """x: [n, 2 frames, 480, 2], n streams that begin on the first n slots, stepped together here and one by one in the reference."""
    rows, largest, signal, error = np.arange(len(x)), 0.0, 0.0, 0.0
    worst = 0.0
    states = [reference.init_state(1) for _ in rows]
    for row in rows:
        slots.attach(int(row))
    for t in range(0, x.shape[1], 2):
        y = slots.step(rows, np.ascontiguousarray(x[:, t : t + 2]))
        for row in rows:
            want, states[row] = reference.advance(np.ascontiguousarray(x[row : row + 1, t : t + 2]), states[row])
            wrong = y[row] - want[0]
            largest, worst = max(largest, float(np.abs(want).max())), max(worst, float(np.abs(wrong).max()))
            signal, error = signal + float(np.square(want, dtype=np.float64).sum()), error + float(np.square(wrong, dtype=np.float64).sum())
    if not np.isfinite(worst) or not np.isfinite(error):
        return Difference(float("inf"), float("-inf"))
    return Difference(worst / max(largest, 1e-20), float(10 * np.log10(max(signal, 1e-30) / max(error, 1e-30))))
