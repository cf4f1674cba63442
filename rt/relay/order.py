"""Sounds with sequence numbers, put in order. What a jitter buffer replaces: it may hold sounds back and make up for lost ones."""

from __future__ import annotations

from typing import Protocol

from .events import Sound

LOST = 1  # flag of a Sound that did not arrive: its samples are made up
HALF = 1 << 31  # sequences wrap at 2^32: less than half way round is ahead


class Order(Protocol):
    """What a session with `header` passes its Sounds through. Times: seconds of `time.monotonic`."""

    tick_s: float | None  # how often `tick` is to be called; None: never

    @property
    def lost(self) -> int:
        """Messages that never came, or too late."""

    @property
    def late(self) -> int:
        """Messages that came too late or twice."""

    @property
    def hold_ms(self) -> float:
        """How long it means to hold a Sound back, so that later ones find their place."""

    def put(self, sound: Sound, now_s: float) -> list[Sound]:
        """A Sound arrived → Sounds to process now, in order; made-up ones have the flag LOST."""

    def tick(self, now_s: float) -> list[Sound]:
        """Time passed → Sounds to process now."""

    def clear(self) -> list[Sound]:
        """The stream ends or is cleared → what is still held, in order."""


class InOrder:
    """Passes on what is in order at once; drops what comes twice or too late; counts what is missing."""

    tick_s: float | None = None
    hold_ms = 0.0

    def __init__(self, next_sequence: int | None = None) -> None:
        self.next_sequence = next_sequence
        self.lost = self.late = 0

    def put(self, sound: Sound, now_s: float) -> list[Sound]:
        assert sound.sequence is not None
        ahead = 0 if self.next_sequence is None else (sound.sequence - self.next_sequence) % (2 * HALF)
        if ahead >= HALF:
            self.late += 1
            return []
        self.lost += ahead
        self.next_sequence = (sound.sequence + 1) % (2 * HALF)
        return [sound]

    def tick(self, now_s: float) -> list[Sound]:
        return []

    def clear(self) -> list[Sound]:
        return []
