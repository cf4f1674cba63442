"""`voicewire serve`: one process that relays many streams. Sockets and sessions on the event loop, steps on the scheduler's thread."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import os
import secrets
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from voicewire.engines.engine import WEIGHTS, Engine
from voicewire.engines.query import Query

from ..lane import Samples
from .adapters import Twilio, Vonage
from .admission import Admission
from .capacity import capacity
from .config import Config
from .connection import Connection
from .events import Adapter, ProtocolError, Reply, Start
from .gate import Gate
from .handover import Folder, Handover
from .metrics import Metrics
from .onward import Onward, Way
from .passing import PASSING
from .place import Place
from .protocol import V1, pack_voice
from .record import Recorder
from .session import Session
from .slots import FRAME_S, Delivery, Full, Scheduler, Slot, StepTime
from .tls import TlsFirst, context
from .voices import Voices

ADAPTERS: dict[str, Callable[[], Adapter]] = {"/v1/stream": V1, "/vonage": Vonage, "/twilio": Twilio}  # path → dialect (events.py says what one is)
PLAY_OUT_S = 0.010
MOVE_S = 0.1  # between streams that are asked to leave
log = logging.getLogger("voicewire.relay")


class Relay:
    """One worker. `await run(...)` serves until SIGTERM or SIGINT, then lets its streams go."""

    def __init__(self, engine: Engine, config: Config, handover: Handover | None = None) -> None:
        """handover: where streams leave for other workers, if not through the folder that the configuration names."""
        self.config, self.limits = config, config.limits
        self.sessions: dict[str, tuple[Session, Connection]] = {}
        self.admission = Admission(capacity(engine, config.max_streams, config.batching.max_batch), self.limits, self.sessions)
        self.capacity = self.admission.streams
        self.metrics = Metrics()
        self.metrics.capacity.set(self.capacity)
        self.metrics.converting_capacity.set(self.admission.converting)
        self._loop = asyncio.get_running_loop()
        self._scheduler = Scheduler(engine, self.admission.capacity.rows, self._results, config.batching, self._stepped)
        self._voices = Voices(engine, config.weights or WEIGHTS)
        self._handover = handover or (Folder(config.handover) if config.handover else None)
        self._recorder = Recorder(config.record) if config.record else None
        self._way = Way(config.onward, self.limits) if config.onward else None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._connections = 0
        self._place: Place | None = None
        self._drain = asyncio.Event()
        self._gate = Gate(
            config.door, ADAPTERS, state=self._state, room=self._room, metrics=self.metrics.text, refused=lambda r: self.metrics.refused.labels(r).inc(),
            voices=self._voices.weights, queries=self._voices.queries, talkers=len(self._voices.talkers), converts=self._voices.converts,
        )  # fmt: skip

    # -- who may come in -----------------------------------------------------------------------------------------------
    def _state(self) -> str:
        if self._scheduler.fault:
            return "the engine has failed; restart the server"
        return "this server is being emptied; connect again" if self._drain.is_set() else ""

    def _room(self, moving: bool) -> float:
        return self.admission.wait_s(self._connections, moving)

    def admit(self, session: Session, task: str) -> None:
        """ProtocolError `no_room` where a stream may not go on with another task."""
        self.admission.change(session, task)

    def _check(self, connection: ServerConnection, request: Request) -> Response | None:
        assert isinstance(connection, Connection)
        response = self._gate.check(request)
        if response is None:
            path = request.path.partition("?")[0]
            if self._way and path in PASSING:
                connection.adapter = passing = PASSING[path]()
                connection.onward = Onward(self._way, passing, connection, self._say)
            else:
                connection.adapter = ADAPTERS[path]()
        return response

    async def _handle(self, connection: ServerConnection) -> None:
        """What `websockets` runs for every connection: messages are handled as they arrive, so this only keeps time."""
        assert isinstance(connection, Connection)
        self._connections += 1
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.limits.start_timeout_s):
                    await connection.wait_closed()
            if connection.session is None:
                connection.refuse(ProtocolError("timeout", f"no start within {self.limits.start_timeout_s:.0f} s", fatal=True))
            await connection.wait_closed()
        finally:
            self._connections -= 1
            self.ended(connection)
            if connection.onward:
                await connection.onward.end()

    async def fetch(self, name: str) -> bytes:
        """What a stream that moves has left behind. ProtocolError `bad_resume`."""
        if self._handover is None:
            raise ProtocolError("bad_resume", "this server keeps no streams to resume", fatal=True)
        return await self._handover.take(name)

    def start(self, event: Start, connection: Connection, luggage: bytes | None = None) -> Session:
        """Admit a stream. ProtocolError `busy`, `draining`, `bad_resume`, `bad_voice`, `no_voices`, `bad_query` or `no_queries`."""
        if why := self._state():
            raise ProtocolError("draining", why, fatal=True)
        if self.admission.wait_s(self._connections - 1, event.resume is not None):  # it is one of them
            self.metrics.refused.labels("busy").inc()
            raise ProtocolError("busy", f"all {self.capacity} streams are taken, or this machine is too busy; come back later", fatal=True)
        name = secrets.token_hex(8)
        record = functools.partial(self._recorder.put, name) if self._recorder else None
        try:
            session = Session(name, event, connection, self._scheduler, self._voices, inside_s=self.limits.inside_s, luggage=luggage, record=record)
            if not self.admission.fits(session, session.task):
                session.close()
                raise Full
        except Full:
            self.metrics.refused.labels("busy").inc()
            raise ProtocolError("busy", "all streams that there is room for are taken; come back later", fatal=True) from None
        if self._recorder:
            self._recorder.open(name, event.rate)
        self.sessions[name] = (session, connection)
        self.metrics.begin(session)
        self._count()
        self._say("start", session=name, rate=event.rate, channels=event.channels, task=session.task, resumed=luggage is not None)
        ready = {
            "session": name, "latency_ms": round(session.latency_ms, 4), "latency_samples": session.latency_samples, "frame_ms": 1e3 * FRAME_S,
            "recorded": record is not None, "voices": self._voices.weights, "queries": self._voices.queries,
            "talkers": len(self._voices.talkers), "converts": self._voices.converts,
        }  # fmt: skip
        connection.send_reply(Reply("ready", ready))
        return session

    def ended(self, connection: Connection) -> None:
        """The connection is gone: its slot is free at once."""
        session = connection.session
        if session and self.sessions.pop(session.name, None):
            session.close()
            self.metrics.count(session, ended=True)
            self._count()
            if self._recorder:
                self._recorder.close(session.name)
            self._say("end", session=session.name, code=connection.close_code, seconds=round(time.monotonic() - session.began, 1), **vars(session.tally))

    def _count(self) -> None:
        self.metrics.streams.set(self._scheduler.used)
        self.metrics.converting.set(self.admission.taken()[1])

    # -- from the scheduler's thread -----------------------------------------------------------------------------------
    def _results(self, done: Sequence[Delivery]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed
            self._loop.call_soon_threadsafe(self._pass_on, done)

    def _pass_on(self, done: Sequence[Delivery]) -> None:
        for slot, y in done:
            if slot.open:
                try:
                    slot.deliver(y)
                except Exception as e:  # one stream's trouble is not the others'
                    self._fault_of(slot, e)
        if self._scheduler.fault:
            for session, connection in list(self.sessions.values()):
                connection.refuse(ProtocolError("internal", "the engine has failed", fatal=True))
                self._say("fault", session=session.name, error=self._scheduler.fault)

    def _fault_of(self, slot: Slot, error: Exception) -> None:
        for session, connection in list(self.sessions.values()):
            if session.has(slot):
                self.fault(connection, error)

    def _stepped(self, t: StepTime) -> None:
        self.metrics.stepped(t)
        if t.live_s > FRAME_S:
            self.admission.late()
            self.metrics.late.inc()

    # -- once a second, and at the end ---------------------------------------------------------------------------------
    async def _tick(self) -> None:
        while True:
            self._say_engine()
            self._count()
            await asyncio.sleep(1)
            now = time.monotonic()
            for session, connection in list(self.sessions.values()):
                self.metrics.count(session)
                try:
                    session.say_lag()
                    if not connection.clogged:
                        connection.send_reply(session.stats())
                except Exception as e:
                    self.fault(connection, e)
                if self.limits.session_s and now - session.began > self.limits.session_s:
                    connection.refuse(ProtocolError("too_long", f"a session may last {self.limits.session_s:.0f} s", fatal=True))
                elif now - connection.read_s > (self.limits.idle_timeout_s if session.held else self.limits.ping_s + self.limits.pong_s):
                    connection.transport.abort()  # not even an answer to a ping: nobody is there
                elif now - session.heard > self.limits.idle_timeout_s and not session.held:
                    connection.refuse(ProtocolError("idle", f"no audio for {self.limits.idle_timeout_s:.0f} s", fatal=True))
                if connection.onward:
                    connection.onward.check(now)
            if self._handover:
                try:
                    await self._handover.sweep()
                except Exception as e:  # is tried again in a second; what else this clock does must go on
                    self._say("handover", fault=f"{type(e).__name__}: {e}")

    def _say_engine(self) -> None:
        """What steps, at the start and whenever that changes: a GPU that is lost is replaced by the CPU."""
        engine = self._scheduler.engine
        if self.metrics.steps_on(engine):
            self._say("engine", name=engine.name, how=getattr(engine, "how", ""), why=list(getattr(engine, "why", ())))

    async def _play_out(self) -> None:
        """The clock of sessions whose Sounds are held back until they are due."""
        while True:
            await asyncio.sleep(PLAY_OUT_S)
            for session, connection in list(self.sessions.values()):
                if session.order.tick_s is not None:
                    try:
                        session.tick()
                    except Exception as e:
                        self.fault(connection, e)

    async def query(self, text: str) -> Query:
        """Words made ready. ProtocolError `no_queries`, `bad_query`."""
        return await self._voices.query(text)

    async def enroll(self, session: Session, connection: Connection, heard: Samples) -> None:
        """Make a voiceprint of what a stream has said and send it; nothing of it is kept here."""
        try:
            voice = await self._voices.enrol(heard, session.start.rate)
        except ProtocolError as e:
            connection.refuse(e)
        except Exception as e:
            self.fault(connection, e)
        else:
            pitch_hz = None if voice.octave is None else round(2**voice.octave, 1)
            connection.send_reply(Reply("enrolled", {"voice": pack_voice(voice.to_bytes()), "pitch_hz": pitch_hz}))
        finally:
            session.enrolling = False

    async def move(self, session: Session, connection: Connection) -> None:
        """Keep a stream's memory where another worker finds it, and tell the client its name."""
        if self._handover is None:
            connection.refuse(ProtocolError("bad_order", "this server has nowhere to keep a stream; start it with --handover", fatal=True))
            return
        try:
            name = await self._handover.put(await asyncio.to_thread(session.pack))
        except OSError as e:
            self.fault(connection, e)
            return
        connection.send_reply(Reply("moved", {"resume": name, "samples_in": session.tally.samples_in, "samples_out": session.tally.samples_out}))
        connection.close_soon(1012, "moved")

    def fault(self, connection: Connection, error: Exception) -> None:
        """A fault of ours while serving one client: log it, tell the client, go on."""
        self._say("fault", error=f"{type(error).__name__}: {error}")
        log.debug("where", exc_info=error)
        connection.refuse(ProtocolError("internal", "a fault of the server", fatal=True))

    def gone(self) -> None:
        """A connection has ended, a stream or not."""
        if self._place:
            self._place.gone()

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def draining(self) -> bool:
        return self._drain.is_set()

    @property
    def busy(self) -> bool:
        """Newcomers are refused."""
        return self._room(False) > 0

    @property
    def used(self) -> int:
        """Slots, of `capacity`: streams that convert count as what they take."""
        return self.admission.used

    @property
    def broken(self) -> str:
        """Why the engine makes no more steps, "" if it does."""
        return self._scheduler.fault

    def drain(self) -> None:
        """Admit nobody any more and ask all to leave."""
        if not self._drain.is_set():
            self._drain.set()
            self.metrics.draining.set(1)
            self._say("drain", streams=len(self.sessions), seconds=self.limits.drain_s)
            self.later(self._ask_to_leave())

    async def _ask_to_leave(self) -> None:
        """One after the other: where they go, every one costs a little work that the streams there feel."""
        end = time.monotonic() + self.limits.drain_s
        sessions = list(self.sessions.values())
        pause_s = min(MOVE_S, 0.5 * self.limits.drain_s / max(1, len(sessions)))
        for session, connection in sessions:
            if session.name in self.sessions:
                left = max(0.0, end - time.monotonic())
                connection.send_reply(Reply("goaway", {"deadline_ms": round(1e3 * left), "move": self._handover is not None}))
                await asyncio.sleep(pause_s)

    def _say(self, event: str, **fields: Any) -> None:
        """One line of JSON; never audio, tokens or addresses."""
        log.info(json.dumps({"time": round(time.time(), 3), "event": event, **fields}))

    async def run(self, place: Place | None = None, ready: Callable[[int], None] | None = None) -> None:
        """Serve on host and port of the configuration, or at a place behind a front door, until SIGTERM or `drain`. ready(port): it listens."""
        c = self.config
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ValueError, RuntimeError):  # not the main thread (tests, a worker of a cluster), or not on this system
                self._loop.add_signal_handler(number, self.drain)
        tls = context(c.certificate, c.key)
        await self._voices.prepare()
        self._place = place
        limits = self.limits
        options: dict[str, Any] = {"write_limit": limits.write_bytes, "ping_interval": limits.ping_s, "ping_timeout": None, "close_timeout": 2}

        def accept(protocol: ServerProtocol, server: Server, **more: Any) -> asyncio.Protocol:
            connection = Connection(self, protocol, server, **more)
            return connection if tls is None else TlsFirst(connection, tls, limits.start_timeout_s, self.gone)

        # with a front door, connections come from there; the library still wants to listen somewhere
        where: dict[str, Any] = {"unix": True, "path": f"\0voicewire-{os.getpid()}"} if place else {"host": c.host, "port": c.port, "backlog": 256}
        clocks = [self._loop.create_task(self._tick()), self._loop.create_task(self._play_out())]
        try:
            async with serve(
                self._handle, **where, compression=None, process_request=self._check, create_connection=accept,  # type: ignore[arg-type]
                max_size=limits.message_bytes, open_timeout=limits.start_timeout_s, server_header="voicewire", **options,
            ) as server:  # fmt: skip
                port = 0 if place else next(iter(server.sockets)).getsockname()[1]
                about = {"max_streams": self.capacity, "max_converting_streams": self.admission.converting, "token": c.door.token is not None}
                self._say("listen", port=port or c.port, pid=os.getpid(), tls=tls is not None, **about)
                if place:  # from here on the door gives us connections
                    place.serve(self._loop, self.capacity, lambda: accept(ServerProtocol(max_size=limits.message_bytes), server, **options), self.drain)
                if ready:
                    ready(port)
                await self._drain.wait()
                if place:
                    place.leave()
                server.close(close_connections=False)  # what comes now goes to others
                end = time.monotonic() + self.limits.drain_s
                while self.sessions and time.monotonic() < end:  # noqa: ASYNC110  (an event set by the last session would be one more state)
                    await asyncio.sleep(0.05)
                for _, connection in list(self.sessions.values()):
                    connection.close_soon(1001, "the server ends")
        finally:
            for clock in clocks:
                clock.cancel()
            self._scheduler.end()
            self._voices.close()
            if self._recorder:
                self._recorder.end()
            self._say("stop")
