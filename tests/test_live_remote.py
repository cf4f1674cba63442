"""`voicewire set`: a running `live` steered from outside, by its socket alone and with real sound servers."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from hypothesis import example, given, settings
from hypothesis import strategies as st
from relay_tools import wait_for
from test_live_parts import STATUS, shown
from test_live_servers import RATE, VOICEWIRE, LiveCommand, loud_share, recording, server

from tools.soundserver import SoundServer
from voicewire.rt import cli
from voicewire.rt.live import Live, LiveSettings, remote, service, set_command
from voicewire.rt.live.remote import Remote
from voicewire.rt.live.view import Screen


class Wired(Live):
    """`Live` whose audio process is a list of what it was told."""

    def __init__(self, begun: LiveSettings | None = None) -> None:
        self.told: list[dict[str, Any]] = []
        super().__init__(begun or LiveSettings(device_out="virtual"))

    def _start(self, *, patient: bool) -> None:
        self._put({"opened": {"in": "mic", "out": "voicewire", "backend": "jack"}})

    def _send(self, message: dict[str, Any]) -> None:
        self.told.append(message)

    def close(self) -> None:
        self._ended = True

    def events(self) -> list[str]:
        """What was said since the last call."""
        return [report["event"]["cause"] for report in self.reports(0.3) if "event" in report]


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def ask(path: str | Path, line: bytes) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(10)
        s.connect(str(path))
        s.sendall(line)
        return dict(json.loads(s.makefile("rb").readline()))


def run(*words: str) -> int:
    return set_command.main(words)


# -- the socket alone --------------------------------------------------------------------------------------------------------
def test_what_is_set_reaches_the_audio_and_is_said(runtime: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Wired() as live, Remote(live) as r:
        assert r.path == str(runtime / f"voicewire-{os.getpid()}.sock") and stat.S_IMODE(os.stat(r.path).st_mode) == 0o600
        assert run("mute", "on", "strength", "18") == 0 and run("mute", "toggle") == 0 and run("mute", "toggle") == 0 and run("bypass", "toggle") == 0
        assert capsys.readouterr().out == "mute on, strength 18 dB\nmute off\nmute on\nbypass on\n"
        assert [m["set"] for m in live.told] == [{"mute": True, "strength_db": 18.0}, {"mute": False}, {"mute": True}, {"bypass": True}]
        assert live.events() == ["mute on, strength 18 dB", "mute off", "mute on", "bypass on"]
        assert run("mute", "on", "bypass", "on") == 0 and live.events() == [], "nothing changed, nothing is said"
        assert run() == 0
        assert "(mic → voicewire): restore, at most 18 dB, mute on, bypass on" in capsys.readouterr().out
        assert run("strength", "usual", "--json") == 0
        status = json.loads(capsys.readouterr().out)
        assert status["strength_db"] is None and status["usual_strength_db"] == 20 and status["tasks"] == ["restore"] and status["pid"] == os.getpid()
        assert cli.main(["set", "mute", "off"]) == 0, "also the long way round"
    assert not list(runtime.iterdir()), "nothing is left behind"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mute"], "pairs"), (["mute", "loud"], "on, off or toggle"), (["volume", "3"], "there is no 'volume'; there are: mute"), (["talker", "x"], "1 or 2"),
        (["talker", "3"], "talker must be 1 or 2"), (["strength", "nan"], "strength_db must be a number"), (["strength", "-1"], "0 dB"),
        (["strength", "alone"], "usual"), (["voice-strength", "2"], "voice_strength must be"),
        (["task", "extract"], "cannot be chosen here; there are: restore"),
        (["task", "a\nb"], "must be text"), (["query", "?"], "a few words"), (["query", "rain\x1b[2J"], "must be text"),
        (["query-gain", "90"], "query_gain_db"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(runtime: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    with Wired() as live, Remote(live):
        before = live.chosen
        assert run(*words) == 2 and live.chosen == before and not live.told
    err = capsys.readouterr().err
    assert message in err and err.startswith("voicewire: ") and err.count("\n") == 1


def test_nobody_to_steer(runtime: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("mute", "on") == 2 and run("--to", "77", "mute", "on") == 2
    assert capsys.readouterr().err.count("no voicewire live runs") == 2
    monkeypatch.delattr(socket, "AF_UNIX")  # Windows
    assert run() == 2
    assert "not on this system" in capsys.readouterr().err.replace("has not on", "not on")
    with Wired() as live, Remote(live):  # live goes on
        assert live.events() == [] and not list(runtime.iterdir())


def test_the_words_of_a_query_bring_their_task_and_a_refusal_comes_back(runtime: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Wired() as live, Remote(live):
        hear, told = live._hear, live._send

        def knows(message: dict[str, Any]) -> None:
            told(message)
            query = message["set"].get("query")
            refusal = {"event": {"kind": "query_refused", "cause": "only restore here"}}
            threading.Timer(0.05, hear, [refusal if query == "snow" else {"status": STATUS | {"query": query}}]).start()

        live._send = knows  # type: ignore[method-assign]
        assert run("query", "snow") == 2
        assert "only restore here" in capsys.readouterr().err
        assert live.chosen["query"] is None and live.chosen["task"] == "restore" and live.tasks == ("restore",) and live.events() == []
        assert run("query", "the rain") == 0 and live.chosen["task"] == "query"
        assert run("query", "snow") == 2 and live.chosen["query"] == "the rain" and live.chosen["task"] == "query"
        assert live.events() == ["task query, query the rain"]
        capsys.readouterr()
        assert run() == 0 and "query 'the rain', at most 40 dB" in capsys.readouterr().out
    with Wired(LiveSettings(talker=1)) as live, Remote(live):
        assert run("talker", "2") == 0 and live.told == [{"set": {"talker": 2, "task": "separate"}}]


def test_what_a_dead_process_left_is_taken_away(runtime: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (os.getpid(), 999_999_999):
        with socket.socket(socket.AF_UNIX) as s:  # closed without a word, as by a crash
            s.bind(str(runtime / f"voicewire-{number}.sock"))
            s.listen()
    (runtime / "voicewire-7.sock").write_text("no socket")
    with Wired() as live, Remote(live) as r:
        assert sorted(p.name for p in runtime.iterdir()) == sorted(["voicewire-7.sock", Path(r.path).name])
        assert run("mute", "on") == 0
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(runtime / "voicewire-5.sock"))
        s.listen()
    assert run("mute", "on") == 2 and "no voicewire live runs" in capsys.readouterr().err
    assert not (runtime / "voicewire-5.sock").exists()


def test_a_living_one_that_does_not_answer(runtime: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(set_command, "_ANSWER_S", 0.2)
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(runtime / "voicewire-5.sock"))
        s.listen()
        assert run("mute", "on") == 2
        assert "process 5) does not answer" in capsys.readouterr().err
        with Wired() as live, Remote(live):
            assert run("mute", "on") == 0, "the one that answers is the one that is meant"


def test_without_a_runtime_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = os.geteuid()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(os, "stat", lambda path, *a, real=os.stat, **k: real("/nothing" if str(path).startswith("/run/user") else path, *a, **k))
    assert remote.folder() == str(tmp_path / f"voicewire-{user}") and stat.S_IMODE(os.lstat(remote.folder()).st_mode) == 0o700
    with Wired() as live, Remote(live):
        assert run("mute", "on") == 0
        Path(remote.folder()).chmod(0o777)  # where others could put a socket of theirs
        assert run("mute", "on") == 2
        with Remote(live):
            assert "others may write to it" in live.events()[-1]
    Path(tmp_path / f"voicewire-{user}").rmdir()
    (tmp_path / f"voicewire-{user}").symlink_to(tmp_path)
    with pytest.raises(OSError, match="somebody else"):
        remote.folder()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=30) | st.sampled_from(remote.NAMES),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(remote.NAMES) | st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=200)
    | st.dictionaries(st.sampled_from(["get", "set", "toggle"]), JSON, max_size=3).map(lambda x: json.dumps(x).encode())
    | st.dictionaries(st.sampled_from(remote.NAMES), JSON, max_size=3).map(lambda x: json.dumps({"set": x}).encode())
)
@example(b"[" * 4000)
@example(b'{"set": {"strength_db": 1' + b"0" * 4000 + b"}}")
@example(b'{"set": {"strength_db": 1e999}}')
@example(b'{"set": {"query": "\\ud800 rain"}}')
@example(b'{"set": {"voice_strength": null}}')
@example(b'{"set": {"talker": true}}')
def test_garbage_gets_one_line_and_the_audio_only_what_it_can_take(line: bytes) -> None:
    live = Wired()
    r, screen = Remote(live), Screen(live)
    live.refusals, remote._QUERY_S = 0, 0.0
    reply = r.reply(line)
    assert set(reply) in ({"status"}, {"error"}) and "\n" not in json.dumps(reply)
    if "error" in reply:
        assert reply["error"] and "\n" not in reply["error"] and len(reply["error"]) < 400 and not live.told
    for message in live.told:
        for name, value in message["set"].items():
            fine = {
                "bypass": lambda v: v is True or v is False, "mute": lambda v: v is True or v is False, "task": lambda v: v in live.tasks,
                "query": lambda v: 0 < len(v) <= 200 and v.isprintable(), "talker": lambda v: type(v) is int and v in (1, 2),
                "strength_db": lambda v: v is None or 0 <= v <= 1e9, "query_gain_db": lambda v: v is None or -100 <= v <= 24,
                "voice_strength": lambda v: 0 <= v <= 1,
            }[name]  # fmt: skip
            assert fine(value), (name, value)
    for report in live.reports(0.0):
        screen.take(report)


def test_who_says_nothing_or_too_much_keeps_nobody_waiting_for_long(runtime: Path) -> None:
    with Wired() as live, Remote(live) as r, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(12)]
        for s in silent[:11]:
            s.connect(r.path)
        for s in silent[:2]:
            s.sendall(b'{"set"')  # half a line
        assert "status" in ask(r.path, b'{"get": true}\n'), "after a second the silent ones have lost their places"
        for s in silent[:11]:
            s.settimeout(5)
            with contextlib.suppress(ConnectionResetError):
                assert s.recv(10) == b"", "closed"
        s = silent[11]
        s.connect(r.path)
        s.settimeout(5)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(64):
                s.sendall(b"x" * 65536, remote.NO_SIGNAL)
        with contextlib.suppress(ConnectionResetError):
            assert b"at most 4096 bytes" in s.recv(1000)
        assert "status" in ask(r.path, b'{"get": true}'.ljust(4096)[:4095] + b"\n")
        with socket.socket(socket.AF_UNIX) as half:  # as `nc` does: no end of line, but an end
            half.connect(r.path)
            half.sendall(b'{"toggle": ["mute", "bypass"]}')
            half.shutdown(socket.SHUT_WR)
            assert json.loads(half.makefile("rb").readline())["status"]["bypass"] is True
        assert live.chosen["mute"]


def test_many_at_once_lose_no_toggle(runtime: Path) -> None:
    with Wired() as live, Remote(live) as r:
        clients = [
            subprocess.Popen([sys.executable, "-c", f"import socket\nfor _ in range(25):\n s = socket.socket(1); s.connect({r.path!r})\n"
                              " s.sendall(b'{\"toggle\": \"mute\"}\\n'); s.makefile().read()"]) for _ in range(3)
        ]  # fmt: skip
        assert all(c.wait(60) == 0 for c in clients)
        values = [m["set"]["mute"] for m in live.told]
        assert values == [i % 2 == 0 for i in range(75)]


def test_a_change_from_outside_is_seen_in_the_terminal_and_pushes_nothing_out() -> None:
    live = Wired()
    screen = Screen(live)
    screen.take({"status": STATUS})
    screen.take({"event": {"at_s": 0.0, "kind": "starved", "ms": 3.0, "cause": "busy"}})
    for i in range(20):
        live.tell("set", f"mute {'off' if i % 2 else 'on'}")
    for report in live.reports(0.3):
        screen.take(report)
    text = shown(screen)
    assert "starved 3 ms: busy" in text and text.count("set: mute") == 1 and "set: mute off" in text


def test_the_command_needs_no_numpy() -> None:
    code = (
        "import sys; sys.argv = ['voicewire', 'set']\nfrom voicewire.rt.__main__ import main\nassert main() == 2\n"
        "heavy = {'numpy', 'onnxruntime', 'rich', 'asyncio', 'typing', 'dataclasses', 'subprocess', 'shutil'}\n"
        "heavy |= {'voicewire.rt.cli', 'voicewire.rt.live.controller'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    env = {"PYTHONPATH": ".links", "XDG_RUNTIME_DIR": "/nothing", "TMPDIR": "/nothing"}
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr


# -- with real sound servers -------------------------------------------------------------------------------------------------
def steer(sound: SoundServer, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*VOICEWIRE, "set", *words], env=sound.env | {"PYTHONPATH": ".links"}, capture_output=True, text=True, timeout=30)


@contextlib.contextmanager
def tone(sound: SoundServer, path: Path, length_s: int = 30) -> Iterator[None]:
    """A tone plays into the microphone."""
    sf.write(path, (0.3 * np.sin(2 * np.pi * 440 * np.arange(length_s * RATE) / RATE)).astype(np.float32), RATE)
    player = subprocess.Popen(["paplay", "-d", "mic_feed", str(path)], env=sound.env)
    try:
        yield
    finally:
        player.kill()
        player.wait()


def edges(y: np.ndarray) -> list[int]:
    """Where half a second and more of silence begin and end inside the sound."""
    quiet = np.abs(y) < 1e-4
    change = np.flatnonzero(np.diff(np.concatenate([[0], quiet.astype(np.int8), [0]])))
    found = []
    for a, b in change.reshape(-1, 2):
        if b - a > RATE // 2 and loud_share(y[:a]) > 0.1 and loud_share(y[b:]) > 0.1:
            found += [int(a), int(b)]
    return found


@pytest.mark.parametrize("kind", ["pulseaudio", "pipewire"])
def test_mute_from_outside_as_another_program_hears_it(kind: str, tmp_path: Path) -> None:
    with server(kind) as sound, LiveCommand(sound, "--in", "mic", "--out", "virtual", "--strength", "0", "--cushion-ms", "40") as live:
        with recording(sound, tmp_path / "heard.raw"), tone(sound, tmp_path / "tone.wav"):
            time.sleep(3.5)
            for _ in range(3):
                for said in ("on", "off"):
                    done = steer(sound, "mute", "toggle")
                    assert done.returncode == 0 and done.stdout == f"mute {said}\n", done.stderr
                    while live.until("event")["event"]["cause"] != f"mute {said}":
                        pass  # gaps of a busy machine
                    time.sleep(0.8)
        assert live.until("status")["status"]["mute"] is False
        assert live.end() == 0
        assert not list(Path(sound.env["XDG_RUNTIME_DIR"]).glob("voicewire*")), "no socket is left behind"
    y = np.fromfile(tmp_path / "heard.raw", np.float32)
    found = edges(y)
    assert len(found) >= 6, "three times silence, then sound again"
    # a tone of .3 bends by .001 between neighbours; cut off at its peak by .3, at its zero by .02
    bends = [float(np.abs(np.diff(y[max(0, at - 700) : at + 700], 2)).max()) for at in found]
    assert sorted(bends)[1] < 0.004, f"a click at the edges of silence, and not only where this machine was late: {bends}"


def test_two_at_once_and_the_service_are_steered(tmp_path: Path) -> None:
    with server("pipewire") as sound:
        env = sound.env | {"PYTHONPATH": ".links"}
        start = next(line for line in service.text(["--out", "virtual"]).splitlines() if line.startswith("ExecStart="))
        command = shlex.split(start.removeprefix("ExecStart="))
        assert "--quiet" in command
        quiet = subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests that a script runs in the background ignore Ctrl-C, and so would it
        )  # fmt: skip
        try:
            assert wait_for(lambda: steer(sound).returncode == 0, 30)
            assert steer(sound, "bypass", "on", "strength", "14").stdout == "bypass on, strength 14 dB\n"
            assert wait_for(lambda: json.loads(steer(sound, "--json").stdout).get("frames") is not None, 10)
            with LiveCommand(sound, "--in", "virtual", "--out", "speaker") as live:  # the other side of the call
                which = steer(sound, "mute", "on")
                assert which.returncode == 2 and "several" in which.stderr and "--to" in which.stderr and which.stderr.count("\n") == 1
                assert str(quiet.pid) in which.stderr and str(live.process.pid) in which.stderr
                assert steer(sound, "--to", "speaker", "mute", "on").stdout == "mute on\n"
                assert wait_for(lambda: live.until("status")["status"]["mute"], 10)
                assert json.loads(steer(sound, "--to", "microphone", "--json").stdout)["mute"] is False
                assert steer(sound, "--to", str(quiet.pid), "mute", "on").returncode == 0
                assert steer(sound, "--to", "nobody", "mute", "on").returncode == 2
                live.process.send_signal(signal.SIGKILL)
                live.process.wait()
            assert steer(sound, "mute", "off").returncode == 0, "the one that died without a word is not counted"
            quiet.send_signal(signal.SIGINT)
            assert quiet.wait(30) in (0, 130) and quiet.stderr is not None and quiet.stderr.read() == ""
        finally:
            quiet.kill()
            quiet.wait()


def test_what_is_set_while_the_audio_process_dies_holds_in_the_next() -> None:
    with server("pulseaudio") as sound, LiveCommand(sound, "--in", "mic", "--out", "virtual") as live:
        path = Path(sound.env["XDG_RUNTIME_DIR"]) / f"voicewire-{live.process.pid}.sock"
        first = live.lines[0]["opened"]["pid"]
        os.kill(first, signal.SIGSTOP)
        os.kill(first, signal.SIGKILL)
        for _ in range(50):  # into a pipe that nobody reads any more
            assert ask(path, b'{"toggle": "mute"}\n')["status"]["mute"] in (True, False)
        assert ask(path, b'{"set": {"mute": true, "strength_db": 7}}\n')["status"]["mute"]
        assert live.until("opened")["opened"]["pid"] != first
        status = live.until("status")["status"]
        assert status["mute"] and status["strength_db"] == 7
        assert live.end() == 0
