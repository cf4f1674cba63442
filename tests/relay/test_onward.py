"""`serve --onward`: a telephone platform on one side, a bot on the other, with pipecat's own serializers (from PyPI) as what the bot understands."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from numpy.typing import NDArray
from relay_tools import FREE, Running, reply, wait_for
from test_adapters import SID, TWILIO_CALL, VONAGE_CALL
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve

from tools.relay_peer import Wire
from voicewire.engines import Engine
from voicewire.rt.cli import main
from voicewire.rt.relay import onward
from voicewire.rt.relay.config import Config
from voicewire.rt.relay.limits import Limits
from voicewire.rt.relay.mulaw import decode, encode
from voicewire.rt.relay.passing import MOST_KEPT
from voicewire.rt.stream import Stream

F32, I16 = NDArray[np.float32], NDArray[np.int16]


class Bot:
    """A bot on a thread. heard: what each call has said; `answer` is called with every message. ended: close codes that it saw."""

    def __init__(self, answer: Callable[[ServerConnection, str | bytes], None] = lambda ws, m: None, **options: Any) -> None:
        self.heard: list[str | bytes] = []
        self.calls: list[ServerConnection] = []
        self.ended: list[tuple[int, str]] = []
        self._answer, self._server = answer, serve(self._call, "127.0.0.1", 0, compression=None, **options)
        self.url = f"ws://127.0.0.1:{self._server.socket.getsockname()[1]}/media"
        self._thread = threading.Thread(daemon=True, target=self._server.serve_forever)

    def _call(self, ws: ServerConnection) -> None:
        self.calls.append(ws)
        with contextlib.suppress(ConnectionClosed):
            while True:
                m = ws.recv()
                self.heard.append(m)
                self._answer(ws, m)
        self.ended.append((ws.close_code or 0, ws.close_reason or ""))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join(10)


def relay_to(bot: Bot, engine: Any = None, **options: Any) -> Running:
    return Running(engine or Wire(), Config(port=0, max_streams=8, onward=bot.url, **{"limits": FREE, **options}))


def call(r: Running, path: str = "/twilio") -> ClientConnection:
    return connect(f"ws://127.0.0.1:{r.port}{path}", proxy=None, compression=None, max_size=None)


def media(k: int, data: bytes, **more: Any) -> str:
    fields = {"track": "inbound", "chunk": str(k + 1), "timestamp": str(20 * k + 5), "payload": base64.b64encode(data).decode()}
    return json.dumps({"event": "media", "sequenceNumber": str(k + 2), "media": fields | more, "streamSid": SID, "new": {"field": k}})


def begin(r: Running) -> ClientConnection:
    ws = call(r)
    for m in TWILIO_CALL[:2]:
        ws.send(json.dumps(m))
    return ws


def without_payload(message: str | bytes) -> Any:
    m = json.loads(message)
    if m["event"] == "media" and m["media"]["track"] == "inbound":
        m["media"]["payload"] = len(base64.b64decode(m["media"]["payload"]))
    return m


def test_a_twilio_call_reaches_the_bot_cleaned_in_its_order(engine: Engine, noisy: F32) -> None:
    pytest.importorskip("pipecat", reason="pipecat is missing: pip install 'voicewire[pipecat]'")
    from pipecat.frames.frames import InputAudioRawFrame, InputDTMFFrame
    from pipecat.serializers.twilio import TwilioFrameSerializer

    x = decode(encode(np.round(noisy[:32000:2] * 20000).astype(np.int16)))
    said = [json.dumps(m) for m in TWILIO_CALL[:2]]
    for k, block in enumerate(np.split(x, 100)):
        said.append(media(k, encode(block)))
        if k in (0, 40, 41):
            said += [
                json.dumps(TWILIO_CALL[4]),
                '{ "event":"mark","mark":{"name":"' + "long " * 50 + '"} }',
                '{"event": "not yet known"}',
                json.dumps(TWILIO_CALL[3]),
            ]
    said.append(json.dumps(TWILIO_CALL[6]))
    with Bot() as bot, relay_to(bot, engine) as r:
        with call(r) as ws:
            for m in said:
                ws.send(m)
            assert wait_for(lambda: len(bot.heard) == len(said), 60)
            with pytest.raises(TimeoutError):
                ws.recv(0)  # nobody hears himself
        assert wait_for(lambda: bool(bot.ended))
    assert bot.ended == [(1000, "")] and len(bot.calls) == 1
    assert [without_payload(m) for m in bot.heard] == [without_payload(m) for m in said]
    assert [m for m in bot.heard if '"inbound"' not in str(m)] == [m for m in said if '"inbound"' not in m]  # words, letter by letter
    expected = decode(encode(Stream(8000, engine=engine).process(x)))

    async def understood() -> bytes:
        theirs = TwilioFrameSerializer(SID, params=TwilioFrameSerializer.InputParams(auto_hang_up=False, sample_rate=8000))
        theirs._sample_rate = 8000  # what its `setup` would do
        frames = [await theirs.deserialize(m) for m in bot.heard if json.loads(m).get("media", {}).get("track") != "outbound"]
        assert sum(isinstance(f, InputDTMFFrame) for f in frames) == 3
        return b"".join(f.audio for f in frames if isinstance(f, InputAudioRawFrame))

    assert np.array_equal(np.frombuffer(asyncio.run(understood()), np.int16), expected)


def test_what_the_bot_says_reaches_twilio_byte_by_byte() -> None:
    pytest.importorskip("pipecat", reason="pipecat is missing: pip install 'voicewire[pipecat]'")
    from pipecat.frames.frames import InterruptionFrame, OutputAudioRawFrame
    from pipecat.serializers.twilio import TwilioFrameSerializer

    async def speech() -> list[str | bytes]:
        theirs = TwilioFrameSerializer(SID, params=TwilioFrameSerializer.InputParams(auto_hang_up=False, sample_rate=8000))
        theirs._sample_rate = 8000
        sound = OutputAudioRawFrame((6000 * np.sin(np.arange(160) / 9)).astype(np.int16).tobytes(), 8000, 1)
        frames: list[Any] = [sound, sound, InterruptionFrame(), sound]
        spoken = [await theirs.serialize(f) for f in frames]
        return [m for m in spoken if m is not None]

    says: list[str | bytes] = [*asyncio.run(speech()), '{"event": "mark",  "mark": {"name": "\u20ac"}}', "no JSON", b"\x00\xff", b"", "x" * 300_000]
    assert len(says) == 9

    def answer(ws: ServerConnection, m: str | bytes) -> None:
        if json.loads(m)["event"] == "start":
            for s in says:
                ws.send(s)
            ws.send(iter(["in ", "several ", "frames"]))

    with Bot(answer) as bot, relay_to(bot) as r, begin(r) as ws:
        assert [ws.recv(10) for _ in range(10)] == [*says, "in several frames"]


def test_a_vonage_call_both_ways(engine: Engine, noisy: F32) -> None:
    pytest.importorskip("pipecat", reason="pipecat is missing: pip install 'voicewire[pipecat]'")
    from pipecat.frames.frames import InputAudioRawFrame, InterruptionFrame, OutputAudioRawFrame
    from pipecat.serializers.vonage import VonageFrameSerializer

    x = np.round(noisy[:16000] * 32767).astype(np.int16)
    said = [json.dumps(VONAGE_CALL[0]), *(x[at : at + 320].tobytes() for at in range(0, len(x), 320))]
    for at, m in ((5, VONAGE_CALL[2]), (20, VONAGE_CALL[3]), (20, VONAGE_CALL[4])):
        said.insert(at, json.dumps(m))
    theirs = VonageFrameSerializer(VonageFrameSerializer.InputParams(vonage_sample_rate=16000, sample_rate=16000))
    theirs._sample_rate = 16000

    async def speech() -> list[str | bytes | None]:
        return [await theirs.serialize(f) for f in (OutputAudioRawFrame(x[:320].tobytes(), 16000, 1), InterruptionFrame())]

    async def understood() -> bytes:
        frames = [await theirs.deserialize(m) for m in bot.heard]
        return b"".join(f.audio for f in frames if isinstance(f, InputAudioRawFrame))

    says = asyncio.run(speech())

    def answer(ws: ServerConnection, m: str | bytes) -> None:
        if isinstance(m, str) and "connected" in m:
            for s in says:
                assert s is not None
                ws.send(s)

    with Bot(answer) as bot, relay_to(bot, engine) as r:
        with call(r, "/vonage") as ws:
            for m in said:
                ws.send(m)
            assert [ws.recv(5) for _ in says] == says
            assert wait_for(lambda: len(bot.heard) == len(said), 60)
        assert [m if isinstance(m, str) else len(m) for m in bot.heard] == [m if isinstance(m, str) else len(m) for m in said]
    expected = Stream(16000, engine=engine).process(x)
    assert np.array_equal(np.frombuffer(asyncio.run(understood()), np.int16), expected)


def test_our_own_dialect_stays_here() -> None:
    with Bot() as bot, relay_to(bot) as r:
        ws = r.connect()
        ws.send('{"event": "start", "rate": 16000}')
        assert reply(ws, "ready")
        r.close_all()
        assert not bot.calls


# -- ends --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [0, 1, 2, 3, 12])
@pytest.mark.parametrize("how", ["close 1000", "close 4321", "cut"])
def test_a_platform_that_ends_at_any_point_ends_the_bots_call(how: str, sent: int) -> None:
    with Bot() as bot, relay_to(bot) as r:
        said = [json.dumps(m) for m in TWILIO_CALL[:2]] + [media(k, bytes(160)) for k in range(9)] + [json.dumps(TWILIO_CALL[6])]
        ws = call(r)
        for m in said[:sent]:
            ws.send(m)
        if how == "cut":
            ws.socket.shutdown(socket.SHUT_RDWR)
        else:
            ws.close(int(how[6:]), "hung up")
        assert wait_for(lambda: r.used == 0 and r.relay._connections == 0)
        if sent < 2:
            assert not bot.calls  # no stream, no call
        else:
            assert wait_for(lambda: len(bot.ended) == 1)
            assert bot.ended == [(1001, "") if how == "cut" else (int(how[6:]), "hung up")]
            assert sent < 12 or how == "cut" or bot.heard[-1] == said[-1]  # `stop` is not lost


@pytest.mark.parametrize("after", [1, 2, 3, 8])
@pytest.mark.parametrize("how", ["close 1000", "close 4321", "close", "cut"])
def test_a_bot_that_ends_at_any_point_ends_the_platforms_call(how: str, after: int) -> None:
    def answer(ws: ServerConnection, m: str | bytes) -> None:
        ws.send(m)
        if len(bot.heard) == after:
            if how == "cut":
                ws.socket.shutdown(socket.SHUT_RDWR)
            elif how == "close":
                ws.socket.sendall(Frame(Opcode.CLOSE, b"").serialize(mask=False))
            else:
                ws.close(int(how[6:]), "good bye")

    with Bot(answer) as bot, relay_to(bot) as r, begin(r) as ws:
        got = []
        with pytest.raises(ConnectionClosed):
            for k in range(200):
                with contextlib.suppress(ConnectionClosed):
                    ws.send(media(k, bytes(160)))
                with contextlib.suppress(TimeoutError):
                    got.append(ws.recv(0.05))
        assert wait_for(lambda: r.used == 0 and r.relay._connections == 0)
        said = {"cut": (1014, "the bot is gone"), "close": (1000, "")}
        assert (ws.close_code, ws.close_reason) == said.get(how, (how[6:] and int(how[6:]), "good bye"))
        assert got == bot.heard[:after]  # all that it had said before


def test_a_server_that_is_emptied_lets_calls_go_on_until_its_time_is_up() -> None:
    with Bot() as bot, relay_to(bot) as r, begin(r) as ws:
        assert wait_for(lambda: len(bot.heard) == 2)
        r.drain(1.0)
        ws.send(media(0, bytes(160)))
        assert wait_for(lambda: len(bot.heard) == 3) and not bot.ended
        with pytest.raises(ConnectionClosed):
            ws.recv(10)
        assert ws.close_code == 1001 and wait_for(lambda: bot.ended == [(1001, "the server ends")])


# -- bots that are not there -------------------------------------------------------------------------------------------


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as s:
        yield s.getsockname()[1]


def refusing(ws: ServerConnection, request: Any) -> Any:
    return ws.respond(403, "not you\n")


@pytest.mark.parametrize("why", ["nobody", "refused", "silent", "no WebSocket", "no TLS"])
def test_a_bot_that_cannot_be_reached_is_said_once(why: str, silent: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onward, "OPEN_S", 0.3)
    caplog.set_level(logging.INFO, "voicewire.relay")
    with Bot(process_request=refusing) as bot, Running(Wire(), max_streams=2) as web:
        urls = {
            "nobody": "ws://user:secret@127.0.0.1:1/?key=secret",
            "refused": bot.url.replace("//", "//user:secret@"),
            "silent": f"ws://user:secret@127.0.0.1:{silent}/",
            "no WebSocket": f"ws://user:secret@127.0.0.1:{web.port}/healthz",
            "no TLS": bot.url.replace("ws://", "wss://user:secret@"),
        }
        says = {"nobody": "Connection refused", "refused": "HTTP 403", "silent": "no answer", "no WebSocket": "HTTP 200", "no TLS": "broke"}
        with Running(Wire(), max_streams=2, onward=urls[why]) as r, begin(r) as ws:
            with contextlib.suppress(ConnectionClosed):
                ws.send(media(0, bytes(160)))
            with pytest.raises(ConnectionClosed):
                ws.recv(10)
            assert (ws.close_code, ws.close_reason) == (1014, "the bot that this server passes calls on to cannot be reached")
            assert wait_for(lambda: r.used == 0)
            text = r.relay.metrics.text().decode()
    assert 'voicewire_protocol_errors_total{code="no_bot"} 1.0' in text
    (line,) = [json.loads(m) for m in caplog.messages if json.loads(m)["event"] == "bot"]
    assert says[why] in line["error"] and "secret" not in caplog.text and "127.0.0.1" not in caplog.text


def test_a_bot_with_a_certificate(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    try:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "1", "-subj", "/CN=localhost",
             "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)  # fmt: skip
    except FileNotFoundError:
        pytest.skip("no openssl here to make a certificate")
    caplog.set_level(logging.INFO, "voicewire.relay")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with Bot(lambda ws, m: ws.send(m), ssl=context) as bot:
        url = bot.url.replace("ws://127.0.0.1", "wss://localhost")
        with Running(Wire(), max_streams=2, onward=url) as r, begin(r) as ws, pytest.raises(ConnectionClosed, match="1014"):
            ws.recv(10)
        assert "its certificate is not trusted" in caplog.text and not bot.calls
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        with Running(Wire(), max_streams=2, onward=url) as r, begin(r) as ws:
            assert [json.loads(ws.recv(10)) for _ in range(2)] == TWILIO_CALL[:2]


def test_the_bot_is_the_operators_and_gets_his_password() -> None:
    seen: list[tuple[str, str | None]] = []

    def note(ws: ServerConnection, request: Any) -> None:
        seen.append((request.path, request.headers.get("Authorization")))

    with Bot(process_request=note) as bot:
        url = bot.url.replace("//", "//user:secret@") + "?key=secret"
        with Running(Wire(), Config(port=0, max_streams=2, onward=url)) as r, call(r, "/twilio?onward=ws://elsewhere/") as ws:
            for m in TWILIO_CALL[:2]:
                ws.send(json.dumps(m))
            assert wait_for(lambda: len(bot.heard) == 2)
        assert "secret" not in repr(r.relay.config)
    assert seen == [("/media?key=secret", "Basic " + base64.b64encode(b"user:secret").decode())]


@pytest.mark.parametrize("url", ["https://bot.example/", "bot.example", "wss://", "wss://token@bot.example/secret", "wss://bot.example:x/secret"])
def test_an_address_that_is_none_is_one_line_without_it(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--onward", url]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--onward must be" in said and "secret" not in said


# -- who does not read -------------------------------------------------------------------------------------------------


class Deaf:
    """A bot that shakes hands and reads nothing more; `pings`: it sends some, as if all were well."""

    def __init__(self, pings: bool) -> None:
        self._pings, self._over = pings, threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.url = f"ws://127.0.0.1:{self._listener.getsockname()[1]}/"
        self._thread = threading.Thread(daemon=True, target=self._run)

    def _run(self) -> None:
        from websockets.http11 import Request
        from websockets.server import ServerProtocol

        with contextlib.suppress(OSError):
            s, _ = self._listener.accept()
            with s:
                protocol = ServerProtocol()
                while not (events := protocol.events_received()):
                    protocol.receive_data(s.recv(4096))
                assert isinstance(events[0], Request)
                protocol.send_response(protocol.accept(events[0]))
                s.sendall(b"".join(protocol.data_to_send()))
                while not self._over.wait(0.1):
                    if self._pings:
                        s.sendall(Frame(Opcode.PING, b"").serialize(mask=False))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._listener.close()
        self._thread.join(5)


def most_waiting(r: Running) -> int:
    return max((c.onward._bot.transport.get_write_buffer_size() for _, c in list(r.relay.sessions.values()) if c.onward and c.onward._bot), default=0)


@pytest.mark.parametrize(("pings", "words"), [(True, False), (True, True), (False, False)])
def test_a_bot_that_never_reads_costs_little_memory(pings: bool, words: bool) -> None:
    """It misses media. Where words pile up, or where it is silent, too, the call ends."""
    limits = Limits(write_bytes=4096, messages_per_s=1e6, late_frames=10**6, ping_s=0.5, pong_s=0.5 if not pings else 60)
    with Deaf(pings) as bot, Running(Wire(), Config(port=0, max_streams=2, onward=bot.url, limits=limits)) as r, begin(r) as ws:
        most, skipped, k, until = 0, 0, 0, time.monotonic() + 60
        dtmf = json.dumps(TWILIO_CALL[4] | {"pad": "x" * 4000})
        with contextlib.suppress(ConnectionClosed):
            while time.monotonic() < until and not (pings and not words and skipped > 8000):
                ws.send(dtmf if words else media(k, bytes(160), pad="x" * 8000))
                k += 1
                most = max(most, most_waiting(r))
                skipped = max([skipped, *(s.tally.skipped_samples for s, _ in list(r.relay.sessions.values()))])
                if not words and k % 20 == 0:
                    time.sleep(0.02)
        assert most <= 16 * 4096 + (1 << 16), most
        if pings and not words:
            assert skipped > 8000 and r.used == 1  # media is missed; the call goes on
        else:
            with pytest.raises(ConnectionClosed):
                ws.recv(10)
            assert (ws.close_code, ws.close_reason) == (1014, "the bot does not read" if words else "the bot is gone")
            assert wait_for(lambda: r.used == 0)


@contextlib.contextmanager
def slow_platform(r: Running) -> Iterator[ClientConnection]:
    """A call whose platform has room for little of what comes back."""
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect(("127.0.0.1", r.port))
    with connect(f"ws://127.0.0.1:{r.port}/twilio", sock=slow, proxy=None, compression=None, max_size=None, max_queue=1, close_timeout=1) as ws:
        for m in TWILIO_CALL[:2]:
            ws.send(json.dumps(m))
        yield ws


SPEECH = [bytes([k % 256]) * 20_000 for k in range(1000)]


def talkative(sent: list[int]) -> Callable[[ServerConnection, str | bytes], None]:
    def answer(ws: ServerConnection, m: str | bytes) -> None:
        if "start" in str(m):
            for s in SPEECH:
                ws.send(s)
                sent.append(len(s))

    return answer


def test_a_bot_that_speaks_faster_than_the_platform_takes_waits_and_nothing_is_lost() -> None:
    sent: list[int] = []
    limits = Limits(write_bytes=1 << 14, messages_per_s=1e6, late_frames=10**6)
    with Bot(talkative(sent)) as bot, Running(Wire(), Config(port=0, max_streams=2, onward=bot.url, limits=limits)) as r, slow_platform(r) as ws:
        before = -1
        while before != len(sent):  # until it stands still
            before = len(sent)
            time.sleep(0.5)
        ((_, connection),) = r.relay.sessions.values()
        assert 0 < before < len(SPEECH) and connection.transport.get_write_buffer_size() < 1 << 19
        assert [ws.recv(10) for _ in SPEECH] == SPEECH


def test_a_platform_that_takes_nothing_for_long_is_cut_off_and_the_bot_told() -> None:
    sent: list[int] = []
    limits = Limits(write_bytes=1 << 14, messages_per_s=1e6, late_frames=10**6, idle_timeout_s=1.0)
    with Bot(talkative(sent)) as bot, Running(Wire(), Config(port=0, max_streams=2, onward=bot.url, limits=limits)) as r, slow_platform(r) as ws:
        for k in range(600):  # it speaks all the while
            with contextlib.suppress(ConnectionClosed):
                ws.send(media(k, bytes(160)))
            if bot.ended or (k > 20 and not r.used):
                break
            time.sleep(0.02)
        assert wait_for(lambda: r.used == 0 and bool(bot.ended), 5) and len(sent) < len(SPEECH)
        assert bot.ended[0][0] in (1001, 1006)  # it reads that word if it reads at all


def test_what_waits_for_the_model_is_bounded() -> None:
    class Stuck(Wire):
        def step(self, x: Any, state: Any) -> Any:
            stuck.wait(20)
            return super().step(x, state)

        advance = step

    stuck, engine = threading.Event(), Wire()
    with Bot() as bot, relay_to(bot, engine) as r, begin(r) as ws:
        assert wait_for(lambda: len(bot.heard) == 2)
        engine.advance = Stuck().advance  # type: ignore[method-assign]
        for k in range(3):
            ws.send(media(k, bytes(160)))
        with contextlib.suppress(ConnectionClosed):
            for _ in range(2 * MOST_KEPT // 100_000):
                ws.send(json.dumps({"event": "dtmf", "pad": "x" * 100_000}))
        with pytest.raises(ConnectionClosed):
            ws.recv(10)
        stuck.set()
        assert ws.close_code == 1008 and "wait for their turn" in ws.close_reason
