"""`--record DIR`: what every stream said before and after, as WAV files. Only by explicit choice of whoever runs the server."""

from __future__ import annotations

import queue
import threading
from pathlib import Path

import soundfile as sf

from ..lane import Samples

MOST_WAITING = 1024  # frames; a disk that is slower than that loses them, the streams do not wait


class Recorder:
    """One writing thread for all streams; SESSION-before.wav and SESSION-after.wav, the declared delay left in."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._queue: queue.Queue[tuple[str, Samples | None, Samples | int]] = queue.Queue(MOST_WAITING)
        self.lost_frames = 0
        self._thread = threading.Thread(target=self._write, name="voicewire-record", daemon=True)
        self._thread.start()

    def open(self, session: str, rate: int) -> None:
        self.put(session, None, rate)

    def close(self, session: str) -> None:
        self._queue.put((session, None, 0))

    def end(self) -> None:
        self._queue.put(("", None, 0))
        self._thread.join(10)

    def put(self, session: str, before: Samples | None, after: Samples | int) -> None:
        """A frame of a stream, as it came and as it went."""
        try:
            self._queue.put_nowait((session, before, after))
        except queue.Full:
            self.lost_frames += 1

    def _write(self) -> None:
        files: dict[str, tuple[sf.SoundFile, sf.SoundFile]] = {}
        while True:
            session, before, after = self._queue.get()
            if not session:
                break
            if before is not None and session in files:
                files[session][0].write(before)
                files[session][1].write(after)
            elif isinstance(after, int) and after:
                pair = [sf.SoundFile(self._folder / f"{session}-{side}.wav", "w", after, 1, "PCM_16") for side in ("before", "after")]
                files[session] = (pair[0], pair[1])
            elif before is None:
                for f in files.pop(session, ()):
                    f.close()
        for both in files.values():
            for f in both:
                f.close()
