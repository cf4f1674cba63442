"""Clients that mean no good, or are badly written: what they do costs them, not the others."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from relay_tools import FREE, Running, reply, wait_for

from tools.relay_peer import Peer, Wire, frame
from voicewire.rt.codec_format import pack_bits
from voicewire.rt.relay import handover, send
from voicewire.rt.relay.config import Config
from voicewire.rt.relay.door import FrontDoor
from voicewire.rt.relay.limits import Limits
from voicewire.rt.relay.tokens import MOST_FRAMES, shared_engine


@pytest.fixture(scope="module")
def relay() -> Iterator[Running]:
    with Running(Wire(), Config(port=0, max_streams=4, limits=Limits(write_bytes=1 << 12))) as r:
        yield r


def test_who_asks_and_never_listens_is_cut_off(relay: Running) -> None:
    """What waits for such a client stays small, and the end comes soon."""
    peer, most = Peer(relay.port), 0
    mark = frame(json.dumps({"event": "mark", "name": "\u20ac" * 128}, ensure_ascii=False).encode(), 1)
    peer.socket.sendall(frame(b'{"event": "start", "rate": 16000}', 1))
    assert wait_for(lambda: relay.used == 1)
    ended = time.monotonic() + 60
    with pytest.raises(ConnectionError):
        while time.monotonic() < ended:
            peer.socket.sendall(mark * 20 + frame(bytes(32)))
            for _, connection in list(relay.relay.sessions.values()):
                most = max(most, connection.transport.get_write_buffer_size())
    peer.socket.close()
    assert most < 1 << 18 and wait_for(lambda: relay.used == 0)


def test_text_that_is_no_text(relay: Running) -> None:
    """A lone surrogate in JSON comes back in the reason why the connection is closed, as far as that can say it."""
    ws = relay.connect()
    ws.send('{"event": "start", "rate": 16000, "task": "\\ud800"}')
    assert reply(ws, "error")["code"] == "bad_field"
    assert wait_for(lambda: ws.close_code == 1008)


def test_a_flood_of_tokens_leaves_turns_for_others() -> None:
    """Hundreds of frames of tokens in one write are decoded a few at a time, in order, none lost; the loop answers others meanwhile."""
    codec = shared_engine()
    rng = np.random.default_rng(0)
    messages = [pack_bits(rng.integers(0, 1 << codec.config.bits, (MOST_FRAMES, codec.config.streams)), codec.config.bits) for _ in range(40)]
    with Running(Wire(), Config(port=0, max_streams=4, limits=FREE)) as relay:
        turns: list[int] = []
        peer = Peer(relay.port, timeout_s=60)
        peer.socket.sendall(frame(json.dumps({"event": "start", "rate": 16000, "format": "tokens", "weights": codec.weights, "live": False}).encode(), 1))
        assert wait_for(lambda: relay.used == 1)
        (session, connection), done = next(iter(relay.relay.sessions.values())), threading.Event()

        def turn() -> None:
            turns.append(session.tally.samples_in)
            if session.tally.samples_in < 40 * MOST_FRAMES * 320:
                relay.loop.call_soon(turn)
            else:
                done.set()

        relay.loop.call_soon_threadsafe(turn)
        peer.socket.sendall(b"".join(map(frame, messages)) + frame(b'{"event": "stop"}', 1))
        assert done.wait(60)
        steps = np.diff(turns)
        assert steps.max() <= 4 * MOST_FRAMES * 320, "another had its turn after every few messages"
        while (got := peer.message())[0] != 1 or json.loads(got[1])["event"] != "stopped":
            pass
        assert json.loads(got[1])["samples"] >= 40 * MOST_FRAMES * 320
        assert not connection._backlog


def test_a_flood_of_tokens_is_read_more_slowly() -> None:
    """A frame of tokens counts as much as ten messages of samples."""
    codec = shared_engine()
    message = pack_bits(np.zeros((MOST_FRAMES, codec.config.streams), np.int64), codec.config.bits)
    with Running(Wire(), Config(port=0, max_streams=4, limits=Limits(messages_per_s=100))) as relay:
        ws = relay.start(format="tokens", weights=codec.weights)
        (session, _), began = next(iter(relay.relay.sessions.values())), time.monotonic()
        for _ in range(6):
            ws.send(message)
        assert wait_for(lambda: session.tally.samples_in == 6 * MOST_FRAMES * 320, 60)
        assert time.monotonic() - began > 2, "600 messages' worth at 100 a second, after a burst of 200"


def test_the_folder_of_streams_on_their_way_keeps_what_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = handover.Folder(tmp_path)
    mine, inner = tmp_path / "thesis.stream", tmp_path / f"{'0' * 32}.stream"
    mine.write_bytes(b"years of work")
    inner.mkdir()  # of our name, but no file: one that cannot be removed must not keep the others
    for path in (mine, inner):
        os.utime(path, (0, 0))
    monkeypatch.setattr(handover, "MOST", 3)
    names = [asyncio.run(folder.put(b"memory")) for _ in range(6)]
    for age, name in enumerate(names):
        os.utime(tmp_path / f"{name}.stream", (time.time() - 20 + age,) * 2)
    asyncio.run(folder.sweep())
    assert mine.read_bytes() == b"years of work"
    assert {p.stem for p in tmp_path.iterdir() if p.is_file()} == {"thesis", *names[3:]}, "the newest stay"


def test_the_door_goes_on_after_a_connection_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many open files: the next one may come through."""
    door: Any = object.__new__(FrontDoor)
    given: list[int] = []

    async def use() -> None:
        loop = asyncio.get_running_loop()
        answers: list[Any] = [OSError(24, "Too many open files"), socket.socketpair()[0]]

        class Loop:
            async def sock_accept(self, _: socket.socket) -> tuple[socket.socket, None]:
                if not answers:
                    await asyncio.sleep(60)
                answer = answers.pop(0)
                if isinstance(answer, OSError):
                    raise answer
                return answer, None

        ours, theirs = socket.socketpair()
        door._loop, door._choose, door._counts = Loop(), lambda: 0, [0] * 16
        door._workers = [type("Worker", (), {"channel": ours})]
        accepting = loop.create_task(door._accept(ours))
        while not accepting.done() and door._counts == [0] * 16:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        given.append(sum(door._counts))
        accepting.cancel()
        theirs.close()

    asyncio.run(asyncio.wait_for(use(), 10))
    assert given == [1]


def test_what_goes_wrong_with_the_recording_is_what_is_told() -> None:
    """`stream_through` ends with the error of the blocks it was given, and does not wait for answers that will not come."""

    class Client:
        rate, latency_samples = 16000, 480

        async def send(self, x: np.ndarray) -> None: ...

        async def stop(self) -> None: ...

        async def receive(self) -> np.ndarray:
            await asyncio.sleep(600)
            raise AssertionError

    def blocks() -> Iterator[np.ndarray]:
        yield np.zeros((100, 1), np.float32)
        raise ValueError("the disk is gone")

    async def use() -> None:
        client: Any = Client()
        async for _ in send.stream_through(client, blocks()):
            pass

    with pytest.raises(ValueError, match="the disk is gone"):
        asyncio.run(asyncio.wait_for(use(), 20))
