"""JACK ports on PipeWire: both devices in one callback of the graph, so nothing is buffered between them; the shortest way there is.

Needs libjack (PipeWire's own: apt-get install pipewire-jack). The virtual microphone is then a source of the graph that we play into directly.
"""

from __future__ import annotations

import ctypes
import glob
import os
import threading
import time
from typing import Any

import numpy as np

from voicewire.engines.stft import MAX_RATE, MIN_RATE
from voicewire.rt.realtime import try_realtime

from .backend import Backend, Device, DeviceError, NotThere, Ready, Session, Wanted, find, pulse_module

_WATCH_S = 0.2
_CLOSE_S = 2.0
_CYCLES_S, _PARK_S = 0.2, 1.5
_PORTS_S = 1.0  # PipeWire lists a new device before its ports


def library() -> Any:
    """The module `jack`, on PipeWire's own libjack where that is installed beside another one. DeviceError."""
    for path in glob.glob("/usr/lib/*/pipewire-0.3/jack/libjack.so.0") + glob.glob("/usr/lib*/pipewire-0.3/jack/libjack.so.0"):
        ctypes.CDLL(path, ctypes.RTLD_GLOBAL)  # found by its name when the package asks for libjack
        break
    try:
        import jack
    except (ImportError, OSError):
        raise DeviceError("no JACK library; install it: apt-get install pipewire-jack && pip install JACK-Client") from None
    return jack


class JackBackend:
    """Default on PipeWire when its JACK library is there. Lists devices as the PulseAudio side does, since those are the names people know."""

    name = "jack"

    def __init__(self) -> None:
        self._pulse: Backend = pulse_module().PulseBackend()
        self._jack = library()
        devices = self._pulse.devices()
        if not devices:
            raise NotThere("the sound server has no devices")
        if devices[0].api != "PipeWire":
            raise DeviceError("the sound server is not PipeWire; use: --backend pulse")

    def devices(self) -> list[Device]:
        return self._pulse.devices()

    def open(self, wanted: Wanted, ready: Ready) -> Session:
        devices = self.devices()
        source = find(devices, "input", wanted.name_in, wanted.exact)
        # the virtual microphone is a source that we feed
        sink = next((d for d in devices if d.name == wanted.name_out), None) or find(devices, "output", wanted.name_out, wanted.exact)
        rate = 48000
        os.environ["PIPEWIRE_LATENCY"] = f"{round(wanted.period_s * rate)}/{rate}"
        try:
            return _JackSession(self._jack, source, sink, ready)
        except self._jack.JackError as e:
            raise DeviceError(f"'{source.name}' or '{sink.name}' cannot be opened through JACK: {e}; try: --backend pulse") from None


class _JackSession:
    def __init__(self, jack: Any, source: Device, sink: Device, ready: Ready) -> None:
        self.name_in, self.name_out = source.name, sink.name
        self._client = client = jack.Client("voicewire live", no_start_server=True)
        self._ended, self._parked = threading.Event(), threading.Event()
        self._realtime = False
        self._down = False
        try:
            sources, sinks = _ports(client, source, is_output=True), _ports(client, sink, is_input=True)
            self.rate_in = self.rate_out = int(client.samplerate)
            if not MIN_RATE <= self.rate_in <= MAX_RATE:
                raise DeviceError(
                    f"PipeWire runs at {self.rate_in} Hz, which JACK ports share, and the model takes {MIN_RATE} to {MAX_RATE}; use: --backend pulse"
                )
            self.channels_in, self.channels_out = len(sources), len(sinks)
            self._calls = ready(self.rate_in, self.channels_in, self.rate_out, self.channels_out)
            self._ins = [client.inports.register(f"in_{i + 1}") for i in range(len(sources))]
            self._outs = [client.outports.register(f"out_{i + 1}") for i in range(len(sinks))]
            client.set_process_callback(self._process)
            client.set_shutdown_callback(self._shutdown)
            client.set_xrun_callback(lambda _: self._calls.event("underflow"))
            client.activate()
            for a, b in (*zip(sources, self._ins, strict=True), *zip(self._outs, sinks, strict=True)):
                client.connect(a, b)
        except BaseException:
            self.close()
            raise
        threading.Thread(target=self._watch, name="jack watch", daemon=True).start()

    def _process(self, n: int) -> None:
        if self._ended.is_set():
            self._parked.set()
            time.sleep(_PARK_S)
            return
        now = time.monotonic()
        if not self._realtime:
            self._realtime = True
            try_realtime()
        # the output first: it was made before, and no wait for the model may come between
        y = self._calls.play(n)
        for port, k in zip(self._outs, range(self.channels_out), strict=True):
            port.get_array()[:] = y[:, k]
        self._calls.capture(np.stack([p.get_array() for p in self._ins], 1), now)

    def _shutdown(self, *_: Any) -> None:
        self._down = True

    def _watch(self) -> None:
        """A device that goes takes its connections along; nothing else tells."""
        while not self._ended.wait(_WATCH_S):
            if self._down or not all(p.number_of_connections for p in (*self._ins, *self._outs)):
                self._calls.event("lost")
                return

    def latency_s(self) -> tuple[float, float]:
        return 0.0, 0.0  # ports share the graph's cycle; what the devices themselves buffer is not known here

    def close(self) -> None:
        if self._ended.is_set():
            return
        self._ended.set()
        # PipeWire's libjack ends its thread with pthread_cancel. One that is cancelled while it waits for the interpreter's lock takes the lock along and
        # everything here hangs for ever; asleep it does not hold it.
        self._parked.wait(_CYCLES_S)  # (not if the graph stands still)
        leave = threading.Thread(target=self._leave, name="jack close", daemon=True)
        leave.start()
        leave.join(_CLOSE_S)

    def _leave(self) -> None:
        if not self._down:
            self._client.deactivate()
        self._client.close()


def _ports(client: Any, device: Device, **kind: bool) -> list[Any]:
    """At most two ports of the device; PipeWire names them by the device's description, or its name."""
    monitor = device.name.endswith(".monitor")
    names = device.description.removeprefix("Monitor of "), device.name.removesuffix(".monitor")
    part = ("monitor" if monitor else "capture") if kind.get("is_output") else ""
    end = time.monotonic() + _PORTS_S
    while True:
        there = client.get_ports(is_audio=True, **kind)
        for prefix in names:
            found = [p for p in there if p.name.rpartition(":")[0] == prefix and part in p.shortname]
            if found:
                return found[:2]
        if time.monotonic() > end:
            break
        time.sleep(0.01)
    raise DeviceError(f"'{device.name}' has no JACK ports; try: --backend pulse")
