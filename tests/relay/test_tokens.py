"""The format `tokens`: what comes back is the codec's own, a message costs no more than itself, and what is no tokens is refused in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from relay_tools import FREE, Running, exchange, reply, wait_for

from voicewire.engines import Engine
from voicewire.engines.codec_engine import CodecEngine
from voicewire.engines.engine import EngineError
from voicewire.rt.codec import TokenDecoder, TokenEncoder
from voicewire.rt.codec_format import pack_bits
from voicewire.rt.lane import to_int16
from voicewire.rt.relay import tokens
from voicewire.rt.relay.events import ProtocolError
from voicewire.rt.relay.protocol import V1, pack_header
from voicewire.rt.relay.tokens import MOST_FRAMES, Tokens


@pytest.fixture(scope="module")
def codec() -> CodecEngine:
    return tokens.shared_engine()


@pytest.fixture(scope="module")
def relay(engine: Engine) -> Iterator[Running]:
    with Running(engine, limits=FREE, max_streams=8) as r:
        yield r


def messages(x: np.ndarray, codec: CodecEngine, frames: int) -> list[bytes]:
    encoder = TokenEncoder(16000, codec)
    found = np.concatenate([encoder.process(x)[0], encoder.flush()[0]])
    return [pack_bits(found[t : t + frames], codec.config.bits) for t in range(0, len(found), frames)]


def test_there_and_back_is_the_codecs_own(relay: Running, codec: CodecEngine, clean: np.ndarray) -> None:
    """Bypassed, the relay only delays: decoded, 30 ms later, encoded again."""
    sent = messages(clean[:32000], codec, 4)
    got = exchange(relay.start(format="tokens", weights=codec.weights, bypass=True), sent)
    near, again = Tokens(16000, 1, codec.weights), TokenEncoder(16000, codec)
    heard = np.concatenate([near.decode(m)[:, 0] for m in sent])
    late = np.concatenate([np.zeros(480, np.int16), heard])
    wanted = np.concatenate([again.process(late)[0], again.flush()[0]])
    size = len(pack_bits(wanted[:4], codec.config.bits))
    back = b"".join(pack_bits(wanted[t : t + 4], codec.config.bits) for t in range(0, len(wanted), 4))
    assert abs(len(got) - len(back)) <= size and len(sent[0]) == size == -(-4 * codec.config.streams * codec.config.bits // 8)
    n = min(len(got), len(back))
    same = np.frombuffer(got[:n], np.uint8) == np.frombuffer(back[:n], np.uint8)
    assert same[3 * size :].mean() > 0.9, "after the cross-fade of bypass the tokens are those of what was sent"


def test_a_lost_message_costs_only_itself(codec: CodecEngine, clean: np.ndarray) -> None:
    sent = messages(clean[:31840], codec, 2)
    whole, gap = Tokens(16000, 1, codec.weights), Tokens(16000, 1, codec.weights)
    loud: list[tuple[float, float]] = []
    for i, m in enumerate(sent):
        y = whole.decode(m)
        if i != 10:
            z = gap.decode(m)
            assert y.shape == z.shape == (640, 1) and y.dtype == z.dtype == np.int16
            loud.append(((y.astype(float) ** 2).mean(), (z.astype(float) ** 2).mean()))
    assert all(a == b for a, b in loud[:10])
    a, b = np.mean(loud[20:], 0)
    assert 0.5 < b / a < 2, "some frames after the loss it should be as loud"


def test_with_header_losses_are_made_up(relay: Running, codec: CodecEngine, clean: np.ndarray) -> None:
    ws = relay.start(format="tokens", weights=codec.weights, header=True)
    sent = messages(clean[:32000], codec, 1)
    for i, m in enumerate(sent):
        if i not in (20, 21):
            ws.send(pack_header(i, i * 20000) + m)
    assert wait_for(lambda: reply(ws, "stats")["lost"] >= 2, 5.0)
    ws.close()


def test_answers_are_as_long_as_what_comes(codec: CodecEngine) -> None:
    end = Tokens(16000, 1, codec.weights)
    x = np.zeros((1600, 1), np.int16)
    assert len(end.encode(x)) == 5, "before anything came, frame by frame"
    bits, streams = codec.config.bits, codec.config.streams
    three = Tokens(16000, 1, codec.weights)
    three.decode(pack_bits(np.zeros((3, streams), np.int64), bits))
    out = three.encode(x)
    assert [len(m) for m in out] == [-(-3 * bits * streams // 8)]
    assert sum(len(three.decode(m)) for m in [*out, *three.flush()]) == 6 * 320 and three.flush() != out


def test_what_is_no_tokens_is_refused(relay: Running, codec: CodecEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    bits, streams = codec.config.bits, codec.config.streams
    frame = len(pack_bits(np.zeros((1, streams), np.int64), bits))
    ws = relay.start(format="tokens", weights=codec.weights)
    for bad in (b"", b"\0" * (frame - 1), b"\0" * ((MOST_FRAMES + 1) * bits * streams // 8 + 1), b"\0" * (frame + 1)):
        ws.send(bad)
        said = reply(ws, "error")
        assert said["code"] == "bad_audio" and "\n" not in said["text"], bad[:8]
    ws.close()
    starts: list[dict[str, object]] = [
        {"weights": "0" * 16}, {}, {"weights": 3}, {"weights": codec.weights, "channels": 2}, {"format": "s16le", "weights": codec.weights},
    ]  # fmt: skip
    for fields in starts:
        with pytest.raises(ProtocolError) as e:
            V1().receive(json.dumps({"event": "start", "rate": 16000, "format": "tokens", **fields}))
        assert e.value.code == "bad_field" and "\n" not in e.value.text

    def none() -> CodecEngine:
        raise EngineError("no codec weights")

    monkeypatch.setattr(tokens, "shared_engine", none)
    with pytest.raises(ProtocolError) as e:
        V1().receive(json.dumps({"event": "start", "rate": 16000, "format": "tokens", "weights": codec.weights}))
    assert e.value.code == "unsupported" and e.value.fatal and "s16le" in e.value.text


def test_any_rate(codec: CodecEngine) -> None:
    end = Tokens(48000, 1, codec.weights)
    frame = pack_bits(np.ones((2, codec.config.streams), np.int64), codec.config.bits)
    assert end.decode(frame).shape == (1920, 1)
    decoder = TokenDecoder(48000, codec)
    again = Tokens(48000, 1, codec.weights)
    y = decoder.process(np.ones((2, codec.config.streams), np.int64))
    np.testing.assert_array_equal(again.decode(frame)[:, 0], to_int16(y))


def test_example_runs(relay: Running, noisy: np.ndarray, clean: np.ndarray, tmp_path: Path) -> None:
    """At 2.5 kbit/s both ways what comes back is aligned with what was sent, with a tenth of it lost shorter by that."""
    sf.write(tmp_path / "in.wav", clean[:64000], 16000)
    for lost in ("0", "10"):
        args = ["examples/relay_tokens.py", tmp_path / "in.wav", tmp_path / "out.wav", relay.url, lost]
        done = subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, env={"PYTHONPATH": ".links"})
        assert done.returncode == 0, done.stderr
        y, rate = sf.read(tmp_path / "out.wav", dtype="float32")
        rate_kbit_s = float(done.stdout.split(" bytes, ")[1].split()[0])
        if lost == "0":
            assert rate == 16000 and abs(len(y) - 64000) <= 640 and rate_kbit_s <= 2.52
            n = min(len(y), 64000) // 320
            a, b = (np.sqrt((z[: n * 320].reshape(n, 320) ** 2).mean(1)) for z in (y, clean))
            found = [np.corrcoef(np.roll(a, k), b)[0, 1] for k in range(-5, 6)]
            assert max(found) > 0.7 and np.argmax(found) in (4, 5, 6), "aligned within a frame"
        else:
            assert 0.6 * 64000 < len(y) < 64000 and rate_kbit_s < 2.5
