"""`--record DIR`: before and after, aligned to the sample, written beside the audio path."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

F32 = NDArray[np.float32]
_QUEUED = 500  # blocks; a disk that stalls longer loses recording, never live audio
_CLOSE_S = 2.0  # twice; whoever owns this process waits five seconds for it


class Recorder:
    """Two mono 24-bit FLAC files of the same length in `folder`: DATE-before.flac and DATE-after.flac. OSError if it cannot be written.

    failed: called with one line when no more can be written; what comes after that is not recorded, and live audio goes on.
    """

    def __init__(self, folder: Path, rate: int, latency_samples: int, failed: Callable[[str], None]) -> None:
        self.rate, self._failed = rate, failed
        folder.mkdir(parents=True, exist_ok=True)
        stem = time.strftime("%Y%m%d-%H%M%S")
        if (folder / f"{stem}-before.flac").exists():
            stem += f"-{time.time_ns() % 10**9:09d}"
        self.paths = folder / f"{stem}-before.flac", folder / f"{stem}-after.flac"
        try:
            self._files = [sf.SoundFile(p, "w", rate, 1, "PCM_24") for p in self.paths]
        except sf.LibsndfileError as e:
            raise OSError(f"{folder}: cannot record there ({e.error_string})") from None
        self._queue: queue.Queue[tuple[F32, F32] | None] = queue.Queue(_QUEUED)
        self.lost_blocks = 0
        self._files[0].write(np.zeros(latency_samples, np.float32))  # what comes out now came in so much earlier
        self._held = latency_samples
        self._thread = threading.Thread(target=self._run, name="record", daemon=True)
        self._thread.start()

    def add(self, before: F32, after: F32) -> None:
        """Both [n]; never blocks."""
        try:
            self._queue.put_nowait((before.copy(), after.copy()))
        except queue.Full:
            self.lost_blocks += 1

    def close(self) -> None:
        with contextlib.suppress(queue.Full):  # a disk that stands still
            self._queue.put(None, timeout=_CLOSE_S)
        self._thread.join(_CLOSE_S)
        if self.lost_blocks:
            self._failed(f"{self.lost_blocks} blocks are missing in {self.paths[0].parent}: the disk was too slow")

    def _run(self) -> None:
        ended = False
        try:
            while (item := self._queue.get()) is not None:
                for file, x in zip(self._files, item, strict=True):
                    file.write(x)
            ended = True
            self._files[1].write(np.zeros(self._held, np.float32))
            for file in self._files:
                file.close()
        except (sf.LibsndfileError, OSError, AssertionError) as e:  # (soundfile asserts that all was written: a full disk)
            self._failed(f"{self.paths[0].parent}: no more is recorded ({str(e) or 'is the disk full?'})")
            for file in self._files:
                with contextlib.suppress(sf.LibsndfileError, OSError, AssertionError):
                    file.close()
            while not ended and self._queue.get() is not None:  # what comes has nowhere to go
                pass
