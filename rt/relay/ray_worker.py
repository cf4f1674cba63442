"""What `voicewire cluster` has Ray run: workers, each a relay in a process of its own, and the keeper of streams that move between them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

import ray

from .config import Config, engine_of
from .handover import KEEP_S, MOST, name_one, unknown
from .server import Relay
from .workers import logs, loop_factory, settle

WARM_BYTES = 1 << 20  # about what a stream carries


@dataclass(frozen=True)
class Status:
    """What a worker tells. address: host:port. busy: it takes no newcomers, full or not. over: it has been emptied and has ended."""

    address: str
    pid: int
    used: int
    capacity: int
    busy: bool
    draining: bool
    over: bool


class Keeper:
    """An actor: the memory of streams that are between two workers, by name."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[float, bytes]] = {}

    def put(self, data: bytes) -> str:
        self.sweep()
        if len(self._kept) >= MOST:
            raise OSError("too many streams are on their way")
        name = name_one()
        self._kept[name] = (time.monotonic(), data)
        return name

    def take(self, name: str) -> bytes | None:
        return self._kept.pop(name, (0.0, None))[1]

    def sweep(self) -> None:
        old = time.monotonic() - KEEP_S
        for name in [n for n, (kept_s, _) in self._kept.items() if kept_s < old]:
            del self._kept[name]


class Through:
    """The `Handover` (handover.py) of workers that Ray connects."""

    def __init__(self, keeper: Any) -> None:
        self._keeper = keeper

    async def put(self, data: bytes) -> str:
        try:
            name: str = await self._keeper.put.remote(data)
        except Exception as e:
            raise OSError(f"the stream cannot be kept: {e}") from None
        return name

    async def take(self, name: str) -> bytes:
        data: bytes | None = await self._keeper.take.remote(name)
        if data is None:
            raise unknown()
        return data

    async def sweep(self) -> None:
        """The keeper does it by itself."""


class Worker:
    """An actor: one relay, on a thread and a loop of its own. SIGTERM to its process empties it.

    (No method is a coroutine: Ray would run them all on a loop beside the main thread, which alone may handle signals.)
    """

    def __init__(self, config: Config, keeper: str) -> None:
        self._config, self._keeper = config, ray.get_actor(keeper)
        self._host = "127.0.0.1" if config.door.local else public_host(config.certificate is not None)
        self._port = 0
        self._relay: Relay | None = None
        self._over = False
        logs()
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: self.drain())
        threading.Thread(target=self._run, name="voicewire-relay", daemon=True).start()

    def _run(self) -> None:
        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            through = Through(self._keeper)
            await through.take(await through.put(bytes(WARM_BYTES)))  # the first time takes 100 ms longer, which a live stream would hear
            self._relay = Relay(engine_of(self._config), self._config, through)
            await self._relay.run(ready=self._listens)

        settle()
        try:
            with asyncio.Runner(loop_factory=loop_factory(self._config)) as runner:
                runner.run(serve())
            self._over = True
        except BaseException as e:
            print(f"voicewire: {e}", file=sys.stderr)
            os._exit(1)  # Ray starts another

    def _listens(self, port: int) -> None:
        self._port = port

    def status(self) -> Status | None:
        """None: it is still starting."""
        if self._relay is None or not self._port:
            return None
        if self._relay.broken:
            os._exit(1)
        r = self._relay
        return Status(f"{self._host}:{self._port}", os.getpid(), r.used, r.capacity, r.busy, r.draining, self._over)

    def drain(self) -> None:
        if self._relay:
            self._loop.call_soon_threadsafe(self._relay.drain)


def public_host(tls: bool) -> str:
    """How clients reach this machine: by the address that Ray knows it by, or, since certificates are for names, by its full name."""
    if tls:
        return socket.getfqdn()
    address: str = ray.util.get_node_ip_address()
    return f"[{address}]" if ":" in address else address
