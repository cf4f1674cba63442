"""Noises from code: what a microphone hears and no small library holds enough of.

Every function takes (rng, samples, rate) and returns float32 of about unit RMS.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft
from scipy.signal import lfilter

Rng = np.random.Generator
Maker = Callable[[Rng, int, int], np.ndarray]


def shaped(x: np.ndarray, rate: int, gain: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Filter by a zero-phase gain curve given over frequency in Hz."""
    n = next_fast_len(len(x), real=True)
    y: np.ndarray = irfft(rfft(x, n) * gain(np.linspace(0, rate / 2, n // 2 + 1)), n)[: len(x)].astype(np.float32)
    return y


def _unit(x: np.ndarray) -> np.ndarray:
    y: np.ndarray = (x / max(1e-9, float(np.sqrt(np.mean(x**2))))).astype(np.float32)
    return y


def _drift(rng: Rng, n: int, rate: int, hz: float) -> np.ndarray:
    """Slow random curve of unit deviation, changing about `hz` times a second."""
    points = max(4, int(n / rate * hz) + 3)
    return np.interp(np.linspace(0, points - 1, n), np.arange(points), rng.normal(0, 1, points))


def coloured(rng: Rng, n: int, rate: int) -> np.ndarray:
    """Noise with a power law and a few broad bumps."""
    slope = rng.uniform(-0.4, 1.3)
    bumps = [(rng.uniform(80, rate / 2.2), rng.uniform(0.1, 0.8), rng.uniform(-12, 12)) for _ in range(rng.integers(0, 4))]

    def gain(f: np.ndarray) -> np.ndarray:
        db = -20 * slope * np.log10((f + 40) / 1000)
        for centre, width, height in bumps:
            db = db + height * np.exp(-0.5 * (np.log2((f + 20) / centre) / width) ** 2)
        out: np.ndarray = 10 ** (db / 20)
        return out

    return _unit(shaped(rng.standard_normal(n), rate, gain))


def modulated(rng: Rng, n: int, rate: int) -> np.ndarray:
    """Coloured noise whose loudness breathes, from wind (slow) to machines (20 Hz)."""
    depth = rng.uniform(0.3, 1.5)
    return _unit(coloured(rng, n, rate) * np.exp(depth * _drift(rng, n, rate, 10 ** rng.uniform(-0.3, 1.3))))


def wind(rng: Rng, n: int, rate: int) -> np.ndarray:
    """Rumble below a few hundred hertz in gusts."""
    cut, order = rng.uniform(60, 500), rng.uniform(1, 3)
    x = shaped(rng.standard_normal(n), rate, lambda f: 1 / (1 + (f / cut) ** (2 * order)))
    return _unit(x * np.exp(1.2 * _drift(rng, n, rate, rng.uniform(0.5, 4))))


def hum(rng: Rng, n: int, rate: int) -> np.ndarray:
    """Mains hum: 50 or 60 Hz and harmonics with falling, random weights."""
    f0, fall = rng.choice([50.0, 60.0]), rng.uniform(0.2, 2)
    t = np.arange(n) / rate
    k = np.arange(1, int(min(rng.integers(4, 60), rate / 2.2 / f0)) + 1)
    amp = rng.rayleigh(1, len(k)) * k**-fall
    return _unit((amp[:, None] * np.sin(2 * np.pi * f0 * k[:, None] * t + rng.uniform(0, 7, (len(k), 1)))).sum(0))


def engine(rng: Rng, n: int, rate: int) -> np.ndarray:
    """Harmonics of a wandering rotation speed plus the noise it modulates: engines, fans, drills, propellers."""
    f0 = 10 ** rng.uniform(1.2, 2.7) * np.exp(rng.uniform(0, 0.08) * _drift(rng, n, rate, rng.uniform(0.3, 3)))
    phase = 2 * np.pi * np.cumsum(f0) / rate + rng.uniform(0, 7)
    fall, top = rng.uniform(0.3, 1.6), int(min(rng.integers(3, 40), rate / 2.3 / f0.max()))
    tone = sum(rng.rayleigh(1) * k**-fall * np.sin(k * phase + rng.uniform(0, 7)) for k in range(1, max(2, top)))
    beat = 1 + rng.uniform(0, 0.95) * np.sin(phase * rng.choice([0.5, 1.0, 2.0]))
    return _unit(_unit(np.asarray(tone)) * rng.uniform(0.2, 1.5) + coloured(rng, n, rate) * beat * rng.uniform(0.1, 1.5))


def clicks(rng: Rng, n: int, rate: int) -> np.ndarray:
    """Struck things at random times: keys, dishes, rain drops, crackle. Each a short ringing burst."""
    out = np.zeros(n + rate)
    density = 10 ** rng.uniform(0.2, 2.6)  # a second
    decay = 10 ** rng.uniform(-3.3, -1.3)  # s
    length = int(min(rate * 0.5, rate * decay * 7)) + 8
    t = np.arange(length) / rate
    kinds = []
    for _ in range(4):
        burst = rng.standard_normal(length) * np.exp(-t / decay)
        ring = np.sin(2 * np.pi * 10 ** rng.uniform(2.3, np.log10(rate / 2.2)) * t) * np.exp(-t / (decay * rng.uniform(0.3, 3)))
        kinds.append(burst + ring * rng.uniform(0, 2))
    for at in rng.integers(0, n, max(1, rng.poisson(density * n / rate))):
        out[at : at + length] += kinds[rng.integers(4)] * np.exp(rng.normal(0, 0.7))
    return _unit(shaped(out[:n], rate, lambda f: ((f + 100) / 1000) ** rng.uniform(-0.5, 0.5)))


def tones(rng: Rng, n: int, rate: int) -> np.ndarray:
    """Alarms, whistles, chirps: gliding tones switched on and off."""
    y = np.zeros(n)
    for _ in range(rng.integers(1, 4)):
        f = 10 ** rng.uniform(2.5, np.log10(rate / 2.4)) * np.exp(rng.uniform(0, 0.3) * _drift(rng, n, rate, rng.uniform(0.5, 12)))
        gate = np.clip(_drift(rng, n, rate, rng.uniform(1, 10)) * 4 + 1, 0, 1)
        y += np.sin(2 * np.pi * np.cumsum(np.minimum(f, rate / 2.1)) / rate) * gate * rng.rayleigh(1)
    return _unit(y + 1e-3 * rng.standard_normal(n))


def resonant(rng: Rng, n: int, rate: int) -> np.ndarray:
    """Random all-pole filter on noise or on a pulse train: animals, doors, vehicles, machines, nobody knows what."""
    poles = []
    for _ in range(rng.integers(1, 5)):
        r, w = 1 - 10 ** rng.uniform(-2.5, -0.7), 2 * np.pi * 10 ** rng.uniform(2, np.log10(rate / 2.2)) / rate
        poles += [r * np.exp(1j * w), r * np.exp(-1j * w)]
    x = rng.standard_normal(n)
    if rng.random() < 0.5:
        f0 = 10 ** rng.uniform(1.3, 2.8) * np.exp(0.2 * _drift(rng, n, rate, rng.uniform(0.5, 8)))
        x = 0.2 * x + 3 * np.diff(np.floor(np.cumsum(f0) / rate), prepend=0.0) * np.sqrt(rate / f0.mean())
    y = lfilter([1.0], np.real(np.poly(poles)), x)
    return _unit(_unit(y) * np.exp(rng.uniform(0, 1.5) * _drift(rng, n, rate, 10 ** rng.uniform(-0.3, 1))))


def motors(rng: Rng, n: int, rate: int) -> np.ndarray:
    """Stepper motors and servos: buzzes whose pitch is held, jumps and ramps, through a ringing case: printers, scanners, drives, robots, drones."""
    out = np.zeros(n)
    for _ in range(rng.integers(1, 4)):  # axes
        f0, at, level = np.zeros(n), 0, np.zeros(n)
        base, hold_s = 10 ** rng.uniform(1.6, 3.0), 10 ** rng.uniform(-1.3, 0.2)
        while at < n:
            m = min(n - at, 1 + int(rng.exponential(hold_s) * rate))
            start, end = base * 2 ** rng.uniform(-1, 1, 2)
            f0[at : at + m] = np.linspace(start, end if rng.random() < 0.3 else start, m)
            level[at : at + m] = rng.random() < 0.8
            at += m
        phase = 2 * np.pi * np.cumsum(f0) / rate + rng.uniform(0, 7)
        fall, odd = rng.uniform(0.3, 1.5), rng.choice([1, 2])
        for k in range(1, 1 + odd * int(min(12, rate / 2.2 / f0.max())), odd):
            out += level * rng.rayleigh(1) * k**-fall * np.sin(k * phase)
    for _ in range(rng.integers(0, 3)):  # the case
        r, w = 1 - 10 ** rng.uniform(-2.3, -1), 2 * np.pi * 10 ** rng.uniform(2.3, np.log10(rate / 2.3)) / rate
        out = _unit(out) + _unit(lfilter([1.0], [1, -2 * r * np.cos(w), r * r], out)) * rng.uniform(0.3, 1.5)
    return _unit(_unit(out) + coloured(rng, n, rate) * rng.uniform(0.03, 0.7))


def repeated(rng: Rng, n: int, rate: int) -> np.ndarray:
    """A short piece of another sound over and over: presses, wheels, washing machines, clocks."""
    m = int(rate * 10 ** rng.uniform(-1.3, 0.0))
    piece = MAKERS[rng.integers(len(MAKERS) - 1)](rng, m, rate) * np.exp(-np.linspace(0, rng.uniform(0, 6), m))
    jitter, out, at = rng.uniform(0, 0.1) * m, np.zeros(n + m), 0
    while at < n:
        out[at : at + m] += piece * np.exp(rng.normal(0, 0.15))
        at += max(1, int(m + rng.normal(0, jitter)))
    return _unit(out[:n])


MAKERS: tuple[Maker, ...] = (coloured, modulated, wind, hum, engine, clicks, tones, resonant, motors, repeated)


def any_sound(rng: Rng, n: int, rate: int) -> np.ndarray:
    """One of the above, or two of them together."""
    x = MAKERS[rng.integers(len(MAKERS))](rng, n, rate)
    if rng.random() < 0.25:
        x = _unit(x + MAKERS[rng.integers(len(MAKERS))](rng, n, rate) * rng.uniform(0.2, 1))
    return x
