"""The task convert over the relay, with the weights as they come: among restoring streams, from one engine to the other, on the way to other workers."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import threading
import urllib.request
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from relay_tools import FREE, Running, blocks, exchange, moved, reply, say, together, wait_for

from tools.relay_peer import Wire
from voicewire.engines import Engine, open_engine
from voicewire.engines.convert_engine import GRAPH, ConvertEngine
from voicewire.engines.converting import Converting
from voicewire.engines.engine import CONVERT_WEIGHTS, TASK_WEIGHTS
from voicewire.engines.voiceprint import Voiceprint, enrol, fits_conversion
from voicewire.rt import Stream
from voicewire.rt.cli import main
from voicewire.rt.lane import to_int16
from voicewire.rt.relay.capacity import Capacity, Load
from voicewire.rt.relay.client import Client, RelayError
from voicewire.rt.relay.protocol import pack_voice

pytestmark = [
    pytest.mark.skipif(not (CONVERT_WEIGHTS / GRAPH).exists(), reason="no converter weights here: they lie in the repository, not in wheels"),
    pytest.mark.filterwarnings("ignore:.*must be used as a context manager"),
]
RATE = 16000
OPTIONS: dict[str, Any] = {"limits": FREE, "weights": TASK_WEIGHTS, "converter": CONVERT_WEIGHTS}
Voices = tuple[Voiceprint, Voiceprint]


@pytest.fixture(scope="module")
def main_engine() -> Engine:
    return open_engine("onnx", TASK_WEIGHTS)


@pytest.fixture(scope="module")
def converter() -> ConvertEngine:
    return ConvertEngine(CONVERT_WEIGHTS)


@pytest.fixture(scope="module")
def both(main_engine: Engine, converter: ConvertEngine) -> Converting:
    return Converting(main_engine, converter)


@pytest.fixture(scope="module")
def relay(both: Converting) -> Iterator[Running]:
    with Running(both, max_streams=8, **OPTIONS) as r:
        yield r


@pytest.fixture(scope="module")
def them(clean: np.ndarray, converter: ConvertEngine) -> Voices:
    """Another reader, and this one."""
    with as_file(files("voicewire.rt") / "samples" / "other_enrol.flac") as path:
        other = sf.read(path, dtype="float32")[0]
    return enrol(other, RATE, converter=converter), enrol(clean, RATE, converter=converter)


def said(clean: np.ndarray, seconds: float, rate: int = RATE) -> np.ndarray:
    """The reader, int16; at other rates faster or slower, and with something above 8 kHz."""
    x = clean[8000 : 8000 + round(seconds * rate)]
    return to_int16(x + 0.003 * np.random.default_rng(0).standard_normal(len(x)).astype(np.float32))


def asks(voice: Voiceprint, task: str = "convert", **more: Any) -> dict[str, Any]:
    return {"task": task, "voice": pack_voice(voice.to_bytes()), **more}


def pcm(data: bytes | bytearray) -> np.ndarray:
    return np.frombuffer(bytes(data), np.int16)


class Twin:
    """What streams make of it, the delay left in: one of each engine, that hand over the samples at the edge where the task asks for the other."""

    def __init__(self, main_engine: Engine, converter: ConvertEngine, rate: int = RATE, **options: Any) -> None:
        self._of = lambda task: converter if task == "convert" else main_engine
        self._rate = rate
        self.stream = Stream(rate, engine=self._of(options.get("task")), **options)

    def ask(self, task: str, voice: Voiceprint | None = None, voice_strength: float = 1.0) -> None:
        if self._of(task) is self.stream.engine:
            self.stream.ask(task, voice)
            self.stream.voice_strength = voice_strength
            return
        before = self.stream
        self.stream = after = Stream(self._rate, task=task, voice=voice, voice_strength=voice_strength, engine=self._of(task))
        after._tail, after._overlap, after._lane = before._tail, before._overlap, before._lane

    def through(self, x: np.ndarray, changes: dict[int, tuple[Any, ...]] | None = None) -> np.ndarray:
        """With its flush. changes: {sample: what is asked for there}"""
        parts, at = [], 0
        for there, what in (changes or {}).items():
            parts.append(self.stream.process(x[at:there]))
            self.ask(*what)
            at = there
        return np.concatenate([*parts, self.stream.process(x[at:]), self.stream.process(np.zeros(self.stream.latency_samples, x.dtype))])


# -- the same samples --------------------------------------------------------------------------------------------------


def test_send_gives_what_file_gives(relay: Running, clean: np.ndarray, them: Voices, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a voiceprint file, of a recording, and half of the way."""
    source, by_file, sent = (tmp_path / f"{name}.wav" for name in ("in", "file", "sent"))
    sf.write(source, said(clean, 1.5), RATE)
    sf.write(tmp_path / "them.wav", clean[::-1], RATE)
    (tmp_path / "them.voice").write_bytes(them[0].to_bytes())
    got = []
    for more in (["them.voice"], ["them.wav"], ["them.voice", "--voice-strength", "0.5"]):
        options = ["--task", "convert", "--enroll", str(tmp_path / more[0]), *more[1:]]
        assert main(["file", str(source), str(by_file), *options]) == 0
        assert main(["send", str(source), str(sent), *options, "--url", relay.url, "--json"]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["latency_ms"] == 30
        assert by_file.read_bytes() == sent.read_bytes(), more
        got.append(sent.read_bytes())
    assert main(["send", str(source), str(sent), "--url", relay.url]) == 0
    assert len({*got, sent.read_bytes()}) == 4, "whom to speak as made no difference"


def test_converting_streams_beside_others_do_not_leak(relay: Running, main_engine: Engine, converter: ConvertEngine, clean: np.ndarray, them: Voices) -> None:
    """Streams of both engines and several rates together, some of which go from one to the other: each is bit-equal to one alone."""
    one, two = them
    jobs: list[tuple[int, dict[str, Any], dict[int, tuple[Any, ...]]]] = [
        (RATE, {"task": "convert", "voice": one}, {}),
        (RATE, {}, {}),
        (RATE, {"task": "convert", "voice": two}, {4800: ("convert", one), 9600: ("convert", one, 0.3)}),
        (48000, {"task": "convert", "voice": one, "voice_strength": 0.5}, {}),
        (RATE, {}, {3200: ("convert", two), 6400: ("extract", one), 9600: ("convert", one, 0.6)}),
        (8000, {"task": "convert", "voice": two}, {1600: ("restore",), 3200: ("convert", one)}),
        (RATE, {"task": "extract", "voice": one}, {}),
        (44100, {"strength_db": 6.0}, {}),
    ]
    sounds = [said(clean, 0.8, rate) for rate, _, _ in jobs]
    results: dict[int, bytes] = {}
    gate = threading.Barrier(len(jobs))

    def talk(i: int) -> None:
        rate, options, changes = jobs[i]
        start = {k: v for k, v in options.items() if k != "voice"} | ({"voice": pack_voice(options["voice"].to_bytes())} if "voice" in options else {})
        ws = relay.start(rate=rate, live=False, **start)
        gate.wait()
        messages: list[Any] = []
        for at in range(0, len(sounds[i]), rate // 50):
            if at in changes:
                task, *rest = changes[at]
                fields = asks(rest[0], task) if rest else {"task": task}
                messages.append(json.dumps({"event": "set", "voice_strength": rest[1] if len(rest) > 1 else 1, **fields}))
            messages.append(sounds[i][at : at + rate // 50].tobytes())
        results[i] = exchange(ws, messages)

    together(talk, len(jobs))
    for i, (rate, options, changes) in enumerate(jobs):
        assert np.array_equal(pcm(results[i]), Twin(main_engine, converter, rate, **options).through(sounds[i], changes)), f"stream {i} differs"
    plain = pcm(exchange(relay.start(), blocks(sounds[1])))  # whoever gets a used row next
    assert np.array_equal(plain, Twin(main_engine, converter).through(sounds[1])) and not np.array_equal(plain, pcm(results[0]))


def test_how_far_to_go_and_clear(relay: Running, main_engine: Engine, converter: ConvertEngine, clean: np.ndarray, them: Voices) -> None:
    """How far to go can be set by itself; `clear` keeps it and the voice; bypass gives the input; the level to take away at most means nothing."""
    x = said(clean, 0.6)
    ws = relay.start(live=False, strength_db=3, **asks(them[0]))
    for block in blocks(x[:3200]):
        ws.send(block)
    say(ws, event="set", voice_strength=0.25, strength_db=12)
    say(ws, event="set", task="convert")  # changes nothing
    y = bytearray()
    for block in blocks(x[3200:]):
        ws.send(block)
    say(ws, event="mark", name="all")
    assert reply(ws, "mark", "error", heard=y)["event"] == "mark"
    want = Twin(main_engine, converter, task="convert", voice=them[0]).through(x, {3200: ("convert", them[0], 0.25)})
    assert np.array_equal(pcm(y), want[: len(x)])
    say(ws, event="clear")
    reply(ws, "cleared")
    say(ws, event="set", bypass=True)
    heard = pcm(exchange(ws, [*blocks(x), json.dumps({"event": "set", "bypass": False}), *blocks(x)]))
    twin = Twin(main_engine, converter, task="convert", voice=them[0], voice_strength=0.25)
    twin.stream.bypass = True
    first = twin.stream.process(x)
    twin.stream.bypass = False
    assert np.array_equal(heard, np.concatenate([first, twin.through(x)]))


# -- enrolment ---------------------------------------------------------------------------------------------------------


def test_the_server_makes_the_voiceprint_to_speak_as(relay: Running, main_engine: Engine, converter: ConvertEngine, clean: np.ndarray) -> None:
    me, x = to_int16(clean[: 3 * RATE]), said(clean, 0.4)
    ws = relay.connect()
    say(ws, event="start", rate=RATE, live=False)
    ready = reply(ws, "ready")
    assert ready["converts"] == fits_conversion() == ready["voices"] and (ready["latency_ms"], ready["latency_samples"]) == (30, 480)
    say(ws, event="enroll", seconds=3)
    for block in blocks(me):
        ws.send(block)
    enrolled = reply(ws, "enrolled")
    made = Voiceprint.from_bytes(base64.b64decode(enrolled["voice"]), ready["converts"])
    assert made.octave and enrolled["pitch_hz"] == round(2**made.octave, 1)
    say(ws, event="set", task="convert", voice=enrolled["voice"])
    heard = bytearray()
    for block in blocks(x):
        ws.send(block)
    say(ws, event="mark", name="all")
    reply(ws, "mark", heard=heard)
    want = Twin(main_engine, converter).through(np.concatenate([me, x]), {len(me): ("convert", made)})
    assert np.array_equal(pcm(heard[-2 * len(x) :]), want[len(me) : len(me) + len(x)])


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_what_cannot_be_spoken_as(relay: Running, main_engine: Engine, converter: ConvertEngine, clean: np.ndarray, them: Voices) -> None:
    """In `set`, where the stream goes on as it was, and in `start`, where it ends."""
    x = said(clean, 0.4)
    pitchless, foreign = (dataclasses.replace(them[1], **change) for change in ({"octave": None}, {"weights": "0" * 16}))
    refused: list[tuple[dict[str, Any], str, str]] = [
        ({"task": "convert"}, "bad_voice", "needs a voiceprint"),
        (asks(pitchless), "bad_voice", "does not know how high that voice is"),
        (asks(foreign), "bad_voice", "another model"),
        ({"task": "convert", "voice": pack_voice(b"no voice")}, "bad_voice", "not a voicewire voiceprint"),
        ({"task": "convert", "query": "the rain"}, "bad_query", "takes no query"),
        ({"task": "convert", "talker": 1}, "bad_field", "takes no talker"),
        *((asks(them[0], voice_strength=s), "bad_field", "voice_strength must be null or a number from 0 to 1") for s in (-0.1, 1.5, "much", True)),
    ]
    ws = relay.start(live=False, **asks(them[0], "extract"))
    for fields, code, says in refused:
        say(ws, event="set", bypass=True, **fields)
        error = reply(ws, "error")
        assert error["code"] == code and says in error["text"] and "\n" not in error["text"], error
        closed = relay.connect()
        say(closed, event="start", rate=RATE, **fields)
        assert reply(closed, "error")["code"] == code
        with pytest.raises(Exception, match="1008"):
            closed.recv(5)
    heard = pcm(exchange(ws, blocks(x)))
    assert np.array_equal(heard, Twin(main_engine, converter, task="extract", voice=them[0]).through(x))


def test_a_server_without_the_converter_says_so(
    main_engine: Engine, clean: np.ndarray, them: Voices, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sf.write(tmp_path / "in.wav", said(clean, 0.1), RATE)
    (tmp_path / "them.voice").write_bytes(them[0].to_bytes())
    with Running(main_engine, weights=TASK_WEIGHTS, limits=FREE, max_streams=2) as r:
        ws = r.connect()
        say(ws, event="start", rate=RATE)
        assert reply(ws, "ready")["converts"] is None
        say(ws, event="set", **asks(them[0]))
        assert reply(ws, "error")["code"] == "no_converter"
        assert len(exchange(ws, [bytes(640)])) == 640 + 960
        options = ["--task", "convert", "--enroll", str(tmp_path / "them.voice")]
        assert main(["send", str(tmp_path / "in.wav"), str(tmp_path / "out.wav"), *options, "--url", r.url]) == 2
        error = capsys.readouterr().err
        assert "converts no voices; start it with --tasks" in error and error.count("\n") == 1
        assert main(["send", str(tmp_path / "in.wav"), str(tmp_path / "out.wav"), *options, "--voice-strength", "3", "--url", r.url]) == 2
        assert "voice_strength must be from 0" in capsys.readouterr().err


# -- who may come in ---------------------------------------------------------------------------------------------------


def test_shares_of_both_kinds_add_up() -> None:
    """The first stream of an engine takes more than each further one; as many as were measured fit, and not one more."""
    room = Capacity(Load(10, 0.2), Load(41, 0.2))
    assert room.rows == 41
    assert room.fits(10, 0) and not room.fits(11, 0) and room.fits(0, 41) and not room.fits(0, 42)
    assert room.fits(1, 31) and not room.fits(1, 32)  # 0.2 and 0.2 + 30 * 0.02
    assert room.fits(5, 13) and not room.fits(5, 14) and room.fits(6, 8) and not room.fits(6, 9)
    assert Load(1, 0.4).of(1) == 0.4 and Load(1, 0.4).of(2) > 1
    told = Capacity(Load(3, 1 / 3), Load(3, 1 / 3))
    assert all(told.fits(others, 3 - others) and not told.fits(others, 4 - others) for others in range(4))
    assert not Capacity(Load(3, 1 / 3)).fits(4, 0)


def test_admission_counts_what_streams_take(converter: ConvertEngine, them: Voices, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two plain streams fill this server, or four that convert; a stream that asks for another task in between needs room for it."""
    monkeypatch.setattr("voicewire.rt.relay.server.capacity", lambda *_: Capacity(Load(2, 0.5), Load(4, 0.25)))
    with Running(Converting(Wire(), converter), limits=FREE) as r:
        converting = [r.start(**asks(them[0])) for _ in range(2)]
        early = r.connect()
        plain = r.start()
        with pytest.raises(Exception, match="503"):
            r.connect()
        say(early, event="start", rate=RATE, **asks(them[0]))
        assert reply(early, "error")["code"] == "busy"
        say(converting[0], event="set", task="restore")
        error = reply(converting[0], "error")
        assert error["code"] == "no_room" and "goes on as it was" in error["text"]
        assert [s.task for s, _ in r.relay.sessions.values()].count("convert") == 2 and r.relay.used == 2

        def shown() -> list[float]:
            text = urllib.request.urlopen(f"http://127.0.0.1:{r.port}/metrics").read().decode()
            values = {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if line[0] != "#"}
            return [values[f"voicewire_{name}"] for name in ("streams", "streams_max", "converting_streams", "converting_streams_max")]

        assert shown() == [3, 2, 2, 4]
        plain.close()
        assert wait_for(lambda: r.used == 2)
        early = r.connect()  # through the door: there is room for one that converts, or a plain one
        say(converting[0], event="set", task="restore")
        assert wait_for(lambda: shown() == [2, 2, 1, 4], 5)
        say(early, event="start", rate=RATE)
        assert reply(early, "error")["code"] == "busy"
        last = r.start(**asks(them[0]))
        assert r.relay.used == 2 and shown() == [3, 2, 2, 4]
        say(converting[0], event="set", **asks(them[0]))
        assert wait_for(lambda: shown() == [3, 2, 3, 4], 5) and r.relay.used == 2
        assert len(exchange(last, [bytes(640)])) == len(exchange(converting[0], [bytes(640)])) == 640 + 960


# -- moving, and coming again ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pending", ["", "to convert", "from convert", "unheard"])
def test_a_moving_stream_takes_its_voice_along(
    both: Converting, main_engine: Engine, converter: ConvertEngine, clean: np.ndarray, them: Voices, tmp_path: Path, pending: str
) -> None:
    """Bit for bit, also where it was asked to change engines in the last moment, or has not said anything yet."""
    x, options = said(clean, 0.8), {"max_streams": 2, "handover": tmp_path, **OPTIONS}
    at = 0 if pending == "unheard" else 6400
    first: tuple[Any, ...] = ("restore",) if pending == "to convert" else ("convert", them[0], 0.7)
    changes = {at: ("convert", them[1], 0.7)} if pending == "to convert" else {at: ("restore",)} if pending == "from convert" else {}
    with Running(both, **options) as here, Running(both, **options) as there:
        ws, heard = here.start(live=False, voice_strength=0.7, **(asks(them[0]) if len(first) > 1 else {})), bytearray()
        for block in blocks(x[:at]):
            ws.send(block)
        say(ws, event="mark", name="all")
        reply(ws, "mark", heard=heard)
        here.drain()
        reply(ws, "goaway", heard=heard)
        if changes:
            say(ws, event="set", **(asks(them[1]) if pending == "to convert" else {"task": "restore"}))
        say(ws, event="move")
        name = reply(ws, "moved", heard=heard)["resume"]
        luggage = (tmp_path / f"{name}.stream").read_bytes()
        ws = there.start(resume=name, live=False)
        for block in blocks(x[at:]):
            ws.send(block)
        say(ws, event="mark", name="all")
        reply(ws, "mark", heard=heard)
        options_of = {} if first == ("restore",) else {"task": "convert", "voice": them[0], "voice_strength": 0.7}
        want = Twin(main_engine, converter, **options_of).through(x, changes)[: len(x)]
        assert np.array_equal(pcm(heard), want)
        if pending in ("", "to convert"):  # the library takes it, too
            library = Stream(RATE, task="convert", voice=them[0], engine=converter)
            library.restore(luggage)
            assert np.array_equal(library.process(x[at:]), want[at:])
            say(ws, event="clear")
            reply(ws, "cleared")
            again = Twin(main_engine, converter, task="convert", voice=them[1] if changes else them[0], voice_strength=0.7).through(x)
            assert np.array_equal(pcm(exchange(ws, blocks(x))), again)


def test_a_worker_without_the_converter_does_not_take_it(both: Converting, main_engine: Engine, them: Voices, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_streams": 2, "handover": tmp_path, "weights": TASK_WEIGHTS, "limits": FREE}
    with Running(both, converter=CONVERT_WEIGHTS, **options) as here, Running(main_engine, **options) as there:
        ws = here.start(**asks(them[0]))
        here.drain()
        reply(ws, "goaway")
        say(ws, event="move")
        name = reply(ws, "moved")["resume"]
        ws = there.connect()
        say(ws, event="start", rate=RATE, resume=name)
        assert reply(ws, "error")["code"] == "bad_resume"


def test_the_client_asks_moves_and_comes_again(
    both: Converting, main_engine: Engine, converter: ConvertEngine, clean: np.ndarray, them: Voices, tmp_path: Path
) -> None:
    x, options = said(clean, 1.0), {"max_streams": 3, "handover": tmp_path, **OPTIONS}
    y, moves = moved(both, options, x, {"live": False, "voice_strength": 0.4}, ("convert", them[0].to_bytes()))
    assert moves == 1 and np.array_equal(y, Twin(main_engine, converter).through(x, {3200: ("convert", them[0], 0.4)}))
    with Running(both, **options) as r:

        def told() -> tuple[str, float, float]:
            (session,) = (session for session, _ in r.relay.sessions.values())
            assert session._asked is not None
            return session.task, float(session._asked["target.octave"][0, 0]), float(session._asked["target.amount"][0, 0])

        async def cut(client: Client) -> None:
            before = client.reconnects
            client._socket.transport.abort()
            while client.reconnects == before:
                await client.send(x[:320])
                await client.receive()
            assert await asyncio.to_thread(wait_for, lambda: len(r.relay.sessions) == 1)

        async def go() -> None:
            octaves = [np.float32(v.octave) for v in them]
            async with Client(r.url, RATE, task="convert", voice=them[0].to_bytes(), voice_strength=0.5, live=False) as client:
                await cut(client)
                assert told() == ("convert", octaves[0], 0.5)
                await client.ask("convert", them[1].to_bytes())
                await client.control("set", voice_strength=0.25)
                await cut(client)
                assert told() == ("convert", octaves[1], 0.25)
                await client.ask("convert", dataclasses.replace(them[0], octave=None).to_bytes())
                with pytest.raises(RelayError, match="does not know how high"):
                    while True:
                        await client.receive()

        asyncio.run(asyncio.wait_for(go(), 60))
