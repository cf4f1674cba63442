"""The task query over the relay: words in `start` and `set`, made ready beside the streams, among other streams, on the way to other workers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st
from relay_tools import FREE, Running, blocks, exchange, moved, reply, say, together, wait_for
from voice_weights import talker
from websockets.exceptions import ConnectionClosed

from tools.relay_peer import Wire
from voicewire.engines import Engine, sentence
from voicewire.engines.engine import EngineError
from voicewire.engines.query import Query, ask
from voicewire.engines.voiceprint import Voiceprint
from voicewire.rt import Stream
from voicewire.rt.cli import main
from voicewire.rt.lane import to_int16
from voicewire.rt.relay.client import Client, RelayError
from voicewire.rt.relay.protocol import pack_voice

pytest.importorskip("wordllama", reason="queries in words need the extra query: pip install 'voicewire[query]'")
pytestmark = pytest.mark.filterwarnings("ignore:.*must be used as a context manager")
RATE = 16000
BELL, FAN = "a bell ringing", "an air conditioner"


def sounds(seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    """A talker and a bell, int16."""
    t = np.arange(round(seconds * rate)) / rate
    return to_int16(talker(210, seconds, rate) + (0.2 * np.sin(2 * np.pi * 900 * t)).astype(np.float32))


@pytest.fixture(scope="module")
def asked(voice_weights: Path) -> Callable[[str], dict[str, Any]]:
    """Words → what `Stream` and `Stream.ask` take."""
    made = {text: ask(text, voice_weights) for text in (BELL, FAN)}
    return lambda text: {"task": "query", "voice": made[text]}


Asked = Callable[[str], dict[str, Any]]


def alone(engine: Engine, x: np.ndarray, rate: int = RATE, changes: dict[int, dict[str, Any]] | None = None, **options: Any) -> np.ndarray:
    """What a Stream makes of it, the delay left in, with its flush. changes: {sample: what is changed there}"""
    stream, parts, at = Stream(rate, engine=engine, **options), [], 0
    for there, change in (changes or {}).items():
        parts.append(stream.process(x[at:there]))
        if "task" in change:
            stream.ask(change["task"], change.get("voice"))
        for level in {"query_gain_db", "strength_db"} & set(change):
            setattr(stream, level, change[level])
        at = there
    return np.concatenate([*parts, stream.process(x[at:]), stream.process(np.zeros(stream.latency_samples, x.dtype))])


def as_sent(how: dict[str, Any]) -> dict[str, Any]:
    """The same for the relay."""
    voice = how.get("voice")
    fields = {k: v for k, v in how.items() if k != "voice"}
    if isinstance(voice, Query):
        return fields | {"query": voice.text}
    return fields if voice is None else fields | {"voice": pack_voice(voice.to_bytes())}


def pcm(data: bytes | bytearray) -> np.ndarray:
    return np.frombuffer(bytes(data), np.int16)


@pytest.fixture(scope="module")
def relay(voice_engine: Engine, voice_weights: Path) -> Iterator[Running]:
    with Running(voice_engine, limits=FREE, max_streams=8, weights=voice_weights) as r:
        yield r


# -- the same samples --------------------------------------------------------------------------------------------------


def test_send_gives_what_file_gives(relay: Running, voice_engine: Engine, voice_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voicewire.engines.engine.open_engine", lambda name, *_: voice_engine)
    monkeypatch.setattr("voicewire.engines.query.ask", lambda text: ask(text, voice_weights))
    source, by_file, sent = (tmp_path / f"{name}.wav" for name in ("in", "file", "sent"))
    sf.write(source, sounds(), RATE)
    got = []
    for options in (["--query", BELL], ["--task", "query", "--query", FAN], ["--query", BELL, "--query-gain", "-100"], ["--query", BELL, "--query-gain", "6"]):
        assert main(["file", str(source), str(by_file), *options]) == 0
        assert main(["send", str(source), str(sent), *options, "--url", relay.url]) == 0
        assert by_file.read_bytes() == sent.read_bytes(), options
        got.append(sent.read_bytes())
    assert main(["send", str(source), str(sent), "--url", relay.url]) == 0
    assert len({*got, sent.read_bytes()}) == 5, "what was asked for made no difference"


def test_sounds_talkers_and_tasks_in_one_batch_do_not_leak(relay: Running, voice_engine: Engine, voices: tuple[Voiceprint, Voiceprint], asked: Asked) -> None:
    """Streams of all tasks, levels and rates together, some of which change what they ask for: each is bit-equal to one alone."""
    me = {"task": "extract", "voice": voices[0]}
    jobs: list[tuple[int, dict[str, Any], dict[int, dict[str, Any]]]] = [
        (RATE, asked(BELL), {}),
        (RATE, {}, {}),
        (RATE, me, {4800: asked(FAN), 8000: {"task": "restore"}}),
        (48000, asked(BELL) | {"query_gain_db": -100.0}, {}),
        (RATE, asked(FAN), {3200: asked(BELL), 6400: me, 9600: asked(BELL)}),
        (8000, {"query_gain_db": 6.0}, {1600: asked(BELL), 3200: {"query_gain_db": None}, 4800: {"query_gain_db": -20.0}}),
        (44100, me, {}),
    ]
    heard = [sounds(0.8, rate) for rate, _, _ in jobs]
    results: dict[int, bytes] = {}
    gate = threading.Barrier(len(jobs))

    def talk(i: int) -> None:
        rate, how, changes = jobs[i]
        ws, n = relay.start(rate=rate, live=False, **as_sent(how)), rate // 50
        gate.wait()
        messages: list[Any] = []
        for at in range(0, len(heard[i]), n):
            if at in changes:
                messages.append(json.dumps({"event": "set", **as_sent(changes[at])}))
            messages.append(heard[i][at : at + n].tobytes())
        results[i] = exchange(ws, messages)

    together(talk, len(jobs))
    for i, (rate, how, changes) in enumerate(jobs):
        assert np.array_equal(pcm(results[i]), alone(voice_engine, heard[i], rate, changes, **how)), f"stream {i} differs"
    plain = pcm(exchange(relay.start(), blocks(heard[1])))  # whoever gets a used row next
    assert np.array_equal(plain, alone(voice_engine, heard[1])) and not np.array_equal(plain, pcm(results[0]))


def test_audio_right_behind_start_and_clear(relay: Running, voice_engine: Engine, asked: Asked) -> None:
    """Nobody has to wait for `ready`; `clear` forgets the past and keeps the sound."""
    x = sounds(0.5)
    want = alone(voice_engine, x, **asked(BELL))
    ws = relay.connect()
    say(ws, event="start", rate=RATE, live=False, query=BELL)
    for block in blocks(x):
        ws.send(block)
    say(ws, event="mark", name="all")
    heard = bytearray()
    assert reply(ws, "ready", "error")["queries"] is True
    reply(ws, "mark", heard=heard)
    assert np.array_equal(pcm(heard), want[: len(x)])
    say(ws, event="set", task="query")  # nothing new
    say(ws, event="clear")
    reply(ws, "cleared")
    assert np.array_equal(pcm(exchange(ws, blocks(x))), want)


# -- made ready beside the streams -------------------------------------------------------------------------------------


class Slowly:
    """`ask`, as slow as the test wants it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.threads: list[str] = []
        monkeypatch.setattr("voicewire.rt.relay.voices.ask", self)

    def __call__(self, text: str, folder: Path) -> Query:
        self.threads.append(threading.current_thread().name)
        self.begun.set()
        assert self.go_on.wait(20)
        return ask(text, folder)


def test_all_that_follows_waits_and_nobody_else_does(relay: Running, voice_engine: Engine, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Audio, levels, marks and further words come into force in the order they were sent."""
    x = sounds(1.0)
    slowly = Slowly(monkeypatch)
    ws, heard = relay.start(live=False), bytearray()
    for k, block in enumerate(blocks(x)):
        if k == 10:
            say(ws, event="set", query=BELL)
            say(ws, event="mark", name="behind")
        if k == 20:
            say(ws, event="set", query=FAN, query_gain_db=-20)
            say(ws, event="set", task="restore", strength_db=12)
            say(ws, event="set", query=BELL)
        ws.send(block)
    assert slowly.begun.wait(10)
    assert len(exchange(relay.start(), blocks(x))) == 2 * len(x) + 960, "the others waited"
    assert wait_for(lambda: relay.used == 1)
    ((session, _),) = relay.relay.sessions.values()
    assert session.task == "restore" and session.tally.samples_in == 3200
    slowly.go_on.set()
    assert reply(ws, "mark", heard=heard)["name"] == "behind" and len(heard) == 6400
    say(ws, event="mark", name="all")
    reply(ws, "mark", heard=heard)
    changes = {3200: asked(BELL), 6400: asked(BELL) | {"query_gain_db": -20.0, "strength_db": 12.0}}
    assert np.array_equal(pcm(heard), alone(voice_engine, x, changes=changes)[: len(x)])
    assert len(slowly.threads) == 3 and all(name.startswith("voicewire-query") for name in slowly.threads)


@pytest.mark.parametrize("event", ["start", "set"])
def test_words_under_way_die_with_their_connection(relay: Running, monkeypatch: pytest.MonkeyPatch, event: str) -> None:
    slowly = Slowly(monkeypatch)
    ws = relay.start(live=False) if event == "set" else relay.connect()
    say(ws, event="set", query=BELL) if event == "set" else say(ws, event="start", rate=RATE, query=BELL)
    for _ in range(20):
        ws.send(bytes(640))
    assert slowly.begun.wait(10)
    if event == "set":
        ((_, connection),) = relay.relay.sessions.values()
        relay.loop.call_soon_threadsafe(connection.transport.abort)
        assert wait_for(lambda: relay.used == 0)
    else:
        ws.socket.shutdown(socket.SHUT_RDWR)
    slowly.go_on.set()
    assert wait_for(lambda: not relay.relay._tasks and relay.used == 0)
    monkeypatch.undo()
    assert len(exchange(relay.start(), [bytes(640)])) == 640 + 960


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_bad_queries_get_one_error_and_change_nothing(relay: Running, voice_engine: Engine, voices: tuple[Voiceprint, Voiceprint], asked: Asked) -> None:
    x, voice = sounds(0.4), pack_voice(voices[0].to_bytes())
    ws = relay.start(live=False, query=BELL, query_gain_db=-30)

    def refused(code: str, **fields: Any) -> str:
        say(ws, event="set", bypass=True, **fields)
        while (error := reply(ws, "error", "stats"))["event"] == "stats":
            pass
        assert error["code"] == code and "\n" not in error["text"] and len(error["text"]) < 300, (fields, error)
        return str(error["text"])

    for query in ("", " ?! ", "x" * 201, 7, ["rain"], {}, True, "half a \ud83d"):
        assert "a few words" in refused("bad_query", query=query)
    assert "takes no query" in refused("bad_query", query=FAN, task="restore")
    assert "takes no query" in refused("bad_query", query=FAN, task="extract")
    assert "takes no voice" in refused("bad_voice", voice=voice, task="query")
    assert "several tasks" in refused("bad_field", query=FAN, voice=voice)
    for gain in (-101, 25, "loud", True, float("nan")):
        assert "-100 to 24" in refused("bad_field", query_gain_db=gain)
    assert np.array_equal(pcm(exchange(ws, blocks(x))), alone(voice_engine, x, **asked(BELL), query_gain_db=-30.0))
    for fields, says in (({"task": "query"}, "send a few words as query"), ({"query": "?"}, "a few words")):
        ws = relay.connect()
        say(ws, event="start", rate=RATE, **fields)
        error = reply(ws, "error")
        assert error["code"] == "bad_query" and says in error["text"]
        with pytest.raises(Exception, match="1008"):
            ws.recv(5)
    ws = relay.start()
    assert "send a few words" in refused("bad_query", task="query")


@given(text=st.text(max_size=210))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_query_or_refused_in_one_line(text: str) -> None:
    try:
        sentence.check(text)
    except ValueError as e:
        assert "\n" not in str(e) and text not in ("rain", "a")
        return
    vector = sentence.embed([text])
    assert vector.shape == (1, sentence.SENTENCE_DIM) and np.isfinite(vector).all()


def test_without_the_package_the_server_says_what_to_install(relay: Running, voice_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """And goes on as before; a start ends."""

    def missing() -> Any:
        raise EngineError("a query in words needs WordLlama (wordllama is missing): pip install 'voicewire[query]'")

    monkeypatch.setattr(sentence, "_words", missing)
    x, ws = sounds(0.3), relay.start(live=False)
    say(ws, event="set", query=BELL, strength_db=0)
    error = reply(ws, "error")
    assert error["code"] == "bad_query" and "pip install 'voicewire[query]'" in error["text"] and "server" in error["text"]
    assert np.array_equal(pcm(exchange(ws, blocks(x))), alone(voice_engine, x))
    ws = relay.connect()
    say(ws, event="start", rate=RATE, query=BELL)
    with contextlib.suppress(ConnectionClosed):  # it may have ended before all was sent
        for block in blocks(x):
            ws.send(block)
    assert reply(ws, "error")["code"] == "bad_query"
    with pytest.raises(Exception, match="1008"):
        ws.recv(5)
    assert wait_for(lambda: relay.used == 0)


def test_what_reads_words_is_loaded_before_anybody_comes(voice_engine: Engine, voice_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second that streams would hear; and a server without the package starts all the same."""
    loaded: list[str] = []

    def missing(text: str, folder: Path) -> Any:
        loaded.append(text)
        raise EngineError("a query in words needs WordLlama")

    monkeypatch.setattr("voicewire.rt.relay.voices.ask", missing)
    with Running(voice_engine, limits=FREE, max_streams=2, weights=voice_weights) as r:
        assert len(loaded) == 1
        assert len(exchange(r.start(), [bytes(640)])) == 640 + 960


def test_weights_without_queries_say_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What is there works as before."""
    with Running(Wire(), limits=FREE, max_streams=2) as r:
        ws = r.connect()
        say(ws, event="start", rate=RATE)
        assert reply(ws, "ready")["queries"] is False
        for fields in ({"query": BELL}, {"task": "query"}):
            say(ws, event="set", **fields)
            error = reply(ws, "error")
            assert error["code"] == "no_queries" and "take no queries" in error["text"]
        say(ws, event="set", task="restore", query=None, query_gain_db=-20)
        assert len(exchange(ws, [bytes(640)])) == 640 + 960
        ws = r.connect()
        say(ws, event="start", rate=RATE, query=BELL)
        assert reply(ws, "error")["code"] == "no_queries"
        sf.write(tmp_path / "in.wav", sounds(0.1), RATE)
        paths = [str(tmp_path / "in.wav"), str(tmp_path / "out.wav"), "--url", r.url]
        for options, says in (
            (["--query", BELL], "take no queries"), (["--query", "?"], "a few words"), (["--query-gain", "-20"], "say which with --query"),
            (["--query", BELL, "--query-gain", "-200"], "-100"), (["--query", BELL, "--enroll", "me.wav"], "several"), (["--task", "query"], "no queries"),
        ):  # fmt: skip
            assert main(["send", *paths, *options]) == 2
            error_text = capsys.readouterr().err
            assert says in error_text and error_text.count("\n") == 1, options
        assert not (tmp_path / "out.wav").exists()


# -- moving, and coming again ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pending", [False, True])
def test_a_moving_stream_takes_its_sound_along(voice_engine: Engine, voice_weights: Path, asked: Asked, tmp_path: Path, pending: bool) -> None:
    """Bit for bit, with its level, also where the words were sent in the last moment."""
    x, options = sounds(1.0), {"max_streams": 2, "handover": tmp_path, "weights": voice_weights, "limits": FREE}
    last = asked(FAN if pending else BELL)
    changes = {3200: asked(BELL) | {"query_gain_db": -30.0}} | ({8000: last} if pending else {})
    want = alone(voice_engine, x, changes=changes)[: len(x)]
    with Running(voice_engine, **options) as here, Running(voice_engine, **options) as there:
        ws, heard = here.start(live=False), bytearray()
        for block in blocks(x[:3200]):
            ws.send(block)
        say(ws, event="set", query=BELL, query_gain_db=-30)
        for block in blocks(x[3200:8000]):
            ws.send(block)
        here.drain()
        reply(ws, "goaway", heard=heard)
        if pending:
            say(ws, event="set", query=FAN)
        say(ws, event="move")
        name = reply(ws, "moved", heard=heard)["resume"]
        library = Stream(RATE, engine=voice_engine, **asked(BELL), query_gain_db=-30.0)
        library.restore((tmp_path / f"{name}.stream").read_bytes())  # the library takes it, too
        assert np.array_equal(library.process(x[8000:]), want[8000:])
        ws = there.connect()
        say(ws, event="start", rate=RATE, resume=name, live=False)
        for block in blocks(x[8000:]):
            ws.send(block)  # not waiting for `ready`
        say(ws, event="mark", name="all")
        reply(ws, "mark", heard=heard)
        assert np.array_equal(pcm(heard), want)
        say(ws, event="clear")
        reply(ws, "cleared")
        assert np.array_equal(pcm(exchange(ws, blocks(x))), alone(voice_engine, x, **last, query_gain_db=-30.0))


def test_the_client_asks_and_comes_again(voice_engine: Engine, voice_weights: Path, voices: tuple[Voiceprint, Voiceprint], asked: Asked) -> None:
    """A connection that breaks: the new stream has the task and the sound of the old one, whichever way they were given."""
    gains = {text: asked(text)["voice"].parts["gain"] for text in (BELL, FAN)}
    with Running(voice_engine, max_streams=3, weights=voice_weights, limits=FREE) as r:

        def told(task: str, gain: Any = None, query_gain_db: float | None = None) -> None:
            (session,) = (session for session, _ in r.relay.sessions.values())
            assert (session.task, session.query_gain_db) == (task, query_gain_db)
            assert session._asked is None if gain is None else np.array_equal(session._asked["gain"], gain)

        async def cut(client: Client) -> None:
            before = client.reconnects
            client._socket.transport.abort()
            while client.reconnects == before:
                await client.send(sounds(0.02))
                await client.receive()
            assert await asyncio.to_thread(wait_for, lambda: len(r.relay.sessions) == 1)

        async def go() -> None:
            async with Client(r.url, RATE, task="query", query=BELL, query_gain_db=-20, live=False) as client:
                await cut(client)
                told("query", gains[BELL], -20)
                await client.ask("query", query=FAN)
                await cut(client)
                told("query", gains[FAN], -20)
                await client.control("set", query=BELL, query_gain_db=None)
                await client.ask("query")
                await cut(client)
                told("query", gains[BELL])
                await client.ask("extract", voices[0].to_bytes())
                await cut(client)
                told("extract", voices[0].parts["gain"])
                await client.control("set", query=FAN)
                await cut(client)
                told("query", gains[FAN])
                await client.ask("restore")
                await cut(client)
                told("restore")
                await client.ask("query", query="?")
                with pytest.raises(RelayError, match="a few words"):
                    while True:
                        await client.receive()

        asyncio.run(asyncio.wait_for(go(), 60))


def test_the_client_moves_with_its_sound(voice_engine: Engine, voice_weights: Path, asked: Asked, tmp_path: Path) -> None:
    x, options = sounds(1.0), {"max_streams": 2, "handover": tmp_path, "weights": voice_weights, "limits": FREE}
    y, moves = moved(voice_engine, options, x, {"live": False, "query_gain_db": -20}, ("query", None, BELL))
    assert moves == 1 and np.array_equal(y, alone(voice_engine, x, changes={3200: asked(BELL)}, query_gain_db=-20.0))
