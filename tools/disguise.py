"""The same words at the same time by somebody else: pitch and formants moved, tempo kept. What the converter has to undo.

Resampling moves pitch and formants together; overlap-add of the most similar pieces (WSOLA, Verhelst & Roelands 1993) gives back the tempo; then the
envelope alone, from the cepstrum, is stretched over frequency.
"""

from __future__ import annotations

import numpy as np
import soxr
from numpy.lib.stride_tricks import sliding_window_view
from scipy.fft import irfft, rfft

Rng = np.random.Generator
PITCH_OCTAVES, FORMANT_OCTAVES = 0.65, 0.3  # at most
PIECE, SEARCH = 512, 128  # samples at 16 kHz
SIZE, HOP, LIFTER = 512, 128, 26  # of the envelope; 26 coefficients: periods above 1.6 ms are pitch
MOST_DB = 18.0


def stretch(x: np.ndarray, n: int) -> np.ndarray:
    """x: [m] → [n], the same pitch at another tempo, time-aligned to within `SEARCH` samples."""
    hop = PIECE // 2
    window = np.hanning(PIECE + 1)[:PIECE].astype(np.float32)
    speed = len(x) / n
    pad = PIECE + SEARCH + int(hop * speed)
    padded = np.pad(x, (pad, 2 * pad))
    out = np.zeros(n + 2 * PIECE, np.float32)
    last = pad
    for at in range(0, n + hop, hop):
        want = pad + int((at - hop) * speed)
        if at == 0:
            best = want
        else:
            follows = padded[last + hop : last + hop + PIECE]  # what would come next, had nothing been moved
            near = padded[want - SEARCH : want + SEARCH + PIECE]
            alike = sliding_window_view(near, PIECE)[::2] @ follows
            power = np.concatenate([[0.0], np.cumsum(near.astype(np.float64) ** 2)])
            alike /= np.sqrt((power[PIECE:] - power[:-PIECE])[::2] + 1e-3).astype(np.float32)
            best = want - SEARCH + 2 * int(alike.argmax())
        out[at : at + PIECE] += window * padded[best : best + PIECE]
        last = best
    return out[hop : hop + n]


def shift(x: np.ndarray, octaves: float) -> np.ndarray:
    """[n] → [n], pitch and formants moved by so many octaves, tempo kept."""
    speed = 2.0**octaves
    return stretch(soxr.resample(x, speed, 1.0, "MQ").astype(np.float32), len(x))


def warp(x: np.ndarray, octaves: float) -> np.ndarray:
    """[n] → [n], formants alone moved by so many octaves."""
    window = np.hanning(SIZE + 1)[:SIZE].astype(np.float32) ** 0.5
    padded = np.pad(x, (SIZE, SIZE + HOP))
    spec = rfft(sliding_window_view(padded, SIZE)[::HOP] * window)
    cepstrum = irfft(np.log(np.abs(spec) + 1e-4))
    cepstrum[:, LIFTER : SIZE - LIFTER] = 0
    envelope = rfft(cepstrum).real
    from_bin = np.minimum(np.arange(SIZE // 2 + 1) / 2.0**octaves, SIZE // 2)
    low = np.minimum(from_bin.astype(int), SIZE // 2 - 1)
    part = from_bin - low
    moved = envelope[:, low] * (1 - part) + envelope[:, low + 1] * part
    most = MOST_DB * np.log(10) / 20
    frames = irfft(spec * np.exp(np.clip(moved - envelope, -most, most))) * window
    out = np.zeros(len(padded) + SIZE, np.float32)
    for i, frame in enumerate(frames):
        out[i * HOP : i * HOP + SIZE] += frame
    y: np.ndarray = out[SIZE : SIZE + len(x)] / (SIZE / HOP / 2)
    return y


def disguise(rng: Rng, x: np.ndarray) -> tuple[np.ndarray, float]:
    """x: [n] at 16 kHz → ([n] float32, by how many octaves its pitch was moved)"""
    pitch = float(rng.uniform(-PITCH_OCTAVES, PITCH_OCTAVES))
    formants = float(np.clip(0.35 * pitch + rng.uniform(-0.2, 0.2), -FORMANT_OCTAVES, FORMANT_OCTAVES))
    return warp(shift(x, pitch), formants - pitch).astype(np.float32), pitch
