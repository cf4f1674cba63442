"""Streaming STFT and inverse for all slots, one block a slot. The same numbers as `engines/stft.py` `analyse` and `finish`.

20 ms square-root Hann window, 10 ms hop, bins 50 Hz apart; `hop` [slots] says the rate of each slot (80 … 480 samples are 8 … 48 kHz).
The two hops of a frame ride as the real and the imaginary part of one complex FFT of 2 hop points (mixed radix, any even size).

heard [slots, 960] float32: the frame that came in, tail [slots, 480] float32: the hop before it, carried
spec [slots, 2, 480, 2] float32: the bins that an engine models, all but 24 kHz itself
dry [slots] float32: the share of the input to keep, 0 … 1; -g: all of it, and what the engine found g times as loud in it
overlap [slots, 480] float32: half a window that waits for the next frame, carried
pcm [slots, 960] float32: the frame that goes out, one hop older than the one that came in
hop [slots] int32, active [slots] uint8, reset [slots] uint8

`stft_analyse` reads heard and tail; `stft_synthesise`, after the engine, reads them again for the dry share, which it mixes in as samples (so
that 24 kHz itself is in it), and moves the tail on. Of a row only the first hop (carried) or 2 hop samples are read and written; bins above
hop are written as zero. A slot with reset ≠ 0 starts from silence: `stft_analyse` clears the tail's row whole, `stft_synthesise` the
overlap's. But for that a slot that is not active, or whose hop is outside 1 … 480, is neither read nor written.

Sizes: slots. Cost a slot at 48 kHz: 13 kB moved by the first, 23 kB by the second, 0.17 MFLOP each (a direct DFT would be 3.7); one launch each.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from .kernel import Cost, Kernel, Launch, parameters

MAX_HOP = 480
BINS = MAX_HOP
THREADS = 256
COMPLEX_BYTES = 8


def geometry(*, slots: int) -> Launch:
    return Launch((slots, 1, 1), (THREADS, 1, 1), 3 * 2 * MAX_HOP * COMPLEX_BYTES)  # twiddles and two buffers


def cost(*, slots: int, words: int) -> Cost:
    points = 2 * MAX_HOP
    radices = 4 + 4 + 4 + 3 + 5
    return Cost(slots * 4 * words, slots * (points * radices * 8 + 2 * BINS * 8))


def window(hop: int) -> Any:
    """[2 hop] float32"""
    return np.sin(np.pi * np.arange(2 * hop) / (2 * hop)).astype(np.float32)


def usable(hop: Any, active: Any) -> Any:
    """Indices of the slots that take part."""
    return np.flatnonzero((active != 0) & (hop >= 1) & (hop <= MAX_HOP))


def analyse(heard: Any, tail: Any, hop: Any, active: Any, reset: Any, spec: Any) -> None:
    tail[reset != 0] = 0
    for s in usable(hop, active):
        h = int(hop[s])
        x = np.concatenate([tail[s, :h], heard[s, : 2 * h]])
        pair = np.stack([x[: 2 * h], x[h:]]) * window(h)
        bins = np.fft.rfft(pair)[:, :BINS] / h
        spec[s] = 0
        spec[s, :, : bins.shape[1], 0] = bins.real
        spec[s, :, : bins.shape[1], 1] = bins.imag


def synthesise(spec: Any, heard: Any, tail: Any, overlap: Any, hop: Any, dry: Any, active: Any, reset: Any, pcm: Any) -> None:
    overlap[reset != 0] = 0
    for s in usable(hop, active):
        h = int(hop[s])
        bins = np.zeros((2, h + 1), np.complex64)
        bins[:, :BINS] = spec[s, :, : h + 1, 0] + 1j * spec[s, :, : h + 1, 1]
        x = np.concatenate([tail[s, :h], heard[s, : 2 * h]])
        pair = np.stack([x[: 2 * h], x[h:]]) * np.square(window(h))
        wet, kept = (-dry[s] - 1, 1) if dry[s] < 0 else (1 - dry[s], dry[s])
        y = wet * np.fft.irfft(bins, 2 * h) * (window(h) * h) + kept * pair
        pcm[s, :h] = overlap[s, :h] + y[0, :h]
        pcm[s, h : 2 * h] = y[0, h:] + y[1, :h]
        overlap[s, :h] = y[1, h:]
        tail[s, :h] = heard[s, h : 2 * h]


STFT_ANALYSE = Kernel(
    "stft_analyse", "stft.cu",
    parameters("""
        heard float32 in
        tail float32 inout
        hop int32 in
        active uint8 in
        reset uint8 in
        spec float32 out
    """),
    geometry, partial(cost, words=3 * MAX_HOP + 2 * BINS * 2), analyse, tolerance=1e-4,
)  # fmt: skip

STFT_SYNTHESISE = Kernel(
    "stft_synthesise", "stft.cu",
    parameters("""
        spec float32 in
        heard float32 in
        tail float32 inout
        overlap float32 inout
        hop int32 in
        dry float32 in
        active uint8 in
        reset uint8 in
        pcm float32 out
    """),
    geometry, partial(cost, words=8 * MAX_HOP + 2 * BINS * 2), synthesise, tolerance=1e-4,
)  # fmt: skip
