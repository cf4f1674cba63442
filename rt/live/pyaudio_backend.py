"""PyAudio: PortAudio through its other binding, for machines where that is what is installed."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from voicewire.rt.realtime import try_realtime

from .backend import Device, DeviceError, Ready, Session, Wanted, find, missing
from .quiet import quiet_stderr
from .watchdog import Watchdog


class PyAudioBackend:
    """Extra `voicewire[pyaudio]`."""

    name = "pyaudio"

    def __init__(self) -> None:
        try:
            import pyaudio
        except ImportError:
            raise DeviceError("PyAudio is not installed; install it: apt-get install portaudio19-dev && pip install 'voicewire[pyaudio]'") from None
        with quiet_stderr():
            self._pa, self._host = pyaudio, pyaudio.PyAudio()

    def _listed(self) -> list[tuple[Device, int]]:
        host, found = self._host, []
        defaults = []
        for get in (host.get_default_input_device_info, host.get_default_output_device_info):
            try:
                defaults.append(get()["index"])
            except OSError:
                defaults.append(-1)
        for i in range(host.get_device_count()):
            d = host.get_device_info_by_index(i)
            api = host.get_host_api_info_by_index(d["hostApi"])["name"]
            for kind, channels, default in (("input", d["maxInputChannels"], defaults[0]), ("output", d["maxOutputChannels"], defaults[1])):
                if channels:
                    found.append((Device(kind, d["name"], d["name"], int(d["defaultSampleRate"]), channels, api, i == default), i))
        return found

    def devices(self) -> list[Device]:
        return [d for d, _ in self._listed()]

    def open(self, wanted: Wanted, ready: Ready) -> Session:
        listed = self._listed()
        devices = [d for d, _ in listed]
        source = find(devices, "input", wanted.name_in, wanted.exact)
        sink = find(devices, "output", wanted.name_out, wanted.exact)
        if source is None or sink is None:
            raise missing(*(("input", wanted.name_in) if source is None else ("output", wanted.name_out)), devices)
        index = {id(d): i for d, i in listed}
        try:
            return _PyAudioSession(self._pa, self._host, (source, index[id(source)]), (sink, index[id(sink)]), wanted, ready)
        except (OSError, ValueError) as e:
            raise DeviceError(f"'{source.name}' or '{sink.name}' cannot be opened: {e}; another program may hold it (voicewire doctor)") from None


class _PyAudioSession:
    def __init__(self, pa: Any, host: Any, source: tuple[Device, int], sink: tuple[Device, int], wanted: Wanted, ready: Ready) -> None:
        self._pa, self._host = pa, host
        rate = source[0].rate
        self.rate_in, self.channels_in = rate if 8000 <= rate <= 48000 else 48000, min(source[0].channels, 2)
        self.rate_out, self.channels_out = sink[0].rate, min(sink[0].channels, 2)
        self.name_in, self.name_out = source[0].name, sink[0].name
        self._calls = ready(self.rate_in, self.channels_in, self.rate_out, self.channels_out)
        self._realtime = {"in": False, "out": False}
        self._streams: list[Any] = []
        self._watchdog: Watchdog | None = None
        try:
            self._streams.append(
                host.open(
                    rate=self.rate_in, channels=self.channels_in, format=pa.paFloat32, input=True, input_device_index=source[1],
                    frames_per_buffer=round(wanted.period_s * self.rate_in), stream_callback=self._captured,
                )
            )  # fmt: skip
            self._streams.append(
                host.open(
                    rate=self.rate_out, channels=self.channels_out, format=pa.paFloat32, output=True, output_device_index=sink[1],
                    frames_per_buffer=round(wanted.period_s * self.rate_out), stream_callback=self._wanted,
                )
            )  # fmt: skip
        except BaseException:
            self.close()
            raise
        self._watchdog = Watchdog(lambda: self._calls.event("lost"), lambda: not all(s.is_active() for s in self._streams))

    def _rt(self, side: str) -> None:
        if not self._realtime[side]:
            self._realtime[side] = True
            try_realtime()

    def _captured(self, data: bytes, n: int, t: Any, status: int) -> tuple[None, int]:
        now = time.monotonic()
        self._rt("in")
        if status & self._pa.paInputOverflow:
            self._calls.event("overflow")
        self._calls.capture(np.frombuffer(data, np.float32).reshape(-1, self.channels_in), now)
        if self._watchdog:
            self._watchdog.seen()
        return None, self._pa.paContinue

    def _wanted(self, _: Any, n: int, t: Any, status: int) -> tuple[bytes, int]:
        self._rt("out")
        if status & self._pa.paOutputUnderflow:
            self._calls.event("underflow")
        return np.ascontiguousarray(self._calls.play(n), np.float32).tobytes(), self._pa.paContinue

    def latency_s(self) -> tuple[float, float]:
        return float(self._streams[0].get_input_latency()), float(self._streams[1].get_output_latency())

    def close(self) -> None:
        if self._watchdog:
            self._watchdog.close()
        streams, self._streams = self._streams, []
        for s in streams:
            s.close()
        if streams:
            self._host.terminate()
