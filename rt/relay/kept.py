"""What a client has sent and may have to send again, should its connection break: blocks, counted in samples."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

WARM_S = 1.0  # of what was answered already: a new stream hears it first, so that the model does not begin in the middle of a word


class Block(NamedTuple):
    """A message of audio. samples: of each channel; capture_us: when it was given to us."""

    samples: int
    payload: bytes
    capture_us: int


class Again(NamedTuple):
    """How a new stream takes up an old one. blocks: to be sent, in order. silence: samples that cannot be had any more and that come before all
    else in their place. skip: so many of the first samples that come back were heard already, or are the new stream's own delay."""

    blocks: list[Block]
    silence: int
    skip: int


class Kept:
    """A relay's answer k belongs to sample k - latency of what was sent. most_s: keep only so much (live), None: all that is unanswered."""

    def __init__(self, rate: int, latency_samples: int, most_s: float | None = None) -> None:
        self._latency = latency_samples
        self._warm = round(WARM_S * rate)
        self._most = None if most_s is None else round(most_s * rate)
        self._blocks: deque[Block] = deque()
        self._first = self._sent = self._heard = 0  # samples: where the first block begins, all that was sent, all that came back
        self._cuts: deque[int] = deque()  # what had been sent when the stream was cleared, and the relay has not said so yet

    @property
    def held_samples(self) -> int:
        return self._sent - self._first

    def sent(self, block: Block) -> None:
        self._blocks.append(block)
        self._sent += block.samples
        while self._most is not None and self.held_samples > self._most:
            self._drop()

    def heard(self, samples: int) -> None:
        """So many came back."""
        self._heard += samples
        while self._blocks and self._first + self._blocks[0].samples <= self._heard - self._latency - self._warm:
            self._drop()

    def clear(self) -> None:
        """All that was sent is to be forgotten, once the relay says that it has."""
        self._cuts.append(self._sent)

    def cleared(self) -> None:
        """The relay has: the stream is as after its start."""
        cut = self._cuts.popleft() if self._cuts else self._sent
        while self._blocks and self._first < cut:
            self._drop()
        self._first, self._sent, self._heard = max(0, self._first - cut), self._sent - cut, 0
        self._cuts = deque(c - cut for c in self._cuts)

    def again(self) -> Again:
        """What a new stream is to be sent. After it, go on with `sent` and `heard`."""
        while self._cuts:
            self.cleared()
        wanted = self._heard - self._latency  # the sample that the next answer is of
        silence = max(0, self._first - max(0, wanted))
        self._heard += silence
        return Again(list(self._blocks), silence, max(0, self._heard - self._first))

    def _drop(self) -> None:
        self._first += self._blocks.popleft().samples
