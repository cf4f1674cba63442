"""For sound systems that do not say when a device goes: callbacks that stop are the only sign."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_SILENT_S = 1.0


class Watchdog:
    """Calls `lost` once when `seen` was not called for a second or `broken()` says so."""

    def __init__(self, lost: Callable[[], None], broken: Callable[[], bool]) -> None:
        self._at = time.monotonic() + 1.0  # devices need a moment to start
        self._ended = threading.Event()
        self._lost, self._broken = lost, broken
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def seen(self) -> None:
        self._at = time.monotonic()

    def close(self) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            if self._broken() or time.monotonic() - self._at > _SILENT_S:
                self._lost()
                return
