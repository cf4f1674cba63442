"""A client of `/v1/stream`: blocks of samples out, cleaned blocks back. Moves to another worker when it is asked to, and connects again when it has to.

async with Client("ws://127.0.0.1:8765", rate=16000) as client:
    await client.send(block)            # [n] or [n, channels], int16 or float32
    heard = await client.receive()      # [n, channels], or None at the end
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed
from websockets.protocol import State

from ..lane import Samples, to_float, to_int16
from .dial import AWAY, Away, RelayError, begin, dial, ended, final, reason
from .kept import Block, Kept
from .protocol import HEADER, Raw, pack_header, pack_voice

PATH = "/v1/stream"
RETRY_S, MOST_RETRY_S = 0.1, 2.0  # between two tries to connect again: the first and the longest pause
SILENT_S = 12.0  # a relay says something every second
PATIENCE_S = 30.0
LIVE_S = 3.0  # of a live stream are kept while there is no connection, and what has not been answered
CAPTURED_S = 0.5  # the same where the relay has a jitter buffer: it would drop more
NOTES = 256  # events kept for `events`


def _asked(task: str, voice: bytes | None, query: str | None, talker: int | None) -> dict[str, str | int | None]:
    return {"task": task, "voice": None if voice is None else pack_voice(voice), "query": query} | ({} if talker is None else {"talker": talker})


def _as_start(fields: dict[str, Any]) -> dict[str, Any]:
    """What a new stream is to start with after this `set`: there a voice goes with extract or convert only, a query with query, a talker with separate."""
    nothing: dict[str, Any] = {"voice": None, "query": None, "talker": None}
    wanted = {k: v for k, v in fields.items() if k not in nothing}
    for key, task in (("voice", "extract"), ("query", "query"), ("talker", "separate")):
        if fields.get(key) is not None:
            return {"task": task, **wanted, **nothing, key: fields[key]}
    # a task without any of them is the one that was asked for before, unless it is to restore
    return wanted | (nothing if wanted.get("task") == "restore" else {})


class Client:
    """One stream on a relay.

    task: "restore"; "extract" with voice, the bytes of a voiceprint file (`voicewire enroll`, or `enroll` here); "convert" with the voice of whom to speak as,
    and voice_strength, see `Stream`; "query" with query, a sound in words, and
    query_gain_db, see `Stream`; "separate" with talker, 1 or 2. `ask` changes task, voice, query and talker while the stream runs.
    live: False for files: the relay waits for a slow reader instead of skipping. timed: messages carry their time, and `delays_s` collects
    how long each took there and back. Messages of the relay that carry no sound are in `events`, the newest last. speech: the relay tells when somebody
    speaks: `speaking`, and in `events` "speech" with `on` and `sample`, counted in what `receive` gives.

    A connection that breaks is made anew, for `patience_s` after it was lost (0: never); then, or where coming again is of no use, `send` and
    `receive` raise RelayError. say(line): is told what happened. The new stream hears again what was not answered and a second before it, so that
    what is received stays aligned with what was sent. Meanwhile `send` waits; if live, it returns at once: the last 3 s are kept (0.5 s if also
    timed) and sent later, silence comes back for what is older. Live and timed streams are not aligned: there the capture time tells.
    """

    def __init__(
        self, url: str, rate: int, *, channels: int = 1, dtype: str = "int16", token: str | None = None, task: str = "restore",
        voice: bytes | None = None, query: str | None = None, talker: int | None = None, strength_db: float | None = None,
        query_gain_db: float | None = None, voice_strength: float = 1.0, live: bool = True, timed: bool = False, speech: bool = False,
        patience_s: float = PATIENCE_S,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:  # fmt: skip
        url = url.replace("http", "ws", 1) if url.startswith("http") else url if "://" in url else f"ws://{url}"
        self._url = url if url.rstrip("/").endswith(PATH) else url.rstrip("/") + PATH
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._kind = {"int16": "s16le", "float32": "f32le"}[dtype]
        self._codec, self.rate, self.channels = Raw(self._kind, channels), rate, channels
        self._timed, self._live, self._sequence = timed, live, 0
        self._aligned = not (timed and live)
        self._patience_s, self._say = patience_s, say
        self._start = {
            "event": "start", "rate": rate, "format": self._kind, "channels": channels, "strength_db": strength_db, "header": timed, "live": live,
            "query_gain_db": query_gain_db, "voice_strength": voice_strength, **_asked(task, voice, query, talker), **({"speech": True} if speech else {}),
        }  # fmt: skip
        self.events: deque[dict[str, Any]] = deque(maxlen=NOTES)
        self.delays_s: deque[float] = deque(maxlen=100_000)
        self.moves = self.reconnects = 0
        self.speaking = False
        self._received = self._origin = 0  # samples given by `receive`, and which of them is the first of the relay's stream
        self.enrolled: bytes | None = None  # a voiceprint file
        self._steady = asyncio.Event()  # cleared while the stream moves or is lost: nothing is sent meanwhile
        self._moving: asyncio.Task[None] | None = None
        self._next: ClientConnection | None = None
        self._coming: asyncio.Task[None] | None = None  # connecting again
        self._repeating: asyncio.Task[None] | None = None  # what the old stream owes is sent again
        self._marks: deque[str] = deque()  # not answered yet
        self._failed: RelayError | None = None
        self._skip = self._silence = 0
        self._trouble = ""  # what the relay said last
        self._over = self._stopping = False

    async def __aenter__(self) -> Self:
        self._socket, self.ready = await self._anew()
        self._kept = self._keep()
        self._steady.set()
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in (self._moving, self._coming, self._repeating):
            if task:
                task.cancel()
        for socket in (self._socket, self._next):
            if socket:
                await socket.close()

    @property
    def latency_samples(self) -> int:
        return int(self.ready["latency_samples"])

    async def send(self, block: Samples) -> None:
        """block: [n] or [n, channels], int16 or float32. RelayError when the relay is gone for good."""
        x = block.reshape(-1, self.channels)
        whole = self._kind == "s16le"
        if (x.dtype == np.int16) != whole:
            x = to_int16(to_float(x)[0]) if whole else to_float(x)[0]
        one = Block(len(x), self._codec.encode(x)[0], time.monotonic_ns() // 1000)
        if self._live and self._coming:
            self._kept.sent(one)
            return
        await self._may_send()
        if self._aligned:
            self._kept.sent(one)
        await self._send(self._message(one))

    async def control(self, event: str, **fields: Any) -> None:
        """`set`, `enroll`, `clear`, `mark` (see PROTOCOL.md)."""
        await self._may_send()
        if event == "set":
            self._start |= _as_start(fields)
        elif event == "mark":
            self._marks.append(fields["name"])
        elif event == "clear":
            self._kept.clear()
        await self._send(json.dumps({"event": event, **fields}))

    async def ask(self, task: str, voice: bytes | None = None, query: str | None = None, talker: int | None = None) -> None:
        """Another task, talker or sound, from the next frame that is sent on."""
        await self.control("set", **_asked(task, voice, query, talker))

    async def enroll(self, seconds: float) -> None:
        """Make a voiceprint of the next `seconds` that are sent, 1 to 30: it is in `enrolled` once `receive` has met the answer. A connection that
        breaks, or a move, takes it along: ask again where `reconnects` or `moves` has changed."""
        self.enrolled = None
        await self.control("enroll", seconds=seconds)

    async def stop(self) -> None:
        """No more audio; `receive` gives what is still inside, then None."""
        await self._may_send()
        self._stopping = True  # a stream that ends does not move any more
        await self.control("stop")

    async def receive(self) -> Samples | None:
        """The next block, [n, channels]; None after the last. RelayError when the stream broke for good."""
        while not self._over:
            if self._failed:
                raise self._failed
            if self._silence:
                silence = np.zeros((self._silence, self.channels), np.int16 if self._kind == "s16le" else np.float32)
                self._received += self._silence
                self._silence = 0
                return silence
            socket = self._socket
            try:
                message = await asyncio.wait_for(socket.recv(), SILENT_S)
            except TimeoutError:
                self._lost(socket, f"nothing has come from the relay at {self._url} for {SILENT_S:.0f} s")
            except ConnectionClosed as e:
                self._closed(socket, e)
            else:
                if isinstance(message, str):
                    await self._note(json.loads(message))
                elif len(y := self._sound(message)):
                    self._received += len(y)
                    return y
            if self._coming:
                await asyncio.shield(self._coming)
        return None

    # -- inside --------------------------------------------------------------------------------------------------------
    def _keep(self) -> Kept:
        return Kept(self.rate, self.latency_samples, (LIVE_S if self._aligned else CAPTURED_S) if self._live else None)

    async def _may_send(self) -> None:
        await self._steady.wait()
        if self._failed:
            raise self._failed

    def _message(self, block: Block) -> bytes:
        head = pack_header(self._sequence, block.capture_us) if self._timed else b""
        self._sequence += 1
        return head + block.payload

    async def _send(self, message: str | bytes) -> bool:
        """→ whether the connection stands; what is lost with it is sent again."""
        socket = self._socket
        try:
            await socket.send(message)
        except ConnectionClosed as e:
            self._closed(socket, e)
            return False
        return True

    def _sound(self, message: bytes) -> Samples:
        if self._timed:
            _, capture_us, _ = HEADER.unpack_from(message)
            if capture_us:
                self.delays_s.append(time.monotonic_ns() / 1e9 - capture_us / 1e6)
            message = message[HEADER.size :]
        y = self._codec.decode(message)
        return y[self._answered(len(y)) :]

    def _answered(self, samples: int) -> int:
        """So many came back; → how many of them had come before."""
        known = min(self._skip, samples)
        self._skip -= known
        if self._aligned:
            self._kept.heard(samples - known)
        return known

    async def _open(self, query: str = "") -> ClientConnection:
        return await dial(self._url + query, self._headers)

    async def _anew(self) -> tuple[ClientConnection, dict[str, Any]]:
        socket = await self._open()
        try:
            return socket, await begin(socket, self._start, self._url)
        except BaseException:
            await socket.close()
            raise

    async def _note(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        name = event["event"]
        if name == "speech":
            self.speaking, event["sample"] = event["on"], event["sample"] + self._origin
        elif name == "error":
            if event.get("code") not in AWAY:
                raise RelayError(f"the relay says: {event.get('text')}")
            self._trouble = str(event.get("text"))
        elif name == "stopped":
            self._over = True
        elif name == "enrolled":
            self.enrolled = base64.b64decode(event["voice"])
        elif name == "mark" and self._marks:
            self._marks.popleft()
        elif name == "cleared":
            self._kept.cleared()
            self._skip = 0
            self.speaking, self._origin = False, self._received
        elif name == "lag":
            self._origin -= event["samples"]
            self._answered(event["samples"])
        elif name == "goaway":
            if not event.get("move"):
                self._say(f"the relay at {self._url} is being emptied")
            elif self._moving is None and not self._stopping:
                self._moving = asyncio.create_task(self._prepare())
        elif name == "moved":
            await self._arrive(event["resume"])

    # -- to another worker ---------------------------------------------------------------------------------------------
    async def _prepare(self) -> None:
        """Connect to where there is room first, and leave only then: the gap is one message there and back."""
        while self._next is None:
            try:
                self._next = await self._open("?move")
            except RelayError:  # no room elsewhere yet: stay as long as we may
                if self._socket.state is not State.OPEN:
                    return
                await asyncio.sleep(RETRY_S)
        if self._stopping or not self._steady.is_set():
            return
        self._steady.clear()
        await self._send(json.dumps({"event": "move"}))

    async def _arrive(self, name: str) -> None:
        assert self._next is not None
        try:
            self.ready = await begin(
                self._next, self._start | {"resume": name, "voice": None, "query": None, "talker": None}, self._url
            )  # they come with the stream
        except RelayError as e:  # too late, or the worker there has gone, too: anew, then
            self._lost(self._socket, str(e))
            return
        self._socket, self._next, self._moving = self._next, None, None
        self.moves += 1
        self._say("the stream has moved to another worker")
        self._steady.set()

    # -- a connection that broke ---------------------------------------------------------------------------------------
    def _closed(self, socket: ClientConnection, e: ConnectionClosed) -> None:
        self._lost(socket, ended(self._url, self._trouble or reason(e)), final(e) and not self._trouble)

    def _lost(self, socket: ClientConnection, why: str, for_good: bool = False) -> None:
        """Connect again, unless that has begun or been done already."""
        if self._coming or self._failed or socket is not self._socket:
            return
        for task in (self._moving, self._repeating):
            if task and task is not asyncio.current_task():
                task.cancel()
        socket.transport.abort()
        self._trouble = ""
        self._steady.clear()
        self._coming = asyncio.create_task(self._come_again(why, for_good))

    async def _come_again(self, why: str, for_good: bool) -> None:
        try:
            if for_good or not self._patience_s:
                raise RelayError(why)
            self._say(f"{why}; connecting again")
            await self._keep_trying()
        except RelayError as e:
            self._failed = e
            self._steady.set()  # nobody need wait any more
        finally:
            self._coming = None

    async def _keep_trying(self) -> None:
        began, pause_s = time.monotonic(), RETRY_S
        if self._next:
            await self._next.close()
        self._next = self._moving = None
        while True:
            try:
                socket, self.ready = await self._anew()
                break
            except Away as e:
                if time.monotonic() - began > self._patience_s:
                    raise RelayError(f"the relay has been gone for {self._patience_s:g} s and is given up: {e}") from None
            await asyncio.sleep(pause_s * random.uniform(0.5, 1))  # all others are coming, too
            pause_s = min(2 * pause_s, MOST_RETRY_S)
        again = self._kept.again()
        if self._aligned:
            self._silence, self._skip = self._silence + again.silence, again.skip
        else:
            self._kept = self._keep()
        self.speaking, self._origin = False, self._received + self._silence - self._skip
        self.reconnects += 1
        left_out = f"; {again.silence / self.rate:.1f} s were left out" if again.silence else ""
        self._say(f"connected again after {time.monotonic() - began:.1f} s{left_out}")
        self._socket = socket
        self._repeating = asyncio.create_task(self._repeat(again.blocks))

    async def _repeat(self, blocks: list[Block]) -> None:
        """What the old stream owes, and what was captured meanwhile; then all goes on as before."""
        messages: list[str | bytes] = [self._message(block) for block in blocks]
        messages += [json.dumps({"event": "mark", "name": name}) for name in self._marks]
        if self._stopping:
            messages.append(json.dumps({"event": "stop"}))
        for message in messages:
            if not await self._send(message):
                return
        self._steady.set()
