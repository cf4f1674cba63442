"""One WebSocket. Messages are handled where they arrive and answered at once, without a task or a queue for each. Whole binary messages do not go
through the library's parser, and what answers the messages of one read is one write: a tenth of the cost of `recv` and `send`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections import deque
from collections.abc import Awaitable, Iterator
from typing import TYPE_CHECKING, Any

from websockets.asyncio.server import ServerConnection
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN
from websockets.protocol import Event as Read

from ..lane import Samples
from .events import Adapter, Event, Move, ProtocolError, Reply, Set, Sound, Start
from .framing import message, whole_messages, wire_bytes
from .session import Session

if TYPE_CHECKING:
    from .onward import Onward
    from .server import Relay

READ_BYTES = 1 << 14  # a read; more would let one client's flood of small messages keep the others waiting
QUERY_MESSAGES = 20  # that words are as much work as
TEXT_BYTES = 1024  # of text are work as a message is: a voiceprint has 40 kB, and is unpacked
TURN_S = 0.005  # of one connection's messages, before the others have theirs
MOST_WAITING = 16  # times `write_bytes` may wait for somebody who reads nothing
CLOSES = {"busy": 1013, "no_bot": 1014}  # with this code where an error is fatal; others with 1008
_DATA = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)


class Connection(ServerConnection):
    """The `Line` of a session (see session.py), and the reader of its messages."""

    def __init__(self, relay: Relay, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._relay = relay
        self._parts = bytearray()  # of a message in fragments
        self._unparsed: int | None = 0  # bytes given to the library that have not become frames; None: unknown
        self._parts_text = False
        self._allowance = 2 * relay.limits.messages_per_s
        self._refilled = time.monotonic()
        self._over = self._held = False
        self._corked: list[bytes] | None = None  # answers that wait for the end of a read
        self._waiting: deque[Event] | None = None  # what came after something that is being made ready
        self._backlog: deque[tuple[bytes, bool]] = deque()  # messages that have come and whose turn it is not yet
        self._resting = False  # until `_rest` is called
        self._turn_ends = 0.0
        self.adapter: Adapter | None = None
        self.session: Session | None = None
        self.onward: Onward | None = None  # where the answers go, if not back
        self.clogged = False
        self.errors = 0
        self.read_s = time.monotonic()  # when something was read last

    # -- reading -------------------------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if hasattr(transport, "max_size"):
            transport.max_size = READ_BYTES
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self.read_s = time.monotonic()
        self._turn_ends = self.read_s + TURN_S
        if self.session is not None and self._unparsed == 0 and not self._over:
            payloads, taken = whole_messages(data, self._relay.limits.message_bytes)
            self._corked = []
            for payload in payloads:
                self._pace()
                self._message(payload, False)
            answers, self._corked = self._corked, None
            self._write(answers)
            data = data[taken:]
        if data:
            if self._unparsed is not None and self.response is not None:
                self._unparsed += len(data)
            super().data_received(data)

    def process_event(self, event: Read) -> None:
        if self._unparsed is not None and self.request is not None and isinstance(event, Frame):
            self._unparsed -= wire_bytes(event)
            # a fragment leaves the library in the middle of a message; less than nothing: we lost count, it may have all from now on
            if not event.fin or event.opcode is Opcode.CONT or self._unparsed < 0:
                self._unparsed = None
        if self.request is not None:
            self._pace()
        if self.request is None or not isinstance(event, Frame) or event.opcode not in _DATA:
            super().process_event(event)
            return
        if event.fin and event.opcode is not Opcode.CONT:
            self._message(bytes(event.data), event.opcode is Opcode.TEXT)
            return
        if event.opcode is not Opcode.CONT:
            self._parts, self._parts_text = bytearray(), event.opcode is Opcode.TEXT
        self._parts += event.data  # websockets ends the connection when they grow too long together
        if event.fin:
            whole, self._parts = bytes(self._parts), bytearray()
            self._message(whole, self._parts_text)

    def _message(self, data: bytes, text: bool) -> None:
        if self._over or self.adapter is None:
            return
        if self._resting or time.monotonic() > self._turn_ends:
            self._backlog.append((data, text))
            self._rest_for(0)
            return
        self._read(self.adapter, data, text)

    def _read(self, adapter: Adapter, data: bytes, text: bool) -> None:
        try:
            said: str | bytes = data
            if text:
                self._allowance -= len(data) / TEXT_BYTES
                try:
                    said = data.decode()
                except UnicodeDecodeError:
                    raise ProtocolError("bad_json", "a text message must be UTF-8") from None
            for event in adapter.receive(said):
                if isinstance(event, Sound) and self.session is not None:
                    self._allowance -= adapter.second_messages * len(event.samples) / self.session.start.rate
                if self._waiting is None:
                    self._take(event)
                else:
                    self._waiting.append(event)
        except ProtocolError as e:
            self.refuse(e)
        except Exception as e:
            self._relay.fault(self, e)

    def _take(self, event: Event) -> None:
        """Now it is this event's turn."""
        if self.session is None:
            if not isinstance(event, Start):
                raise ProtocolError("bad_order", "the first message must be start", fatal=True)
            if event.resume is not None:
                self._wait_for(self._resume(event, event.resume))
            elif isinstance(event.query, str):
                self._wait_for(self._make_ready(event, event.query))
            else:
                self.session = self._relay.start(event, self)
                if self.onward is not None:
                    self._wait_for(self.onward.dial())
        elif isinstance(event, Sound):
            self.session.sound(event)
        elif isinstance(event, Start):
            raise ProtocolError("bad_order", "this connection has started already")
        elif isinstance(event, Move) and not self._relay.draining:
            raise ProtocolError("bad_order", "move comes after goaway")
        elif isinstance(event, Set) and isinstance(event.query, str):
            self._wait_for(self._make_ready(event, event.query))
        else:
            self.session.control(event)

    async def _resume(self, event: Start, name: str) -> None:
        """Start where another worker left off, once its memory is here."""
        luggage = await self._relay.fetch(name)
        if not self._over:
            self.session = self._relay.start(event, self, luggage)

    async def _make_ready(self, event: Start | Set, text: str) -> None:
        """Take the event once the words in it are a `Query`."""
        self._allowance -= QUERY_MESSAGES
        query = await self._relay.query(text)
        if not self._over:
            self._take(dataclasses.replace(event, query=query))

    # -- what must be made ready first ---------------------------------------------------------------------------------
    def _wait_for(self, work: Awaitable[None]) -> None:
        """Everything that comes from now on waits for that, in its order; nothing more is read."""
        self._waiting = deque()
        self.hold(True)
        self._relay.later(self._go_on_after(work))

    async def _go_on_after(self, work: Awaitable[None]) -> None:
        with self._telling():
            await work
        waiting, self._waiting = self._waiting or deque(), None
        while waiting and self._waiting is None and not self._over:
            with self._telling():
                self._take(waiting.popleft())
        if self._waiting is not None:
            self._waiting.extend(waiting)
        elif not self._over:
            self.hold(self.session is not None and self.session.held)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """What goes wrong is told."""
        try:
            yield
        except ProtocolError as e:
            self.refuse(e)
        except Exception as e:
            self._relay.fault(self, e)

    def _pace(self, messages: int = 1) -> None:
        """Frames that come too fast are read more slowly."""
        self._allowance -= messages
        if self._allowance <= 0:
            now, most = time.monotonic(), self._relay.limits.messages_per_s
            self._allowance = max(-most, min(2 * most, self._allowance + (now - self._refilled) * most))
            self._refilled = now
            if self._allowance <= 0 and not self._resting:
                self._rest_for(0.05 - self._allowance / most)

    def _rest_for(self, seconds: float) -> None:
        """Read nothing until then; what has come waits, too."""
        if not self._resting:
            self._resting = True
            self.hold(True)
            self.loop.call_later(seconds, self._rest)

    def _rest(self) -> None:
        """A turn for what has come; then more may come."""
        self._resting = False
        self._turn_ends = time.monotonic() + TURN_S
        if self._over:
            self._backlog.clear()
        self._corked = []
        while self._backlog and self.adapter is not None and not self._resting and time.monotonic() < self._turn_ends:
            self._read(self.adapter, *self._backlog.popleft())
            self._pace(0)
        answers, self._corked = self._corked, None
        self._write(answers)
        if self._backlog:
            self._rest_for(0)
        elif not self._resting and self._waiting is None and (self.session is None or not self.session.held):
            self.hold(False)

    def refuse(self, error: ProtocolError) -> None:
        """Tell the client what was wrong; too much of it, or something fatal, ends the connection."""
        if self._over:
            return
        self.errors += 1
        self._relay.metrics.errors.labels(error.code).inc()
        if self.session:
            self.session.tally.errors = self.errors
        self.send_reply(Reply("error", {"code": error.code, "text": error.text}))
        if error.fatal:
            self.close_soon(CLOSES.get(error.code, 1008), error.text)
        elif self.session is None or self.errors >= self._relay.limits.errors:
            self.close_soon(1008, "too many errors" if self.session else error.text)

    # -- the session's line --------------------------------------------------------------------------------------------
    def send_reply(self, reply: Reply | Sound) -> None:
        if self.adapter is None or self.protocol.state is not OPEN:
            return
        if self.onward is not None:
            self.onward.send(reply)
            return
        frames = [message(m) for m in self.adapter.send(reply)]
        if self._corked is None:
            self._write(frames)
        else:
            self._corked += frames

    def _write(self, frames: list[bytes]) -> None:
        if frames and not self.transport.is_closing():
            self.transport.write(frames[0] if len(frames) == 1 else b"".join(frames))
            if self.transport.get_write_buffer_size() > MOST_WAITING * self._relay.limits.write_bytes:
                self.transport.abort()  # asks, and does not take the answers

    def hold(self, still: bool) -> None:
        self._held = still = still or ((self._waiting is not None or self._resting) and not self._over)
        self.read_s = time.monotonic()  # what came meanwhile may wait behind audio
        if not self.transport.is_closing():
            (self.transport.pause_reading if still else self.transport.resume_reading)()

    def close_soon(self, code: int, reason: str) -> None:
        if not self._over:
            self._over = True
            self.hold(False)
            self._relay.later(self.close(code, reason.encode(errors="replace")[:120].decode(errors="ignore")))

    def enroll(self, session: Session, heard: Samples) -> None:
        self._relay.later(self._relay.enroll(session, self, heard))

    def admit(self, session: Session, task: str) -> None:
        self._relay.admit(session, task)

    def leave(self, session: Session) -> None:
        self._relay.later(self._relay.move(session, self))

    # -- what the transport says ---------------------------------------------------------------------------------------
    def pause_writing(self) -> None:
        super().pause_writing()
        if self.onward is not None:
            self.onward.full(True)
        else:
            self.clogged = True

    def resume_writing(self) -> None:
        super().resume_writing()
        self.clogged = False
        if self.onward is not None:
            self.onward.full(False)
        elif self.session:
            self.session.unclogged()

    def eof_received(self) -> None:
        super().eof_received()
        self._over = True
        self._relay.ended(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._over = True
        self._relay.ended(self)
        super().connection_lost(exc)
        self._relay.gone()
