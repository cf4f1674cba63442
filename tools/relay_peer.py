"""The other side of a relay, for its tests and measurements: plain sockets that speak just enough WebSocket, and an engine that changes nothing."""

from __future__ import annotations

import socket
import struct
import time

import numpy as np

from voicewire.engines.engine import F32, State

MASK = b"\x12\x34\x56\x78"


class Wire:
    """An engine that changes nothing; `seconds` a step."""

    name, weights = "wire", "wire"

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def init_state(self, batch: int, task: str = "restore") -> State:
        return {"count": np.zeros(batch, np.int64)}

    def step(self, x: F32, state: State) -> tuple[F32, State]:
        if self.seconds:
            time.sleep(self.seconds)
        return x, {"count": state["count"] + 1}

    advance = step


def frame(payload: bytes, opcode: int = 2, fin: bool = True) -> bytes:
    """A client's WebSocket frame, masked."""
    n = len(payload)
    size = struct.pack(">B", 128 | n) if n < 126 else struct.pack(">BH", 254, n) if n < 65536 else struct.pack(">BQ", 255, n)
    mask = np.frombuffer((MASK * (n // 4 + 1))[:n], np.uint8)
    return struct.pack(">B", 128 * fin | opcode) + size + MASK + (np.frombuffer(payload, np.uint8) ^ mask).tobytes()


class Peer:
    """A client's socket after the WebSocket handshake. ConnectionError when the server refuses or ends it."""

    def __init__(self, port: int, path: str = "/v1/stream", timeout_s: float = 10.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._data = b""
        while b"\r\n\r\n" not in self._data:
            self.fill()
        head, self._data = self._data.split(b"\r\n\r\n", 1)
        if b" 101 " not in head:
            raise ConnectionError(head.decode(errors="replace"))

    def fill(self) -> None:
        """Wait for more bytes, and keep them."""
        got = self.socket.recv(65536)
        if not got:
            raise ConnectionError("ended")
        self._data += got

    def buffered(self) -> tuple[int, bytes] | None:
        """The next frame, if it has arrived: (opcode, payload)."""
        data = self._data
        if len(data) < 2:
            return None
        n, at = data[1], 2
        if n == 126 and len(data) >= 4:
            n, at = struct.unpack(">H", data[2:4])[0], 4
        elif n == 127 and len(data) >= 10:
            n, at = struct.unpack(">Q", data[2:10])[0], 10
        if (n > 125 and at == 2) or len(data) < at + n:
            return None
        self._data = data[at + n :]
        return data[0] & 15, data[at : at + n]

    def message(self) -> tuple[int, bytes]:
        """The next frame: (opcode, payload). Waits for it."""
        while (got := self.buffered()) is None:
            self.fill()
        return got
