"""Single keys from the terminal, without Enter, while a picture is shown."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from types import TracebackType


class Keys:
    """Context manager; `pressed(timeout_s)` → a character or "". Without a terminal no key ever comes."""

    def __enter__(self) -> Keys:
        self._fd = -1
        with contextlib.suppress(ImportError, OSError, ValueError):
            import termios
            import tty

            fd = sys.stdin.fileno()
            if os.isatty(fd):
                self._before = termios.tcgetattr(fd)
                tty.setcbreak(fd)
                self._fd = fd
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._fd >= 0:
            import termios

            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)

    def pressed(self) -> str:
        if self._fd < 0 or not select.select([self._fd], [], [], 0)[0]:
            return ""
        return os.read(self._fd, 1).decode(errors="replace")
