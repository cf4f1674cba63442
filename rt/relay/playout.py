"""What a session with `header` passes its Sounds through: the jitter buffer, which gives 20 ms Sounds on a steady clock."""

from __future__ import annotations

import numpy as np

from ..lane import to_float, to_int16
from .events import Sound
from .jitter import Frame, JitterBuffer
from .order import HALF, LOST


class Playout:
    """An `Order` (order.py). Channels are mixed; int16 stays int16. What comes out is counted anew from `next_sequence`; its capture time is the sender's."""

    tick_s: float | None = 0.010

    def __init__(self, rate: int, next_sequence: int = 0) -> None:
        self.buffer = JitterBuffer(rate)
        self._next = next_sequence
        self._int16 = False

    @property
    def lost(self) -> int:
        return self.buffer.counts.lost

    @property
    def late(self) -> int:
        return self.buffer.counts.late + self.buffer.counts.duplicate

    @property
    def hold_ms(self) -> float:
        return self.buffer.target_ms

    def put(self, sound: Sound, now_s: float) -> list[Sound]:
        assert sound.sequence is not None
        self._int16 = sound.samples.dtype == np.int16
        x, _ = to_float(sound.samples)
        self.buffer.push(sound.sequence, sound.capture_us, x.reshape(len(x), -1).mean(1), now_s)
        return self.tick(now_s)

    def tick(self, now_s: float) -> list[Sound]:
        return [self._sound(f) for f in self.buffer.pull(now_s)]

    def clear(self) -> list[Sound]:
        return [self._sound(f) for f in self.buffer.flush()]

    def _sound(self, f: Frame) -> Sound:
        sequence = self._next
        self._next = (self._next + 1) % (2 * HALF)
        samples = to_int16(f.samples) if self._int16 else f.samples
        return Sound(samples[:, np.newaxis], sequence, f.capture_us, LOST if f.lost.any() else 0)
