"""Streaming STFT and inverse for all slots, one block a slot. The same numbers as `engines/stft.py` `analyse` and `synthesise`.

20 ms square-root Hann window, 10 ms hop, bins 50 Hz apart; `hop` [slots] says the rate of each slot (80 … 480 samples are 8 … 48 kHz).
The two hops of a frame ride as the real and the imaginary part of one complex FFT of 2 hop points (mixed radix, any even size).

`stft_analyse`    pcm [slots, 960] float32, tail [slots, 480] float32 carried, spec [slots, 2, 481, 2] float32
`stft_synthesise` spec, overlap [slots, 480] float32 carried, pcm [slots, 960] float32
both              hop [slots] int32, active [slots] uint8, reset [slots] uint8
Of a row only the first hop (carried) or 2 hop samples (pcm) are read and written; bins above hop are written as zero.
A slot with reset ≠ 0 starts from silence. A slot that is not active, or whose hop is outside 1 … 480, is neither read nor written,
but for its carried row, which reset clears whole.

Sizes: slots. Cost a slot at 48 kHz: 15.4 kB moved, 0.17 MFLOP (a direct DFT would be 3.7); one launch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .kernel import Cost, Kernel, Launch, parameters

MAX_HOP = 480
BINS = MAX_HOP + 1
THREADS = 256
COMPLEX_BYTES = 8


def geometry(*, slots: int) -> Launch:
    return Launch((slots, 1, 1), (THREADS, 1, 1), 3 * 2 * MAX_HOP * COMPLEX_BYTES)  # twiddles and two buffers


def cost(*, slots: int) -> Cost:
    points = 2 * MAX_HOP
    radices = 4 + 4 + 4 + 3 + 5
    return Cost(slots * 4 * (points + 2 * MAX_HOP + 2 * BINS * 2), slots * (points * radices * 8 + 2 * BINS * 8))


def window(hop: int) -> Any:
    """[2 hop] float32"""
    return np.sin(np.pi * np.arange(2 * hop) / (2 * hop)).astype(np.float32)


def usable(hop: Any, active: Any) -> Any:
    """Indices of the slots that take part."""
    return np.flatnonzero((active != 0) & (hop >= 1) & (hop <= MAX_HOP))


def analyse(pcm: Any, tail: Any, hop: Any, active: Any, reset: Any, spec: Any) -> None:
    tail[reset != 0] = 0
    for s in usable(hop, active):
        h = int(hop[s])
        x = np.concatenate([tail[s, :h], pcm[s, : 2 * h]])
        pair = np.stack([x[: 2 * h], x[h:]]) * window(h)
        bins = np.fft.rfft(pair) / h
        spec[s] = 0
        spec[s, :, : h + 1, 0] = bins.real
        spec[s, :, : h + 1, 1] = bins.imag
        tail[s, :h] = pcm[s, h : 2 * h]


def synthesise(spec: Any, overlap: Any, hop: Any, active: Any, reset: Any, pcm: Any) -> None:
    overlap[reset != 0] = 0
    for s in usable(hop, active):
        h = int(hop[s])
        bins = spec[s, :, : h + 1, 0] + 1j * spec[s, :, : h + 1, 1]
        y = np.fft.irfft(bins, 2 * h) * (window(h) * h)
        pcm[s, :h] = overlap[s, :h] + y[0, :h]
        pcm[s, h : 2 * h] = y[0, h:] + y[1, :h]
        overlap[s, :h] = y[1, h:]


STFT_ANALYSE = Kernel(
    "stft_analyse", "stft.cu",
    parameters("""
        pcm float32 in
        tail float32 inout
        hop int32 in
        active uint8 in
        reset uint8 in
        spec float32 out
    """),
    geometry, cost, analyse, tolerance=1e-4,
)  # fmt: skip

STFT_SYNTHESISE = Kernel(
    "stft_synthesise", "stft.cu",
    parameters("""
        spec float32 in
        overlap float32 inout
        hop int32 in
        active uint8 in
        reset uint8 in
        pcm float32 out
    """),
    geometry, cost, synthesise, tolerance=1e-4,
)  # fmt: skip
