"""The relay over real sockets: what comes back is what `voicewire file` gives, whoever else is connected and whatever they do."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import soundfile as sf
from relay_tools import FREE, Running, exchange, reply, sound, wait_for
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import connect

from tools.relay_peer import Peer, Wire, frame
from voicewire.engines import Engine
from voicewire.rt import Stream
from voicewire.rt.cli import main
from voicewire.rt.lane import to_int16
from voicewire.rt.relay import send
from voicewire.rt.relay.config import Config
from voicewire.rt.relay.gate import Door
from voicewire.rt.relay.limits import Limits
from voicewire.rt.relay.protocol import pack_header, unpack_header
from voicewire.rt.relay.slots import Batching
from voicewire.rt.relay.tickets import issue

pytestmark = pytest.mark.filterwarnings("ignore:.*must be used as a context manager")


def voice(noisy: np.ndarray, seconds: float, at: float = 0.0) -> np.ndarray:
    return to_int16(noisy[int(at * 16000) : int((at + seconds) * 16000)])


def alone(engine: Engine, x: np.ndarray, rate: int = 16000, **options: Any) -> np.ndarray:
    """What a Stream makes of it, the delay left in, with its flush."""
    stream = Stream(rate, 1 if x.ndim == 1 else x.shape[1], engine=engine, **options)
    y = stream.process(x)
    rest = stream.process(np.zeros((stream.latency_samples, *x.shape[1:]), x.dtype))
    return np.concatenate([y, rest])


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    out, at, i = [], 0, 0
    while at < len(data):
        out.append(data[at : at + sizes[i % len(sizes)]])
        at, i = at + len(out[-1]), i + 1
    return out


@pytest.fixture(scope="module")
def relay(engine: Engine) -> Any:
    with Running(engine, limits=FREE, max_streams=8) as r:
        yield r


# -- the same samples --------------------------------------------------------------------------------------------------


def test_send_gives_what_file_gives(relay: Running, noisy: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sf.write(tmp_path / "in.wav", voice(noisy, 1.5), 16000)
    assert main(["file", str(tmp_path / "in.wav"), str(tmp_path / "file.wav")]) == 0
    assert main(["send", str(tmp_path / "in.wav"), str(tmp_path / "sent.wav"), "--url", relay.url]) == 0
    assert (tmp_path / "file.wav").read_bytes() == (tmp_path / "sent.wav").read_bytes()
    assert main(["send", str(tmp_path / "in.wav"), str(tmp_path / "sent.wav"), "--url", relay.url, "--realtime", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["delay_ms"] > 30
    assert (tmp_path / "file.wav").read_bytes() == (tmp_path / "sent.wav").read_bytes()


def test_send_keeps_channels_apart(relay: Running, noisy: np.ndarray, tmp_path: Path) -> None:
    """Each in a stream of its own, as `file` has it, or mixed; with as much taken away as is asked for."""
    x = voice(noisy, 1.0)
    sf.write(tmp_path / "in.wav", np.stack([x, x[::-1], 0 * x], 1), 16000)
    for channels in ("each", "mix"):
        for command in (["file"], ["send", "--url", relay.url]):
            out = str(tmp_path / f"{command[0]}.wav")
            assert main([*command, str(tmp_path / "in.wav"), out, "--channels", channels, "--strength", "10"]) == 0
        assert (tmp_path / "file.wav").read_bytes() == (tmp_path / "send.wav").read_bytes(), channels


def test_send_waits_until_there_is_room(noisy: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(send, "BUSY_S", 0.05)
    sf.write(tmp_path / "in.wav", voice(noisy, 0.5), 16000)
    with Running(Wire(), max_streams=1, limits=FREE) as r:
        one = r.connect()
        one.send(json.dumps({"event": "start", "rate": 16000, "format": "s16le"}))
        reply(one, "ready")
        leaving = threading.Timer(0.3, one.close)
        leaving.start()
        assert main(["send", str(tmp_path / "in.wav"), str(tmp_path / "out.wav"), "--url", r.url]) == 0
        leaving.join()
    said = capsys.readouterr().err
    assert "trying again" in said and sf.info(tmp_path / "out.wav").frames == 8000


def test_streams_at_once_are_each_bit_equal_to_one_alone(relay: Running, engine: Engine, noisy: np.ndarray) -> None:
    """Eight clients of four rates and block sizes together: slots do not leak, batches of any size give the bits of a batch of one."""
    results: dict[int, bytes] = {}
    jobs = [(rate, voice(noisy, 0.8, at=i * 0.7), sizes) for i, (rate, sizes) in enumerate([
        (16000, [640]), (16000, [2, 900, 14]), (48000, [1920]), (8000, [320]), (44100, [4410]), (16000, [640]), (8000, [50]), (48000, [7000, 2]),
    ])]  # fmt: skip

    def one(i: int) -> None:
        rate, x, sizes = jobs[i]
        results[i] = exchange(relay.start(rate=rate, live=False), cut(x.tobytes(), sizes))

    threads = [threading.Thread(daemon=True, target=one, args=(i,)) for i in range(len(jobs))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for i, (rate, x, _) in enumerate(jobs):
        assert np.array_equal(np.frombuffer(results[i], np.int16), alone(engine, x, rate)), f"stream {i} at {rate} Hz differs"
    assert wait_for(lambda: relay.used == 0)


def test_float_and_two_channels(wire: Running, noisy: np.ndarray) -> None:
    x = np.stack([noisy[:9000], noisy[9000:18000]], 1)
    got = exchange(wire.start(format="f32le", channels=2), cut(x.tobytes(), [640, 8, 4096]))
    assert np.array_equal(np.frombuffer(got, np.float32).reshape(-1, 2), alone(Wire(), x))
    whole = to_int16(x)
    got = exchange(wire.start(channels=2), cut(whole.tobytes(), [640]))
    assert np.array_equal(np.frombuffer(got, np.int16).reshape(-1, 2), alone(Wire(), whole))
    x[100:200] = np.nan
    assert np.isfinite(np.frombuffer(exchange(wire.start(format="f32le", channels=2), [x.tobytes()]), np.float32)).all()


def test_strength_and_bypass(relay: Running, engine: Engine, noisy: np.ndarray) -> None:
    x = voice(noisy, 0.4)
    got = exchange(relay.start(strength_db=6), cut(x.tobytes(), [640]))
    assert np.array_equal(np.frombuffer(got, np.int16), alone(engine, x, strength_db=6.0))
    ws = relay.start()
    ws.send('{"event": "set", "bypass": true}')
    y = np.frombuffer(exchange(ws, [x.tobytes()]), np.int16)
    assert np.abs(y[480:].astype(int) - x).max() <= 1


def test_opus_there_and_back(wire: Running, clean: np.ndarray) -> None:
    pytest.importorskip("av")
    from voicewire.rt.relay.opus import Opus

    near, far = Opus(16000, 1), Opus(16000, 1)
    x = voice(clean, 3)[:, None]
    ws = wire.start(format="opus")
    packets = near.encode(x)
    assert len(packets) > 100
    for p in packets:
        ws.send(p)
    ws.send('{"event": "stop"}')
    got = [m for m in ws if isinstance(m, bytes)]
    assert abs(len(got) - len(packets)) <= 4
    y = np.concatenate([far.decode(p) for p in got])[:, 0].astype(float)
    assert abs(len(y) - len(x)) < 1600

    def loudness(z: np.ndarray) -> np.ndarray:
        return np.sqrt((z[: len(z) // 160 * 160].reshape(-1, 160) ** 2).mean(1))

    before, after = loudness(x[:, 0].astype(float))[:280], loudness(y)
    best = max(np.corrcoef(after[lag : lag + 280], before)[0, 1] for lag in range(8))
    assert best > 0.97, "the envelope of what came back is not that of what was sent"
    ws = wire.start(format="opus")
    ws.send(b"")
    assert reply(ws, "error")["code"] == "bad_audio"


def test_header_orders_counts_and_comes_back(wire: Running) -> None:
    ws = wire.start(header=True, live=False)  # live ones go through the jitter buffer
    block = np.arange(320, dtype=np.int16).tobytes()
    for sequence in (2**32 - 2, 2**32 - 1, 0, 0, 3, 1):  # wraps, once twice, two lost, one late
        ws.send(pack_header(sequence, 1000 + sequence) + block)
    audio = (m for m in iter(lambda: ws.recv(5), None) if isinstance(m, bytes))  # on a slow machine `stats` come in between
    got = [unpack_header(m)[:2] for m in islice(audio, 4)]
    assert got == [(s, 1000 + s) for s in (2**32 - 2, 2**32 - 1, 0, 3)]
    stats = reply(ws, "stats")
    assert (stats["lost"], stats["late"], stats["samples_in"]) == (2, 2, 4 * 320)
    ws.send(b"short")
    assert reply(ws, "error")["code"] == "bad_header"
    ws.close()


# -- control -----------------------------------------------------------------------------------------------------------


def test_marks_keep_their_place_and_clear_forgets(wire: Running) -> None:
    ws, block = wire.start(), np.full(800, 1000, np.int16).tobytes()
    ws.send(block)
    ws.send('{"event": "mark", "name": "a"}')
    ws.send(block)
    ws.send('{"event": "mark", "name": "b"}')
    seen = [ws.recv(5) for _ in range(4)]
    assert [json.loads(m)["name"] if isinstance(m, str) else len(m) for m in seen] == [1600, "a", 1600, "b"]
    ws.send('{"event": "clear"}')
    assert reply(ws, "cleared")["samples"] == 0
    y = np.frombuffer(exchange(ws, [np.zeros(1600, np.int16).tobytes()]), np.int16)
    assert len(y) == 1600 + 480 and not y.any(), "something of before came after clear"


def test_stop_says_how_much_and_closes(wire: Running) -> None:
    ws = wire.start()
    ws.send(bytes(2 * 1000))
    ws.send('{"event": "stop"}')
    assert reply(ws, "stopped")["samples"] == 1000 + 480
    with pytest.raises(Exception, match="1000"):
        ws.recv(5)
    assert wait_for(lambda: wire.used == 0)


# -- who may not come in -----------------------------------------------------------------------------------------------


def http(port: int, path: str, *headers: str) -> tuple[int, str, dict[str, str]]:
    import http.client

    c = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    c.request("GET", path, headers=dict(h.split(": ", 1) for h in headers))
    r = c.getresponse()
    return r.status, r.read().decode(), dict(r.getheaders())


def test_refusals_say_why() -> None:
    door = Door(token="sesame", origins=("https://good.example",))
    with Running(Wire(), Config(port=0, max_streams=1, door=door)) as r:
        for path, headers in (("/v1/stream", {}), ("/v1/stream?token=wrong", {}), ("/v1/stream", {"Authorization": "Bearer wrong"})):
            with pytest.raises(InvalidStatus) as e:
                connect(f"ws://127.0.0.1:{r.port}{path}", additional_headers=headers, proxy=None)
            assert e.value.response.status_code == 401 and b"token is missing or wrong" in e.value.response.body
        with pytest.raises(InvalidStatus) as e:
            connect(f"{r.url}?token=sesame", origin="https://evil.example", proxy=None)  # type: ignore[arg-type]
        assert e.value.response.status_code == 403 and b"origin 'https://evil.example'" in e.value.response.body
        assert http(r.port, "/v1/stream?token=sesame", "Host: evil.example")[0] == 403  # DNS rebinding
        status, text, _ = http(r.port, "/v1/stream")
        assert status == 426 and "plain HTTP" in text
        assert http(r.port, "/metrics")[0] == 401
        assert http(r.port, "/../../etc/passwd")[0] == 404 and http(r.port, "/v1/other")[0] == 404
        with connect(f"{r.url}?token=sesame", origin="https://good.example", proxy=None) as ws:  # type: ignore[arg-type]
            ws.send('{"event": "start", "rate": 16000}')
            assert json.loads(ws.recv(5))["event"] == "ready"
            with pytest.raises(InvalidStatus) as e:
                connect(r.url, additional_headers={"Authorization": "Bearer sesame"}, proxy=None)
            assert e.value.response.status_code == 503 and int(e.value.response.headers["Retry-After"]) > 0


def test_where_says_where_or_why_not() -> None:
    with Running(Wire(), Config(port=0, max_streams=1, door=Door(token="sesame", tickets=b"secret"))) as r:
        assert http(r.port, "/v1/where")[0] == 401
        assert json.loads(http(r.port, "/v1/where?token=sesame")[1]) == {"url": "/v1/stream"}
        assert json.loads(http(r.port, "/v1/where?token=sesame&path=/twilio")[1]) == {"url": "/twilio"}
        assert http(r.port, "/v1/where?token=sesame&path=/nowhere")[0] == 404
        ticket = issue(b"secret")
        assert http(r.port, f"/v1/where?ticket={ticket}", "Origin: http://door.example", "Host: worker.example")[0] == 200
        for bad in (issue(b"other"), ticket[:-1], f"9{ticket}", "1.x", "²."):
            assert http(r.port, f"/v1/where?ticket={quote(bad)}")[0] == 401
        with connect(f"{r.url}?ticket={ticket}", origin="http://door.example", proxy=None) as ws:  # type: ignore[arg-type]
            ws.send('{"event": "start", "rate": 16000}')
            assert json.loads(ws.recv(5))["event"] == "ready"
            assert http(r.port, "/v1/where?token=sesame")[0] == 503


def test_health_and_metrics(wire: Running) -> None:
    exchange(wire.start(), [bytes(32000)])
    assert http(wire.port, "/healthz")[0] == http(wire.port, "/readyz")[0] == 200
    status, text, headers = http(wire.port, "/metrics")
    assert status == 200 and headers["Content-Type"].startswith("text/plain")
    values = {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if line[0] != "#"}
    assert values["voicewire_audio_in_seconds_total"] >= 1 and values["voicewire_streams_max"] == 8 and values["voicewire_step_seconds_count"] >= 50


@pytest.mark.parametrize(
    ("first", "code"),
    [
        ("nonsense", "bad_json"), ("[1]", "bad_json"), ('{"event": 3}', "bad_json"), ('{"event": "stop"}', "bad_order"), (b"\0\0", "bad_order"),
        ('{"event": "start"}', "bad_field"), ('{"event": "start", "rate": 7999}', "bad_field"), ('{"event": "start", "rate": true}', "bad_field"),
        ('{"event": "start", "rate": 16000, "format": "mp3"}', "bad_field"), ('{"event": "start", "rate": 16000, "channels": 9}', "bad_field"),
        ('{"event": "start", "rate": 16000, "task": "sing"}', "bad_field"), ('{"event": "start", "rate": 16000, "strength_db": Infinity}', "bad_field"),
        ('{"event": "start", "rate": 16000, "color": "red"}', "bad_field"), ('{"event": "start", "rate": 16000, "resume": "../../etc"}', "bad_resume"),
    ],
)  # fmt: skip
def test_a_bad_start_is_refused_with_a_reason(wire: Running, first: str | bytes, code: str) -> None:
    ws = wire.connect()
    ws.send(first)
    error = reply(ws, "error")
    assert error["code"] == code and error["text"] and "\n" not in error["text"]
    with pytest.raises(Exception, match="1008"):
        ws.recv(5)
    assert wait_for(lambda: wire.used == 0)


def test_mistakes_are_told_and_forgiven_a_few_times(wire: Running) -> None:
    ws = wire.start()
    for message, code in (
        ("{", "bad_json"), (b"\0", "bad_audio"), ('{"event": "start", "rate": 16000}', "bad_order"), ('{"event": "dance"}', "unknown_event"),
        ('{"event": "set"}', "bad_field"), ('{"event": "set", "strength_db": -1}', "bad_field"), ('{"event": "mark"}', "bad_field"),
    ):  # fmt: skip
        ws.send(message)
        assert reply(ws, "error")["code"] == code
    ws.send(bytes(640))
    assert len(sound(ws)) == 640, "the stream did not survive its mistakes"
    told = 7
    for _ in range(13):
        ws.send("{")
    with pytest.raises(ConnectionClosed, match=r"1008.*too many errors"):
        while True:
            message = ws.recv(10)
            told += isinstance(message, str) and json.loads(message)["event"] == "error"
    assert told == 20


def test_too_long_a_message_and_silence_before_start() -> None:
    with Running(Wire(), limits=Limits(message_bytes=4096, start_timeout_s=0.3), max_streams=2) as r:
        ws = r.start()
        ws.send(bytes(5000))
        with pytest.raises(Exception, match="1009"):
            ws.recv(5)
        ws = r.connect()
        assert reply(ws, "error")["code"] == "timeout"
        assert wait_for(lambda: r.used == 0)


# -- clients that misbehave --------------------------------------------------------------------------------------------


FREED_S = 2.0  # the bar


def kill(s: socket.socket, how: str) -> None:
    """fin: as a process ends that has read all; rst: as one ends that has not, or a firewall that cuts; half: it only says that it will send no more"""
    if how == "half":
        s.shutdown(socket.SHUT_WR)
        return
    if how == "rst":
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()


@pytest.mark.parametrize("how", ["fin", "rst", "half"])
def test_clients_killed_at_any_byte_free_their_slot(wire: Running, how: str) -> None:
    start = frame(b'{"event": "start", "rate": 16000}', 1)
    talk = start + frame(bytes(640)) * 3 + frame(b"half", fin=False) + frame(b'{"event": "stop"}', 1)
    rng = np.random.default_rng(0)
    sockets = []
    for at in [*range(0, 60), *sorted(rng.integers(60, len(talk), 60))]:
        s = Peer(wire.port).socket
        sockets.append(s)
        s.sendall(talk[:at])
        if at >= len(start) and at % 7 == 0:  # not only before the server has begun with it
            assert wait_for(lambda: wire.used > 0)
        kill(s, how)
    assert wait_for(lambda: wire.used == 0 and not wire.relay.sessions, FREED_S)
    assert len(exchange(wire.start(), [bytes(640)])) == 640 + 960
    for s in sockets:
        s.close()


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("how", ["fin", "rst"])
def test_a_client_killed_while_it_is_not_read_from_frees_its_slot(wire: Running, how: str, live: bool) -> None:
    """It sends faster than it reads, until the server reads no further from it (files) or sends no more (live)."""
    peer = Peer(wire.port)
    peer.socket.sendall(frame(json.dumps({"event": "start", "rate": 48000, "live": live}).encode(), 1))
    peer.message()
    peer.socket.setblocking(False)
    audio, sent = memoryview(frame(bytes(60000)) * 400), 0
    (session, connection) = next(iter(wire.relay.sessions.values()))

    def stuck() -> bool:
        nonlocal sent
        with contextlib.suppress(BlockingIOError):
            while sent < len(audio):
                sent += peer.socket.send(audio[sent : sent + 65536])
        return connection.clogged and (live or session.held)

    assert wait_for(stuck, 20), "the client was taken for one that reads"
    kill(peer.socket, how)
    assert wait_for(lambda: wire.used == 0, FREED_S)


def test_a_client_process_that_is_killed_frees_its_slot(wire: Running) -> None:
    code = f"""
import sys, time
sys.path[:0] = {sys.path!r}
from websockets.sync.client import connect
ws = connect({wire.url!r}, compression=None, proxy=None)
ws.send('{{"event": "start", "rate": 16000}}')
while True:
    ws.send(bytes(640))
    time.sleep(0.02)
"""
    client = subprocess.Popen([sys.executable, "-c", code])
    try:
        assert wait_for(lambda: wire.used == 1, 30)
    finally:
        client.kill()
        client.wait()
    assert wait_for(lambda: wire.used == 0, FREED_S)


def test_a_network_that_vanishes_costs_a_slot_for_a_moment_only() -> None:
    """No FIN, no RST: only the missing answer to a ping says so."""
    with Running(Wire(), limits=Limits(ping_s=0.2, pong_s=0.3), max_streams=2) as r:
        gone = Peer(r.port).socket
        gone.sendall(frame(b'{"event": "start", "rate": 16000}', 1) + frame(bytes(640)))
        ws = r.start()  # answers pings
        assert r.used == 2 and wait_for(lambda: r.used == 1, 8)
        assert len(exchange(ws, [bytes(640)])) == 640 + 960
        gone.close()


def test_slow_readers_are_skipped_and_told(wire: Running) -> None:
    """A live client that does not read costs bounded memory and hears at once, when it reads again, what it missed."""
    s = Peer(wire.port).socket
    s.sendall(frame(b'{"event": "start", "rate": 48000, "format": "f32le", "channels": 8}', 1))
    block, sent = frame(bytes(48000 * 32 // 10)), 0
    assert wait_for(lambda: wire.used == 1)
    session = next(iter(wire.relay.sessions.values()))[0]
    s.settimeout(5)
    while session.tally.skipped_samples == 0 and sent < 400:
        s.sendall(block)
        sent += 1
    assert session.tally.skipped_samples > 0
    connection = next(iter(wire.relay.sessions.values()))[1]
    assert connection.transport.get_write_buffer_size() < 2 * len(block) + (1 << 16)
    heard, end = b"", time.monotonic() + 10
    while b'"lag"' not in heard[-(1 << 20) :] and time.monotonic() < end:
        heard += s.recv(1 << 16)
    assert b'"lag"' in heard
    s.close()
    assert wait_for(lambda: wire.used == 0)


def test_a_file_may_wait_longer_than_a_ping() -> None:
    """Answers to pings wait behind audio that the server does not read yet: that is no sign of a client that vanished."""
    with Running(Wire(0.05), limits=Limits(ping_s=0.2, pong_s=0.3), max_streams=2) as r:
        assert len(exchange(r.start(live=False), [bytes(32000)] * 3)) == 3 * 32000 + 960


def test_files_lose_nothing_to_a_slow_reader(wire: Running) -> None:
    x = (1000 * np.random.default_rng(0).standard_normal((48000 * 3, 8))).astype(np.float32) / 32768
    ws = wire.start(rate=48000, format="f32le", channels=8, live=False)
    sender = threading.Thread(daemon=True, target=lambda: [ws.send(b) for b in [*cut(x.tobytes(), [160000]), '{"event": "stop"}']])
    sender.start()
    time.sleep(0.5)
    got = b"".join(m for m in ws if isinstance(m, bytes))
    sender.join()
    assert np.array_equal(np.frombuffer(got, np.float32).reshape(-1, 8), alone(Wire(), x, 48000))


def test_overload_refuses_newcomers_and_spares_the_admitted(engine: Engine, noisy: np.ndarray) -> None:
    x = voice(noisy, 0.6)
    blocks = cut(x.tobytes(), [640])
    with Running(engine, max_streams=2, limits=FREE) as r:
        early = [r.connect() for _ in range(3)]  # through the door while there was room
        admitted = [r.start(), r.start()]
        for ws in admitted:
            for block in blocks[:15]:
                ws.send(block)
        for ws in early:
            ws.send('{"event": "start", "rate": 16000}')
            assert reply(ws, "error", "ready").get("code") == "busy"
        for _ in range(10):
            with pytest.raises(InvalidStatus) as e:
                r.connect()
            assert e.value.response.status_code == 503
        for ws in admitted:
            got = exchange(ws, blocks[15:])
            assert np.array_equal(np.frombuffer(got, np.int16), alone(engine, x))


def test_a_flood_of_tiny_messages_is_read_slowly() -> None:
    with Running(Wire(), limits=Limits(messages_per_s=200), max_streams=2) as r:
        s = Peer(r.port).socket
        s.sendall(frame(b'{"event": "start", "rate": 16000}', 1))
        s.setblocking(False)
        flood, sent = (frame(b"\0\0") + frame(b"", 9) + frame(b"", fin=False) + frame(b"", 0)) * 200, 0
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            try:
                sent += s.send(flood)
            except BlockingIOError:
                time.sleep(0.01)
        session = next(iter(r.relay.sessions.values()))[0]
        assert session.tally.samples_in < 20_000, "the flood was read at full speed"
        ws = r.start()
        ws.send(bytes(640))
        assert len(sound(ws)) == 640, "the neighbour was not served"
        s.close()


# -- leaving -----------------------------------------------------------------------------------------------------------


def test_drain_says_goaway_waits_and_ends() -> None:
    with Running(Wire(), max_streams=2, limits=Limits(drain_s=20)) as r:
        ws = r.start()
        ws.send(bytes(640))
        assert len(sound(ws)) == 640
        r.drain()
        assert reply(ws, "goaway")["deadline_ms"] > 19000
        # (InvalidMessage, too: closed without an answer where it came while the listener was being closed)
        with pytest.raises((InvalidHandshake, ConnectionClosed, OSError)):
            r.connect()
        assert len(exchange(ws, [bytes(640)])) == 640 + 960
        r._thread.join(10)
        assert not r._thread.is_alive()


def test_recording_keeps_both_sides(tmp_path: Path, noisy: np.ndarray) -> None:
    with Running(Wire(), max_streams=2, record=tmp_path) as r:
        exchange(r.start(), [voice(noisy, 1).tobytes()])
    before, after = (sf.read(next(tmp_path.glob(f"*-{side}.wav")), dtype="int16")[0] for side in ("before", "after"))
    assert np.array_equal(before[:16000], voice(noisy, 1)) and len(after) == len(before)


def test_one_streams_fault_is_not_the_others(wire: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = wire.start(), wire.start(rate=8000)
    session = next(s for s, _ in wire.relay.sessions.values() if s.start.rate == 8000)

    def broken(owed: Any) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(session, "_play", broken)
    bad.send(bytes(1280))
    assert reply(bad, "error")["code"] == "internal"
    assert len(exchange(good, [bytes(640)])) == 640 + 960


def test_a_failing_engine_is_told_and_unready() -> None:
    class Broken(Wire):
        def advance(self, x: Any, state: Any) -> Any:
            raise RuntimeError("no")

    with Running(Broken(), max_streams=2, batching=Batching(4, 0.1)) as r:
        ws = r.start()
        ws.send(bytes(640))
        assert reply(ws, "error")["code"] == "internal"
        assert http(r.port, "/readyz")[0] == 503
