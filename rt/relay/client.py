"""A client of `/v1/stream`: blocks of samples out, cleaned blocks back; moves to another worker when it is asked to.

async with Client("ws://127.0.0.1:8765", rate=16000) as client:
    await client.send(block)            # [n] or [n, channels], int16 or float32
    heard = await client.receive()      # [n, channels], or None at the end
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.protocol import State

from .. import files
from ..files import InputError
from ..lane import F32, Samples, to_float, to_int16
from .protocol import HEADER, Raw, pack_header

PATH = "/v1/stream"
RETRY_S = 0.5
READY_S = 10.0
SILENT_S = 20.0  # a relay says something every second
NOTES = 256  # events kept for `events`


class RelayError(InputError):
    """The relay refused, failed or went away; the message is one line."""


class Client:
    """One stream on a relay.

    live: False for files: the relay waits for a slow reader instead of skipping. timed: messages carry their time, and `delays_s` collects
    how long each took there and back. Messages of the relay that carry no sound are in `events`, the newest last.
    """

    def __init__(
        self, url: str, rate: int, *, channels: int = 1, dtype: str = "int16", token: str | None = None, strength_db: float | None = None,
        live: bool = True, timed: bool = False,
    ) -> None:  # fmt: skip
        url = url.replace("http", "ws", 1) if url.startswith("http") else url
        self._url = url if url.rstrip("/").endswith(PATH) else url.rstrip("/") + PATH
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._kind = {"int16": "s16le", "float32": "f32le"}[dtype]
        self._codec, self.rate, self.channels = Raw(self._kind, channels), rate, channels
        self._timed, self._sequence = timed, 0
        self._start = {
            "event": "start", "rate": rate, "format": self._kind, "channels": channels, "strength_db": strength_db, "header": timed, "live": live,
        }  # fmt: skip
        self.events: deque[dict[str, Any]] = deque(maxlen=NOTES)
        self.delays_s: deque[float] = deque(maxlen=100_000)
        self.moves = 0
        self._heard: deque[Samples] = deque()
        self._steady = asyncio.Lock()  # held while the stream moves: nothing is sent meanwhile
        self._moving: asyncio.Task[None] | None = None
        self._next: ClientConnection | None = None
        self._over = self._stopping = False

    async def __aenter__(self) -> Self:
        self._socket = await self._connect()
        self.ready = await self._begin(self._socket, self._start)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._moving:
            self._moving.cancel()
        await self._socket.close()

    @property
    def latency_samples(self) -> int:
        return int(self.ready["latency_samples"])

    async def send(self, block: Samples) -> None:
        """block: [n] or [n, channels], int16 or float32. RelayError when the relay is gone."""
        x = block.reshape(-1, self.channels)
        whole = self._kind == "s16le"
        if (x.dtype == np.int16) != whole:
            x = to_int16(to_float(x)[0]) if whole else to_float(x)[0]
        payload = self._codec.encode(x)[0]
        async with self._steady:
            head = pack_header(self._sequence, time.monotonic_ns() // 1000) if self._timed else b""
            self._sequence += 1
            try:
                await self._socket.send(head + payload)
            except ConnectionClosed as e:
                raise self._gone(e) from None

    async def control(self, event: str, **fields: Any) -> None:
        """`set`, `clear`, `mark` (see PROTOCOL.md)."""
        async with self._steady:
            try:
                await self._socket.send(json.dumps({"event": event, **fields}))
            except ConnectionClosed as e:
                raise self._gone(e) from None

    async def stop(self) -> None:
        """No more audio; `receive` gives what is still inside, then None."""
        self._stopping = True  # a stream that ends does not move any more
        await self.control("stop")

    async def receive(self) -> Samples | None:
        """The next block, [n, channels]; None after the last. RelayError when the stream broke."""
        while not self._over:
            socket = self._socket
            try:
                message = await asyncio.wait_for(socket.recv(), SILENT_S)
            except TimeoutError:
                raise RelayError(f"nothing has come from the relay at {self._url} for {SILENT_S:.0f} s") from None
            except ConnectionClosed as e:
                if socket is not self._socket or (self._moving and not self._moving.done()):
                    await asyncio.sleep(0)
                    if self._moving:
                        await self._moving
                    continue
                raise self._gone(e) from None
            if isinstance(message, str):
                await self._note(json.loads(message))
                continue
            if self._timed:
                _, capture_us, _ = HEADER.unpack_from(message)
                if capture_us:
                    self.delays_s.append(time.monotonic_ns() / 1e9 - capture_us / 1e6)
                return self._codec.decode(message[HEADER.size :])
            return self._codec.decode(message)
        return None

    # -- inside --------------------------------------------------------------------------------------------------------
    async def _connect(self, query: str = "") -> ClientConnection:
        try:
            return await connect(
                self._url + query, additional_headers=self._headers, compression=None, max_size=None, max_queue=64, proxy=None, ping_interval=None
            )
        except InvalidStatus as e:
            said = " ".join((e.response.body or b"").decode(errors="replace").split())
            raise RelayError(f"{self._url} refused: {said[:200] or e}") from None
        except InvalidURI:
            raise RelayError(f"{self._url} is not an address like ws://host:8765") from None
        except ssl.SSLCertVerificationError as e:
            raise RelayError(f"the certificate of {self._url} is not trusted ({e.verify_message}); if it is your own: SSL_CERT_FILE=its.pem") from None
        except (OSError, InvalidHandshake, TimeoutError) as e:
            raise RelayError(f"no relay at {self._url} ({e}); start one: voicewire serve") from None

    async def _begin(self, socket: ClientConnection, start: dict[str, Any]) -> dict[str, Any]:
        try:
            await socket.send(json.dumps(start))
            while True:
                message = await asyncio.wait_for(socket.recv(), READY_S)
                answer: dict[str, Any] = json.loads(message) if isinstance(message, str) else {}
                if answer.get("event") == "error":
                    raise RelayError(f"the relay refused: {answer.get('text')}")
                if answer.get("event") == "ready":
                    return answer
        except ConnectionClosed as e:
            raise self._gone(e) from None
        except TimeoutError:
            raise RelayError(f"the relay at {self._url} took the connection and said nothing for {READY_S:.0f} s") from None

    async def _note(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        if event["event"] == "error":
            raise RelayError(f"the relay says: {event.get('text')}")
        if event["event"] == "stopped":
            self._over = True
        elif event["event"] == "goaway" and event.get("move") and self._moving is None and not self._stopping:
            self._moving = asyncio.create_task(self._prepare())
        elif event["event"] == "moved":
            await self._arrive(event["resume"])

    async def _prepare(self) -> None:
        """Connect to where there is room first, and leave only then: the gap is one message there and back."""
        while self._next is None:
            try:
                self._next = await self._connect("?move")
            except RelayError:  # no room elsewhere yet: stay as long as we may
                if self._socket.state is not State.OPEN:
                    return
                await asyncio.sleep(RETRY_S)
        await self._steady.acquire()
        if self._stopping:
            self._steady.release()
            await self._next.close()
            return
        await self._socket.send(json.dumps({"event": "move"}))

    async def _arrive(self, name: str) -> None:
        assert self._next is not None
        self.ready = await self._begin(self._next, self._start | {"resume": name})
        self._socket, self._next, self._moving = self._next, None, None
        self.moves += 1
        self._steady.release()

    def _gone(self, e: ConnectionClosed) -> RelayError:
        reason = e.rcvd.reason if e.rcvd else "the connection broke"
        return RelayError(f"the relay at {self._url} ended the stream: {reason or 'no reason given'}")


async def through(client: Client, x: Samples, *, block_ms: float = 20.0, realtime: bool = False, progress: Callable[[float], None] | None = None) -> Samples:
    """All of x, [n, channels], through an open client → [n, channels], the declared delay removed."""
    block = max(1, round(block_ms * client.rate / 1000))

    async def feed() -> None:
        begin = time.monotonic()
        for at in range(0, len(x), block):
            if realtime and (early := begin + min(at + block, len(x)) / client.rate - time.monotonic()) > 0:
                await asyncio.sleep(early)
            await client.send(x[at : at + block])
            if progress:
                progress(min(1.0, (at + block) / len(x)))
        await client.stop()

    feeding = asyncio.create_task(feed())
    heard = []
    try:
        while (y := await client.receive()) is not None:
            heard.append(y)
        await feeding
    finally:
        feeding.cancel()
    return np.concatenate(heard)[client.latency_samples :][: len(x)]


def send_file(source: Path, target: Path, url: str, *, token: str | None = None, realtime: bool = False, as_json: bool = False) -> int:
    """`voicewire send`: a file through a relay. InputError with one line when it cannot be done."""
    files.check_writable(target)
    x, rate, subtype = files.read(source)
    whole = subtype == "PCM_16"
    begin = time.monotonic()

    async def go() -> tuple[Samples, Client]:
        client = Client(url, rate, channels=x.shape[1], dtype="int16" if whole else "float32", token=token, live=False, timed=realtime)
        async with client:
            return await through(client, to_int16(x) if whole else x, block_ms=20 if realtime else 100, realtime=realtime), client

    y, client = asyncio.run(go())
    out: F32 = to_float(y)[0]
    files.write(target, out, rate, subtype)
    took = time.monotonic() - begin
    latency_ms: float = client.ready["latency_ms"]
    report: dict[str, Any] = {"samples": len(y), "sample_rate": rate, "seconds": round(took, 3), "latency_ms": latency_ms, "moves": client.moves}
    if client.delays_s:
        p50, p99 = np.percentile(client.delays_s, [50, 99]) * 1e3
        report |= {"there_and_back_p50_ms": round(p50, 2), "there_and_back_p99_ms": round(p99, 2), "delay_ms": round(p50 + latency_ms, 2)}
    if as_json:
        print(json.dumps(report))
    else:
        delay = f"; delay {report['delay_ms']} ms, {report['there_and_back_p50_ms']} of them there and back" if client.delays_s else ""
        print(f"{target}: {len(y) / rate:.1f} s at {rate} Hz in {took:.1f} s{delay}")
    return 0
