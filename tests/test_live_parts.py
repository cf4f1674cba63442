"""Rings, clocks and the output edge, on simulated time."""

from __future__ import annotations

import argparse
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st
from relay_tools import wait_for
from rich.console import Console

from voicewire.engines.places import Place
from voicewire.rt.cli import main
from voicewire.rt.live import LiveSettings, config, tape, try_command
from voicewire.rt.live.backend import Device, DeviceError, find
from voicewire.rt.live.clock import DeviceClock, DriftControl
from voicewire.rt.live.controller import Live
from voicewire.rt.live.edge import OutputEdge
from voicewire.rt.live.process import AudioProcess
from voicewire.rt.live.record import Recorder
from voicewire.rt.live.ring import Ring
from voicewire.rt.live.view import Screen


@given(st.integers(1, 64), st.integers(1, 3), st.lists(st.tuples(st.booleans(), st.integers(0, 80)), max_size=60))
def test_ring_gives_out_what_went_in_and_refuses_the_rest(capacity: int, channels: int, moves: list[tuple[bool, int]]) -> None:
    ring, waiting, next_value = Ring(capacity, channels), [], 0
    for write, n in moves:
        if write:
            x = np.arange(next_value, next_value + n, dtype=np.float32)[:, None].repeat(channels, 1)
            took = ring.write(x)
            assert took == min(n, capacity - len(waiting))
            waiting += list(range(next_value, next_value + took))
            next_value += n
        else:
            y = ring.read(n)
            assert y.shape == (min(n, len(waiting)), channels)
            assert y[:, 0].tolist() == waiting[: len(y)] and (y == y[:, :1]).all()
            del waiting[: len(y)]
        assert ring.fill == len(waiting) <= capacity


def test_device_clock_finds_the_rate_through_jitter() -> None:
    rng = np.random.default_rng(0)
    clock, rate = DeviceClock(48000), 48000 * (1 + 200e-6)
    for k in range(1, 12_000):  # two minutes of 10 ms blocks, up to 5 ms late
        clock.update(480, k * 480 / rate + rng.uniform(0, 0.005))
    assert abs(clock.rate / rate - 1) < 20e-6
    assert abs(clock.at(120.0) - 120.0 * rate) < 0.004 * rate


@pytest.mark.parametrize("ppm", [-300, 300])
def test_hours_of_drift_keep_the_fill_and_the_pitch(ppm: int) -> None:
    """Two hours of two clocks 300 ppm apart, many times what the control needs to settle; blocks of 100 ms with jitter, no audio."""
    rng = np.random.default_rng(1)
    rate, block, target = 48000.0, 4800, 1000.0
    rate_out = rate * (1 + ppm * 1e-6)
    clock_in, clock_out, control = DeviceClock(rate), DeviceClock(rate), DriftControl(rate)
    late = np.abs(rng.normal(0, 0.002, (2 * 3600 * 10, 2)))
    written, factor, fills, factors = target, 1.0, [], []
    for k in range(1, len(late)):
        t = k * 0.1
        clock_in.update(block, t + late[k, 0])
        asked = round(k * block * (1 + ppm * 1e-6))
        clock_out.update(asked - clock_out.count, t + late[k, 1])
        written += block * factor
        in_flight = (clock_in.at(t) - k * block) + written - clock_out.at(t)
        factor = control.update(in_flight, target, 0.1)
        fills.append(in_flight)
        factors.append(factor)
    assert np.ptp(fills) < 0.010 * rate, "the fill must stay within 10 ms"
    assert np.abs(np.diff(fills[100:])).max() < 0.001 * rate, "no jump, once the clocks are known"
    assert max(abs(f / (rate_out / rate) - 1) for f in factors[600:]) < 500e-6, "pitch error below 0.05 %"
    assert abs(np.mean(factors[6000:]) / (rate_out / rate) - 1) < 2e-6


class Simulation:
    """A microphone and an output with clocks of their own around an `OutputEdge`; time is what we say it is."""

    def __init__(
        self, *, ppm: float = 0.0, rate_in: int = 48000, rate_out: int = 48000, jitter_s: float = 0.001, block_s: float = 0.01, out_slip_s: float = 0.0
    ) -> None:  # fmt: skip
        self.t, self.events = 0.0, []
        self.rng = np.random.default_rng(0)
        self.rate_in, self.rate_out = rate_in, rate_out
        self.true_out = rate_out * (1 + ppm * 1e-6)
        self.block_in, self.block_out, self.jitter_s = round(rate_in * block_s), round(rate_out * block_s), jitter_s
        self.edge = OutputEdge(
            rate_in, rate_out, 1, period_s=block_s, cushion_s=0.008, event=lambda k, ms: self.events.append((self.t, k, ms)), now=lambda: self.t
        )
        self.in_blocks, self.out_blocks, self.out, self.out_slip_s = 0, 0, [], out_slip_s
        self.pending: list[tuple[float, int]] = []

    def run(self, until_s: float, stalls: tuple[tuple[float, float], ...] = (), freq: float = 997.0) -> np.ndarray:
        """stalls: (from, to) in which the microphone's blocks are held back and then come all at once."""
        next_in = next_out = 0.0
        while True:
            due = (self.in_blocks + 1) * self.block_in / self.rate_in
            next_in = max(due + self.rng.uniform(0, self.jitter_s), *(b if a <= due < b else 0.0 for a, b in stalls), 0.0)
            next_out = 0.0037 + (self.out_slip_s if self.out_blocks >= 20 else 0.0) + (self.out_blocks + 1) * self.block_out / self.true_out
            self.t = min(next_in, next_out)
            if self.t >= until_s:
                return np.concatenate(self.out)[:, 0]
            if next_in <= next_out:
                self.edge.captured(self.block_in, self.t)
                n = np.arange(self.in_blocks * self.block_in, (self.in_blocks + 1) * self.block_in)
                self.edge.push((0.5 * np.sin(2 * np.pi * freq * n / self.rate_in)).astype(np.float32))
                self.in_blocks += 1
            else:
                self.out.append(self.edge.pull(self.block_out))
                self.out_blocks += 1


@pytest.mark.parametrize(("ppm", "rate_in", "rate_out"), [(300, 48000, 48000), (-300, 44100, 48000), (150, 16000, 44100)])
def test_edge_between_two_clocks_is_a_clean_tone(ppm: float, rate_in: int, rate_out: int) -> None:
    s = Simulation(ppm=ppm, rate_in=rate_in, rate_out=rate_out)
    y = s.run(40.0)
    assert s.events == []
    last = y[-10 * rate_out :].astype(float)
    spectrum = np.abs(np.fft.rfft(last * np.hanning(len(last)))) ** 2
    peak = int(spectrum.argmax())
    heard_hz = peak / 10 * (1 + ppm * 1e-6)  # on the true clock
    assert abs(heard_hz / 997 - 1) < 5e-4
    band = spectrum[peak - 60 : peak + 61].sum()
    assert 10 * np.log10(band / (spectrum.sum() - band)) > 60, "nothing but the tone"


def test_edge_after_a_stall_cuts_back_to_the_delay_it_had() -> None:
    s = Simulation()
    s.run(9.9)
    before = s.edge.in_flight()
    y = s.run(20.0, stalls=((10.0, 10.15),))
    kinds = [k for _, k, _ in s.events]
    assert "starved" in kinds and "dropped" in kinds
    assert abs(s.edge.in_flight() - before) < 0.02 * 48000, "the delay is what it was, give or take the larger cushion"
    assert s.edge.cushion_s > 0.008, "a gap makes the cushion larger"
    # a click is a jump between neighbours far beyond what the tone has
    assert np.abs(np.diff(y)).max() < 0.5 * 2 * np.pi * 997 / 48000 * 3


def test_edge_begins_at_the_delay_that_was_meant() -> None:
    """Where the output pauses for 25 ms soon after its start: too little to be cut off as a stall, too much to keep."""
    s = Simulation(out_slip_s=0.025)
    s.run(3.5)
    assert abs(s.edge.in_flight() - s.edge.target) < 0.005 * 48000
    assert s.events == [], "that is nobody's fault"


def test_the_cushion_grows_no_further_than_it_helps_and_shrinks_in_calm() -> None:
    s = Simulation(rate_in=8000, rate_out=8000, block_s=0.02)
    s.run(42.0, stalls=tuple((at, at + 0.15) for at in np.arange(3.0, 42.0, 1.5)))
    assert len([kind for _, kind, _ in s.events if kind == "starved"]) > 15 and s.edge.cushion_s == pytest.approx(0.060)
    s = Simulation(rate_in=8000, rate_out=8000, block_s=0.1)
    s.run(400.0, stalls=((10.0, 10.4),))
    assert [kind for _, kind, _ in s.events].count("starved") == 1
    assert s.edge.cushion_s == pytest.approx(0.008), "five calm minutes later it is what it was"


def test_edge_forgives_a_microphone_that_stops() -> None:
    s = Simulation()
    s.run(3.0)
    s.edge.input_lost()
    for _ in range(100):
        s.t += 0.01
        y = s.edge.pull(480)
    assert not y.any() and s.events == []


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([8000, 16000, 22050, 44100, 48000]), st.sampled_from([44100, 48000, 96000]), st.integers(64, 2048), st.integers(1, 2))
def test_edge_takes_any_rates_and_blocks(rate_in: int, rate_out: int, block: int, channels: int) -> None:
    t = [0.0]
    edge = OutputEdge(rate_in, rate_out, channels, period_s=block / rate_out, cushion_s=0.008, event=lambda *_: None, now=lambda: t[0])
    for _ in range(8):
        t[0] += block / rate_out
        n = round(block * rate_in / rate_out)
        edge.captured(n, t[0])
        edge.push(np.zeros(n, np.float32))
        y = edge.pull(block)
        assert y.shape == (block, channels) and y.dtype == np.float32


def test_find_by_name() -> None:
    devices = [Device("input", n, d, 48000, 1, "", n == "b") for n, d in (("a", "Mic A"), ("b", "Mic B"), ("bb", "Other"), ("voicewire", "ours"))]
    for name, found in ((None, "b"), ("b", "b"), ("Mic A", "a"), ("other", "bb")):
        assert find(devices, "input", name).name == found
    ours = [Device("input", "voicewire", "ours", 48000, 1, "", True)]  # never our own microphone by default
    for listed, kind, name, message in (
        (devices, "input", "z", "no input device 'z'; there are: a, b, bb, voicewire"), (devices, "output", None, "no output device; there are: none"),
        (devices, "input", "mic", "fits several"), (ours, "input", None, "no input device"),
    ):  # fmt: skip
        with pytest.raises(DeviceError, match=message):
            find(listed, kind, name)
    with pytest.raises(DeviceError, match="no input device 'Mic A'"):
        find(devices, "input", "Mic A", exact=True)


def test_config(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[live]\nin = "USB"\nout = "virtual"\nstrength_db = 18\nperiod_ms = 5\n')
    assert config.load(path) == LiveSettings("USB", "virtual", strength_db=18.0, period_ms=5.0)
    path.write_text('[live]\ntask = "query"\nquery = "the rain"\nquery_gain_db = -20\n')
    assert config.load(path) == LiveSettings(task="query", query="the rain", query_gain_db=-20.0)
    path.write_text("[live]\ntalker = 2\n")
    assert config.load(path).talker == 2
    for text, message in (
        ("[live]\ntalker = 0", "1 or 2"), ("[live]\ntalker = 1.5", "whole number"),
        ("[live]\nquery = '?'", "few words"), ("[live]\nquery_gain_db = 100", "-100"),
        ("[live]\nvolume = 3", "no setting 'volume'"), ("[live]\nstrength_db = -3", "must be 0"), ("[live]\nstrength_db = true", "must be a number"),
        ("[live]\nin = 3", "must be text"), ("[other]", "no section"), ("[live", "c.toml"), ("[live]\nperiod_ms = 1000", "1 to 100"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            config.load(path)


class FakeLive:
    opened: ClassVar[dict[str, object]] = {"in": "mic", "out": "voicewire", "rate_in": 48000, "rate_out": 48000, "backend": "jack"}

    def __init__(self, *tasks: str) -> None:
        self.tasks = tasks or ("restore",)
        self.changes: list[dict[str, object]] = []

    def set(self, **change: object) -> None:
        self.changes.append(change)


STATUS = {
    "in_db": -20.0, "out_db": -26.0, "in_peak": 0.2, "out_peak": 0.1, "step_ms": 3.0, "step_max_ms": 4.0, "drift_ppm": 12.0, "cushion_ms": 10.0,
    "delay_ms": {"device_in": 5.0, "model": 30.0, "ring": 18.0, "device_out": 10.0}, "suspended": False, "speaking": False, "listeners": 1,
    "counts": {"starved": 2}, "frames": 50, "bypass": False, "mute": False, "strength_db": None, "task": "restore",
}  # fmt: skip


def shown(screen: Screen) -> str:
    console = Console(width=120, file=io.StringIO(), force_terminal=True)
    console.print(screen.picture())
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_the_terminal_view_shows_levels_delay_and_causes() -> None:
    screen = Screen(FakeLive())  # type: ignore[arg-type]
    assert "starting" in shown(screen)
    screen.take({"status": STATUS})
    screen.take({"event": {"at_s": 0.0, "kind": "starved", "ms": 3.0, "cause": "a step of the model took 25 ms"}})
    text = shown(screen)
    for part in ("-20.0 dB", "-26.0 dB", "63.0 ms", "model 30", "starved 2", "a step of the model took 25 ms", "at most 20 dB"):
        assert part in text, part
    assert "speech" not in text
    screen.take({"event": {"at_s": 0.0, "kind": "speech", "ms": 0.0, "cause": ""}})
    assert "speech" not in shown(screen), "no line among the faults"
    screen.take({"status": STATUS | {"speaking": True}})
    assert "● speech" in shown(screen)
    screen.take({"status": STATUS | {"suspended": True, "listeners": 0}})
    assert "nobody records" in shown(screen)
    screen.take({"waiting": "no input device 'USB'"})
    assert "waiting" in shown(screen)


def test_keys_change_what_runs() -> None:
    live = FakeLive()
    screen = Screen(live)  # type: ignore[arg-type]
    screen.take({"status": STATUS})
    assert all(screen.key(k) for k in "bm-0+xt")
    assert live.changes == [{"bypass": True}, {"mute": True}, {"strength_db": 17.0}, {"strength_db": None}, {"strength_db": 23.0}]
    assert "--enroll" in screen.note
    assert not screen.key("q")


def test_a_key_changes_the_task_where_a_talker_is_enrolled() -> None:
    live = FakeLive("restore", "extract")
    screen = Screen(live)  # type: ignore[arg-type]
    for task in live.tasks:
        screen.take({"status": STATUS | {"task": task}})
        screen.key("t")
    assert live.changes == [{"task": "extract"}, {"task": "restore"}]
    assert "extract" in shown(screen) and "at most 60 dB" in shown(screen)


def test_a_query_is_typed_and_shown() -> None:
    live = FakeLive("restore", "query")
    screen = Screen(live)  # type: ignore[arg-type]
    screen.take({"status": STATUS})
    assert all(screen.key(k) for k in "/quaim\x7fn")  # q and m are letters now
    assert "query: quain" in shown(screen) and not live.changes
    assert all(screen.key(k) for k in "\x1b/rain\r")
    assert live.changes == [{"query": "rain", "task": "query"}]
    screen.take({"status": STATUS | {"task": "query", "query": "rain", "query_gain_db": -20.0}})
    assert "query: rain -20 dB" in shown(screen) and not screen.key("q")


def test_keys_choose_the_talker() -> None:
    live = FakeLive("restore", "separate")
    screen = Screen(live)  # type: ignore[arg-type]
    screen.take({"status": STATUS})
    assert all(screen.key(k) for k in "21")
    assert live.changes == [{"talker": 2, "task": "separate"}, {"talker": 1, "task": "separate"}]
    screen.take({"status": STATUS | {"task": "separate", "talker": 2}})
    assert "talker 2" in shown(screen)
    live = FakeLive("restore", "extract")
    assert Screen(live).key("1") and not live.changes  # type: ignore[arg-type]


def test_the_audio_process_takes_a_talker_and_another(monkeypatch: pytest.MonkeyPatch) -> None:
    process = AudioProcess(asdict(LiveSettings(task="separate")))
    chosen = process.controls.voices["separate"]
    assert isinstance(chosen, Place) and chosen.number == 1 and process.controls.task == "separate"
    monkeypatch.setattr("sys.stdin", io.StringIO('{"set": {"talker": 2}}\n{"set": {"task": "restore"}}\n{"set": {"task": "separate"}}\n'))
    process._commands()
    chosen = process.controls.voices["separate"]
    assert isinstance(chosen, Place) and chosen.number == 2 and process.controls.task == "separate"
    assert AudioProcess(asdict(LiveSettings(talker=2))).controls.task == "restore"
    with pytest.raises(ValueError, match="1 or 2"):
        AudioProcess(asdict(LiveSettings(talker=3)))


def test_memory_is_locked_or_the_reason_said() -> None:
    code = "from voicewire.rt.realtime import lock_memory; print(lock_memory()); print(open('/proc/self/status').read())"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": ".links"}, capture_output=True, text=True, check=True)
    why_not, status = done.stdout.split("\n", 1)
    locked_kb = int(next(line for line in status.splitlines() if line.startswith("VmLck:")).split()[1])
    assert (locked_kb > 10_000) if not why_not else (locked_kb == 0 and "memory" in why_not)
    alone = "import ctypes, os, resource as r; print(ctypes.CDLL(None).mlockall(7), 0 in (os.geteuid(), r.getrlimit(r.RLIMIT_MEMLOCK)[0] - r.RLIM_INFINITY))"
    done = subprocess.run([sys.executable, "-c", alone], capture_output=True, text=True, check=False)
    if done.stdout == "0 True\n":
        assert why_not == "", "it can be locked here"


def test_service_file_names_this_python(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["service", "show"]) == 0
    out = capsys.readouterr().out
    assert f"ExecStart={sys.executable} -m voicewire.rt live --quiet --out virtual" in out and "WantedBy=default.target" in out


class Time:
    """What time it is; blocks of `period` of a microphone and of an output that run at the same speed."""

    def __init__(self, period_s: float) -> None:
        self.now, self.period_s = 0.0, period_s

    def __call__(self) -> float:
        return self.now


def played(period_s: float, stall_s: float, seconds: float = 40.0, *, ring_s: float = 1.0) -> tuple[list[tuple[str, float, float]], float]:
    """An edge whose worker stands still for `stall_s` at 5 s, and whose ring in front holds ring_s → (kind, ms, when) of its events, its delay at the end."""
    rate, time_ = 16000, Time(period_s)
    events: list[tuple[str, float, float]] = []
    edge = OutputEdge(rate, rate, 1, period_s=period_s, cushion_s=0.01, event=lambda kind, ms: events.append((kind, ms, time_.now)), now=time_)
    n, waiting, most = round(period_s * rate), 0, int(ring_s * rate)
    for i in range(round(seconds / period_s)):
        time_.now = i * period_s
        took = min(n, most - waiting)
        waiting += took
        edge.captured(n, time_.now, n - took)
        if not 5 <= time_.now < 5 + stall_s:
            while waiting >= n:
                edge.push(np.full(n, 0.1, np.float32))
                waiting -= n
        edge.pull(n)
    return events, edge.delay_ms


@pytest.mark.parametrize("stall_s", [0.5, 3.0])
@pytest.mark.parametrize("period_s", [0.004, 0.01])
def test_after_a_stall_all_is_as_before(period_s: float, stall_s: float) -> None:
    """Also where the ring in front was full and samples were lost, and where blocks are shorter than a cross-fade."""
    events, delay_ms = played(period_s, stall_s)
    assert any(kind == "starved" for kind, _, _ in events), "the stall is heard"
    assert not [e for e in events if e[2] > 5 + stall_s + 5], "and nothing after it"
    assert delay_ms < 100


def test_recorder_aligns_and_never_blocks(tmp_path: Path) -> None:
    x = np.random.default_rng(0).uniform(-0.5, 0.5, 4800).astype(np.float32)
    told: list[str] = []
    recorder = Recorder(tmp_path / "new", 16000, 480, told.append)
    late = np.concatenate([np.zeros(480, np.float32), x])[:4800]  # what a model with 480 samples of delay would give
    for at in range(0, 4800, 160):
        recorder.add(x[at : at + 160], late[at : at + 160])
    recorder.close()
    before, after = (sf.read(p, dtype="float32")[0] for p in recorder.paths)
    assert len(before) == len(after) == 5280 and not told
    np.testing.assert_allclose(before[:4800], after[:4800], atol=1e-6)
    with pytest.raises(OSError):
        Recorder(Path("/proc/nowhere"), 16000, 480, told.append)


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no limit for the size of files here")
def test_a_full_disk_ends_the_recording_and_nothing_else(tmp_path: Path) -> None:
    """A file of the process may be no longer than 64 kB: one line says so, whoever adds never waits, and the end comes at once."""
    recorded = """
import resource, sys, time, numpy as np
from pathlib import Path
from voicewire.rt.live.record import Recorder
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
told = []
recorder = Recorder(Path(sys.argv[1]), 48000, 480, told.append)
x = 0.3 * np.random.default_rng(0).standard_normal(480).astype("f")
for _ in range(20):
    for _ in range(100):
        recorder.add(x, x)
    time.sleep(0.05)
recorder.close()
print(len(told), told[0], recorder._thread.is_alive())
"""
    done = subprocess.run([sys.executable, "-c", recorded, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("1 ") and "no more is recorded" in done.stdout and done.stdout.endswith("False\n")


def test_an_unplugged_default_is_not_replaced_by_what_a_loudspeaker_plays() -> None:
    def device(name: str, api: str = "PipeWire", default: bool = False) -> Device:
        return Device("input", name, name, 48000, 1, api, default)

    devices = [device("voicewire", default=True), device("alsa_output.pci.monitor"), device("alsa_input.usb")]
    assert find(devices, "input", None).name == "alsa_input.usb"
    assert find(devices[:2], "input", None).name == "alsa_output.pci.monitor", "where there is nothing else"
    twice = [device("USB Microphone", "MME", True), device("CABLE Input", "MME"), device("CABLE Input (VB)", "WASAPI"), device("CABLE Input 2", "WASAPI")]
    assert find(twice, "input", "cable").api == "MME", "of several interfaces the one of the default"
    with pytest.raises(DeviceError, match="several"):
        find(twice[2:], "input", "cable")


def test_settings_that_make_no_sense_are_refused_before_they_reach_the_audio(tmp_path: Path) -> None:
    for bad in ({"task": "foo"}, {"backend": "bar"}, {"talker": 7}, {"strength_db": -1.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            LiveSettings(**bad)
    live: Any = object.__new__(Live)
    for wrong in ({"strength_db": -5.0}, {"talker": 3}):
        with pytest.raises(ValueError, match=next(iter(wrong)).split("_")[0]):
            live.set(**wrong)
    for line, task in (('query = "a dog"', "query"), ('enroll = "me.voice"', "extract"), ("talker = 2", "separate"), ('in = "USB"', "restore")):
        (tmp_path / "c.toml").write_text(f"[live]\n{line}\n")
        assert config.load(tmp_path / "c.toml").task == task


def test_waiting_for_a_server_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc here")
    pulse = pytest.importorskip("voicewire.rt.live.pulse", reason="no libpulse here", exc_type=OSError)
    monkeypatch.setenv("PULSE_SERVER", f"unix:{tmp_path}/nobody")

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def asked() -> None:
        with pytest.raises(DeviceError, match="no PulseAudio"), pulse.control("test"):
            pass

    asked()
    before = descriptors()
    for _ in range(10):
        asked()
    assert descriptors() <= before


def test_try_says_what_is_wrong_with_a_microphone(noisy: np.ndarray, clean: np.ndarray) -> None:
    def advice(x: np.ndarray) -> str:
        return try_command.listen_to(x, x, 16000).advice

    assert "level is good" in advice(clean)
    assert "clips" in advice(np.clip(20 * clean, -1, 1))
    assert "quiet" in advice(0.001 * clean)
    assert "noise" in advice(clean + 0.1 * np.random.default_rng(0).standard_normal(len(clean)).astype(np.float32))


def test_try_plays_what_the_keys_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a terminal: r stops what is played and plays what was removed, then a; q ends."""
    played: list[str] = []
    x = {"before": np.ones(16000, np.float32), "after": np.full(16000, 0.5, np.float32), "removed": np.zeros(16000, np.float32)}
    names = {1.0: "before", 0.5: "after", 0.0: "removed"}
    ours, theirs = os.openpty()

    def play(y: np.ndarray, rate: int, device: str | None, going_on: Callable[[float], bool]) -> None:
        played.append(names[float(y[0])])
        if played == ["before"]:
            os.write(ours, b"r")
            wait_for(lambda: not going_on(0.5))
            os.write(ours, b"aq")

    monkeypatch.setattr(tape, "play", play)
    with os.fdopen(theirs) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        try_command._compare(argparse.Namespace(device_out=None), Console(file=io.StringIO()), x, 16000)
    os.close(ours)
    assert played == ["before", "removed", "after"]
