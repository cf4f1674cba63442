"""Streaming STFT and inverse in NumPy: 20 ms square-root Hann window, 10 ms hop, at any rate from 8 to 48 kHz.

Bins are 50 Hz apart at every rate, so the model needs no resampler. Where 10 ms are not whole samples (11,025 and 22,050 Hz) the
hop is rounded: 22,050 Hz gives 220 samples and bins 50.1 Hz apart, which the model does not notice.

Framing (the same as `net.spectrum`): hop t covers samples [(t-1) H, (t+1) H), with H zeros before the first.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .config import CORE_BINS, HIGH_BAND_BINS, HIGH_BANDS, HOPS_PER_FRAME, HOPS_PER_SECOND

F32 = NDArray[np.float32]
BINS = CORE_BINS + HIGH_BANDS * HIGH_BAND_BINS + 1  # what an engine models, and the Nyquist bin of 48 kHz
MIN_RATE, MAX_RATE = 8000, 48000


def hop_samples(rate: int) -> int:
    """Samples a hop; ValueError for a rate outside 8 ... 48 kHz."""
    if not MIN_RATE <= rate <= MAX_RATE:
        raise ValueError(f"sample rate {rate} Hz is outside {MIN_RATE} to {MAX_RATE} Hz; resample the audio first")
    return round(rate / HOPS_PER_SECOND)


def latency_samples(rate: int) -> int:
    """Delay of a stream: one frame to collect, one hop of overlap. 30 ms."""
    return (HOPS_PER_FRAME + 1) * hop_samples(rate)


@lru_cache(maxsize=32)
def window(hop: int) -> F32:
    """Square root of a periodic Hann window, [2 hop]."""
    return np.sin(np.pi * np.arange(2 * hop) / (2 * hop)).astype(np.float32)


def analyse(tail: F32, frame: F32) -> tuple[F32, F32]:
    """One frame in. tail: [B, H] last hop of the frame before, frame: [B, 2 H] → ([B, 2, 481, 2] spectrum, new tail)."""
    hop = tail.shape[1]
    x = np.concatenate([tail, frame], 1)
    pair = np.empty((len(x), 2, 2 * hop), x.dtype)
    np.multiply(x[:, : 2 * hop], window(hop), out=pair[:, 0])
    np.multiply(x[:, hop:], window(hop), out=pair[:, 1])
    spec = np.fft.rfft(pair, norm="forward")[:, :, :BINS]  # without a norm NumPy goes through float64, at eight times the cost
    out = np.zeros((*spec.shape[:2], BINS), np.complex64)
    np.multiply(spec, 2, out=out[:, :, : spec.shape[2]], casting="same_kind")  # / (2 hop) → / hop
    return out.view(np.float32).reshape(*out.shape, 2), frame[:, hop:].copy()


def synthesise(overlap: F32, spec: F32) -> tuple[F32, F32]:
    """Inverse. overlap: [B, H] carried half window, spec: [B, 2, 481, 2] → ([B, 2 H] samples, new overlap).

    The samples are those that ended one hop before the frame given to `analyse`.
    """
    hop = overlap.shape[1]
    bins = min(hop + 1, BINS)
    full = np.ascontiguousarray(spec[:, :, :bins]).view(np.complex64)[..., 0]
    y = (np.fft.irfft(full, 2 * hop) * (window(hop) * hop)).astype(np.float32, copy=False)
    out = np.empty((len(y), 2 * hop), np.float32)
    np.add(overlap, y[:, 0, :hop], out=out[:, :hop])
    np.add(y[:, 0, hop:], y[:, 1, :hop], out=out[:, hop:])
    return out, y[:, 1, hop:].copy()


def finish(overlap: F32, spec: F32, speech: F32, dry: F32) -> tuple[F32, F32]:
    """Spectra back to samples. overlap: [B, hop]; spec: [B, 2, 481, 2] of the input; speech: [B, 2, 480, 2] from the engine;
    dry: [B] shares of the input to keep, 0 … 1; -g: all of the input, and what the engine found g times as loud in it as it was (g > 0)
    → ([B, 2 hop] samples, new overlap).

    A new share starts with its frame; the overlapping windows make the cross-fade.
    """
    bins = min(overlap.shape[1] + 1, spec.shape[2])  # those above are not in the output
    rows = np.flatnonzero(dry)
    if not len(rows) and bins <= speech.shape[2]:
        return synthesise(overlap, speech)
    clean = np.zeros((*spec.shape[:2], bins, 2), np.float32)
    clean[:, :, : speech.shape[2]] = speech[:, :, :bins]  # 24 kHz itself is nobody's speech
    if len(changed := np.flatnonzero(dry < 0)):
        clean[changed] *= (-dry[changed] - 1)[:, None, None, None]
        clean[changed] += spec[changed, :, :bins]
        rows = np.flatnonzero(dry > 0)
    if len(rows):
        at = rows if len(rows) < len(dry) else slice(None)
        share = spec[at, :, :bins] - clean[at]
        share *= dry[at, None, None, None]
        clean[at] += share
    return synthesise(overlap, clean)
