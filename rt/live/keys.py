"""Single keys from the terminal, without Enter, while a picture is shown."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from types import TracebackType


class Keys:
    """Context manager; `pressed()` → a character or "", `wait()` → the next one. Without a terminal, `there` is false and no key ever comes."""

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

    @property
    def there(self) -> bool:
        return self._fd >= 0

    def wait(self) -> str:
        """ "q" where nobody can press one, or at the end of the input."""
        return os.read(self._fd, 1).decode(errors="replace") or "q" if self.there else "q"

    def pressed(self) -> str:
        if self._fd < 0 or not select.select([self._fd], [], [], 0)[0]:
            return ""
        return os.read(self._fd, 1).decode(errors="replace")
