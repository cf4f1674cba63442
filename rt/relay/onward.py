"""`serve --onward`: calls of a telephone platform that go on to a bot. What the caller says is cleaned on the way there, and nothing else is changed.

    platform ── /twilio, /vonage ──► Connection ──► session ──► Onward ──► bot        media with another payload, words as they came, in their order
    platform ◄──────────────────────────────────── Onward ◄── bot                    frame by frame as it came

The bot's address is the operator's and the same for all calls. Each call dials it when its stream has been admitted, and ends with it.
"""

from __future__ import annotations

import asyncio
import functools
import os
import ssl
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI, WebSocketException
from websockets.frames import EXTERNAL_CLOSE_CODES, Close, CloseCode, Frame, Opcode
from websockets.protocol import OPEN, Protocol
from websockets.protocol import Event as Read
from websockets.uri import parse_uri

from ..files import InputError
from .connection import MOST_WAITING, Connection
from .dial import OPEN_S
from .events import ProtocolError, Reply, Sound
from .limits import Limits
from .passing import Passing

CLOSE_S = 2.0
DATA = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)


def check_url(url: str) -> str:
    """InputError unless that is a bot's address; the line does not repeat it, since there may be a password in it."""
    try:
        parse_uri(url)
    except (InvalidURI, ValueError):
        raise InputError("--onward must be an address like wss://bot.example/media, or wss://user:password@bot.example/media") from None
    return url


def host_of(url: str) -> str:
    """As much of an address as may be shown."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")


def farewell(wire: Protocol) -> tuple[int, str]:
    """How a connection ended, as it can be said to the other end: 1001 if that went without a word."""
    close = wire.close_rcvd or wire.close_sent or Close(CloseCode.GOING_AWAY, "")
    if close.code in EXTERNAL_CLOSE_CODES or 3000 <= close.code < 5000:
        return close.code, close.reason
    return CloseCode.NORMAL_CLOSURE, close.reason  # 1005: closed, and no code given


class Way:
    """To the bot, for all calls. url may hold a password or a token: it is neither logged nor told."""

    def __init__(self, url: str, limits: Limits) -> None:
        self.limits, self._url = limits, url
        # reading the authorities takes some 10 ms: not with every call
        self._tls: dict[str, Any] = {"ssl": ssl.create_default_context()} if urlsplit(url).scheme == "wss" else {}

    async def dial(self, call: Onward) -> Bot:
        """ProtocolError `no_bot` with the operator's reason as its cause."""
        try:
            bot = await connect(
                self._url, compression=None, proxy=None, ping_interval=self.limits.ping_s, ping_timeout=None, open_timeout=OPEN_S, close_timeout=1,
                write_limit=self.limits.write_bytes, user_agent_header="voicewire", create_connection=functools.partial(Bot, call),  # type: ignore[arg-type]
                **self._tls,
            )  # fmt: skip
        except TimeoutError:
            why = f"no answer within {OPEN_S:.0f} s"
        except InvalidStatus as e:
            why = f"it answered HTTP {e.response.status_code}"
        except ssl.SSLCertVerificationError as e:
            why = f"its certificate is not trusted ({e.verify_message}); if it is your own: SSL_CERT_FILE=its.pem"
        except ssl.SSLError as e:
            why = f"TLS with it fails ({e.reason})"
        except (InvalidHandshake, EOFError):
            why = "it does not speak WebSocket"
        except (OSError, WebSocketException) as e:
            errno, said = getattr(e, "errno", None) or 0, getattr(e, "strerror", None)  # its own text has addresses in it
            why = os.strerror(errno) if errno > 0 else said or ("it broke the connection off" if isinstance(e, ConnectionError) else "no connection")
        else:
            assert isinstance(bot, Bot)
            return bot
        raise ProtocolError("no_bot", "the bot that this server passes calls on to cannot be reached", fatal=True) from ConnectionError(why)


class Bot(ClientConnection):
    """The connection to the bot. What it says goes to the platform as it arrives, without a queue or a task in between."""

    def __init__(self, call: Onward, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._call = call
        self.read_s = time.monotonic()  # when something was read last

    def data_received(self, data: bytes) -> None:
        self.read_s = time.monotonic()
        super().data_received(data)
        if self.protocol.close_rcvd is not None:
            self._call.lost(self)

    def process_event(self, event: Read) -> None:
        if self.response is not None and isinstance(event, Frame) and event.opcode in DATA:
            self._call.said(event)
        else:
            super().process_event(event)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._call.clogged(True)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._call.clogged(False)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._call.lost(self)


class Onward:
    """One call, between its two connections. Lives on the event loop.

    A bot that reads too slowly misses media (as a slow client does), never words, until `MOST_WAITING` times `write_bytes` wait for it: then the call ends. A
    platform that reads too slowly has the bot wait. Who does not even answer pings is gone. say: writes the log.
    """

    def __init__(self, way: Way, adapter: Passing, connection: Connection, say: Callable[..., None]) -> None:
        self._way, self._adapter, self._connection, self._say = way, adapter, connection, say
        self._bot: Bot | None = None
        self._over = False
        self._clogged = False  # the bot does not take what is sent
        self._full_s: float | None = None  # since when the platform does not
        self._skipped = 0  # samples, since the log said so last
        self._why = "the bot is gone"

    @property
    def _name(self) -> str | None:
        return self._connection.session.name if self._connection.session else None

    async def dial(self) -> None:
        """ProtocolError `no_bot`."""
        try:
            bot = await self._way.dial(self)
        except ProtocolError as e:
            self._say("bot", session=self._name, error=str(e.__cause__))
            raise
        if self._over:
            await self._close(bot)
            return
        self._bot = bot
        self._hold()
        if bot.protocol.state is not OPEN:
            self.lost(bot)

    # -- to the bot ----------------------------------------------------------------------------------------------------
    def send(self, reply: Reply | Sound) -> None:
        messages = self._adapter.send(reply)
        if isinstance(reply, Sound) and self._clogged and self._connection.session:
            n, tally = len(reply.samples), self._connection.session.tally
            self._skipped += n
            tally.skipped_samples, tally.samples_out = tally.skipped_samples + n, tally.samples_out - n
            return
        for message in messages:
            self._write(message)

    def _write(self, message: str | bytes) -> None:
        bot = self._bot
        if bot is None or bot.protocol.state is not OPEN or bot.transport.is_closing():
            return
        kind, data = (Opcode.TEXT, message.encode()) if isinstance(message, str) else (Opcode.BINARY, message)
        bot.transport.write(Frame(kind, data).serialize(mask=True))
        if bot.transport.get_write_buffer_size() > MOST_WAITING * self._way.limits.write_bytes:
            self._cut("the bot does not read")

    def clogged(self, now: bool) -> None:
        self._clogged = now
        if not now and self._skipped and self._connection.session:
            self._say("bot", session=self._name, dropped_ms=round(1e3 * self._skipped / self._connection.session.start.rate, 1))
            self._skipped = 0

    # -- from the bot --------------------------------------------------------------------------------------------------
    def said(self, frame: Frame) -> None:
        if self._connection.protocol.state is OPEN and not self._connection.transport.is_closing():
            self._connection.transport.write(Frame(frame.opcode, frame.data, frame.fin).serialize(mask=False))

    def full(self, now: bool) -> None:
        """The platform takes nothing more for now, or again."""
        self._full_s = time.monotonic() if now else None
        self._hold()

    def _hold(self) -> None:
        if self._bot and not self._bot.transport.is_closing():
            self._bot.read_s = time.monotonic()
            (self._bot.transport.resume_reading if self._full_s is None else self._bot.transport.pause_reading)()

    # -- the end -------------------------------------------------------------------------------------------------------
    def check(self, now: float) -> None:
        """Once a second: whether both are still there."""
        limits = self._way.limits
        if self._full_s is not None:
            if now - self._full_s > limits.idle_timeout_s:
                self._connection.transport.abort()  # a goodbye would wait behind the rest
        elif self._bot and now - self._bot.read_s > limits.ping_s + limits.pong_s:
            self._cut("the bot is gone")

    def _cut(self, why: str) -> None:
        self._why = why
        if self._bot:
            self._bot.transport.abort()

    def lost(self, bot: Bot) -> None:
        """The bot has closed its connection, or that broke."""
        if self._over or bot is not self._bot:
            return
        self._over = True
        closed = bot.protocol.close_rcvd or bot.protocol.close_sent
        code, reason = farewell(bot.protocol) if closed else (CloseCode.BAD_GATEWAY, self._why)
        self._say("bot", session=self._name, **({"closed": int(code)} if closed else {"error": self._why}))
        self._connection.close_soon(int(code), reason)

    async def end(self) -> None:
        """The platform's connection has ended: whatever it had said before goes to the bot, then the end."""
        self._over = True
        for word in self._adapter.rest():
            self._write(word)
        if self._bot:
            await self._close(self._bot)

    async def _close(self, bot: Bot) -> None:
        try:
            async with asyncio.timeout(CLOSE_S):
                await bot.close(*farewell(self._connection.protocol))
        except TimeoutError:  # it reads nothing, not even that
            bot.transport.abort()
