"""What rooms, microphones and networks do to speech. All functions: float32 in, float32 out, same length."""

from __future__ import annotations

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft

Rng = np.random.Generator
EARLY_S = 0.05  # reflections up to here stay in the target: understanding bears them (listeners, DNSMOS, like 30 ms better, at the price of words in rooms)


def early_part(h: np.ndarray, rate: int) -> np.ndarray:
    """The direct sound and early reflections of an impulse response whose direct sound is at 0; it falls by 20 dB every 10 ms after EARLY_S."""
    c = int(EARLY_S * rate)
    e = h.copy()
    if len(e) > c:
        e[c:] *= 10 ** (-np.arange(len(e) - c) / (rate * 0.01))
    return e


def synthetic_room(rng: Rng, rate: int) -> np.ndarray:
    """Direct sound, sparse early reflections, exponentially decaying coloured tail (t60 0.1 ... 1 s)."""
    t60 = rng.uniform(0.1, 1.0)
    n = int(min(0.8, t60) * rate)
    t = np.arange(n) / rate
    h = rng.standard_normal(n) * 10 ** (-3 * t / t60)
    h *= rng.random(n) < np.minimum(1, 0.02 * 16000 / rate + t / 0.06)
    damp = np.exp(-np.linspace(0, rate / 2, n + 1) / rng.uniform(2000, 12000))
    h = irfft(rfft(h, 2 * n) * damp, 2 * n)[:n]  # twice as long: what rings before the first sample must not come back as an echo at the end
    h[: int(rng.uniform(0.001, 0.008) * rate)] = 0
    h *= 10 ** (-rng.uniform(-3, 12) / 20) / max(1e-6, np.sqrt((h**2).sum()))
    h[0] = 1
    return h.astype(np.float32)


def recorded_room(h: np.ndarray, rng: Rng) -> np.ndarray:
    """Start a recorded response at its direct sound, normalise it, and sometimes make it drier."""
    start = int(np.abs(h).argmax())
    h = h[start:].astype(np.float32) / max(1e-6, float(np.abs(h).max()))
    tail = np.exp(-np.arange(len(h)) * rng.uniform(0, 2) / max(1, len(h)) * 3).astype(np.float32)
    return h * tail


def convolve(x: np.ndarray, h: np.ndarray) -> np.ndarray:
    n = next_fast_len(len(x) + len(h), real=True)
    y: np.ndarray = irfft(rfft(x, n) * rfft(h, n), n)[: len(x)].astype(np.float32)
    return y


def equalise(rng: Rng, x: np.ndarray, rate: int, db: float) -> np.ndarray:
    """Smooth random tone curve."""
    n = next_fast_len(len(x), real=True)
    at = np.array([0, 80, 250, 700, 1500, 3000, 5500, 8000, 14000, 24000])
    g = np.cumsum(rng.normal(0, db / 2, len(at))) * 0.5 + rng.normal(0, db / 3, len(at))
    g = np.clip(g - g[:8].mean(), -2 * db, 2 * db)
    curve = 10 ** (np.interp(np.linspace(0, rate / 2, n // 2 + 1), at, g) / 20)
    y: np.ndarray = irfft(rfft(x, n) * curve, n)[: len(x)].astype(np.float32)
    return y


def band_limit(rng: Rng, x: np.ndarray, rate: int) -> np.ndarray:
    """A narrow channel: low-pass at 2.5 ... 7 kHz, sometimes a telephone's high-pass too."""
    n = next_fast_len(len(x), real=True)
    f = np.linspace(0, rate / 2, n // 2 + 1)
    curve = 1 / (1 + (f / rng.uniform(2500, 7000)) ** rng.uniform(8, 40))
    if rng.random() < 0.3:
        curve *= 1 / (1 + (rng.uniform(80, 300) / (f + 1)) ** 6)
    y: np.ndarray = irfft(rfft(x, n) * curve, n)[: len(x)].astype(np.float32)
    return y


def clip(rng: Rng, x: np.ndarray) -> np.ndarray:
    c = float(np.abs(x).max()) * rng.uniform(0.15, 0.7)
    return np.clip(x, -c, c) if rng.random() < 0.7 else (c * np.tanh(x / max(c, 1e-9))).astype(np.float32)


def lose_packets(rng: Rng, x: np.ndarray, rate: int) -> np.ndarray:
    """10 or 20 ms packets set to zero in bursts (Gilbert model), 2 ... 12 % lost."""
    size = int(rate * rng.choice([0.01, 0.02]))
    y, lost, rate_in, rate_out = x.copy(), False, rng.uniform(0.02, 0.08), rng.uniform(0.4, 0.9)
    for at in range(int(rng.integers(size)), len(x), size):
        lost = rng.random() > rate_out if lost else rng.random() < rate_in
        if lost:
            y[at : at + size] = 0
    return y


def code_badly(rng: Rng, x: np.ndarray) -> np.ndarray:
    """µ-law at 5 ... 8 bits, or few linear bits: the grain of cheap codecs."""
    peak = max(1e-6, float(np.abs(x).max()))
    z = x / peak
    if rng.random() < 0.7:
        levels = 2.0 ** rng.integers(4, 8)
        y = np.sign(z) * np.log1p(255 * np.abs(z)) / np.log(256)
        y = np.round(y * levels) / levels
        out = np.sign(y) * (256 ** np.abs(y) - 1) / 255
    else:
        levels = 2.0 ** rng.integers(6, 11)
        out = np.round(z * levels) / levels
    return (out * peak).astype(np.float32)
