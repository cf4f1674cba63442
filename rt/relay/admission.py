"""Who may come in: as many streams beside each other as were measured to fit, and nobody while steps are late."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping

from .capacity import Capacity
from .connection import Connection
from .events import ProtocolError
from .limits import Limits
from .session import Session

RETRY_S = 5.0
LATE_S = 5.0


class Admission:
    """sessions: those that are there, by name, with their connections; looked at, not changed."""

    def __init__(self, capacity: Capacity, limits: Limits, sessions: Mapping[str, tuple[Session, Connection]]) -> None:
        self.capacity, self._limits, self._sessions = capacity, limits, sessions
        self._late: deque[float] = deque(maxlen=limits.late_frames)  # when frames were late

    @property
    def streams(self) -> int:
        """The most streams that do not convert."""
        return self.capacity.main.streams

    @property
    def converting(self) -> int:
        """The most streams that do, 0 where nobody can."""
        return self.capacity.converter.streams if self.capacity.converter else 0

    def late(self) -> None:
        """A frame was late just now."""
        self._late.append(time.monotonic())

    def wait_s(self, connections: int, moving: bool = False) -> float:
        """How long a newcomer should wait, 0 where there is room. connections: those that are open; moving: a stream that another worker had admitted."""
        if not moving and self._sessions and len(self._late) == self._late.maxlen and time.monotonic() - self._late[0] < LATE_S:
            return RETRY_S  # slower than measured at start: whoever is here comes first
        others, converting = self.taken()
        room = self.capacity.fits(others + 1, converting) or (self.converting > 0 and self.capacity.fits(others, converting + 1))
        return 0.0 if room and connections < self.capacity.rows + self._limits.handshakes else RETRY_S

    def taken(self, but: Session | None = None) -> tuple[int, int]:
        """→ (streams that do not convert, that do), one of them left out."""
        if not self.converting:
            return len(self._sessions) - (but is not None and but.name in self._sessions), 0
        tasks = [session.task for session, _ in self._sessions.values() if session is not but]
        converting = tasks.count("convert")
        return len(tasks) - converting, converting

    def fits(self, session: Session, task: str) -> bool:
        """Whether there is room for it with that task, beside the others."""
        others, converting = self.taken(session)
        return self.capacity.fits(others, converting + 1) if task == "convert" else self.capacity.fits(others + 1, converting)

    def change(self, session: Session, task: str) -> None:
        """ProtocolError `no_room` where a stream may not go on with another task."""
        if not self.fits(session, task):
            raise ProtocolError("no_room", f"no room for one more stream with the task '{task}'; this one goes on as it was; ask again later")

    @property
    def used(self) -> int:
        """Of `streams`: those that convert count as what they take."""
        others, converting = self.taken()
        return others if not converting else min(self.streams, math.ceil(self.streams * self.capacity.share(others, converting)))
