"""`--record DIR`: what every stream said before and after, as WAV files. Only by explicit choice of whoever runs the server."""

from __future__ import annotations

import json
import logging
import queue
import threading
from pathlib import Path
from typing import NamedTuple

import soundfile as sf

from ..lane import Samples

MOST_WAITING = 1024  # frames; a disk that is slower than that loses them, the streams do not wait
log = logging.getLogger("voicewire.relay")


class _Item(NamedTuple):
    """What the writing thread is told: a session begins (rate), goes on (before, after), or ends (neither). No session: all ends."""

    session: str
    rate: int = 0
    before: Samples | None = None
    after: Samples | None = None


class Recorder:
    """One writing thread for all streams; SESSION-before.wav and SESSION-after.wav, the declared delay left in."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self.lost_frames = 0
        self._thread = threading.Thread(target=self._write, name="voicewire-record", daemon=True)
        self._thread.start()

    def open(self, session: str, rate: int) -> None:
        self._queue.put(_Item(session, rate))

    def close(self, session: str) -> None:
        self._queue.put(_Item(session))

    def end(self) -> None:
        self._queue.put(_Item(""))
        self._thread.join(10)

    def put(self, session: str, before: Samples, after: Samples) -> None:
        """A frame of a stream, as it came and as it went."""
        if self._queue.qsize() < MOST_WAITING:
            self._queue.put(_Item(session, 0, before, after))
        else:
            self.lost_frames += 1

    def _write(self) -> None:
        files: dict[str, list[sf.SoundFile]] = {}
        while (item := self._queue.get()).session:
            try:
                self._one(item, files)
            except (OSError, sf.LibsndfileError) as e:  # a full disk ends this recording, not the stream
                log.error(json.dumps({"event": "recording failed", "session": item.session, "error": str(e)}))
                files.pop(item.session, None)
        for both in files.values():
            for f in both:
                f.close()

    def _one(self, item: _Item, files: dict[str, list[sf.SoundFile]]) -> None:
        if item.rate:
            files[item.session] = [sf.SoundFile(self._folder / f"{item.session}-{side}.wav", "w", item.rate, 1, "PCM_16") for side in ("before", "after")]
        elif item.before is None:
            for f in files.pop(item.session, ()):
                f.close()
        elif both := files.get(item.session):
            both[0].write(item.before)
            both[1].write(item.after)
