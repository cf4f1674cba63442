"""PortAudio through sounddevice: every platform's devices, by name and host API."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from voicewire.rt.realtime import try_realtime

from .backend import F32, Device, DeviceError, Ready, Session, Wanted, find_pair
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
        source, sink = find_pair(self.devices(), wanted)
        try:
            return _PortAudioSession(self._sd, source, sink, wanted, ready)
        except self._sd.PortAudioError as e:
            raise DeviceError(f"'{source.name}' or '{sink.name}' cannot be opened: {e}; another program may hold it (voicewire doctor)") from None


class PortAudioPair:
    """What sessions of both bindings of PortAudio share: one input and one output stream with callbacks of their own, since the two devices may
    have different rates and clocks. Subclasses open the streams and hand their blocks to `came` and `wanted`."""

    def __init__(self, source: Device, sink: Device, ready: Ready) -> None:
        # the model takes 8 to 48 kHz; PortAudio's host converts from what the device has
        self.rate_in, self.channels_in = source.rate if 8000 <= source.rate <= 48000 else 48000, min(source.channels, 2)
        self.rate_out, self.channels_out = sink.rate, min(sink.channels, 2)
        self.name_in, self.name_out = source.name, sink.name
        self._calls = ready(self.rate_in, self.channels_in, self.rate_out, self.channels_out)
        self._realtime: set[str] = set()
        self._watchdog: Watchdog | None = None

    def watch(self, gone: Callable[[], bool]) -> None:
        self._watchdog = Watchdog(lambda: self._calls.event("lost"), gone)

    def unwatch(self) -> None:
        if self._watchdog:
            self._watchdog.close()

    def _rt(self, side: str) -> None:
        if side not in self._realtime:
            self._realtime.add(side)
            try_realtime()

    def came(self, x: F32, overflow: bool) -> None:
        """x: [n, channels_in], the callee's"""
        now = time.monotonic()
        self._rt("in")
        if overflow:
            self._calls.event("overflow")
        self._calls.capture(x, now)
        if self._watchdog:
            self._watchdog.seen()

    def wanted(self, n: int, underflow: bool) -> F32:
        """→ [n, channels_out] to play"""
        self._rt("out")
        if underflow:
            self._calls.event("underflow")
        return self._calls.play(n)


class _PortAudioSession(PortAudioPair):
    def __init__(self, sd: Any, source: Device, sink: Device, wanted: Wanted, ready: Ready) -> None:
        super().__init__(source, sink, ready)
        self._streams: list[Any] = []
        try:
            for make, device, rate, channels, callback in (
                (sd.InputStream, source, self.rate_in, self.channels_in, self._captured),
                (sd.OutputStream, sink, self.rate_out, self.channels_out, self._asked),
            ):
                stream = make(
                    samplerate=rate, blocksize=round(wanted.period_s * rate), device=f"{device.name}, {device.api}", channels=channels,
                    dtype="float32", latency="low", callback=callback,
                )  # fmt: skip
                self._streams.append(stream)
            for stream in self._streams:
                stream.start()
        except BaseException:
            self.close()
            raise
        self.watch(lambda: not all(s.active for s in self._streams))

    def _captured(self, x: Any, n: int, t: Any, status: Any) -> None:
        self.came(np.array(x, np.float32), bool(status and status.input_overflow))

    def _asked(self, y: Any, n: int, t: Any, status: Any) -> None:
        y[:] = self.wanted(n, bool(status and status.output_underflow))

    def latency_s(self) -> tuple[float, float]:
        return float(self._streams[0].latency), float(self._streams[1].latency)

    def close(self) -> None:
        self.unwatch()
        streams, self._streams = self._streams, []
        for s in streams:
            s.abort(ignore_errors=True)
            s.close(ignore_errors=True)
