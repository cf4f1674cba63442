"""PortAudio through sounddevice: every platform's devices, by name and host API."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from voicewire.rt.realtime import try_realtime

from .backend import Device, DeviceError, Ready, Session, Wanted, find, missing
from .quiet import quiet_stderr
from .watchdog import Watchdog


def library() -> Any:
    try:
        import sounddevice
    except OSError:
        raise DeviceError("no PortAudio library; install it: apt-get install libportaudio2") from None
    return sounddevice


class PortAudioBackend:
    """Default where there is no PulseAudio or PipeWire. Enumerates anew at every `open`, so replugged devices are found."""

    name = "portaudio"

    def __init__(self) -> None:
        self._sd = library()
        # PortAudio lists devices once; only a fresh start sees what was plugged in since. Nothing of ours is open at this moment.
        with quiet_stderr():
            self._sd._terminate()
            self._sd._initialize()

    def devices(self) -> list[Device]:
        sd = self._sd
        found = []
        try:
            apis = [a["name"] for a in sd.query_hostapis()]
            for d in sd.query_devices():
                for kind, channels, at in (("input", d["max_input_channels"], 0), ("output", d["max_output_channels"], 1)):
                    if channels:
                        rate = int(d["default_samplerate"])
                        found.append(Device(kind, d["name"], d["name"], rate, channels, apis[d["hostapi"]], sd.default.device[at] == d["index"]))
        except sd.PortAudioError as e:
            raise DeviceError(f"PortAudio cannot list devices: {e}") from None
        return found

    def open(self, wanted: Wanted, ready: Ready) -> Session:
        devices = self.devices()
        source = find(devices, "input", wanted.name_in, wanted.exact)
        sink = find(devices, "output", wanted.name_out, wanted.exact)
        if source is None or sink is None:
            raise missing(*(("input", wanted.name_in) if source is None else ("output", wanted.name_out)), devices)
        try:
            return _PortAudioSession(self._sd, source, sink, wanted, ready)
        except self._sd.PortAudioError as e:
            raise DeviceError(f"'{source.name}' or '{sink.name}' cannot be opened: {e}; another program may hold it (voicewire doctor)") from None


class _PortAudioSession:
    """One input and one output stream with callbacks of their own: the two devices may have different rates and clocks."""

    def __init__(self, sd: Any, source: Device, sink: Device, wanted: Wanted, ready: Ready) -> None:
        self.rate_in, self.channels_in = _usable(source.rate), min(source.channels, 2)
        self.rate_out, self.channels_out = sink.rate, min(sink.channels, 2)
        self.name_in, self.name_out = source.name, sink.name
        self._calls = ready(self.rate_in, self.channels_in, self.rate_out, self.channels_out)
        self._realtime = {"in": False, "out": False}
        self._streams: list[Any] = []
        self._watchdog: Watchdog | None = None
        try:
            self._streams.append(
                sd.InputStream(
                    samplerate=self.rate_in, blocksize=round(wanted.period_s * self.rate_in), device=f"{source.name}, {source.api}",
                    channels=self.channels_in, dtype="float32", latency="low", callback=self._captured,
                )
            )  # fmt: skip
            self._streams.append(
                sd.OutputStream(
                    samplerate=self.rate_out, blocksize=round(wanted.period_s * self.rate_out), device=f"{sink.name}, {sink.api}",
                    channels=self.channels_out, dtype="float32", latency="low", callback=self._wanted,
                )
            )  # fmt: skip
            for s in self._streams:
                s.start()
        except BaseException:
            self.close()
            raise
        self._watchdog = Watchdog(lambda: self._calls.event("lost"), lambda: not all(s.active for s in self._streams))

    def _rt(self, side: str) -> None:
        if not self._realtime[side]:
            self._realtime[side] = True
            try_realtime()

    def _captured(self, x: Any, n: int, t: Any, status: Any) -> None:
        now = time.monotonic()
        self._rt("in")
        if status and status.input_overflow:
            self._calls.event("overflow")
        self._calls.capture(np.array(x, np.float32), now)
        if self._watchdog:
            self._watchdog.seen()

    def _wanted(self, y: Any, n: int, t: Any, status: Any) -> None:
        self._rt("out")
        if status and status.output_underflow:
            self._calls.event("underflow")
        y[:] = self._calls.play(n)

    def latency_s(self) -> tuple[float, float]:
        return float(self._streams[0].latency), float(self._streams[1].latency)

    def close(self) -> None:
        if self._watchdog:
            self._watchdog.close()
        streams, self._streams = self._streams, []
        for s in streams:
            s.abort(ignore_errors=True)
            s.close(ignore_errors=True)


def _usable(rate: int) -> int:
    """The model takes 8 to 48 kHz; PortAudio's host converts from what the device has."""
    return rate if 8000 <= rate <= 48000 else 48000
