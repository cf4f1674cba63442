"""What the loudspeaker says, taken out of the microphone: the canceller by itself, and in `live` on real sound servers."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from test_live_servers import RATE, LiveCommand, recording, server

from voicewire.rt.cli import main
from voicewire.rt.live import DeviceError, LiveSettings
from voicewire.rt.live.backend import Device
from voicewire.rt.live.echo import DELAY_MS, USUAL, Canceller, Loudspeaker

pytest.importorskip("livekit.rtc.apm", reason="LiveKit is missing: pip install 'voicewire[echo]'")
SECONDS, SPEAKS_S = 14, 9  # of the loudspeaker; from when on the near talker speaks, too


def level_db(x: np.ndarray) -> float:
    return float(10 * np.log10((x.astype(np.float64) ** 2).mean() + 1e-12))


def sounds(clean: np.ndarray, late_s: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At 48 kHz: what the loudspeaker says, the room's answer in the microphone, and the near talker, who begins at SPEAKS_S."""
    import samplerate

    voice = samplerate.resample(clean, 3.0, "sinc_fastest").astype(np.float32)
    n = SECONDS * RATE
    far = np.tile(voice, -(-n // len(voice)))[:n]
    rng = np.random.default_rng(0)
    t = np.arange(RATE // 5) / RATE
    room = rng.standard_normal(len(t)) * np.exp(-t / 0.04)
    room *= 0.5 / np.sqrt((room**2).sum())
    size = 1 << 21
    echo = np.fft.irfft(np.fft.rfft(far, size) * np.fft.rfft(room, size), size)[:n]
    echo = np.concatenate([np.zeros(int(late_s * RATE)), echo])[:n].astype(np.float32)
    near = np.zeros(n, np.float32)
    other = voice[::-1][: n - SPEAKS_S * RATE]  # backwards: nobody's words, a voice's levels
    near[SPEAKS_S * RATE :][: len(other)] = other
    return far, echo, near


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_the_loudspeaker_goes_and_the_talker_stays(rate: int, clean: np.ndarray) -> None:
    import samplerate

    far, echo, near = sounds(clean, 0.03)
    mic = samplerate.resample(echo + near, rate / RATE, "sinc_fastest").astype(np.float32)
    canceller, came, out, rng = Canceller(rate), [], [], np.random.default_rng(1)
    at = played = 0
    while at < len(mic):
        n = int(rng.integers(1, 3 * rate // 100))  # any blocks
        at += n
        heard = min(len(far), round(at * RATE / rate))
        canceller.far(far[played:heard, None])
        played = heard
        raw, y = canceller.near(mic[at - n : at])
        assert len(raw) == len(y) and len(y) % (rate // 100) == 0
        came.append(raw)
        out.append(y)
    raw, y = np.concatenate(came), np.concatenate(out)
    assert len(mic) - len(raw) < rate // 100 and np.array_equal(raw, mic[: len(raw)])
    alone, both = slice(5 * rate, SPEAKS_S * rate), slice(int((SPEAKS_S + 0.5) * rate), int((SPEAKS_S + 2.5) * rate))
    assert level_db(y[alone]) < level_db(mic[alone]) - 18
    talker = samplerate.resample(near, rate / RATE, "sinc_fastest")[both]
    assert abs(level_db(y[both]) - level_db(talker)) < 6


def test_without_a_loudspeaker_everything_passes_as_late_as_declared() -> None:
    rate, n = 48000, 96000
    x = np.random.default_rng(0).standard_normal(n)
    spectrum = np.fft.rfft(x)
    f = np.fft.rfftfreq(n, 1 / rate)
    x = (0.1 * np.fft.irfft(spectrum * ((f > 300) & (f < 12000)))).astype(np.float32)
    canceller = Canceller(rate)
    canceller.far(np.zeros((960, 1), np.float32))
    y = []
    for at in range(0, n, 480):
        canceller.far(np.zeros((480, 1), np.float32))
        y.append(canceller.near(x[at : at + 480])[1])
    out = np.concatenate(y)
    assert abs(level_db(out[rate:]) - level_db(x[rate:])) < 1.5
    alike = np.fft.irfft(np.fft.rfft(out, 1 << 18) * np.fft.rfft(x, 1 << 18).conj())[: rate // 10]
    assert 1e3 * int(alike.argmax()) / rate == pytest.approx(DELAY_MS, abs=1.5)


def test_what_lies_above_16_khz_is_lost() -> None:
    rate, canceller = 48000, Canceller(48000)
    t = np.arange(2 * rate) / rate
    left = {}
    for hz in (10000, 18000):
        tone = (0.1 * np.sin(2 * np.pi * hz * t)).astype(np.float32)
        left[hz] = level_db(canceller.near(tone)[1][rate:]) - level_db(tone)
    assert left[18000] < -40 and left[10000] > -3


def test_it_forgets_what_is_more_than_a_second_ahead() -> None:
    canceller = Canceller(16000)
    for _ in range(30):
        canceller.far(np.zeros((4800, 1), np.float32))
    assert canceller._far.fill == canceller._far.capacity
    came, y = canceller.near(np.zeros(100, np.float32))
    assert len(came) == len(y) == 0 and canceller._far.fill == 0


class Backend:
    """Outputs by name, and sessions that note what happens to them."""

    def __init__(self) -> None:
        self.outputs, self.default, self.said = ["speaker", "headset", "voicewire"], "speaker", []  # type: list[str], str, list[str]

    def devices(self) -> list[Device]:
        return [Device("output", n, n, 48000, 2, "x", n == self.default) for n in self.outputs]

    def listen(self, name: str, period_s: float, calls: Any) -> Any:
        self.said.append(f"open {name}")
        self.calls, said = calls, self.said

        class Session:
            def close(self) -> None:
                said.append(f"close {name}")

        return Session()


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Backend:
    from voicewire.rt.live import echo

    made = Backend()
    monkeypatch.setattr(echo, "listening_backend", lambda: made)
    monkeypatch.setattr(echo, "_RETRY_S", 0.0)
    return made


def test_it_goes_after_the_systems_choice(backend: Backend) -> None:
    heard: list[np.ndarray] = []
    ears = Loudspeaker(USUAL, heard.append, 0.01)
    ears.open()
    assert ears.hears == "speaker" and backend.said == ["open speaker.monitor"]
    backend.calls.capture(np.ones((5, 1), np.float32), 0.0)
    backend.calls.capture(np.array([[1.0, 3.0]], np.float32), 0.0)
    assert [h.shape for h in heard] == [(5, 1), (1, 1)] and heard[1][0, 0] == 2
    assert ears.look("") == ears.look("speaker") == ears.look("voicewire") == "" and len(backend.said) == 1
    backend.default = "headset"
    assert ears.look("headset") == "headset" and backend.said[1:] == ["close speaker.monitor", "open headset.monitor"]
    backend.outputs.remove("headset")
    backend.calls.event("overflow")
    assert ears.look("headset") == "", "it hears that well enough"
    backend.calls.event("lost")
    backend.default = ""
    backend.outputs = []
    assert ears.look("headset") == "" and ears.hears == "", "there is nothing to listen to"
    backend.outputs, backend.default = ["speaker"], "speaker"
    assert ears.look("speaker") == "speaker"
    ears.close()
    assert backend.said[-1] == "close speaker.monitor"


def test_a_loudspeaker_that_was_named_is_stayed_with(backend: Backend) -> None:
    ears = Loudspeaker("head", lambda _: None, 0.01)
    ears.open()
    assert ears.hears == "headset" and ears.look("speaker") == "" and len(backend.said) == 1
    with pytest.raises(DeviceError, match="there are: speaker, headset"):
        Loudspeaker("hdmi", lambda _: None, 0.01).open()


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "livekit.rtc.apm", None)
    with pytest.raises(DeviceError, match=r"pip install 'voicewire\[echo\]'"):
        Canceller(48000)


def test_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.toml").write_text('[live]\necho = "default"\n')
    assert main(["config", "check", str(tmp_path / "c.toml")]) == 0 and "echo='default'" in capsys.readouterr().out
    (tmp_path / "c.toml").write_text("[live]\necho = true\n")
    assert main(["config", "check", str(tmp_path / "c.toml")]) == 2 and "echo must be text" in capsys.readouterr().err
    assert LiveSettings().echo is None


@pytest.mark.parametrize("kind", ["pulseaudio", "pipewire"])
def test_live_takes_the_loudspeaker_out(kind: str, clean: np.ndarray, tmp_path: Path) -> None:
    """Another program records while one plays on the system's loudspeaker, and its echo and then a talker arrive at the microphone."""
    far, echo, near = sounds(clean, 0.12)
    for name, x in (("speaker", far), ("mic_feed", echo + near)):
        sf.write(tmp_path / f"{name}.wav", 0.7 * x, RATE)
    level, began = {}, 0
    for asked in ([], ["--echo"]):
        raw = tmp_path / "heard.raw"
        with server(kind) as sound, LiveCommand(sound, "--out", "virtual", "--strength", "0", *asked) as live:
            with recording(sound, raw):
                time.sleep(1)
                players = [subprocess.Popen(["paplay", "-d", name, str(tmp_path / f"{name}.wav")], env=sound.env) for name in ("speaker", "mic_feed")]
                sound.from_now("speaker")
                sound.from_now("mic_feed")
                assert all(p.wait(60) == 0 for p in players)
            while (status := live.until("status")["status"])["frames"] < 500:  # (those from the beginning come first)
                pass
            assert "fault" not in status["counts"]
            assert status.get("echo") == ("speaker" if asked else None) and ("echo" in status["delay_ms"]) == bool(asked)
            assert live.end() == 0
        y = np.fromfile(raw, np.float32)
        began = int(np.argmax(np.abs(y) > 1e-3)) if not asked else began
        level[bool(asked)] = [level_db(y[began + int(a * RATE) : began + int(b * RATE)]) for a, b in ((5, 8.5), (SPEAKS_S + 1, SPEAKS_S + 2.5))]
    (echo_db, both_db), (left_db, talker_db) = level[False], level[True]
    assert left_db < echo_db - 12, "of the echo little is left"
    assert abs(talker_db - both_db) < 6, "and the talker is there"


def test_live_says_which_loudspeaker_is_not_there() -> None:
    with server("pipewire") as sound:
        done = subprocess.run(
            [sys.executable, "-m", "voicewire.rt", "live", "--out", "virtual", "--echo", "hdmi"], env=sound.env | {"PYTHONPATH": ".links"},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no output device 'hdmi'; there are:" in done.stderr
