"""PyAudio: PortAudio through its other binding, for machines where that is what is installed."""

from __future__ import annotations

from typing import Any

import numpy as np

from .backend import Device, DeviceError, Ready, Session, Wanted, find_pair
from .portaudio import PortAudioPair
from .quiet import quiet_stderr


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
        try:
            listed = self._listed()
            devices = [d for d, _ in listed]
            source, sink = find_pair(devices, wanted)
            index = {id(d): i for d, i in listed}
            try:
                return _PyAudioSession(self._pa, self._host, (source, index[id(source)]), (sink, index[id(sink)]), wanted, ready)
            except (OSError, ValueError) as e:
                raise DeviceError(f"'{source.name}' or '{sink.name}' cannot be opened: {e}; another program may hold it (voicewire doctor)") from None
        except BaseException:
            self._host.terminate()  # PortAudio looks for devices again only when nobody uses it any more
            raise


class _PyAudioSession(PortAudioPair):
    def __init__(self, pa: Any, host: Any, source: tuple[Device, int], sink: tuple[Device, int], wanted: Wanted, ready: Ready) -> None:
        super().__init__(source[0], sink[0], ready)
        self._pa, self._host = pa, host
        self._streams: list[Any] = []
        self._running = False
        try:
            for side, rate, channels, (_, index), callback in (
                ("input", self.rate_in, self.channels_in, source, self._captured),
                ("output", self.rate_out, self.channels_out, sink, self._asked),
            ):
                stream = host.open(
                    rate=rate, channels=channels, format=pa.paFloat32, frames_per_buffer=round(wanted.period_s * rate), stream_callback=callback,
                    **{side: True, f"{side}_device_index": index},
                )  # fmt: skip
                self._streams.append(stream)
        except BaseException:
            self.close()
            raise
        self._running = True
        self.watch(lambda: not all(s.is_active() for s in self._streams))

    def _captured(self, data: bytes, n: int, t: Any, status: int) -> tuple[None, int]:
        self.came(np.frombuffer(data, np.float32).reshape(-1, self.channels_in), bool(status & self._pa.paInputOverflow))
        return None, self._pa.paContinue

    def _asked(self, _: Any, n: int, t: Any, status: int) -> tuple[bytes, int]:
        y = np.ascontiguousarray(self.wanted(n, bool(status & self._pa.paOutputUnderflow)), np.float32)
        return y.tobytes(), self._pa.paContinue

    def latency_s(self) -> tuple[float, float]:
        return float(self._streams[0].get_input_latency()), float(self._streams[1].get_output_latency())

    def close(self) -> None:
        self.unwatch()
        streams, self._streams = self._streams, []
        for s in streams:
            s.close()
        if streams and self._running:
            self._host.terminate()
