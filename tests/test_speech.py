"""When somebody speaks: the rule, `Stream`, files, live audio, the relay and its client."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from relay_tools import FREE, Running, say, wait_for

from tools.evaluate_speech import labels, score, stretches
from voicewire.engines import Engine
from voicewire.engines.converting import Converting, ConvertingSlots
from voicewire.engines.energies import energies_of
from voicewire.engines.pcm_slots import HostPcmSlots
from voicewire.engines.slots import HostSlots
from voicewire.rt import Stream
from voicewire.rt.cli import main
from voicewire.rt.lane import to_int16
from voicewire.rt.live.pipeline import Controls, Log, Meter, Pipeline
from voicewire.rt.relay.client import Client
from voicewire.rt.relay.events import ProtocolError
from voicewire.rt.relay.protocol import parse_start
from voicewire.rt.relay.slots import Scheduler
from voicewire.rt.speech import USUAL, Heard, Turn, packed, spans, step, turn, unpacked

LOUD, NOISE, NOTHING = (0.1, 0.12), (0.0001, 0.1), (0.0, 0.0)  # energies: a voice, noise that is taken away, silence


def turns(stream: Stream, x: np.ndarray, sizes: list[int]) -> list[Turn]:
    found, at = stream.time_speech(), 0
    while at < len(x):
        for n in sizes:
            stream.process(x[at : at + n])
            at += n
    return found


@pytest.fixture(scope="module")
def talk(noisy: np.ndarray) -> np.ndarray:
    """Four seconds of the bundled recording, two of its noise in them, and silence."""
    return np.concatenate([noisy[:32000], np.zeros(16000, np.float32), noisy[32000:64000]])


def run(frames: list[tuple[float, float]], state: Heard = Heard(), task: str = "restore") -> tuple[Heard, list[Turn]]:  # noqa: B008
    found = []
    for each in frames:
        before, state = state, step(each, state, task)
        found += [t for t in [turn(0, before, state, 320)] if t]
    return state, found


# -- the rule ----------------------------------------------------------------------------------------------------------


def test_speech_is_dated_back_and_held() -> None:
    b, e = USUAL.begin_frames, USUAL.end_frames
    frames = [NOISE] * 20 + [LOUD] * 10 + [NOISE] * (e - 1) + [LOUD] * 5 + [NOISE] * e
    state, found = run(frames)
    assert found == [Turn(0, 21 * 320, True), Turn(0, (20 + 10 + e - 1 + 5 + 1) * 320, False)] and not state.on
    assert run([NOISE] * 20 + [LOUD] * (b - 1) + [NOISE] * 50)[1] == [], "a click is no speech"
    assert run(frames, task="convert")[1] == run(frames, task="query")[1] == []
    assert [t.on for t in run(frames, task="extract")[1]] == [True, False]


def test_level_does_not_matter_but_silence_is_nobody() -> None:
    frames = [NOISE] * 20 + [LOUD] * 10 + [NOISE] * 30
    quiet = [(1e-4 * a, 1e-4 * b) for a, b in frames]
    assert run(quiet)[1] == run(frames)[1] != []
    assert run([(1e-9, 1e-9)] * 100)[1] == run([NOTHING] * 100)[1] == []


def test_spans() -> None:
    said = [Turn(0, 100, True), Turn(1, 150, True), Turn(0, 200, False), Turn(1, 250, False), Turn(0, 400, True)]
    assert spans(said, 500) == [(100, 250), (400, 500)]
    assert spans(said, 500, 120) == [(0, 130), (280, 500)]
    assert spans(said, 500, channel=0) == [(100, 200), (400, 500)] and spans(said, 500, channel=1) == [(150, 250)]
    assert spans(said, 300) == [(100, 250)] and spans([], 300) == []


def test_a_snapshot_of_it() -> None:
    state, _ = run([NOISE] * 20 + [LOUD] * 10)
    assert state.on and unpacked({"speech": packed([state, Heard()])}, 2, 0) == (state, Heard())
    assert unpacked({}, 2, 7) == (Heard(7), Heard(7))
    for wrong in (np.zeros((2, 6)), np.zeros((1, 5)), np.full((1, 6), np.nan), np.zeros((1, 6), np.float32)):
        with pytest.raises(ValueError, match="damaged"):
            unpacked({"speech": wrong}, 1, 0)


def test_energies_are_of_the_band_and_of_each_row_alone() -> None:
    rng = np.random.default_rng(0)
    spec, speech = rng.standard_normal((2, 481, 2)).astype(np.float32), rng.standard_normal((2, 480, 2)).astype(np.float32)
    a, b = energies_of(spec, speech)
    assert a == pytest.approx((speech[:, 6:81] ** 2).sum(), rel=1e-5) and b == pytest.approx((spec[:, 6:81] ** 2).sum(), rel=1e-5)
    spec[:, :6] = speech[:, 81:] = 9
    assert energies_of(spec, speech) == (a, b)


# -- Stream ------------------------------------------------------------------------------------------------------------


def test_somebody_speaks_in_the_recording_and_nobody_in_noise(engine: Engine, noisy: np.ndarray, clean: np.ndarray) -> None:
    n = min(len(noisy), len(clean))
    stream = Stream(16000, engine=engine)
    found = turns(stream, noisy[:n], [320])
    told, label = np.zeros(n // 320, np.bool_), labels(clean[:n])
    for a, b in spans(found, n, 320):
        told[a // 320 : b // 320] = True
    assert score([(told, label)], [])["balanced"] > 0.7  # (0.5 is what calling all of it speech has)
    noise = np.random.default_rng(1).standard_normal(4 * 16000).astype(np.float32)
    for level in (1e-3, 0.1):
        assert turns(Stream(16000, engine=engine), level * noise, [320]) == []
    assert turns(Stream(16000, engine=engine), np.zeros(16000, np.float32), [320]) == []


def test_it_depends_neither_on_blocks_nor_on_strength_and_bypass(engine: Engine, talk: np.ndarray) -> None:
    want = turns(Stream(16000, engine=engine), talk, [320])
    assert len(want) >= 2 and [t.on for t in want[:2]] == [True, False]
    assert all(t.channel == 0 and t.sample % 320 == 0 for t in want)
    assert turns(Stream(16000, engine=engine), talk, [37, 4001, 1]) == want
    assert turns(Stream(16000, engine=engine, bypass=True), talk, [16000]) == want
    assert turns(Stream(16000, engine=engine, strength_db=100), talk, [16000]) == want


def test_speaking_goes_with_the_output(engine: Engine, talk: np.ndarray) -> None:
    stream = Stream(16000, engine=engine)
    found = stream.time_speech()
    for at in range(0, len(talk), 320):
        before = len(found)
        stream.process(talk[at : at + 320])
        if len(found) > before:
            assert stream.speaking is found[-1].on is stream.speaking_in[0]
            assert found[-1].sample <= at + 320, "told before it came out"
    assert any(t.on for t in found)
    stream.reset()
    assert not stream.speaking


def test_after_a_pause_nobody_speaks(engine: Engine, talk: np.ndarray) -> None:
    stream = Stream(16000, engine=engine)
    found = stream.time_speech()
    for at in range(0, len(talk), 320):
        stream.process(talk[at : at + 320])
        if stream.speaking:
            break
    stream.hush()
    assert not stream.speaking and [t.on for t in found] == [True, False]


def test_channels_by_themselves(engine: Engine, talk: np.ndarray) -> None:
    stream = Stream(16000, 2, mode="each", engine=engine)
    found = turns(stream, np.stack([talk, np.zeros_like(talk)], 1), [16000])
    assert {t.channel for t in found} == {0} and len(stream.speaking_in) == 2


def test_a_stream_that_moves_tells_the_same(engine: Engine, talk: np.ndarray) -> None:
    want = turns(Stream(16000, engine=engine), talk, [320])
    here, there = Stream(16000, engine=engine), Stream(16000, engine=engine)
    first = turns(here, talk[:20000], [333])
    there.restore(here.snapshot())
    assert there.speaking == here.speaking
    assert first + turns(there, talk[20000:], [777]) == want


def test_snapshots_of_before_still_restore(engine: Engine, talk: np.ndarray) -> None:
    here, there = Stream(16000, engine=engine), Stream(16000, engine=engine)
    turns(here, talk[:16000], [320])
    with np.load(io.BytesIO(here.snapshot())) as f:
        arrays = {k: f[k] for k in f.files if k != "speech"}
    old = io.BytesIO()
    np.savez(old, **arrays)
    there.restore(old.getvalue())
    assert not there.speaking
    assert all(t.sample > 16000 - 320 for t in turns(there, talk[16000:], [320]))


def test_file_says_from_when_to_when(engine: Engine, talk: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sf.write(tmp_path / "in.wav", talk, 16000, subtype="PCM_16")
    said = []
    for options in ([], ["--block-ms", "7.3"], ["--raw-delay"]):
        assert main(["file", str(tmp_path / "in.wav"), str(tmp_path / "out.wav"), "--json", *options]) == 0
        report = json.loads(capsys.readouterr().out)
        said.append(report["speech"])
        assert "speech_channels" not in report
    assert said[0] == said[1] != [] and all(0 <= a < b <= len(talk) / 16000 for a, b in said[0])
    assert said[2][-1][0] == pytest.approx(said[0][-1][0] + 0.03)
    sf.write(tmp_path / "two.wav", np.stack([np.zeros_like(talk), talk], 1), 16000, subtype="PCM_16")
    assert main(["file", str(tmp_path / "two.wav"), str(tmp_path / "out.wav"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["speech"] == said[0] and report["speech_channels"] == [[], said[0]]


def test_live_tells(engine: Engine, talk: np.ndarray) -> None:
    log, stream = Log(), Stream(16000, engine=engine)
    pipeline = Pipeline(
        stream, 1, 16000, 1, period_s=0.01, cushion_s=0.01, controls=Controls(None), log=log, meter=Meter(), lost=lambda: None, recorder=None
    )  # fmt: skip
    for at in range(0, 32000, 160):
        pipeline._model(talk[at : at + 160])
    pipeline.close()
    told = [e for e in log.newest if e.kind.startswith("speech")]
    assert [e.kind for e in told[:2]] == ["speech", "speech_ended"] and len(told) % 2 == 0 and told[0].ms == 0 < told[1].ms < 2000
    assert not pipeline.speaking and "speech" not in log.counts


# -- the relay ---------------------------------------------------------------------------------------------------------


def hear(relay: Running, x: np.ndarray, **fields: Any) -> list[dict[str, Any]]:
    """x: [n] int16 through the relay → its events about speech."""
    ws, said, came = relay.start(live=False, **fields), [], 0
    for at in range(0, len(x), 700):
        ws.send(x[at : at + 700].tobytes())
    say(ws, event="stop")
    for message in ws:
        if isinstance(message, bytes):
            came += len(message) // 2
        elif (event := json.loads(message))["event"] == "speech":
            assert event["sample"] <= came + 700 * 2, "told before it came"
            said.append(event)
    return said


def as_events(found: list[Turn]) -> list[dict[str, Any]]:
    return [{"event": "speech", "on": t.on, "sample": t.sample} for t in found]


def test_the_relay_tells_what_the_stream_does_and_only_who_asks(engine: Engine, talk: np.ndarray) -> None:
    x = to_int16(talk)
    stream = Stream(16000, engine=engine)
    want = as_events(turns(stream, np.concatenate([x, np.zeros(480, np.int16)]), [320]))
    assert want
    with Running(engine, limits=FREE) as relay:
        assert hear(relay, x, speech=True) == hear(relay, x, speech=True, strength_db=100) == want
        assert hear(relay, x) == hear(relay, x, speech=False) == []


def test_many_at_once_are_each_told_their_own(engine: Engine, talk: np.ndarray) -> None:
    """Beside streams that did not ask, and of another rate."""
    rates = [16000, 48000, 16000, 16000]
    xs = [to_int16(talk[4000 * i : 4000 * i + 24000]) for i in range(4)]
    heard: list[list[tuple[float, float]]] = [[] for _ in xs]
    slots = HostPcmSlots(HostSlots(engine, 4), 4)
    for row, rate in enumerate(rates):
        slots.attach(row, rate // 100, whole=True)
        if row != 2:
            slots.watch(row)
    for k in range(20):
        slots.step(np.arange(4), [x[k * rate // 50 : (k + 1) * rate // 50] for x, rate in zip(xs, rates, strict=True)], np.full(4, 0.05, np.float32))
        for row in (0, 1, 3):
            heard[row].append(slots.heard(row))
    for row in (0, 1, 3):
        alone = HostPcmSlots(HostSlots(engine, 1), 1)
        alone.attach(0, rates[row] // 100, whole=True)
        alone.watch(0)
        n, found = rates[row] // 50, []
        for k in range(20):
            alone.step(np.arange(1), [xs[row][k * n : (k + 1) * n]], np.zeros(1, np.float32))
            found.append(alone.heard(0))
        np.testing.assert_allclose(heard[row], found, rtol=1e-4)
    assert 2 not in slots.edges.heard


def test_a_moved_stream_is_told_the_same(engine: Engine, talk: np.ndarray, tmp_path: Path) -> None:
    x = to_int16(talk[:64000])
    want = as_events(turns(Stream(16000, engine=engine), np.concatenate([x, np.zeros(480, np.int16)]), [320]))

    async def go(here: Running, there: Running) -> tuple[list[dict[str, Any]], int]:
        async with Client(here.url, 16000, live=False, speech=True) as client:

            async def feed() -> None:
                for k, block in enumerate(np.split(x, 100)):
                    if k == 50:
                        client._url = there.url
                        here.drain()
                        while not client.moves:  # noqa: ASYNC110
                            await asyncio.sleep(0.01)
                    await client.send(block)
                await client.stop()

            feeding = asyncio.create_task(feed())
            while await client.receive() is not None:
                pass
            await feeding
            return [e for e in client.events if e["event"] == "speech"], client.moves

    with Running(engine, handover=tmp_path, limits=FREE) as here, Running(engine, handover=tmp_path, limits=FREE) as there:
        said, moves = asyncio.run(asyncio.wait_for(go(here, there), 60))
    assert moves == 1 and said == want != []


def test_the_client_counts_in_what_it_gave(wire: Running) -> None:
    """Also after `clear`."""
    tone = (8000 * np.sin(np.arange(320 * 20) * 0.3)).astype(np.int16)

    async def go() -> None:
        async with Client(wire.url, 16000, live=False, speech=True) as client:

            async def one_more() -> dict[str, Any]:
                told = sum(e["event"] == "speech" for e in client.events)
                got = 0
                for block in np.split(tone, 20):
                    await client.send(block)
                while got < len(tone):
                    y = await client.receive()
                    assert y is not None
                    got += len(y)
                found = [e for e in client.events if e["event"] == "speech"]
                assert len(found) == told + 1 and client.speaking
                return dict(found[-1])

            first = await one_more()
            await client.control("clear")
            while client.events[-1]["event"] != "cleared":
                await client.send(np.zeros(0, np.int16))
                await asyncio.wait_for(client._note(json.loads(await client._socket.recv())), 5)
            assert not client.speaking
            second = await one_more()
            assert first["on"] and second["sample"] == first["sample"] + len(tone)

    asyncio.run(asyncio.wait_for(go(), 30))
    assert wait_for(lambda: wire.used == 0)


def test_the_client_counts_on_after_a_broken_connection(wire: Running) -> None:
    """A tone after 2.5 s of nothing, in the midst of which the connection breaks: it begins where it is heard."""
    x = np.concatenate([np.zeros(40000, np.int16), (8000 * np.sin(np.arange(8000) * 0.3)).astype(np.int16)])

    async def go() -> tuple[Client, np.ndarray]:
        async with Client(wire.url, 16000, live=False, speech=True) as client:

            async def feed() -> None:
                for k, block in enumerate(np.split(x, 150)):
                    if k == 70:
                        client._socket.transport.abort()
                    await client.send(block)
                await client.stop()

            feeding, heard = asyncio.create_task(feed()), []
            while (y := await client.receive()) is not None:
                heard.append(y[:, 0])
            await feeding
            return client, np.concatenate(heard)

    client, y = asyncio.run(asyncio.wait_for(go(), 30))
    (said,) = [e for e in client.events if e["event"] == "speech"]
    begins = int((np.abs(y) > 1000).argmax())
    assert client.reconnects == 1 and len(y) == len(x) + client.latency_samples and begins >= 40000
    assert said["on"] and client.speaking and abs(said["sample"] - begins) <= 640
    assert wait_for(lambda: wire.used == 0)


def test_wrong_words_are_refused_in_one_line(wire: Running) -> None:
    for wrong in (1, "yes", None, [], {}):
        with pytest.raises(ProtocolError, match="speech must be true or false") as e:
            parse_start({"event": "start", "rate": 16000, "speech": wrong})
        assert e.value.code == "bad_field" and "\n" not in e.value.text
    ws = wire.start()
    say(ws, event="set", speech=True)
    while (event := json.loads(ws.recv(10)))["event"] == "stats":
        pass
    assert event["event"] == "error" and event["code"] == "bad_field", "it is said with start"
    ws.close()


def test_an_engine_that_cannot_tell_refuses(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scheduler, "can_watch", False)
    with Running(engine, limits=FREE) as relay:
        ws = relay.connect()
        say(ws, event="start", rate=16000, speech=True)
        event = json.loads(ws.recv(10))
        assert event["event"] == "error" and event["code"] == "unsupported" and relay.used == 0
        relay.start().close()


def test_rows_that_convert_are_watched_on(engine: Engine) -> None:
    slots = ConvertingSlots(Converting(engine, engine), 2)  # type: ignore[arg-type]
    slots.attach(0, 160)
    slots.watch(0)
    slots.attach(1, 160)
    x = [np.full(320, 0.1, np.float32)] * 2
    slots.step(np.arange(2), x, np.zeros(2, np.float32))
    assert slots.heard(0)[1] > 0
    with pytest.raises(KeyError):
        slots.heard(1)


# -- the measurement ---------------------------------------------------------------------------------------------------


def test_labels_and_scores() -> None:
    x = np.zeros(16000, np.float32)
    x[3200:8000] = 0.1  # frames 10 to 25
    x[9600:9920] = 0.1  # one frame by itself, 5 after it: joined
    x[15000:15320] = 1e-5
    label = labels(x)
    assert stretches(label) == [(10, 31)]
    told = np.roll(label, 2)
    found = score([(told, label)], [np.arange(100) % 50 < 10])
    assert found["hits"] == pytest.approx(19 / 21) and found["alarms"] == pytest.approx(2 / 29) and found["alone"] == 0.2 and found["alone_a_minute"] == 60
    assert found["beginnings"] == 0, "300 ms of none must come before"
    early = np.pad(label, (20, 0))
    assert score([(np.roll(early, 2), early)], [])["late_ms"] == 40
    assert score([(np.roll(early, -1), early)], [])["early"] == 1 and score([(early & False, early)], [])["missed"] == 1
