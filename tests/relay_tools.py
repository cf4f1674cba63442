"""A relay in a thread of the test's own process, on a real socket, and plain sockets to torment it with."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from websockets.sync.client import ClientConnection, connect

from voicewire.engines import Engine
from voicewire.engines.engine import F32, State
from voicewire.rt.relay.server import Config, Relay


class Wire:
    """An engine that changes nothing; `seconds` a step."""

    name, weights = "wire", "wire"

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def init_state(self, batch: int, task: str = "restore") -> State:
        return {"count": np.zeros(batch, np.int64)}

    def step(self, x: F32, state: State) -> tuple[F32, State]:
        time.sleep(self.seconds)
        return x.copy(), {"count": state["count"] + 1}

    advance = step


class Running:
    """with Running(engine, config) as r: r.url"""

    def __init__(self, engine: Engine, config: Config | None = None, **options: Any) -> None:
        self._engine, self._config = engine, config or Config(**{"port": 0, "max_streams": 8, **options})
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.failed: BaseException | None = None
        self.opened: list[ClientConnection] = []

    def _run(self) -> None:
        async def main() -> None:
            self.loop = asyncio.get_running_loop()
            self.relay = Relay(self._engine, self._config)
            await self.relay.run(ready=self._ready)

        try:
            asyncio.run(main())
        except BaseException as e:
            self.failed = e
        self._up.set()

    def _ready(self, port: int) -> None:
        self.port = port
        self._up.set()

    def __enter__(self) -> Self:
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as a server has it; the command line sets the default, for pipes
        self._thread.start()
        assert self._up.wait(20) and self.failed is None, self.failed
        return self

    def __exit__(self, *_: object) -> None:
        self.drain(0)
        self._thread.join(20)
        assert not self._thread.is_alive() and self.failed is None, self.failed

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


def wait_for(what: Callable[[], bool], seconds: float = 2.0) -> bool:
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def reply(ws: ClientConnection, *names: str, heard: bytearray | None = None) -> dict[str, Any]:
    """The next text message with one of these names; audio before it goes to `heard`."""
    while True:
        message = ws.recv(10)
        if isinstance(message, bytes) and heard is not None:
            heard += message
        if isinstance(message, str) and (event := json.loads(message))["event"] in names:
            return dict(event)


def exchange(ws: ClientConnection, blocks: list[bytes]) -> bytes:
    """Send all blocks and stop; → all audio that came back."""
    heard: list[bytes] = []

    def read() -> None:
        for message in ws:
            if isinstance(message, bytes):
                heard.append(message)

    reader = threading.Thread(target=read)
    reader.start()
    for b in blocks:
        ws.send(b)
    ws.send('{"event": "stop"}')
    reader.join(60)
    assert ws.close_code == 1000
    return b"".join(heard)


def raw(port: int, path: str = "/v1/stream") -> socket.socket:
    """A plain socket after the WebSocket handshake."""
    s = socket.create_connection(("127.0.0.1", port), 5)
    s.sendall(
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += s.recv(4096)
    assert b" 101 " in answer, answer
    return s


def frame(payload: bytes, opcode: int = 2, fin: bool = True) -> bytes:
    """A client's WebSocket frame, masked."""
    n = len(payload)
    size = struct.pack(">B", 128 | n) if n < 126 else struct.pack(">BH", 254, n) if n < 65536 else struct.pack(">BQ", 255, n)
    key = b"\x12\x34\x56\x78"
    mask = np.frombuffer((key * (n // 4 + 1))[:n], np.uint8)
    return struct.pack(">B", 128 * fin | opcode) + size + key + (np.frombuffer(payload, np.uint8) ^ mask).tobytes()
