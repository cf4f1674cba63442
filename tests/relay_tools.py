"""A relay in a thread of the test's own process, on a real socket."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from websockets.sync.client import ClientConnection, connect

from tools.relay_peer import Wire
from voicewire.engines import Engine
from voicewire.engines.engine import F32, State
from voicewire.rt.relay.client import Client
from voicewire.rt.relay.config import Config
from voicewire.rt.relay.limits import Limits
from voicewire.rt.relay.server import Relay
from voicewire.rt.relay.workers import loop_factory

FREE = Limits(messages_per_s=1e6, late_frames=10**6)  # a test machine may be slow


class Stalls:
    """with Stalls() as stalls: …; stalls.worst_s: how much too late a thread that does nothing else was woken, at most. Says whether it was the machine."""

    def __enter__(self) -> Self:
        self.worst_s, self._ended = 0.0, threading.Event()
        self._thread = threading.Thread(daemon=True, target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        asked = time.monotonic()
        while not self._ended.wait(0.005):
            now = time.monotonic()
            self.worst_s, asked = max(self.worst_s, now - asked - 0.005), now

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


class Valve(Wire):
    """An engine that changes nothing, and stands still until it is opened, or the `with` ends."""

    def __init__(self) -> None:
        super().__init__()
        self._opened = threading.Event()

    def open(self) -> None:
        self._opened.set()

    def step(self, x: F32, state: State) -> tuple[F32, State]:
        self._opened.wait(60)
        return super().step(x, state)

    advance = step

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.open()


class Running:
    """with Running(engine, config) as r: r.url"""

    def __init__(self, engine: Engine, config: Config | None = None, **options: Any) -> None:
        self._engine, self._config = engine, config or Config(**{"port": 0, "max_streams": 8, **options})
        self._up = threading.Event()
        self._thread = threading.Thread(daemon=True, target=self._run)
        self.failed: BaseException | None = None
        self.opened: list[ClientConnection] = []

    def _run(self) -> None:
        async def main() -> None:
            self.loop = asyncio.get_running_loop()
            self.relay = Relay(self._engine, self._config)
            await self.relay.run(ready=self._ready)

        try:
            with asyncio.Runner(loop_factory=loop_factory(self._config)) as runner:  # uvloop where it is installed, as the command
                runner.run(main())
        except BaseException as e:
            self.failed = e
        self._up.set()

    def _ready(self, port: int) -> None:
        self.port = port
        self._up.set()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as a server has it; the command line sets the default, for pipes
        self._thread.start()
        assert self._up.wait(20) and self.failed is None, self.failed
        return self

    def __exit__(self, *_: object) -> None:
        self.drain(0)
        self._thread.join(20)
        assert not self._thread.is_alive() and self.failed is None, self.failed

    def end(self) -> None:
        """At once: whoever is still connected is cut off."""

        def cut() -> None:
            for _, connection in list(self.relay.sessions.values()):
                connection.transport.abort()

        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(cut)
        self.__exit__()

    def drain(self, seconds: float | None = None) -> None:
        def now() -> None:
            if seconds is not None:
                import dataclasses

                self.relay.limits = dataclasses.replace(self.relay.limits, drain_s=seconds)
            self.relay.drain()

        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(now)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/v1/stream"

    @property
    def used(self) -> int:
        return self.relay._scheduler.used

    def connect(self, **options: Any) -> ClientConnection:
        ws = connect(self.url, compression=None, proxy=None, max_size=None, **options)
        self.opened.append(ws)
        return ws

    def close_all(self) -> None:
        """Leave nothing behind for the next test."""
        while self.opened:
            self.opened.pop().close()
        assert wait_for(lambda: self.used == 0)

    def start(self, **fields: Any) -> ClientConnection:
        """A connection after `ready`."""
        ws = self.connect()
        ws.send(json.dumps({"event": "start", "rate": 16000, **fields}))
        assert json.loads(ws.recv(10))["event"] == "ready"
        return ws


def moved(engine: Engine, options: dict[str, Any], x: np.ndarray, how: dict[str, Any], ask: tuple[Any, ...]) -> tuple[np.ndarray, int]:
    """x: [n] int16 at 16 kHz through one relay and, from the middle on, another; `ask` from sample 3,200 on. → what comes back, [n], and how often it moved."""
    with Running(engine, **options) as here, Running(engine, **options) as there:

        async def go() -> tuple[np.ndarray, int]:
            async with Client(here.url, 16000, **how) as client:

                async def feed() -> None:
                    for k, block in enumerate(np.split(x, 50)):
                        if k == 10:
                            await client.ask(*ask)
                        if k == 20:
                            client._url = there.url
                            here.drain()
                            while not client.moves:  # noqa: ASYNC110
                                await asyncio.sleep(0.01)
                        await client.send(block)
                    await client.stop()

                feeding, heard = asyncio.create_task(feed()), []
                while (y := await client.receive()) is not None:
                    heard.append(y)
                await feeding
                return np.concatenate(heard)[:, 0], client.moves

        return asyncio.run(asyncio.wait_for(go(), 60))


def wait_for(what: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def reply(ws: ClientConnection, *names: str, heard: bytearray | None = None) -> dict[str, Any]:
    """The next text message with one of these names; audio before it goes to `heard`."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        message = ws.recv(10)
        if isinstance(message, bytes) and heard is not None:
            heard += message
        if isinstance(message, str) and (event := json.loads(message))["event"] in names:
            return dict(event)
    raise AssertionError(f"no {names} in half a minute")


def sound(ws: ClientConnection) -> bytes:
    """The next message of audio; `stats` may come before it."""
    while isinstance(message := ws.recv(10), str):
        pass
    return message


def exchange(ws: ClientConnection, blocks: list[bytes]) -> bytes:
    """Send all blocks and stop; → all audio that came back."""
    heard: list[bytes] = []

    def read() -> None:
        for message in ws:
            if isinstance(message, bytes):
                heard.append(message)

    reader = threading.Thread(daemon=True, target=read)
    reader.start()
    for b in blocks:
        ws.send(b)
    ws.send('{"event": "stop"}')
    reader.join(60)
    assert ws.close_code == 1000
    return b"".join(heard)


def together(talk: Callable[[int], None], n: int) -> None:
    """talk(0) … talk(n - 1), each on a thread of its own; back when all are done."""
    threads = [threading.Thread(daemon=True, target=talk, args=(i,)) for i in range(n)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()


def say(ws: ClientConnection, **event: Any) -> None:
    ws.send(json.dumps(event))


def blocks(x: np.ndarray, size: int = 320) -> list[bytes]:
    return [x[at : at + size].tobytes() for at in range(0, len(x), size)]
