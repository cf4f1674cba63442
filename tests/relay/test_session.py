"""One client's stream: cleared while much is under way, moved with its numbers, moved twice, read slowly."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from relay_tools import FREE, Running, Valve, blocks, exchange, reply, wait_for
from websockets.sync.client import ClientConnection

from tools.relay_peer import Wire
from voicewire.engines import Engine
from voicewire.rt import Stream
from voicewire.rt.lane import to_int16
from voicewire.rt.relay.events import Clear, Reply, Sound, Start, Stop
from voicewire.rt.relay.protocol import pack_header, unpack_header
from voicewire.rt.relay.session import Session

pytestmark = pytest.mark.filterwarnings("ignore:.*must be used as a context manager")


def numbers(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-9000, 9000, int(seconds * 16000)).astype(np.int16)


# -- over real sockets -------------------------------------------------------------------------------------------------


def test_clear_forgets_what_is_under_way() -> None:
    """One frame of it is in the middle of a step, ten wait, and nothing more is read from the client."""
    engine, x = Valve(), numbers(0.5, 1)
    with Running(engine, limits=dataclasses.replace(FREE, inside_s=0.2), max_streams=2) as r, engine:
        ws = r.start(live=False)
        ws.send(numbers(0.3).tobytes())
        assert wait_for(lambda: any(s.held for s, _ in r.relay.sessions.values()) and bool(r.relay._scheduler._stepping))
        ((session, _),) = r.relay.sessions.values()
        r.loop.call_soon_threadsafe(session.control, Clear())
        assert reply(ws, "cleared")["samples"] == 4800
        assert not session.held and session._inside == 0
        engine.open()
        fresh = Stream(16000, engine=Wire())
        want = np.concatenate([fresh.process(x), fresh.process(np.zeros(480, np.int16))])
        assert np.array_equal(np.frombuffer(exchange(ws, blocks(x)), np.int16), want), "something of before came after clear"


def left(ws: ClientConnection, relay: Running, heard: list[tuple[int, bytes]]) -> str:
    """Leave a relay that is being emptied → the name to resume by; answers go to `heard`."""
    relay.drain()
    while True:
        message = ws.recv(10)
        if isinstance(message, bytes):
            heard.append((unpack_header(message)[0], message[16:]))
        elif (event := json.loads(message))["event"] == "goaway":
            ws.send('{"event": "move"}')
        elif event["event"] == "moved":
            return str(event["resume"])


@pytest.mark.parametrize("live", [False, True])
def test_answers_are_numbered_on_and_on_across_a_move(live: bool, tmp_path: Path) -> None:
    """A message that comes a second time, on the other relay, is still known there."""
    block, heard = bytes(640), list[tuple[int, bytes]]()
    with Running(Wire(), limits=FREE, handover=tmp_path) as here, Running(Wire(), limits=FREE, handover=tmp_path) as there:
        ws = here.start(header=True, live=live)
        for i in range(10):
            ws.send(pack_header(i, 20_000 * i) + block)
        name = left(ws, here, heard)
        before = len(heard)
        ws = there.start(header=True, live=live, resume=name)
        for i in range(9, 20) if not live else range(10, 20):
            ws.send(pack_header(i, 20_000 * i) + block)
        ws.send('{"event": "stop"}')
        heard += [(unpack_header(m)[0], m[16:]) for m in ws if isinstance(m, bytes)]
    assert before >= 10 and [sequence for sequence, _ in heard] == list(range(len(heard)))
    if not live:
        assert len(heard) == 21, "with the tail that stop brings"


def test_a_stream_that_moves_on_before_it_has_said_a_word(engine: Engine, noisy: np.ndarray, tmp_path: Path) -> None:
    """From one relay to another, and from there at once to a third."""
    x, heard = to_int16(noisy[:12000]), bytearray()
    want = Stream(16000, engine=engine).process(x)
    options: dict[str, Any] = {"max_streams": 1, "limits": FREE, "handover": tmp_path}
    with Running(engine, **options) as first, Running(engine, **options) as second, Running(engine, **options) as third:
        ws = first.start()
        ws.send(x[:7770].tobytes())
        for relay, following in ((first, second), (second, third)):
            relay.drain()
            reply(ws, "goaway", heard=heard)
            ws.send('{"event": "move"}')
            ws = following.start(resume=reply(ws, "moved", heard=heard)["resume"])
        heard += exchange(ws, [x[7770:].tobytes()])
    assert np.array_equal(np.frombuffer(heard, np.int16)[: len(x)], want)


# -- by itself ---------------------------------------------------------------------------------------------------------


class Line:
    """A client that takes what it is sent, or does not, and a scheduler that is never done by itself."""

    def __init__(self) -> None:
        self.clogged = self.held = False
        self.said: list[str] = []
        self.waiting: list[np.ndarray] = []

    def send_reply(self, reply: Reply | Sound) -> None:
        self.said.append(reply.name if isinstance(reply, Reply) else "sound")

    def hold(self, still: bool) -> None:
        self.held = still

    def close_soon(self, code: int, reason: str) -> None:
        self.said.append(str(code))

    def open(self, *_: Any) -> object:
        return object()

    def submit(self, slot: object, frame: np.ndarray, *_: Any) -> None:
        self.waiting.append(frame)


def session_on(line: Any, **start: Any) -> Session:
    return Session("name", Start(16000, **start), line, line, None, inside_s=0.2)  # type: ignore[arg-type]


def test_who_reads_slowly_hears_what_is_missing_before_the_end() -> None:
    line = Line()
    session = session_on(line)
    line.clogged = True
    session.sound(Sound(np.zeros((800, 1), np.int16)))
    session.control(Stop())
    while len(line.waiting) > 1:
        session.done(line.waiting.pop(0))
    assert session.tally.skipped_samples == 800 + 480 and line.said == [], "all is due, and nothing was taken"
    line.clogged = False
    session.done(line.waiting.pop())
    assert line.said == ["lag", "stopped", "1000"]


def test_a_file_is_read_no_further_until_its_answers_are_taken() -> None:
    line = Line()
    session = session_on(line, live=False)
    line.clogged = True
    session.sound(Sound(np.zeros((320 * 12, 1), np.int16)))
    assert session.held and line.held
    while line.waiting:
        session.done(line.waiting.pop(0))
    assert line.held and line.said == [], "what comes would only be kept here"
    line.clogged = False
    session.unclogged()
    assert not line.held and line.said == ["sound"]
