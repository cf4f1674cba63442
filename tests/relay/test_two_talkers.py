"""The task separate over the relay: one of two unknown talkers a stream, swapped in mid-stream, after a broken connection, and what is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from relay_tools import FREE, Running, blocks, exchange, reply, say, wait_for
from voice_weights import talker

from voicewire.engines import Engine
from voicewire.engines.places import places
from voicewire.rt import Stream
from voicewire.rt.lane import to_int16
from voicewire.rt.relay.client import Client

RATE = 16000


@pytest.fixture(scope="module")
def relay(voice_engine: Engine, voice_weights: Path) -> Iterator[Running]:
    with Running(voice_engine, limits=FREE, max_streams=8, weights=voice_weights) as r:
        yield r


def two(seconds: float = 0.8) -> np.ndarray:
    return to_int16(talker(210, seconds) + talker(110, seconds))


def alone(engine: Engine, x: np.ndarray, folder: Path, first: int, then: int | None = None, at: int = 0) -> np.ndarray:
    """What a Stream makes of it, the delay left in, with its flush."""
    stream = Stream(RATE, task="separate", voice=places(folder)[first - 1], engine=engine)
    head = stream.process(x[:at])
    if then:
        stream.ask("separate", places(folder)[then - 1])
    return np.concatenate([head, stream.process(x[at:]), stream.process(np.zeros(stream.latency_samples, x.dtype))])


def test_each_talker_is_bit_equal_to_a_stream(relay: Running, voice_engine: Engine, voice_weights: Path) -> None:
    x = two()
    heard = [np.frombuffer(exchange(relay.start(live=False, **how), blocks(x)), np.int16) for how in ({"talker": 1}, {"task": "separate", "talker": 2}, {})]
    for i in (0, 1):
        assert np.array_equal(heard[i], alone(voice_engine, x, voice_weights, i + 1))
    assert not np.array_equal(heard[0], heard[1]) and not np.array_equal(heard[0], heard[2])
    messages = blocks(x)
    at = sum(len(m) for m in messages[:10]) // 2
    swapped = exchange(relay.start(live=False, talker=1), [*messages[:10], json.dumps({"event": "set", "talker": 2}), *messages[10:]])
    assert np.array_equal(np.frombuffer(swapped, np.int16), alone(voice_engine, x, voice_weights, 1, 2, at))


@pytest.mark.parametrize(
    "fields",
    [{"talker": 3}, {"talker": 0}, {"talker": "1"}, {"talker": True}, {"task": "separate"}, {"task": "restore", "talker": 1}, {"talker": 1, "query": "rain"}],
)
def test_what_is_refused(relay: Running, fields: dict[str, object]) -> None:
    ws = relay.connect()
    say(ws, event="start", rate=RATE, **fields)
    assert reply(ws, "error")["code"] == "bad_field"


def test_weights_that_separate_nobody(engine: Engine) -> None:
    with Running(engine, limits=FREE, max_streams=2) as r:
        ws = r.connect()
        say(ws, event="start", rate=RATE, talker=1)
        assert reply(ws, "error")["code"] == "no_voices"
        ws = r.connect()
        say(ws, event="start", rate=RATE)
        assert reply(ws, "ready")["talkers"] == 0


def test_the_client_asks_and_comes_again(relay: Running, voice_weights: Path) -> None:
    gains = [p.parts["gain"] for p in places(voice_weights)]

    def told(gain: np.ndarray) -> None:
        (session,) = (session for session, _ in relay.relay.sessions.values())
        assert session.task == "separate" and session._asked is not None and np.array_equal(session._asked["gain"], gain)

    async def cut(client: Client) -> None:
        before = client.reconnects
        client._socket.transport.abort()
        while client.reconnects == before:
            await client.send(two(0.02))
            await client.receive()
        assert await asyncio.to_thread(wait_for, lambda: len(relay.relay.sessions) == 1)

    async def go() -> None:
        async with Client(relay.url, RATE, task="separate", talker=2, live=False) as client:
            await cut(client)
            told(gains[1])
            await client.ask("separate", talker=1)
            await cut(client)
            told(gains[0])

    relay.close_all()
    asyncio.run(asyncio.wait_for(go(), 60))
