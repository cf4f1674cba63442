"""Streams on their way from one worker to another: a folder both can reach, a file each, named by something nobody can guess."""

from __future__ import annotations

import os
import re
import secrets
import time
from pathlib import Path

from .events import ProtocolError

KEEP_S = 60.0
MOST_FILES = 1024
_NAME = re.compile(r"[0-9a-f]{32}")


class Handover:
    """put(bytes) → name, take(name) → bytes, once. The folder should be in memory (/dev/shm) or on a fast shared disk, and private."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def put(self, data: bytes) -> str:
        """OSError when the folder cannot take it."""
        name = secrets.token_hex(16)
        part = self._folder / f"{name}.part"
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "wb") as f:
            f.write(data)
        os.replace(part, self._folder / f"{name}.stream")
        return name

    def take(self, name: str) -> bytes:
        """ProtocolError `bad_resume` for a name that is unknown, used or old."""
        path = self._folder / f"{name}.stream"
        mine = path.with_suffix(".taken")
        try:
            if not _NAME.fullmatch(name):
                raise FileNotFoundError
            os.rename(path, mine)  # only one can
            data = mine.read_bytes()
            mine.unlink()
        except OSError:
            raise ProtocolError("bad_resume", "there is no stream of that name to resume; it was resumed already, or is too old", fatal=True) from None
        return data

    def sweep(self) -> None:
        """Remove what nobody came for."""
        old = time.time() - KEEP_S
        files = sorted(self._folder.glob("*"), key=lambda p: p.stat().st_mtime if p.exists() else 0)
        for path in files:
            if len(files) > MOST_FILES or (path.exists() and path.stat().st_mtime < old):
                path.unlink(missing_ok=True)
