"""Speech a little faster or slower without changing its pitch: one period is taken out or put in where two are alike (WSOLA)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .conceal import LONGEST_PERIOD_S, SHORTEST_PERIOD_S, best_lag

F32 = NDArray[np.float32]

_TEMPLATE_S = 0.006


def period(x: F32, rate: int, at_most: int) -> tuple[int, float]:
    """Where the beginning of x is most like itself: → (lag in samples, at most `at_most`; likeness −1 … 1). (0, 0.0): x is too short."""
    template, shortest = round(_TEMPLATE_S * rate), round(SHORTEST_PERIOD_S * rate)
    longest = min(round(LONGEST_PERIOD_S * rate), at_most, len(x) // 2, len(x) - template)
    if longest < shortest:
        return 0, 0.0
    return best_lag(x[: template + longest][::-1], template, shortest, longest)


def crossfade(a: F32, b: F32) -> F32:
    """From a to b, both [n]."""
    rise = (np.arange(len(a), dtype=np.float32) + 1) / (len(a) + 1)
    return np.asarray((1 - rise) * a + rise * b, np.float32)


def shorten(x: F32, lag: int) -> F32:
    """Take the first `lag` samples out of x (at least 2 · lag long); it still begins and ends as it did."""
    return np.concatenate([crossfade(x[:lag], x[lag : 2 * lag]), x[2 * lag :]])


def lengthen(x: F32, lag: int) -> F32:
    """Put `lag` samples into x (at least 2 · lag long) near its beginning; it still begins and ends as it did."""
    return np.concatenate([x[:lag], crossfade(x[lag : 2 * lag], x[:lag]), x[lag:]])
