"""The Python client when its connection breaks: a relay that is killed, that comes back, and that does not."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st
from relay_tools import Running, wait_for

from tools.relay_peer import Wire
from voicewire.rt.cli import main
from voicewire.rt.relay import send
from voicewire.rt.relay.client import Client, RelayError
from voicewire.rt.relay.kept import WARM_S, Block, Kept
from voicewire.rt.relay.limits import Limits

RATE, LATENCY = 16000, 480


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def voice(seconds: float) -> np.ndarray:
    """Samples that are never 0, so that silence is told from them."""
    x = np.random.default_rng(0).integers(-9000, 9000, int(seconds * RATE)).astype(np.int16)
    return np.where(x == 0, 1, x).astype(np.int16)


# -- what is sent again ------------------------------------------------------------------------------------------------


@given(
    steps=st.lists(st.tuples(st.sampled_from(["send", "hear", "break", "clear"]), st.integers(1, 700)), max_size=60),
    most_s=st.sampled_from([None, 0.5]), latency=st.sampled_from([0, 48]),
)  # fmt: skip
@settings(deadline=None, max_examples=200)
def test_what_is_heard_stays_aligned_with_what_was_sent(steps: list[tuple[str, int]], most_s: float | None, latency: int) -> None:
    """Against a relay that only delays, at 1,000 Hz: it has forgotten everything after each break."""
    rate = 1000
    kept = Kept(rate, latency, most_s)
    said: list[int] = []
    heard: list[int] = []
    answers: deque[int] = deque([0] * latency)
    clock = skip = 0

    def take(n: int) -> None:
        nonlocal skip
        got = [answers.popleft() for _ in range(min(n, len(answers)))]
        known = min(skip, len(got))
        skip -= known
        kept.heard(len(got) - known)
        heard.extend(got[known:])

    for what, n in [*steps, ("break", 0), ("hear", 10**9)]:
        if what == "send":
            block = list(range(clock + 1, clock + 1 + n))
            clock += n
            said += block
            kept.sent(Block(n, np.array(block).tobytes(), 0))
            answers += block
            assert most_s is None or kept.held_samples <= most_s * rate or n > most_s * rate
        elif what == "hear":
            take(n)
        elif what == "clear":
            kept.clear()
            kept.cleared()
            said, heard, skip = [], [], 0
            answers = deque([0] * latency)
        else:
            again = kept.again()
            heard += [0] * again.silence
            skip = again.skip
            answers = deque([0] * latency + [int(v) for block in again.blocks for v in np.frombuffer(block.payload, np.int64)])
    want = [0] * latency + said
    assert len(heard) == len(want) and all(h == w or (h == 0 and most_s) for h, w in zip(heard, want, strict=True))
    if most_s is None:
        assert kept.held_samples <= len(said) - max(0, len(heard) - latency - WARM_S * rate) + 700


def test_a_new_stream_hears_a_second_of_what_was_answered_first() -> None:
    """So that the model does not begin in the middle of a word; what it makes of that is not heard a second time."""
    kept = Kept(1000, 48)
    for at in range(0, 5000, 100):
        kept.sent(Block(100, b"", at))
    kept.heard(4048)
    again = kept.again()
    assert [block.capture_us for block in again.blocks] == list(range(3000, 5000, 100))
    assert again.silence == 0 and again.skip == 1048


# -- with a relay ------------------------------------------------------------------------------------------------------


async def talk(client: Client, x: np.ndarray, events: dict[int, Callable[[], Any]]) -> np.ndarray:
    """x in blocks of 20 ms, at the speed of sound; at block k events[k]() happens. → all that came back."""
    happening = []

    async def feed() -> None:
        for k in range(len(x) // 320):
            if k in events:
                happening.append(asyncio.create_task(asyncio.to_thread(events[k])))
            await client.send(x[k * 320 : (k + 1) * 320])
            await asyncio.sleep(0.02)
        await asyncio.gather(*happening)
        await client.stop()

    feeding = asyncio.create_task(feed())
    heard = []
    try:
        while (y := await client.receive()) is not None:
            heard.append(y)
        await feeding
    finally:
        feeding.cancel()
        await asyncio.gather(*happening)
    return np.concatenate(heard)[:, 0]


class Again:
    """A relay that can be ended, and started again on the same port."""

    def __init__(self) -> None:
        self.port = free_port()
        self.start()

    def start(self) -> None:
        self.running = Running(Wire(), port=self.port, max_streams=2)
        self.running.__enter__()

    def end(self) -> None:
        self.running.end()

    def restart(self, after_s: float = 0.0) -> None:
        self.end()
        time.sleep(after_s)
        self.start()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"


@pytest.mark.parametrize("live", [False, True])
def test_a_relay_that_comes_back_is_found_again_and_nothing_is_lost(live: bool) -> None:
    relay, said, x = Again(), list[str](), voice(3)

    async def go() -> tuple[np.ndarray, Client]:
        async with Client(relay.url, RATE, live=live, say=said.append) as client:
            return await talk(client, x, {50: relay.restart, 100: lambda: relay.restart(0.3)}), client

    try:
        y, client = asyncio.run(go())
    finally:
        relay.end()
    assert len(y) == len(x) + LATENCY
    same = y[LATENCY:] == x
    assert same.all() if not live else (same | (y[LATENCY:] == 0)).all(), "what came back is not aligned with what was sent"
    assert same[-RATE // 2 :].all()
    assert client.reconnects == 2
    assert [("connecting again" in line, "connected again after" in line) for line in said] == [(True, False), (False, True)] * 2, said


def test_a_relay_that_is_emptied_and_started_again_is_found_again() -> None:
    """SIGTERM to a lone server: `goaway`, and nowhere to go."""
    relay, said, x = Again(), list[str](), voice(2)

    def restart() -> None:
        relay.running.__exit__()
        relay.start()

    async def go() -> np.ndarray:
        async with Client(relay.url, RATE, live=False, say=said.append) as client:
            return await talk(client, x, {40: restart})

    try:
        y = asyncio.run(go())
    finally:
        relay.end()
    assert np.array_equal(y[LATENCY:], x)
    words = ("is being emptied", "connecting again", "connected again after")
    assert len(said) == 3 and all(word in line for word, line in zip(words, said, strict=True)), said


def test_a_reset_in_the_middle_of_a_timed_file_costs_nothing() -> None:
    x = voice(2)
    with Running(Wire(), max_streams=2) as r:

        def reset() -> None:
            def cut() -> None:
                for _, connection in list(r.relay.sessions.values()):
                    connection.transport.abort()

            r.loop.call_soon_threadsafe(cut)

        async def go() -> tuple[np.ndarray, Client]:
            async with Client(r.url, RATE, live=False, timed=True) as client:
                return await talk(client, x, {20: reset, 50: reset, 80: reset}), client

        y, client = asyncio.run(go())
        assert np.array_equal(y[LATENCY:], x) and client.reconnects == 3
        assert wait_for(lambda: r.used == 0)


def test_set_and_mark_outlive_the_connection() -> None:
    relay = Again()

    async def go() -> list[dict[str, Any]]:
        async with Client(relay.url, RATE) as client:
            await client.control("set", bypass=True)
            await client.send(np.zeros(320, np.int16))
            await client.receive()
            client._socket.transport.pause_reading()  # the answer to the mark does not get here
            await client.control("mark", name="here")
            await asyncio.sleep(0.1)
            await asyncio.to_thread(relay.restart)
            client._socket.transport.abort()
            while not any(e["event"] == "mark" for e in client.events):
                await client.send(np.zeros(320, np.int16))
                await client.receive()
            (session,) = (session for session, _ in relay.running.relay.sessions.values())
            assert session.bypass
            return [e for e in client.events if e["event"] == "mark"]

    try:
        assert [e["name"] for e in asyncio.run(asyncio.wait_for(go(), 30))] == ["here"]
    finally:
        relay.end()


def test_a_timed_live_stream_goes_on_where_the_relay_has_a_jitter_buffer() -> None:
    relay = Again()

    async def go() -> tuple[int, int]:
        async with Client(relay.url, RATE, timed=True) as client:
            y = await talk(client, voice(3), {40: lambda: relay.restart(0.3)})
            return len(y), client.reconnects

    try:
        heard, reconnects = asyncio.run(go())
    finally:
        relay.end()
    assert reconnects == 1 and heard > RATE


def test_patience_ends_with_one_line() -> None:
    relay = Again()

    async def go() -> None:
        async with Client(relay.url, RATE, patience_s=0.3) as client:
            await client.send(voice(0.02))
            await client.receive()
            await asyncio.to_thread(relay.end)
            with pytest.raises(RelayError, match=r"given up.*voicewire serve") as e:
                while True:
                    await client.receive()
            assert "\n" not in str(e.value)
            with pytest.raises(RelayError, match="given up"):
                await client.send(voice(0.02))

    asyncio.run(asyncio.wait_for(go(), 30))


def test_what_would_not_help_is_not_tried() -> None:
    with Running(Wire(), limits=Limits(message_bytes=1000), max_streams=2) as r:

        async def go(patience_s: float, spoil: Callable[[Client], Any]) -> str:
            said: list[str] = []
            async with Client(r.url, RATE, patience_s=patience_s, say=said.append) as client:
                spoil(client)
                await client.send(np.zeros(3000, np.int16))
                with pytest.raises(RelayError) as e:
                    while True:
                        await client.receive()
            assert not said
            return str(e.value)

        assert "ended the stream" in asyncio.run(go(30, lambda client: None))  # 1009: too long
        assert "the connection broke" in asyncio.run(go(0, lambda client: client._socket.transport.abort()))  # no patience


def test_send_goes_on_and_gives_up_with_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    relay, source, target = Again(), tmp_path / "in.wav", tmp_path / "out.wav"
    sf.write(source, voice(2), RATE, subtype="PCM_16")
    monkeypatch.setattr(send, "Client", functools.partial(Client, patience_s=20.0))

    def during(code: int, *events: Callable[[], Any]) -> None:
        def happen() -> None:
            assert wait_for(lambda: relay.running.used == 1, 20)
            time.sleep(0.5)
            for event in events:
                event()

        happening = threading.Thread(daemon=True, target=happen)
        happening.start()
        assert main(["send", str(source), str(target), "--url", relay.url, "--realtime"]) == code
        happening.join()

    try:
        during(0, relay.restart)
        assert np.array_equal(sf.read(target, dtype="int16")[0], voice(2))
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 2 and "connecting again" in lines[0] and "connected again after" in lines[1], lines
        monkeypatch.setattr(send, "Client", functools.partial(Client, patience_s=0.5))
        during(2, relay.end)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 2 and "given up" in lines[1], lines
    finally:
        relay.end()


def test_a_server_killed_and_started_again() -> None:
    """As the command line starts it, and with SIGKILL: no goodbye."""
    port, x = free_port(), voice(4)
    command = [sys.executable, "-m", "voicewire.rt", "serve", "--port", str(port), "--max-streams", "2"]
    servers: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        servers.append(subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": ".links"}))

    def kill() -> None:
        servers[-1].send_signal(signal.SIGKILL)
        servers[-1].wait()

    def kill_and_start() -> None:
        kill()
        start()

    async def go() -> tuple[np.ndarray, Client]:
        for _ in range(600):
            client = Client(f"ws://127.0.0.1:{port}", RATE, strength_db=0.0, live=False, patience_s=60.0)  # 0 dB: change nothing
            try:
                await client.__aenter__()
                break
            except RelayError:
                await asyncio.sleep(0.1)
        try:
            return await talk(client, x, {75: kill_and_start}), client
        finally:
            await client.__aexit__()

    start()
    try:
        y, client = asyncio.run(go())
    finally:
        kill()
    assert client.reconnects == 1 and len(y) == len(x) + LATENCY
    assert np.abs(y[LATENCY:].astype(int) - x).max() <= 1, "a sample was lost, doubled or changed"
