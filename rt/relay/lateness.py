"""How late packets arrive, and how long it is worth to wait for them: as long as 99 of 100 needed lately, and one frame more."""

from __future__ import annotations

from math import ceil

import numpy as np

WINDOW = 512  # packets whose lateness is remembered: 10 s of 20 ms packets
_EARLY = 50  # packets seen before the measured lateness alone is trusted


class Lateness:
    """All in samples. earliest: the smallest lateness in the window. wait: how far to stay behind it, at most `most`."""

    def __init__(self, frame: int, most: int) -> None:
        self._frame, self._most = frame, most
        self.forget()

    def forget(self) -> None:
        self._seen = np.zeros(WINDOW)
        self._noted = 0
        self.earliest, self.wait = 0.0, 2.0 * self._frame

    def note(self, samples: float) -> None:
        """samples: arrival time minus the time its place in the stream stands for; only differences matter."""
        self._seen[self._noted % WINDOW] = samples
        self._noted += 1
        seen = self._seen[: min(self._noted, WINDOW)]
        rank = max(0, ceil(0.99 * len(seen)) - 1)
        self.earliest = float(seen.min())
        wait = float(np.partition(seen, rank)[rank]) - self.earliest + self._frame
        if self._noted < _EARLY:
            wait = max(wait, 2.0 * self._frame)
        self.wait = min(wait, float(self._most))
