"""Who is let in, and for how long: lateness, handshakes, tickets, the longest session, the longest silence."""

from __future__ import annotations

import http.client
import time
from types import SimpleNamespace
from typing import Any

import pytest
from relay_tools import FREE, Running, Valve, reply, sound, wait_for
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tools.relay_peer import Wire
from voicewire.rt.relay import admission, tickets
from voicewire.rt.relay.gate import Door
from voicewire.rt.relay.limits import Limits

pytestmark = pytest.mark.filterwarnings("ignore:.*must be used as a context manager")


class Clock:
    """time.time and time.monotonic of one module: what the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
        self.now = time.monotonic()
        monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: self.now, monotonic=lambda: self.now))


def status(port: int, path: str) -> int:
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        c.request("GET", path)
        return c.getresponse().status
    finally:
        c.close()


def refused(relay: Running) -> bool:
    with pytest.raises(InvalidStatus) as e:
        relay.connect()
    return e.value.response.status_code == 503 and b"too busy" in e.value.response.body


def test_nobody_new_comes_in_while_steps_are_late(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, admission)
    with Running(Wire(), limits=Limits(late_frames=3), max_streams=4) as r:
        inside = r.start()
        for _ in range(3):
            r.relay.admission.late()
        assert refused(r)
        with connect(f"{r.url}?move", proxy=None):  # another worker had admitted it
            pass
        inside.send(bytes(640))
        assert len(sound(inside)) == 640, "who was there already must go on"
        clock.now += admission.LATE_S + 0.1
        assert len(sound_of(r)) == 640, "five seconds later there is room again"


def sound_of(relay: Running) -> bytes:
    """Of a newcomer."""
    ws = relay.start()
    ws.send(bytes(640))
    return sound(ws)


def test_connections_that_do_not_start_are_bounded() -> None:
    with Running(Wire(), limits=Limits(handshakes=2, start_timeout_s=60), max_streams=1) as r:
        waiting = [r.connect() for _ in range(3)]
        assert wait_for(lambda: r.relay._connections == 3)
        assert refused(r)
        waiting[0].close()
        assert wait_for(lambda: r.relay._connections == 2)
        assert len(sound_of(r)) == 640, "the last that is let in may start"
        r.close_all()


def test_a_ticket_is_good_for_half_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, tickets)
    with Running(Wire(), door=Door(token="sesame", tickets=b"secret"), max_streams=1) as r:
        ticket = tickets.issue(b"secret")
        for seconds, good in ((0, True), (28, True), (31, False), (3600, False), (0, True)):
            before, clock.now = clock.now, clock.now + seconds
            assert tickets.valid(b"secret", ticket) is good, seconds
            assert status(r.port, f"/v1/where?ticket={ticket}") == (200 if good else 401), seconds
            clock.now = before


def test_a_session_may_not_last_longer_than_was_said() -> None:
    with Running(Wire(), limits=Limits(session_s=60), max_streams=2) as r:
        long, short = r.start(), r.start(rate=8000)
        (session,) = (s for s, _ in r.relay.sessions.values() if s.start.rate == 16000)
        session.began -= 61
        long.send(bytes(640))  # it goes on all the time
        assert reply(long, "error")["code"] == "too_long"
        with pytest.raises(Exception, match="1008"):
            while True:
                long.recv(10)
        short.send(bytes(320))
        assert len(sound(short)) == 320 and wait_for(lambda: r.used == 1)


def test_who_says_nothing_has_to_go_and_who_is_not_read_from_has_not() -> None:
    """A silent client that answers pings, one that talks, and a file that waits for the engine."""
    engine = Valve()
    with Running(engine, limits=Limits(idle_timeout_s=60, messages_per_s=FREE.messages_per_s), max_streams=3) as r, engine:
        clients = {rate: r.start(rate=rate, live=rate != 48000) for rate in (8000, 16000, 48000)}
        sessions = {s.start.rate: s for s, _ in r.relay.sessions.values()}
        clients[48000].send(bytes(1 << 17))  # more than a second
        assert wait_for(lambda: sessions[48000].held), "it is not read from"
        sessions[16000].heard = time.monotonic() + 60  # it talks
        sessions[8000].heard -= 61
        sessions[48000].heard -= 61
        assert reply(clients[8000], "error")["code"] == "idle"
        with pytest.raises(Exception, match="1008"):
            while True:
                clients[8000].recv(10)
        for rate in (16000, 48000):
            reply(clients[rate], "stats")
            reply(clients[rate], "stats")
        assert r.used == 2
