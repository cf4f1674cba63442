"""How many streams an engine carries here: measured at start, so that admission stops before the streams that are there suffer."""

from __future__ import annotations

import time

import numpy as np

from voicewire.engines.engine import Engine, EngineError
from voicewire.engines.pcm_slots import MAX_HOP, PcmSlots, open_pcm_slots

from .slots import FRAME_S

SHARE = 0.7  # of a frame that a step of all streams may take
STEPS = 40
MOST = 4096


def seconds(slots: PcmSlots, n: int, steps: int = STEPS) -> float:
    """The slowest but one of `steps` steps of the first `n` slots at 48 kHz (the slowest may be somebody else's doing)."""
    frames = list((600 * np.random.default_rng(0).standard_normal((n, 2 * MAX_HOP))).astype(np.int16))
    rows, dry = np.arange(n), np.full(n, 0.05, np.float32)
    for row in range(n):
        slots.attach(row, MAX_HOP, whole=True)
    slots.step(rows, frames, dry)  # whatever the first step of a size gets ready is not its time
    times = []
    for _ in range(steps):
        begin = time.perf_counter()
        slots.step(rows, frames, dry)
        times.append(time.perf_counter() - begin)
    return sorted(times)[-2]


def measure(engine: Engine, max_batch: int | None = None, budget_s: float = 3.0) -> int:
    """Streams whose batches of at most `max_batch` (None: what suits the engine) fit into 70 % of a frame; at least 1. Stops looking after about
    `budget_s` of steps."""
    allowed, spent, fits, n = SHARE * FRAME_S, 0.0, 1, 1
    while True:
        try:
            slots = open_pcm_slots(engine, n)
            most = min(MOST, max_batch or slots.max_batch)
            took = seconds(slots, n)
        except EngineError:  # a device has no room for so many
            if n == 1:
                raise
            return fits
        slots.close()
        spent += STEPS * took
        if took > allowed:
            return fits
        fits = n
        if n == most:
            return min(MOST, int(n * allowed / took))
        if spent > budget_s:
            return fits
        n = min(most, 4 * n if most > 64 else n + max(1, n // 2))  # a device has few sizes, and each is got ready for the first time
