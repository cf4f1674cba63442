"""Fundamental frequency of clean speech, for training the codec's source: autocorrelation of the window divided out, best path (Boersma 1993, as in Praat).

Offline: every hop is decided with the whole clip in view. Praat's own numbers except for the range.
"""

from __future__ import annotations

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft

from voicewire.engines.net.codec_source import HIGHEST_HZ, LOWEST_HZ

RATE, HOP = 16000, 160
WINDOW = 800  # 50 ms: nearly three periods of the lowest voice
CANDIDATES = 6
SILENCE, VOICING, OCTAVE, JUMP, SWITCH = 0.03, 0.45, 0.01, 0.35, 0.14


def _candidates(x: np.ndarray, lowest_hz: float, highest_hz: float) -> tuple[np.ndarray, np.ndarray]:
    """[samples] → (Hz, strength), [hops, 1 + candidates] each; the first is "no voice", 0 Hz."""
    hops = len(x) // HOP
    padded = np.pad(x - x.mean(), WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[: hops * HOP : HOP]
    window = np.hanning(WINDOW).astype(np.float32)
    low, high = int(RATE / highest_hz) - 1, int(RATE / lowest_hz) + 2  # lags
    size = next_fast_len(WINDOW + high)
    power = np.abs(rfft((frames - frames.mean(1, keepdims=True)) * window, size)) ** 2
    own = irfft(np.abs(rfft(window, size)) ** 2, size)[: high + 1]
    r = irfft(power, size)[:, : high + 1] / own
    r = r / np.maximum(r[:, :1], 1e-12)
    mid, before, after = r[:, low + 1 : -1], r[:, low:-2], r[:, low + 2 :]
    top = (mid > before) & (mid >= after) & (mid > 0)
    bend = np.where(top, before - 2 * mid + after, -1)
    shift = 0.5 * (before - after) / bend
    lag = np.arange(low + 1, high) + shift
    height = np.minimum(mid - 0.25 * (before - after) * shift, 1)
    strength = np.where(top, height - OCTAVE * np.log2(lowest_hz * lag / RATE), -1)
    best = np.argpartition(-strength, CANDIDATES, axis=1)[:, :CANDIDATES]
    peak = np.abs(frames).max(1)
    quiet = VOICING + np.maximum(0, 2 - peak / max(float(np.abs(x).max()), 1e-9) * (1 + VOICING) / SILENCE)
    hz = np.take_along_axis(RATE / lag, best, 1)
    return np.concatenate([np.zeros((hops, 1)), hz], 1), np.concatenate([quiet[:, None], np.take_along_axis(strength, best, 1)], 1)


def pitch(x: np.ndarray, lowest_hz: float = LOWEST_HZ, highest_hz: float = HIGHEST_HZ) -> np.ndarray:
    """[samples] at 16 kHz → [hops] float32 Hz, at the middle of the STFT's hop t (sample 160 t); 0: no voice."""
    hops = len(x) // HOP
    if not np.any(x):
        return np.zeros(hops, np.float32)
    hz, strength = _candidates(x.astype(np.float32), lowest_hz, highest_hz)
    voiced = hz > 0
    octaves = np.log2(np.where(voiced, hz, 1))
    score, back = strength[0], np.zeros((hops, 1 + CANDIDATES), np.int64)
    for t in range(1, hops):
        both = voiced[t][:, None] & voiced[t - 1]
        cost = np.where(both, JUMP * np.abs(octaves[t][:, None] - octaves[t - 1]), SWITCH * (voiced[t][:, None] ^ voiced[t - 1]))
        way = score - cost
        back[t] = way.argmax(1)
        score = way.max(1) + strength[t]
    path = np.zeros(hops, np.int64)
    path[-1] = score.argmax()
    for t in range(hops - 1, 0, -1):
        path[t - 1] = back[t, path[t]]
    return hz[np.arange(hops), path].astype(np.float32)


def pitch_of_one(x: np.ndarray) -> np.ndarray:
    """As `pitch`, of one talker: heard twice, the second time from three quarters of the lower quartile to one and a half times the upper one of what was heard
    the first time (De Looze & Hirst 2008), so that hum and creaks at the edges of the range are not taken for the melody."""
    hz = pitch(x)
    if not np.any(hz):
        return hz
    low, high = np.percentile(hz[hz > 0], [25, 75])
    return pitch(x, max(LOWEST_HZ, 0.75 * float(low)), min(HIGHEST_HZ, 1.5 * float(high)))
