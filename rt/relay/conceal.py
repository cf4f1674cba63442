"""Concealment of lost samples: the sound before the gap goes on, the sound after it is led up to, and the two cross-fade.

In the manner of ITU-T G.711 Appendix I (1999): the last period is repeated, at full level for 10 ms, fading to silence at 60 ms. Three
differences. What follows the gap is often known by then (the jitter buffer holds it), so the same is done backwards from there. Nothing is held
back: the appendix delays everything by 3.75 ms to soften the first joint, here the joint is corrected by a decaying offset. And one period serves
for the whole gap: repeating two and three, as the appendix does, measured worse in front of our model.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

SHORTEST_PERIOD_S, LONGEST_PERIOD_S = 0.0025, 0.015  # 66 ... 400 Hz
_TEMPLATE_S = 0.006  # how much of the end has to agree
_FULL_S, _SILENT_S = 0.010, 0.060
PAST_S = 2 * LONGEST_PERIOD_S + _TEMPLATE_S  # as much of the past is looked at


def best_lag(x: F32, template: int, shortest: int, longest: int) -> tuple[int, float]:
    """How far back the last `template` samples of x are most alike themselves.

    → (lag in samples, `shortest` … `longest`; normalised correlation −1 … 1 there). x holds at least template + longest samples.
    """
    end = x[-template:].astype(np.float64)
    past = x[len(x) - template - longest : len(x) - shortest].astype(np.float64)
    product = np.correlate(past, end, "valid")[::-1]  # index 0: lag `shortest`
    sums = np.concatenate([[0.0], np.cumsum(past * past)])
    energy = (sums[template:] - sums[:-template])[::-1]
    likeness = product / np.sqrt(np.maximum(energy * (end @ end), 1e-12))
    at = int(likeness.argmax())
    return shortest + at, float(likeness[at])


def extrapolate(past: F32, n: int, rate: int, start: int = 0) -> F32:
    """n samples as they might follow `past`, from `start` samples after its end. Any length of past; silence follows nothing."""
    template, shortest = round(_TEMPLATE_S * rate), round(SHORTEST_PERIOD_S * rate)
    longest = min(round(LONGEST_PERIOD_S * rate), len(past) - template)
    at = np.arange(start, start + n)
    if not len(past):
        return np.zeros(n, np.float32)
    if longest < shortest:  # too little to find a period in: only let it die down without a step
        fade = np.maximum(0, 1 - (at + 1) / (shortest + 1))
        return np.asarray(past[-1] * fade, np.float32)
    period, _ = best_lag(past, template, shortest, longest)
    quarter = max(1, period // 4)
    loop = past[-period:].copy()
    before = past[: len(past) - period][-quarter:]  # the loop's end is blended into what came before it, so that it joins its beginning
    if len(before) == quarter:
        rise = (np.arange(quarter, dtype=np.float32) + 1) / (quarter + 1)
        loop[-quarter:] = (1 - rise) * loop[-quarter:] + rise * before
    step = past[-1] - (before[-1] if len(before) else past[-1])
    y = loop[at % period] + step * np.maximum(0, 1 - (at + 1) / quarter)
    level = np.clip((_SILENT_S - at / rate) / (_SILENT_S - _FULL_S), 0, 1)
    return np.asarray(y * level, np.float32)


def bridge(past: F32, n: int, future: F32, rate: int) -> F32:
    """The n samples missing between `past` and `future` (the more of both the better, 40 ms is plenty; both may be empty)."""
    forward = extrapolate(past[-round(PAST_S * rate) :], n, rate)
    if not len(future):
        return forward
    backward = extrapolate(future[: round(PAST_S * rate)][::-1], n, rate)[::-1]
    rise = (np.arange(n, dtype=np.float32) + 0.5) / n
    return np.asarray((1 - rise) * forward + rise * backward, np.float32)
