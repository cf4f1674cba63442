"""Streams on their way from one worker to another, each under a name that nobody can guess."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import time
from pathlib import Path
from typing import Protocol

from .events import ProtocolError

KEEP_S = 60.0
MOST = 1024  # streams on their way at once
_NAME = re.compile(r"[0-9a-f]{32}")


def name_one() -> str:
    return secrets.token_hex(16)


def unknown() -> ProtocolError:
    return ProtocolError("bad_resume", "there is no stream of that name to resume; it was resumed already, or is too old", fatal=True)


class Handover(Protocol):
    """A place that workers can reach."""

    async def put(self, data: bytes) -> str:
        """Keep a stream's memory; → its name. OSError when that cannot be done."""

    async def take(self, name: str) -> bytes:
        """Once. ProtocolError `bad_resume` for a name that is unknown, used or old."""

    async def sweep(self) -> None:
        """Forget what nobody came for within a minute."""


class Folder:
    """A `Handover`: a file each. The folder should be in memory (/dev/shm) or on a fast shared disk, and private."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def put(self, data: bytes) -> str:
        return await asyncio.to_thread(self._put, data)

    async def take(self, name: str) -> bytes:
        return await asyncio.to_thread(self._take, name)

    async def sweep(self) -> None:
        await asyncio.to_thread(self._sweep)

    def _put(self, data: bytes) -> str:
        name = name_one()
        part = self._folder / f"{name}.part"
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "wb") as f:
            f.write(data)
        os.replace(part, self._folder / f"{name}.stream")
        return name

    def _take(self, name: str) -> bytes:
        path = self._folder / f"{name}.stream"
        mine = path.with_suffix(".taken")
        try:
            if not _NAME.fullmatch(name):
                raise FileNotFoundError
            os.rename(path, mine)  # only one can
            data = mine.read_bytes()
            mine.unlink()
        except OSError:
            raise unknown() from None
        return data

    def _sweep(self) -> None:
        """Nothing but what is ours: the folder may hold other things."""
        old, ours = time.time() - KEEP_S, []
        for path in self._folder.iterdir():
            if _NAME.fullmatch(path.stem) and path.suffix in (".stream", ".part", ".taken"):
                with contextlib.suppress(OSError):  # another worker has just taken it
                    ours.append((path.stat().st_mtime, path))
        for i, (made, path) in enumerate(sorted(ours, reverse=True)):
            if i >= MOST or made < old:
                with contextlib.suppress(OSError):
                    path.unlink()
