"""The task extract over the relay: voiceprints in `start` and `set`, made by the server, beside other streams, on the way to other workers."""

from __future__ import annotations

import asyncio
import base64
import functools
import io
import json
import threading
import zipfile
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

from voicewire.engines import Engine
from voicewire.engines.engine import pinned_part
from voicewire.engines.gpu.ends import Ends
from voicewire.engines.gpu.engine import GpuEngine
from voicewire.engines.gpu.fake import FakeDevice
from voicewire.engines.gpu.layout import Layout
from voicewire.engines.gpu.lower import lower
from voicewire.engines.gpu.slots import DeviceSlots
from voicewire.engines.gpu.stepper import CapturedStepper, Stepper
from voicewire.engines.gpu.torch_stepper import TorchStepper
from voicewire.engines.slots import open_slots
from voicewire.engines.voiceprint import Voiceprint, enrol, known
from voicewire.rt import Stream, enroll
from voicewire.rt.cli import main
from voicewire.rt.lane import to_int16
from voicewire.rt.relay.client import Client, RelayError
from voicewire.rt.relay.protocol import pack_voice
from voicewire.rt.relay.slots import Batching, Scheduler
from voicewire.rt.relay.voices import Hearing

pytestmark = pytest.mark.filterwarnings("ignore:.*must be used as a context manager")
RATE = 16000
Voices = tuple[Voiceprint, Voiceprint]


def both(seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    """Two talkers at once, int16."""
    return to_int16(talker(210, seconds, rate) + talker(110, seconds, rate))


def asks(voice: Voiceprint) -> dict[str, str]:
    return {"task": "extract", "voice": pack_voice(voice.to_bytes())}


def alone(engine: Engine, x: np.ndarray, rate: int = RATE, asked: dict[int, Any] | None = None, **options: Any) -> np.ndarray:
    """What a Stream makes of it, the delay left in, with its flush. asked: {sample: what `ask` is told there}"""
    stream, parts, at = Stream(rate, engine=engine, **options), [], 0
    for there, what in (asked or {}).items():
        parts.append(stream.process(x[at:there]))
        stream.ask(*what)
        at = there
    return np.concatenate([*parts, stream.process(x[at:]), stream.process(np.zeros(stream.latency_samples, x.dtype))])


@pytest.fixture(scope="module")
def relay(voice_engine: Engine, voice_weights: Path) -> Iterator[Running]:
    with Running(voice_engine, limits=FREE, max_streams=8, weights=voice_weights) as r:
        yield r


# -- the same samples --------------------------------------------------------------------------------------------------


def test_send_gives_what_file_gives(
    relay: Running, voice_engine: Engine, voice_weights: Path, voices: Voices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a recording that is enrolled on the spot, and of a voiceprint file."""
    monkeypatch.setattr("voicewire.engines.engine.open_engine", lambda name, *_: voice_engine)
    monkeypatch.setattr(enroll, "enrol", functools.partial(enrol, folder=voice_weights))
    source, by_file, sent = (tmp_path / f"{name}.wav" for name in ("in", "file", "sent"))
    sf.write(source, both(), RATE)
    sf.write(tmp_path / "me.wav", talker(210, 4), RATE)
    (tmp_path / "me.voice").write_bytes(voices[1].to_bytes())
    got = []
    for me in ("me.wav", "me.voice"):
        options = ["--task", "extract", "--enroll", str(tmp_path / me)]
        assert main(["file", str(source), str(by_file), *options]) == 0
        assert main(["send", str(source), str(sent), *options, "--url", relay.url]) == 0
        assert by_file.read_bytes() == sent.read_bytes()
        got.append(sent.read_bytes())
    assert main(["send", str(source), str(sent), "--url", relay.url]) == 0
    assert len({*got, sent.read_bytes()}) == 3, "the talker made no difference"


def test_talkers_and_tasks_in_one_batch_do_not_leak(relay: Running, voice_engine: Engine, voices: Voices) -> None:
    """Streams of different tasks, talkers and rates together, some of which change what they ask for: each is bit-equal to one alone."""
    one, two = voices
    jobs: list[tuple[int, dict[str, Any], dict[int, tuple[Any, ...]]]] = [
        (RATE, {"task": "extract", "voice": one}, {}),
        (RATE, {}, {}),
        (RATE, {"task": "extract", "voice": two}, {4800: ("extract", one), 9600: ("restore",)}),
        (48000, {"task": "extract", "voice": two}, {}),
        (RATE, {}, {3200: ("extract", two), 6400: ("extract", one)}),
        (8000, {"strength_db": 6.0}, {1600: ("extract", two)}),
        (44100, {}, {}),
    ]
    sounds = [both(0.8, rate) for rate, _, _ in jobs]
    results: dict[int, bytes] = {}
    gate = threading.Barrier(len(jobs))

    def talk(i: int) -> None:
        rate, options, asked = jobs[i]
        start = {k: v for k, v in options.items() if k != "voice"} | (asks(options["voice"]) if "voice" in options else {})
        ws = relay.start(rate=rate, live=False, **start)
        gate.wait()
        messages, n = [], rate // 50
        for at in range(0, len(sounds[i]), n):
            if at in asked:
                task, *voice = asked[at]
                messages.append(json.dumps({"event": "set", **(asks(*voice) if voice else {"task": task})}))
            messages.append(sounds[i][at : at + n].tobytes())
        results[i] = exchange(ws, messages)

    together(talk, len(jobs))
    for i, (rate, options, asked) in enumerate(jobs):
        want = alone(voice_engine, sounds[i], rate, asked, **options)
        assert np.array_equal(np.frombuffer(results[i], np.int16), want), f"stream {i} differs"
    plain = np.frombuffer(exchange(relay.start(), blocks(sounds[1])), np.int16)  # whoever gets a used row next
    assert np.array_equal(plain, alone(voice_engine, sounds[1])) and not np.array_equal(plain, np.frombuffer(results[0], np.int16))


def test_another_talker_without_a_click_and_clear_keeps_them(relay: Running, voice_engine: Engine, voices: Voices) -> None:
    x = both(1.0)
    ws = relay.start(live=False, **asks(voices[0]))
    for block in blocks(x[:8000]):
        ws.send(block)
    say(ws, event="set", voice=asks(voices[1])["voice"], strength_db=60)  # the task need not be said again
    say(ws, event="set", task="extract", voice=None)  # nor the voice
    say(ws, event="set", voice=None, bypass=False)
    y = bytearray()
    for block in blocks(x[8000:]):
        ws.send(block)
    say(ws, event="mark", name="all")
    assert reply(ws, "mark", "error", heard=y)["event"] == "mark"
    heard = np.frombuffer(bytes(y), np.int16).astype(float)
    want = alone(voice_engine, x, asked={8000: ("extract", voices[1])}, task="extract", voice=voices[0])[: len(x)]
    assert np.array_equal(heard, want)
    assert np.abs(np.diff(heard)).max() <= 2 * np.abs(np.diff(x.astype(float))).max(), "a click"
    say(ws, event="clear")
    reply(ws, "cleared")
    assert np.array_equal(np.frombuffer(exchange(ws, blocks(x)), np.int16), alone(voice_engine, x, task="extract", voice=voices[1]))


# -- what is refused ---------------------------------------------------------------------------------------------------


def changed(voice: Voiceprint, **arrays: Any) -> bytes:
    """A voiceprint file with other arrays in it."""
    file = io.BytesIO()
    with np.load(io.BytesIO(voice.to_bytes())) as f:
        np.savez(file, **({k: f[k] for k in f.files} | arrays))
    return file.getvalue()


def bad_voices(voice: Voiceprint) -> dict[str, Any]:
    """Everything that is no voiceprint for these weights, by what is wrong with it."""
    data, head = voice.to_bytes(), {"voiceprint": 1, "weights": voice.weights}
    file = io.BytesIO(data)
    with zipfile.ZipFile(file, "a") as z:
        z.writestr("text.npy", b"no array")
        z.writestr("bomb.npy", bytes(1 << 24), zipfile.ZIP_DEFLATED)
    said = np.frombuffer(json.dumps(head | {"weights": "0123456789abcdef"}).encode(), np.uint8)
    with_text = io.BytesIO(changed(voice))
    with zipfile.ZipFile(with_text) as z:
        names = {n: z.read(n) for n in z.namelist()}
    texts = io.BytesIO()
    with zipfile.ZipFile(texts, "w") as z:
        for n, v in names.items():
            z.writestr(n, b"no array" if n == "gain.npy" else v)
    return {
        "empty": b"", "cut off": data[:-30], "noise": bytes(len(data)), "foreign": changed(voice, head=said), "bomb": file.getvalue(),
        "text": texts.getvalue(), "words": changed(voice, gain=np.array(["a"])), "not finite": changed(voice, gain=voice.parts["gain"] * np.nan),
        "of another shape": changed(voice, gain=np.zeros((1, 1), np.float32)), "would spread": changed(voice, k=voice.parts["k"][:, :, :1, :1]),
        "too long": bytes(1 << 17),
    }  # fmt: skip


def test_bad_voices_get_one_error_and_change_nothing(relay: Running, voice_engine: Engine, voices: Voices) -> None:
    x = both(0.4)
    ws = relay.start(live=False, **asks(voices[0]))
    wanted: dict[str, Any] = {name: pack_voice(data) for name, data in bad_voices(voices[0]).items()}
    for name, voice in {**wanted, "no base64": "é$", "a number": 3, "a list": []}.items():
        say(ws, event="set", task="extract", voice=voice, bypass=True)
        error = reply(ws, "error", "stats")
        while error["event"] == "stats":
            error = reply(ws, "error", "stats")
        assert error["code"] == "bad_voice" and "\n" not in error["text"] and len(error["text"]) < 300, (name, error)
    say(ws, event="set", task="restore", voice=asks(voices[0])["voice"])
    assert "takes no voice" in reply(ws, "error")["text"]
    assert np.array_equal(np.frombuffer(exchange(ws, blocks(x)), np.int16), alone(voice_engine, x, task="extract", voice=voices[0]))
    for start, says in (({"task": "extract"}, "voiceprint of a talker"), (asks(voices[0]) | {"voice": wanted["foreign"]}, "another model")):
        ws = relay.connect()
        say(ws, event="start", rate=RATE, **start)
        error = reply(ws, "error")
        assert error["code"] == "bad_voice" and says in error["text"]
        with pytest.raises(Exception, match="1008"):
            ws.recv(5)
    ws = relay.start()
    say(ws, event="set", task="extract")
    assert reply(ws, "error")["code"] == "bad_voice"


def test_weights_without_voices_say_so(wire: Running, voices: Voices, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What is there works as before."""
    assert wire.relay.config.weights is None
    ws = wire.connect()
    say(ws, event="start", rate=RATE)
    assert json.loads(ws.recv(5))["voices"] is None
    for event in ({"event": "set", **asks(voices[0])}, {"event": "set", "task": "extract"}, {"event": "enroll", "seconds": 2}):
        say(ws, **event)
        error = reply(ws, "error")
        assert error["code"] == "no_voices" and "know no voices" in error["text"]
    say(ws, event="set", task="restore")
    assert len(exchange(ws, [bytes(640)])) == 640 + 960
    ws = wire.connect()
    say(ws, event="start", rate=RATE, **asks(voices[0]))
    assert reply(ws, "error")["code"] == "no_voices"
    sf.write(tmp_path / "in.wav", both(0.1), RATE)
    (tmp_path / "me.voice").write_bytes(voices[0].to_bytes())
    assert main(["send", str(tmp_path / "in.wav"), str(tmp_path / "out.wav"), "--enroll", str(tmp_path / "me.voice"), "--url", wire.url]) == 2
    error_text = capsys.readouterr().err
    assert "know no voices" in error_text and error_text.count("\n") == 1
    assert main(["send", str(tmp_path / "in.wav"), str(tmp_path / "out.wav"), "--enroll", str(tmp_path / "nobody.voice"), "--url", wire.url]) == 2
    assert "to know the talker by" in capsys.readouterr().err


@given(data=st.binary(max_size=200), cuts=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_a_voiceprint_or_refused_in_one_line(voices: Voices, voice_engine: Engine, data: bytes, cuts: list[tuple[int, int]]) -> None:
    spoiled = bytearray(voices[0].to_bytes())
    for at, value in cuts:
        spoiled[at % len(spoiled)] = value
    for voice in (data, bytes(spoiled)):
        try:
            Voiceprint.from_bytes(voice, voice_engine.weights).turn(voice_engine.init_state(1, "extract"))
        except ValueError as e:
            assert "voiceprint" in str(e) and "\n" not in str(e)


# -- enrolment ---------------------------------------------------------------------------------------------------------


@given(samples=st.integers(1, 500), sizes=st.lists(st.integers(0, 300), min_size=1, max_size=8))
def test_hearing_takes_exactly_what_was_asked_for(samples: int, sizes: list[int]) -> None:
    hearing, clock = Hearing(samples), np.arange(10_000, dtype=np.int16)
    heard, at = None, 0
    while heard is None:
        n = sizes[at % len(sizes)] + 1
        block = clock[at : at + n].copy()
        heard = hearing.take(block)
        block[:] = -1  # its owner may use it for something else
        at += n
    assert np.array_equal(heard, clock[:samples]) and at - n < samples


@pytest.mark.parametrize(("rate", "kind"), [(RATE, "s16le"), (48000, "f32le")])
def test_the_server_enrolls_while_the_stream_goes_on(relay: Running, voice_engine: Engine, voice_weights: Path, rate: int, kind: str) -> None:
    """It is the voiceprint of what was said after the event, and no more of it."""
    x, me = both(0.5, rate), talker(210, 2.5, rate)
    said, n = to_int16(me), rate // 50
    as_sent = [z if kind == "s16le" else (z / 32768).astype(np.float32) for z in (x, said, x)]
    ws = relay.start(rate=rate, format=kind, live=False)
    heard = bytearray()
    for block in blocks(as_sent[0], n):
        ws.send(block)
    say(ws, event="enroll", seconds=2.5)
    say(ws, event="enroll", seconds=2)
    assert reply(ws, "error", heard=heard)["code"] == "bad_order"
    for part in as_sent[1:]:
        for block in blocks(part, n):
            ws.send(block)
    voice = reply(ws, "enrolled", heard=heard)["voice"]
    want = enrol((said / 32768).astype(np.float32), rate, voice_weights)
    made = Voiceprint.from_bytes(base64.b64decode(voice), voice_engine.weights)
    assert all(np.array_equal(made.parts[k], want.parts[k]) for k in want.parts) and np.array_equal(made.voice, want.voice)
    heard += exchange(ws, [])
    if kind == "s16le":
        assert np.array_equal(np.frombuffer(bytes(heard), np.int16), alone(voice_engine, np.concatenate(as_sent), rate))
    assert len(exchange(relay.start(rate=rate, task="extract", voice=voice), [bytes(2 * n)])) == 2 * n + 2 * n * 3 // 2


def test_what_cannot_be_enrolled(relay: Running) -> None:
    ws = relay.start(live=False)
    for seconds in (0.9, 31, None, "5", True, float("nan")):
        say(ws, event="enroll", seconds=seconds)
        assert reply(ws, "error")["code"] == "bad_field", seconds
    say(ws, event="enroll", seconds=1)
    for _ in range(50):
        ws.send(bytes(640))
    error = reply(ws, "error")
    assert error["code"] == "bad_voice" and "of speech to enroll" in error["text"]
    for _ in range(2):
        say(ws, event="enroll", seconds=30)  # `clear` forgets what has been heard
        ws.send(bytes(64000))
        say(ws, event="clear")
        assert reply(ws, "cleared", "error")["event"] == "cleared"
    assert len(exchange(ws, [bytes(640)])) == 640 + 960


def test_an_enrolment_under_way_dies_with_its_connection(relay: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(x: np.ndarray, rate: int, folder: Path, converter: Any) -> Any:
        assert threading.current_thread().name.startswith("voicewire-enroll")
        begun.set()
        assert go_on.wait(20)
        raise ValueError("nobody waits for this")

    monkeypatch.setattr("voicewire.rt.relay.voices.enrol", slow)
    ws, other = relay.start(live=False), relay.start()
    say(ws, event="enroll", seconds=1)
    for block in blocks(both(1.0)):
        ws.send(block)
    assert begun.wait(10)
    other.send(bytes(640))
    assert len(exchange(other, [])) >= 960, "the others waited for an enrolment"
    ws.close()
    assert wait_for(lambda: relay.used == 0)
    go_on.set()
    monkeypatch.undo()
    assert wait_for(lambda: not relay.relay._tasks)
    assert len(exchange(relay.start(), [bytes(640)])) == 640 + 960


# -- moving, and coming again ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pending", [False, True])
def test_a_moving_stream_takes_its_talker_along(voice_engine: Engine, voice_weights: Path, voices: Voices, tmp_path: Path, pending: bool) -> None:
    """Bit for bit, also where the `start` over there still says what it said at first, and where the talker was changed in the last moment."""
    x, options = both(1.0), {"max_streams": 2, "handover": tmp_path, "weights": voice_weights, "limits": FREE}
    last = voices[1] if pending else voices[0]
    want = alone(voice_engine, x, asked={3200: ("extract", voices[0])} | ({8000: ("extract", last)} if pending else {}))[: len(x)]
    with Running(voice_engine, **options) as here, Running(voice_engine, **options) as there:
        ws, heard = here.start(live=False), bytearray()
        for block in blocks(x[:3200]):
            ws.send(block)
        say(ws, event="set", **asks(voices[0]))
        for block in blocks(x[3200:8000]):
            ws.send(block)
        here.drain()
        reply(ws, "goaway", heard=heard)
        if pending:
            say(ws, event="set", **asks(last))
        say(ws, event="move")
        name = reply(ws, "moved", heard=heard)["resume"]
        library = Stream(RATE, task="extract", voice=voices[0], engine=voice_engine)
        library.restore((tmp_path / f"{name}.stream").read_bytes())  # the library takes it, too
        assert np.array_equal(library.process(x[8000:]), want[8000:])
        ws = there.start(resume=name, live=False)
        for block in blocks(x[8000:]):
            ws.send(block)
        say(ws, event="mark", name="all")
        reply(ws, "mark", heard=heard)
        assert np.array_equal(np.frombuffer(bytes(heard), np.int16), want)
        say(ws, event="clear")
        reply(ws, "cleared")
        assert np.array_equal(np.frombuffer(exchange(ws, blocks(x)), np.int16), alone(voice_engine, x, task="extract", voice=last))


def test_the_client_asks_enrolls_and_comes_again(voice_engine: Engine, voice_weights: Path, voices: Voices) -> None:
    """A connection that breaks: the new stream has the task and the talker of the old one, whichever way they were given."""
    with Running(voice_engine, max_streams=3, weights=voice_weights, limits=FREE) as r:

        def told() -> tuple[str, Any]:
            (session,) = (session for session, _ in r.relay.sessions.values())
            return session.task, session._asked and session._asked["gain"]

        async def cut(client: Client) -> None:
            before = client.reconnects
            client._socket.transport.abort()
            while client.reconnects == before:
                await client.send(both(0.02))
                await client.receive()
            assert await asyncio.to_thread(wait_for, lambda: len(r.relay.sessions) == 1)

        async def round_trip(client: Client, x: np.ndarray) -> None:
            for block in np.split(x, len(x) // 320):
                await client.send(block)
                await client.receive()

        async def go() -> None:
            one, two = (v.parts["gain"] for v in voices)
            async with Client(r.url, RATE, task="extract", voice=voices[0].to_bytes(), live=False) as client:
                await cut(client)
                assert told()[0] == "extract" and np.array_equal(told()[1], one)
                await client.control("set", voice=pack_voice(voices[1].to_bytes()))
                await round_trip(client, both(0.1))
                await cut(client)
                assert np.array_equal(told()[1], two)
                await client.ask("restore")
                await client.enroll(2)
                await round_trip(client, to_int16(talker(210, 2)))
                while client.enrolled is None:
                    await round_trip(client, both(0.02))
                await cut(client)
                assert told() == ("restore", None)
                await client.ask("extract", client.enrolled)
                await round_trip(client, both(0.1))
                mine = Voiceprint.from_bytes(client.enrolled, voice_engine.weights)
                assert np.array_equal(told()[1], mine.parts["gain"])
                await client.control("set", task="restore")
                await cut(client)
                assert told() == ("restore", None)
                await client.control("set", voice=pack_voice(voices[1].to_bytes()))
                await client.control("set", voice=None)
                await cut(client)
                assert told()[0] == "extract" and np.array_equal(told()[1], two)
                await client.ask("extract", b"no voice")
                with pytest.raises(RelayError, match="not a voicewire voiceprint"):
                    while True:
                        await client.receive()

        asyncio.run(asyncio.wait_for(go(), 60))


def test_the_client_moves_with_its_talker(voice_engine: Engine, voice_weights: Path, voices: Voices, tmp_path: Path) -> None:
    x, options = both(1.0), {"max_streams": 2, "handover": tmp_path, "weights": voice_weights, "limits": FREE}
    y, moves = moved(voice_engine, options, x, {"live": False}, ("extract", voices[0].to_bytes()))
    assert moves == 1 and np.array_equal(y, alone(voice_engine, x, asked={3200: ("extract", voices[0])}))


# -- slots -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "mirror"), [("graph", True), ("graph", False), ("torch", True), ("torch", False)])
def test_slots_of_a_device_are_pinned_one_by_one(
    voice_engine: Engine, voice_weights: Path, voices: Voices, kind: str, mirror: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a neighbour that keeps what it has; and what a row was asked for outlives the device, which is lost in the end."""
    monkeypatch.setattr("voicewire.engines.gpu.resident.MIRRORED", 256 if mirror else 0)
    layout = Layout(voice_engine.init_state(1))
    plans = {b: lower(voice_weights / "model.onnx", layout, b, "fp32") for b in (1, 2, 4)}
    device = FakeDevice()

    def make(n: int, mirror: bool, ends: Ends) -> Stepper:
        if kind == "torch":
            return TorchStepper(voice_weights, layout, n, mirror=mirror, ends=ends, device="cpu")
        return CapturedStepper(device, plans.__getitem__, layout, n, mirror=mirror, ends=ends)

    gpu = GpuEngine("tensorrt", voice_engine, make)
    states = []
    for voice in voices:
        state = voice_engine.init_state(1, "extract")
        voice.turn(state)
        states.append(pinned_part(state))
    slots, host = gpu.slots(3), open_slots(voice_engine, 3)
    x = (0.02 * np.random.default_rng(0).standard_normal((40, 3, 2, 480, 2))).astype(np.float32)
    rows: Callable[[], np.ndarray] = lambda: np.arange(3)  # noqa: E731
    for each in (slots, host):
        for row in range(3):
            each.attach(row)
        each.pin(0, states[0])
    assert np.array_equal(slots.export(0)["gain"], states[0]["gain"]), "what was asked for before the first step"
    for t in range(30):
        if t == 10:
            for each in (slots, host):
                each.pin(1, states[1])
                each.pin(0, states[1])
        if t == 20:
            for each in (slots, host):
                each.attach(0)  # and nothing of it is left for whoever comes next
        np.testing.assert_allclose(slots.step(rows(), x[t]), host.step(rows(), x[t]), atol=1e-4)
        assert np.array_equal(slots.export(2)["gain"], voice_engine.init_state(1)["gain"])
    assert isinstance(slots, DeviceSlots)
    for row, want in enumerate((voice_engine.init_state(1), states[1], voice_engine.init_state(1))):  # not what the mirror says
        assert all(np.array_equal(slots.stepper.read(row)[name], want[name]) for name in pinned_part(want)), row
    if kind == "graph":
        device.lost = True
        slots.step(rows(), x[30])
        assert gpu.lost
    for row, want in ((0, voice_engine.init_state(1)), (1, states[1]), (2, voice_engine.init_state(1))):
        for name in ("trunk.prefix_k", "trunk.prefix_on", "gain"):
            assert np.array_equal(slots.export(row)[name], want[name]), (row, name)


def test_what_is_asked_for_goes_with_its_frame(voice_engine: Engine, voices: Voices) -> None:
    """Frames that were submitted before it are stepped as they were meant, however many are waiting."""
    got: list[np.ndarray] = []
    scheduler = Scheduler(voice_engine, 2, lambda done: got.extend(y.copy() for _, y in done), Batching(2, 0.0))
    try:
        state = voice_engine.init_state(1, "extract")
        voices[0].turn(state)
        x = both(0.8)
        slot = scheduler.open(RATE, lambda y: None, True)
        for k in range(40):
            scheduler.submit(slot, x[320 * k : 320 * (k + 1)], 0.01, pinned_part(state) if k == 20 else None)
        assert wait_for(lambda: len(got) == 40, 10)
    finally:
        scheduler.end()
    want = alone(voice_engine, x, asked={6400: ("extract", voices[0])}, strength_db=40.0)
    assert np.array_equal(np.concatenate(got), want[320 : 320 + len(x)])


def test_known_weights(voice_weights: Path, voice_engine: Engine, tmp_path: Path) -> None:
    assert known(voice_weights) == voice_engine.weights and known(tmp_path) is None
