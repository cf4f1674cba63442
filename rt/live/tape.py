"""A few seconds recorded from a microphone, or played, through the sound system that `live` would take; devices by the names of `voicewire devices`."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backend import DeviceError, find, pulse_module

F32 = NDArray[np.float32]
_BLOCK_S = 0.1  # of the meter
_STALLED_S = 5.0  # without a sample
RATE = 48000  # of what PulseAudio and PipeWire are asked for

Meter = Callable[[float, float], None]  # level in dBFS, seconds left


def record(device: str | None, seconds: float, meter: Meter) -> tuple[F32, int]:
    """→ ([samples] float32, rate). DeviceError, with one line, when there is no microphone."""
    return _by_pulse(device, seconds, meter) if _has_server() else _by_portaudio(device, seconds, meter)


def play(x: F32, rate: int, device: str | None, going_on: Callable[[float], bool]) -> None:
    """x: [samples] float32. Returns when all is heard, or soon after going_on(seconds played) said no. DeviceError when there is no loudspeaker."""
    (_to_pulse if _has_server() else _to_portaudio)(x, rate, device, going_on)


def _has_server() -> bool:
    try:
        pulse_module().PulseBackend()
    except DeviceError:
        return False
    return True


class _Cassette:
    """What a session calls: takes what comes, gives what there is, then silence."""

    def __init__(self, given: F32) -> None:
        self.came: queue.Queue[F32] = queue.Queue()
        self.given, self.at = given, 0
        self.over = threading.Event()

    def capture(self, x: F32, now_s: float) -> None:
        self.came.put(x[:, 0].copy())

    def play(self, n: int) -> F32:
        y = np.zeros((n, 1), np.float32)
        piece = self.given[self.at : self.at + n]
        y[: len(piece), 0] = piece
        self.at += n
        return y

    def event(self, kind: str) -> None:
        if kind == "lost":
            self.over.set()


def level_dbfs(x: F32) -> float:
    return 10 * math.log10(float((x.astype(np.float64) ** 2).mean()) + 1e-10) if len(x) else -100.0


def _by_pulse(device: str | None, seconds: float, meter: Meter) -> tuple[F32, int]:
    backend = pulse_module().PulseBackend()
    tape = _Cassette(np.zeros(0, np.float32))
    name = find(backend.devices(), "input", device).name
    blocks: list[F32] = []
    samples, shown = 0, 0
    session = backend.listen(name, _BLOCK_S / 4, tape)
    try:
        while samples < seconds * RATE:
            try:
                blocks.append(tape.came.get(timeout=0.2 if tape.over.is_set() else _STALLED_S))
            except queue.Empty:
                raise DeviceError(f"nothing comes from the microphone '{name}'; is it plugged in, and not muted? (voicewire devices lists all)") from None
            samples += len(blocks[-1])
            if samples - shown >= _BLOCK_S * RATE:
                meter(level_dbfs(np.concatenate(blocks)[shown:]), max(0.0, seconds - samples / RATE))
                shown = samples
    finally:
        session.close()
    return np.concatenate(blocks)[: round(seconds * RATE)], RATE


def _to_pulse(x: F32, rate: int, device: str | None, going_on: Callable[[float], bool]) -> None:
    if rate != RATE:
        import samplerate

        x = samplerate.resample(x, RATE / rate, "sinc_best")
    backend = pulse_module().PulseBackend()
    tape = _Cassette(x)
    session = backend.emit(find(backend.devices(), "output", device).name, _BLOCK_S / 4, tape)
    try:
        heard, moved = 0, time.monotonic()
        while tape.at < len(x) + RATE * session.latency_s()[1]:
            if not going_on(min(tape.at, len(x)) / RATE):
                return
            if tape.at != heard:
                heard, moved = tape.at, time.monotonic()
            if tape.over.is_set() or time.monotonic() - moved > _STALLED_S:
                raise DeviceError("the loudspeaker stopped; choose another one with --out (voicewire devices lists them)")
            time.sleep(0.02)
    finally:
        session.close()


def _portaudio() -> Any:
    try:
        import sounddevice
    except OSError:
        raise DeviceError("PortAudio is missing, so there is no sound; install it (Debian: apt-get install libportaudio2)") from None
    return sounddevice


def _by_portaudio(device: str | None, seconds: float, meter: Meter) -> tuple[F32, int]:
    sd = _portaudio()
    try:
        rate = round(sd.query_devices(device, "input")["default_samplerate"])
        stream = sd.InputStream(samplerate=rate, channels=1, dtype="float32", device=device)
    except (sd.PortAudioError, ValueError) as e:
        raise DeviceError(f"no microphone to record from ({str(e).splitlines()[0]}); choose one with --in (voicewire devices lists them)") from None
    blocks: list[F32] = []
    try:
        with stream:
            for i in range(math.ceil(seconds / _BLOCK_S)):
                block, _ = stream.read(round(rate * _BLOCK_S))
                blocks.append(block[:, 0])
                meter(level_dbfs(blocks[-1]), max(0.0, seconds - _BLOCK_S * (i + 1)))
    except sd.PortAudioError as e:
        raise DeviceError(f"the microphone stopped ({str(e).splitlines()[0]}); plug it in again") from None
    return np.concatenate(blocks)[: round(seconds * rate)], rate


def _to_portaudio(x: F32, rate: int, device: str | None, going_on: Callable[[float], bool]) -> None:
    sd = _portaudio()
    try:
        with sd.OutputStream(samplerate=rate, channels=1, dtype="float32", device=device) as stream:
            size = round(rate * _BLOCK_S)
            for at in range(0, len(x), size):
                if not going_on(at / rate):
                    return
                stream.write(x[at : at + size, None])
    except (sd.PortAudioError, ValueError) as e:
        raise DeviceError(f"no loudspeaker to play on ({str(e).splitlines()[0]}); choose one with --out (voicewire devices lists them)") from None
