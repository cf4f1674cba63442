"""How many streams an engine carries here: measured at start, so that admission stops before the streams that are there suffer."""

from __future__ import annotations

import time

import numpy as np

from voicewire.engines.config import HOPS_PER_FRAME
from voicewire.engines.engine import Engine
from voicewire.engines.stft import BINS

from .slots import FRAME_S

SHARE = 0.7  # of a frame that a step of all streams may take
STEPS = 40
MOST = 4096


def seconds(engine: Engine, slots: int, steps: int = STEPS) -> float:
    """The slowest but one of `steps` steps of `slots` slots (the slowest may be somebody else's doing)."""
    x = (0.02 * np.random.default_rng(0).standard_normal((slots, HOPS_PER_FRAME, BINS - 1, 2))).astype(np.float32)
    state = engine.init_state(slots)
    times = []
    for _ in range(steps):
        begin = time.perf_counter()
        _, state = engine.advance(x, state)
        times.append(time.perf_counter() - begin)
    return sorted(times)[-2]


def measure(engine: Engine, max_batch: int, budget_s: float = 3.0) -> int:
    """Streams whose batches of at most `max_batch` fit into 70 % of a frame; at least 1. Stops looking after about `budget_s`."""
    allowed, begin, fits = SHARE * FRAME_S, time.perf_counter(), 1
    slots = 1
    while slots <= max_batch and time.perf_counter() - begin < budget_s:
        took = seconds(engine, slots)
        if took > allowed:
            return fits
        fits = slots
        if slots == max_batch:
            return min(MOST, int(max_batch * allowed / took))
        slots = min(max_batch, slots + max(1, slots // 2))
    return fits
