"""How many streams an engine carries here: measured at start, so that admission stops before the streams that are there suffer."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from voicewire.engines.converting import Converting, stepper
from voicewire.engines.engine import Engine, EngineError
from voicewire.engines.pcm_slots import MAX_HOP, PcmSlots, open_pcm_slots

from .slots import FRAME_S

SHARE = 0.7  # of a frame that a step of all streams may take
STEPS = 40
MOST = 4096


@dataclass(frozen=True)
class Load:
    """streams: as many of one engine, alone, take all that steps may take of a frame. first: the share of that which the first of them takes; the others share
    the rest."""

    streams: int
    first: float

    def of(self, n: int) -> float:
        """The share that n streams take; 1.0: all."""
        if n <= 1:
            return self.first * n
        if self.streams == 1:
            return float(n)
        return self.first + (n - 1) * (1 - self.first) / (self.streams - 1)


@dataclass(frozen=True)
class Capacity:
    """What a worker may take on. converter: the load of streams that convert, None where there are none; main: of all others. They are stepped one after the
    other, so their shares add up."""

    main: Load
    converter: Load | None = None

    @property
    def rows(self) -> int:
        """The most streams of either kind."""
        return max(self.main.streams, self.converter.streams if self.converter else 0)

    def share(self, others: int, converting: int) -> float:
        """What so many streams take together; 1.0: all there is."""
        return self.main.of(others) + (self.converter.of(converting) if self.converter else 0.0)

    def fits(self, others: int, converting: int) -> bool:
        return others + converting <= self.rows and self.share(others, converting) <= 1 + 1e-9


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


def measure(engine: Engine, max_batch: int | None = None, budget_s: float = 3.0) -> Load:
    """Streams whose batches of at most `max_batch` (None: what suits the engine) fit into 70 % of a frame; at least 1. Stops looking after about
    `budget_s` of steps."""
    allowed, spent, fits, n, first = SHARE * FRAME_S, 0.0, 1, 1, 1.0
    while True:
        try:
            slots = open_pcm_slots(engine, n)
            most = min(MOST, max_batch or slots.max_batch)
            took = seconds(slots, n)
        except EngineError:  # a device has no room for so many
            if n == 1:
                raise
            return Load(fits, first)
        slots.close()
        spent += STEPS * took
        if n == 1:
            first = min(1.0, took / allowed)
        if took > allowed:
            return Load(fits, first)
        fits = n
        if n == most:
            return Load(min(MOST, int(n * allowed / took)), first)
        if spent > budget_s:
            return Load(fits, first)
        n = min(most, 4 * n if most > 64 else n + max(1, n // 2))  # a device has few sizes, and each is got ready for the first time


def capacity(engine: Engine, max_streams: int | None, max_batch: int | None) -> Capacity:
    """max_streams: so many, whatever they are asked for; None: measure."""
    if max_streams:
        each = Load(max_streams, 1 / max_streams)
        return Capacity(each, each if isinstance(engine, Converting) else None)
    converter = measure(stepper(engine, "convert"), max_batch) if isinstance(engine, Converting) else None
    return Capacity(measure(stepper(engine, "restore"), max_batch), converter)
