"""Where nobody asked for a device, `live` follows the system's choice, with real sound servers; but never to a device of its own."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from test_live_servers import RATE, LiveCommand, recording, server

from tools.soundserver import SoundServer
from voicewire.rt.live import DeviceError
from voicewire.rt.live.jack_backend import library


def plug(sound: SoundServer) -> None:
    """A headset: microphone and loudspeaker."""
    sound.pactl("load-module", "module-null-sink", "sink_name=head_feed", "rate=48000", "channels=1", "sink_properties=device.description=head_feed")
    sound.pactl("load-module", "module-remap-source", "source_name=headset", "master=head_feed.monitor", "source_properties=device.description=headset")
    sound.pactl("load-module", "module-null-sink", "sink_name=earpiece", "rate=48000", "channels=1", "sink_properties=device.description=earpiece")


def choose(sound: SoundServer, end: str, name: str) -> None:
    """As in the desktop's settings; a node that was made just now may not be taken at once."""
    for _ in range(20):
        sound.pactl(f"set-default-{end}", name)
        time.sleep(0.5)
        if sound.pactl(f"get-default-{end}").strip() == name:
            return
    pytest.fail(f"the server does not make {name} its default {end}")


def pitch_hz(y: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(y * np.hanning(len(y)))).argmax() * RATE / len(y))


@pytest.mark.parametrize(("kind", "backend"), [("pulseaudio", "pulse"), ("pipewire", "pulse"), ("pipewire", "jack")])
def test_a_headset_that_becomes_the_default_is_taken_up(kind: str, backend: str, tmp_path: Path) -> None:
    if backend == "jack":
        try:
            library()
        except DeviceError as e:
            pytest.skip(str(e))
    for name, hz in (("mic_feed", 440), ("head_feed", 880)):
        sf.write(tmp_path / f"{name}.wav", (0.3 * np.sin(2 * np.pi * hz * np.arange(40 * RATE) / RATE)).astype(np.float32), RATE)
    with server(kind) as sound, LiveCommand(sound, "--out", "virtual", "--backend", backend, "--strength", "0", "--cushion-ms", "40") as live:
        assert live.lines[0]["opened"]["in"] == "mic"
        plug(sound)
        players = [subprocess.Popen(["paplay", "-d", name, str(tmp_path / f"{name}.wav")], env=sound.env) for name in ("mic_feed", "head_feed")]
        try:
            with recording(sound, tmp_path / "heard.raw"):
                time.sleep(3)
                choose(sound, "source", "headset")
                while live.until("event")["event"]["kind"] != "moved":
                    pass
                assert "headset" in live.lines[-1]["event"]["cause"]
                assert live.until("opened")["opened"] | {"pid": 0} == live.lines[0]["opened"] | {"in": "headset", "pid": 0}
                before = max(line["status"]["frames"] for line in live.lines if "status" in line)
                status = live.until("status")["status"]
                assert status["frames"] >= before > 50 and status["listeners"] == 1, "the model goes on, and who records keeps its microphone"
                time.sleep(3)
            choose(sound, "source", "voicewire")  # as many do, so that every program takes it
            time.sleep(2)
            with recording(sound, tmp_path / "still.raw"):
                time.sleep(2.5)
        finally:
            for p in players:
                p.kill()
                p.wait()
        assert live.end() == 0
        assert sum("opened" in line for line in live.lines) == 2
    heard, still = (np.fromfile(tmp_path / f"{name}.raw", np.float32) for name in ("heard", "still"))
    assert abs(pitch_hz(heard[: RATE * 3]) - 440) < 3 and abs(pitch_hz(heard[-2 * RATE :]) - 880) < 3
    assert abs(pitch_hz(still[-RATE:]) - 880) < 3, "not its own output"


def test_a_device_that_was_asked_for_is_stayed_with_and_the_loudspeaker_followed() -> None:
    with server("pipewire") as sound, LiveCommand(sound, "--in", "mic") as live:
        plug(sound)
        choose(sound, "source", "headset")
        choose(sound, "sink", "earpiece")
        while live.lines[-1].get("opened", {}).get("out") != "earpiece":
            live.until("opened")
        seen = len(live.lines)
        for _ in range(3):
            live.until("status")
        assert live.end() == 0
        assert all(line["opened"]["in"] == "mic" for line in live.lines if "opened" in line)
        assert not any("opened" in line for line in live.lines[seen:]), "and stays there"
