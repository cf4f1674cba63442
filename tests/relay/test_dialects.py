"""Vonage and Twilio over a real WebSocket, and with pipecat's own serializers (from PyPI) as the other side."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from relay_tools import Running
from test_adapters import SID, TWILIO_CALL, VONAGE_CALL
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tools.relay_peer import Wire
from voicewire.engines import Engine
from voicewire.rt import files as audio
from voicewire.rt.relay.mulaw import decode, encode
from voicewire.rt.relay.protocol import pack_header, unpack_header
from voicewire.rt.stream import Stream

F32 = NDArray[np.float32]


@pytest.fixture(scope="module")
def relay(engine: Engine) -> Iterator[Running]:
    with Running(engine) as r:
        yield r


@pytest.fixture(scope="module")
def wire() -> Iterator[Running]:
    with Running(Wire()) as r:
        yield r


def dial(r: Running, path: str) -> ClientConnection:
    """As a client does that is told to come back later: a busy machine makes the relay refuse newcomers for five seconds."""
    for _ in range(40):
        try:
            return connect(f"ws://127.0.0.1:{r.port}{path}", proxy=None)
        except InvalidStatus as e:
            assert e.response.status_code == 503
            time.sleep(0.5)
    raise AssertionError("refused for 20 s")


def cleaned(x: NDArray[np.int16], rate: int, engine: Engine, strength_db: float | None = None) -> NDArray[np.int16]:
    """What a stream gives for x, its delay left in."""
    stream = Stream(rate, strength_db=strength_db, engine=engine)
    y: NDArray[np.int16] = stream.process(x)
    return y


def test_a_vonage_call_is_cleaned_and_bit_equal(relay: Running, engine: Engine, noisy: F32) -> None:
    x = np.round(noisy[:32000] * 32767).astype(np.int16)
    with dial(relay, "/vonage") as ws:
        ws.send(json.dumps(VONAGE_CALL[0]))
        for at in range(0, len(x), 320):
            ws.send(x[at : at + 320].astype("<i2").tobytes())
        ws.send(json.dumps(VONAGE_CALL[2]))  # a key press changes nothing
        got: list[bytes] = []
        while len(got) < len(x) // 320:
            message = ws.recv(10)
            assert isinstance(message, bytes) and len(message) == 640
            got.append(message)
        ws.send('{"action": "clear"}')
        assert json.loads(ws.recv(10)) == {"event": "websocket:cleared"}
    assert np.array_equal(np.frombuffer(b"".join(got), "<i2"), cleaned(x, 16000, engine))


def test_a_twilio_call_is_cleaned_and_flushed(relay: Running, engine: Engine, noisy: F32) -> None:
    x = decode(encode(np.round(noisy[:32000:2] * 20000).astype(np.int16)))
    with dial(relay, "/twilio") as ws:
        for m in TWILIO_CALL[:2]:
            ws.send(json.dumps(m))
        for at in range(0, len(x), 160):
            payload = base64.b64encode(encode(x[at : at + 160])).decode()
            ws.send(json.dumps({"event": "media", "streamSid": SID, "media": {"track": "inbound", "payload": payload}}))
        ws.send(json.dumps(TWILIO_CALL[5]))
        ws.send(json.dumps(TWILIO_CALL[6]))
        messages = [json.loads(m) for m in ws]
    assert {m["streamSid"] for m in messages} == {SID}
    media = [base64.b64decode(m["media"]["payload"]) for m in messages if m["event"] == "media"]
    assert [m["mark"] for m in messages if m["event"] == "mark"] == [{"name": "my label"}]
    expected = np.concatenate(list(audio.aligned(Stream(8000, engine=engine), [x[:, None].astype(np.float32) / 32768], raw_delay=True)))
    heard = decode(b"".join(media))
    assert len(heard) == len(x) + 240
    assert np.abs(heard[: len(x)].astype(int) - decode(encode(np.round(expected[:, 0] * 32768).astype(np.int16)))).max() <= 1024
    assert np.array_equal(heard[: len(x)], decode(encode(cleaned(x, 8000, engine))))


@pytest.mark.parametrize("path", ["/vonage", "/twilio"])
def test_nonsense_is_refused_and_the_slot_is_free_again(wire: Running, path: str) -> None:
    for _ in range(20):
        with dial(wire, path) as ws:
            ws.send("nonsense")
            with pytest.raises(Exception, match="1008"):
                ws.recv(5)
    assert not wire.relay.sessions


def test_a_gap_in_the_numbers_is_filled_and_flagged(wire: Running) -> None:
    """`header` and `live`: 20 ms messages come back on a steady clock, whatever was lost."""
    with dial(wire, "/v1/stream") as ws:
        ws.send(json.dumps({"event": "start", "rate": 16000, "header": True}))
        assert json.loads(ws.recv(5))["event"] == "ready"
        tone = (8000 * np.sin(2 * np.pi * 150 * np.arange(320 * 40) / 16000)).astype("<i2")
        for i in range(40):
            if i not in (20, 21):
                ws.send(pack_header(2**32 - 10 + i, 20_000 * i) + tone[320 * i : 320 * (i + 1)].tobytes())
        ws.send('{"event": "stop"}')
        got = [m for m in ws if isinstance(m, bytes)]
    heads = [unpack_header(m) for m in got]
    assert [h[0] for h in heads] == list(range(len(heads)))
    flagged = [h[1] // 1000 for h in heads if h[2] & 1]
    assert flagged and set(flagged) <= {400, 420} and sum(len(h[3]) // 2 for h in heads) == 40 * 320 + 480
    y = np.concatenate([np.frombuffer(h[3], "<i2") for h in heads])[480:]
    level = np.sqrt((y[20 * 320 : 22 * 320].astype(float) ** 2).mean())
    assert 0.2 * 5657 < level < 1.3 * 5657


# -- pipecat -----------------------------------------------------------------------------------------------------------


async def converse(theirs: Any, ws: ClientConnection, x: NDArray[np.int16], rate: int) -> NDArray[np.int16]:
    """x through a serializer of pipecat's to the relay and back, 20 ms a message."""
    from pipecat.frames.frames import InputAudioRawFrame, OutputAudioRawFrame

    theirs._sample_rate = rate  # what its `setup` would do
    heard = b""
    for at in range(0, len(x), rate // 50):
        ws.send(await theirs.serialize(OutputAudioRawFrame(x[at : at + rate // 50].tobytes(), rate, 1)))
    for _ in range(0, len(x), rate // 50):
        got = await theirs.deserialize(ws.recv(5))
        assert isinstance(got, InputAudioRawFrame) and got.sample_rate == rate
        heard += got.audio
    return np.frombuffer(heard, np.int16)


def test_pipecats_twilio_serializer_is_understood(wire: Running) -> None:
    pytest.importorskip("pipecat", reason="pipecat is missing: pip install 'voicewire[pipecat]'")
    from pipecat.frames.frames import InterruptionFrame
    from pipecat.serializers.twilio import TwilioFrameSerializer

    async def talk() -> NDArray[np.int16]:
        theirs = TwilioFrameSerializer(SID, params=TwilioFrameSerializer.InputParams(auto_hang_up=False, sample_rate=8000))
        with dial(wire, "/twilio") as ws:
            for m in TWILIO_CALL[:2]:
                ws.send(json.dumps(m))
            y = await converse(theirs, ws, x, 8000)
            said = await theirs.serialize(InterruptionFrame())
            assert isinstance(said, str)
            ws.send(said)
            assert json.loads(ws.recv(5))["event"] == "clear"
        return y

    x = decode(encode((6000 * np.sin(np.arange(8000) / 9)).astype(np.int16)))
    y = asyncio.run(talk())
    assert np.abs(y[240:].astype(int) - x[:-240]).max() <= 260  # the wire changes nothing but one more rounding to µ-law


def test_pipecats_vonage_serializer_is_understood(wire: Running) -> None:
    pytest.importorskip("pipecat", reason="pipecat is missing: pip install 'voicewire[pipecat]'")
    from pipecat.frames.frames import InterruptionFrame, OutputTransportMessageFrame
    from pipecat.serializers.vonage import VonageFrameSerializer

    async def talk() -> NDArray[np.int16]:
        theirs = VonageFrameSerializer(VonageFrameSerializer.InputParams(vonage_sample_rate=16000, sample_rate=16000))
        with dial(wire, "/vonage") as ws:
            y = await converse(theirs, ws, x, 16000)
            notify = await theirs.serialize(OutputTransportMessageFrame(message={"action": "notify", "payload": {"at": 1}}))
            clear = await theirs.serialize(InterruptionFrame())
            assert isinstance(notify, str) and isinstance(clear, str)
            ws.send(notify)
            assert json.loads(ws.recv(5)) == {"event": "websocket:notify", "payload": {"at": 1}}
            ws.send(clear)
            cleared = ws.recv(5)
            assert json.loads(cleared) == {"event": "websocket:cleared"} and await theirs.deserialize(cleared) is None
        return y

    x = (6000 * np.sin(np.arange(16000) / 9)).astype(np.int16)
    y = asyncio.run(talk())
    assert np.abs(y[480:].astype(int) - x[:-480]).max() <= 1


def test_the_pipecat_filter_gives_what_a_stream_gives(engine: Engine, noisy: F32) -> None:
    pytest.importorskip("pipecat", reason="pipecat is missing: pip install 'voicewire[pipecat]'")
    from pipecat.audio.filters.base_audio_filter import BaseAudioFilter
    from pipecat.frames.frames import FilterEnableFrame

    from voicewire.rt.relay.pipecat_filter import VoicewireFilter

    x = np.round(noisy[:32000] * 32767).astype(np.int16)

    async def bot() -> tuple[bytes, bytes]:
        f = VoicewireFilter(engine=engine)
        assert isinstance(f, BaseAudioFilter)
        assert await f.filter(b"\x01\x02") == b"\x01\x02"  # not started: untouched
        await f.start(16000)
        clean = b"".join([await f.filter(x[at : at + 320].tobytes()) for at in range(0, len(x), 320)])
        await f.process_frame(FilterEnableFrame(False))
        plain = b"".join([await f.filter(x[at : at + 320].tobytes()) for at in range(0, len(x), 320)])
        await f.stop()
        with pytest.raises(ValueError, match="rate"):
            await f.start(96000)
        return clean, plain

    clean, plain = asyncio.run(bot())
    assert np.array_equal(np.frombuffer(clean, np.int16), cleaned(x, 16000, engine))
    assert np.abs(np.frombuffer(plain, np.int16)[4000:].astype(int) - x[4000 - 480 : -480]).max() <= 1


def test_without_pipecat_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pipecat", None)
    monkeypatch.delitem(sys.modules, "voicewire.rt.relay.pipecat_filter", raising=False)
    for name in [n for n in sys.modules if n.startswith("pipecat.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r"pip install 'voicewire\[pipecat\]'"):
        import voicewire.rt.relay.pipecat_filter  # noqa: F401
