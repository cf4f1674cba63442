"""Single-producer single-consumer ring of audio samples, bounded, with monotonic counters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


class Ring:
    """Samples [capacity, channels] float32 between exactly one writing and one reading thread, without a lock.

    `written` and `read_` only grow; each is changed by one side alone, after the samples it stands for were copied, so the
    other side sees either the old or the new count, both true. Unread samples are never overwritten: what does not fit
    is refused and the writer is told (the policy of dropping belongs to the caller).
    """

    def __init__(self, capacity: int, channels: int) -> None:
        if capacity < 1 or channels < 1:
            raise ValueError(f"a ring needs room for at least one sample and one channel, not {capacity} and {channels}")
        self.capacity = capacity
        self._data = np.zeros((capacity, channels), np.float32)
        self.written = 0  # samples ever taken in, changed by the writer only
        self.taken = 0  # samples ever handed out, changed by the reader only

    @property
    def fill(self) -> int:
        """Samples that wait. Exact for either side as a lower (reader) or upper (writer) bound."""
        return self.written - self.taken

    def write(self, x: F32) -> int:
        """x: [n, channels] → how many samples, from the front, were taken in."""
        n = min(len(x), self.capacity - self.fill)
        at = self.written % self.capacity
        first = min(n, self.capacity - at)
        self._data[at : at + first] = x[:first]
        self._data[: n - first] = x[first:n]
        self.written += n
        return n

    def read(self, n: int) -> F32:
        """→ [m, channels], a copy; m is n or as many as wait."""
        n = min(n, self.fill)
        at = self.taken % self.capacity
        first = min(n, self.capacity - at)
        out = np.concatenate([self._data[at : at + first], self._data[: n - first]])
        self.taken += n
        return out
