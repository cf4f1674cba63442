"""`serve --workers N`: a front door that gives every connection to the worker with the most room. Audio never passes through it.

The door accepts, sends the socket itself to a worker, and is out of the way. It starts a worker again that ended; SIGTERM to one worker's
process empties it (its streams move to the others), SIGTERM to the door empties all and ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from ctypes import Array, c_int64
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path

from voicewire.engines.engine import EngineError

from .config import Config
from .place import CAPACITY, ENDED, GIVEN, NUMBERS, Place
from .workers import logs, run_one

RESTART_S = 1.0  # after a worker that ended at once, wait so long
CANNOT = 2  # exit code of a worker that another start would not help
log = logging.getLogger("voicewire.relay")


@dataclass
class _Worker:
    process: BaseProcess
    channel: socket.socket
    began: float


def _work(config: Config, index: int, counts: Array[c_int64], channel: socket.socket) -> None:
    """A worker's process."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    logs()
    try:
        run_one(config, Place(index, counts, channel))
    except (ValueError, EngineError, OSError) as e:
        print(f"voicewire: {e}", file=sys.stderr)
        sys.exit(CANNOT)


class FrontDoor:
    """`run` returns when all workers have ended. ready(port): the first of them takes connections (those that came before are waiting)."""

    def __init__(self, config: Config, workers: int, ready: Callable[[int], None]) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="voicewire-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(self._folder / "metrics")  # read by prometheus-client when a worker imports it
        (self._folder / "metrics").mkdir()
        self._config = replace(config, handover=config.handover or self._folder / "streams")
        self._context = multiprocessing.get_context("spawn")
        self._counts = self._context.RawArray(c_int64, NUMBERS * workers)
        self._workers: list[_Worker | None] = [None] * workers
        self._ending = False
        self._code = 0
        self._ready = ready

    def run(self) -> int:
        try:
            asyncio.run(self._run())
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
        return self._code

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        host = self._config.host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, self._config.port), family=family, backlog=256) as listener:
            listener.setblocking(False)
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.add_signal_handler(number, self._end)
            for i in range(len(self._workers)):
                self._start(i)
            accepting = self._loop.create_task(self._accept(listener))
            announced = False
            while any(self._workers) or not self._ending:
                self._look_after()
                if not announced and self._choose() is not None:
                    announced = True
                    self._ready(listener.getsockname()[1])
                await asyncio.sleep(0.1)
            accepting.cancel()

    def _end(self) -> None:
        self._ending = True
        for w in self._workers:
            if w and w.process.is_alive():
                w.process.terminate()

    def _start(self, i: int) -> None:
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        for number in range(NUMBERS):
            self._counts[i * NUMBERS + number] = 0
        process = self._context.Process(target=_work, args=(self._config, i, self._counts, theirs), name=f"voicewire-worker-{i}")
        process.start()
        theirs.close()
        self._workers[i] = _Worker(process, mine, time.monotonic())

    def _look_after(self) -> None:
        """Start again what ended."""
        for i, w in enumerate(self._workers):
            if w is None or w.process.is_alive():
                continue
            if self._ending or time.monotonic() - w.began > RESTART_S:
                from prometheus_client.multiprocess import mark_process_dead

                log.info(f'{{"event": "worker ended", "pid": {w.process.pid}, "code": {w.process.exitcode}}}')
                mark_process_dead(w.process.pid, str(self._folder / "metrics"))  # type: ignore[no-untyped-call]
                w.channel.close()
                self._workers[i] = None
                if w.process.exitcode == CANNOT and not self._ending:
                    self._code = CANNOT
                    self._end()
                if not self._ending:
                    self._start(i)

    def _choose(self) -> int | None:
        """The ready worker with the smallest share of its capacity taken; None while there is none."""
        shares = []
        for i, w in enumerate(self._workers):
            given, ended, capacity = (self._counts[i * NUMBERS + k] for k in (GIVEN, ENDED, CAPACITY))
            if w and capacity:
                shares.append(((given - ended) / capacity, i))
        return min(shares)[1] if shares else None

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = await self._loop.sock_accept(listener)
            except OSError as e:  # no descriptor is left, or the client has gone already
                log.info(f'{{"event": "not accepted", "why": {json.dumps(e.strerror or str(e))}}}')
                await asyncio.sleep(0.1)
                continue
            with connection:
                while (i := self._choose()) is None:  # noqa: ASYNC110  (a worker says so in shared memory)
                    await asyncio.sleep(0.02)
                worker = self._workers[i]
                assert worker is not None
                self._counts[i * NUMBERS + GIVEN] += 1
                with contextlib.suppress(OSError):  # it has just ended: the client finds its connection closed, and comes again
                    socket.send_fds(worker.channel, [b"c"], [connection.fileno()])
