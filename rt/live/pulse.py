"""PulseAudio and PipeWire, through libpulse: devices by name, pulled playback, under- and overflows reported by the server.

Why not PortAudio on Linux: its ALSA path into PulseAudio stalls within a minute (2,598 of 6,000 callbacks, one core spinning), and it
sees no device names but "default" and "pulse". libpulse is on every desktop that has either server.
"""

from __future__ import annotations

import contextlib
import ctypes as c
import ctypes.util
import threading
import time
from typing import Any

import numpy as np
import pulsectl

from voicewire.rt.realtime import try_realtime

from .backend import Calls, Device, DeviceError, NotThere, Ready, Session, Wanted, find_pair

_PCM_FLOAT32LE = 5
_READY, _FAILED, _TERMINATED = 4, 5, 6  # pa_context_state
_STREAM_READY, _STREAM_FAILED, _STREAM_TERMINATED = 2, 3, 4
_INTERPOLATE, _ADJUST, _AUTO_TIMING, _DONT_MOVE, _START_UNMUTED = 0x2, 0x2000, 0x8, 0x200, 0x10000
# Not moved by the server: once somebody makes our own microphone the default, it would have us listen to ourselves. The process follows the default itself.
_FLAGS = _ADJUST | _INTERPOLATE | _AUTO_TIMING | _DONT_MOVE
_ANY = 0xFFFFFFFF


class _Spec(c.Structure):
    _fields_ = [("format", c.c_int), ("rate", c.c_uint32), ("channels", c.c_uint8)]


class _Attr(c.Structure):
    _fields_ = [(n, c.c_uint32) for n in ("maxlength", "tlength", "prebuf", "minreq", "fragsize")]


_Notify = c.CFUNCTYPE(None, c.c_void_p, c.c_void_p)
_Request = c.CFUNCTYPE(None, c.c_void_p, c.c_size_t, c.c_void_p)

_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "pa_threaded_mainloop_new": (c.c_void_p, []),
    "pa_threaded_mainloop_get_api": (c.c_void_p, [c.c_void_p]),
    "pa_threaded_mainloop_start": (c.c_int, [c.c_void_p]),
    "pa_threaded_mainloop_stop": (None, [c.c_void_p]),
    "pa_threaded_mainloop_free": (None, [c.c_void_p]),
    "pa_threaded_mainloop_lock": (None, [c.c_void_p]),
    "pa_threaded_mainloop_unlock": (None, [c.c_void_p]),
    "pa_context_new": (c.c_void_p, [c.c_void_p, c.c_char_p]),
    "pa_context_connect": (c.c_int, [c.c_void_p, c.c_char_p, c.c_int, c.c_void_p]),
    "pa_context_set_state_callback": (None, [c.c_void_p, _Notify, c.c_void_p]),
    "pa_context_get_state": (c.c_int, [c.c_void_p]),
    "pa_context_errno": (c.c_int, [c.c_void_p]),
    "pa_context_disconnect": (None, [c.c_void_p]),
    "pa_context_unref": (None, [c.c_void_p]),
    "pa_strerror": (c.c_char_p, [c.c_int]),
    "pa_stream_new": (c.c_void_p, [c.c_void_p, c.c_char_p, c.POINTER(_Spec), c.c_void_p]),
    "pa_stream_set_state_callback": (None, [c.c_void_p, _Notify, c.c_void_p]),
    "pa_stream_set_read_callback": (None, [c.c_void_p, _Request, c.c_void_p]),
    "pa_stream_set_write_callback": (None, [c.c_void_p, _Request, c.c_void_p]),
    "pa_stream_set_underflow_callback": (None, [c.c_void_p, _Notify, c.c_void_p]),
    "pa_stream_set_overflow_callback": (None, [c.c_void_p, _Notify, c.c_void_p]),
    "pa_stream_connect_record": (c.c_int, [c.c_void_p, c.c_char_p, c.POINTER(_Attr), c.c_int]),
    "pa_stream_connect_playback": (c.c_int, [c.c_void_p, c.c_char_p, c.POINTER(_Attr), c.c_int, c.c_void_p, c.c_void_p]),
    "pa_stream_get_state": (c.c_int, [c.c_void_p]),
    "pa_stream_peek": (c.c_int, [c.c_void_p, c.POINTER(c.c_void_p), c.POINTER(c.c_size_t)]),
    "pa_stream_drop": (c.c_int, [c.c_void_p]),
    "pa_stream_write": (c.c_int, [c.c_void_p, c.c_void_p, c.c_size_t, c.c_void_p, c.c_int64, c.c_int]),
    "pa_stream_get_latency": (c.c_int, [c.c_void_p, c.POINTER(c.c_uint64), c.POINTER(c.c_int)]),
    "pa_stream_disconnect": (c.c_int, [c.c_void_p]),
    "pa_stream_unref": (None, [c.c_void_p]),
}


def _remember_rate(self: Any, struct: Any) -> None:
    # pulsectl keeps a pointer to the server's reply, which is gone after the call
    self.rate = int(struct.sample_spec.rate)


for _kind in (pulsectl.PulseSinkInfo, pulsectl.PulseSourceInfo):
    _kind._init_from_struct = _remember_rate


def _library() -> Any:
    lib = c.CDLL(ctypes.util.find_library("pulse") or "libpulse.so.0")
    for name, (result, arguments) in _SIGNATURES.items():
        f = getattr(lib, name)
        f.restype, f.argtypes = result, arguments
    return lib


@contextlib.contextmanager
def control(purpose: str) -> Any:
    """A `pulsectl` connection for listing and loading. NotThere when no server answers."""
    pulse: Any = None
    try:
        pulse = pulsectl.Pulse(f"voicewire {purpose}", connect=False)
        pulse.connect(autospawn=False)
    except (pulsectl.PulseError, OSError) as e:
        if pulse is not None:
            pulse.close()  # it holds descriptors, and who waits for a server asks four times a second
        raise NotThere(f"no PulseAudio or PipeWire server answers ({e}); start one: systemctl --user start pipewire-pulse, or pulseaudio --start") from None
    try:
        yield pulse
    except (pulsectl.PulseError, pulsectl.PulseDisconnected) as e:
        raise DeviceError(f"the sound server refused: {e}") from None
    finally:
        pulse.close()


class PulseBackend:
    """Default on Linux. DeviceError when there is no library or no server."""

    name = "pulse"

    def __init__(self) -> None:
        self._lib = _library()
        with control("probe"):
            pass

    def devices(self) -> list[Device]:
        with control("devices") as pulse:
            info = pulse.server_info()
            api = "PipeWire" if "PipeWire" in info.server_name else "PulseAudio"
            found = []
            for kind, default, items in (
                ("input", info.default_source_name, pulse.source_list()),
                ("output", info.default_sink_name, pulse.sink_list()),
            ):
                for d in items:
                    found.append(Device(kind, d.name, d.description, d.rate, d.channel_count, api, d.name == default))
        return found

    def open(self, wanted: Wanted, ready: Ready) -> Session:
        source, sink = find_pair(self.devices(), wanted)
        return _PulseSession(self._lib, source, sink, wanted, ready)

    def listen(self, name: str, period_s: float, calls: Calls) -> Session:
        """Record only; `calls.capture` gets mono."""
        return _PulseSession(self._lib, Device("input", name, name, 48000, 1, ""), None, Wanted(name, None, period_s), lambda *_: calls)

    def emit(self, name: str, period_s: float, calls: Calls) -> Session:
        """Play only; `calls.play` gives mono."""
        return _PulseSession(self._lib, None, Device("output", name, name, 48000, 1, ""), Wanted(None, name, period_s), lambda *_: calls)


class _PulseSession:
    """One connection with a record stream, a playback stream or both; all callbacks come from libpulse's own thread."""

    def __init__(self, lib: Any, source: Device | None, sink: Device | None, wanted: Wanted, ready: Ready) -> None:
        self._lib, self._closed, self._up = lib, False, False
        # the server converts where a device has a rate or layout that the model does not take
        self.rate_in, self.channels_in = (min(max(source.rate, 8000), 48000), min(source.channels, 2)) if source else (48000, 1)
        self.rate_out, self.channels_out = (min(max(sink.rate, 8000), 192000), min(sink.channels, 2)) if sink else (48000, 1)
        self.name_in, self.name_out = source.name if source else "", sink.name if sink else ""
        self._calls = ready(self.rate_in, self.channels_in, self.rate_out, self.channels_out)
        self._changed = threading.Event()
        self._realtime = False
        self._record = self._play = None
        # ctypes forgets callbacks that nobody holds
        self._on_state = _Notify(self._state)
        self._on_read, self._on_write = _Request(self._readable), _Request(self._writable)
        self._on_under, self._on_over = _Notify(lambda *_: self._calls.event("underflow")), _Notify(lambda *_: self._calls.event("overflow"))
        self._loop = lib.pa_threaded_mainloop_new()
        # not "voicewire": PipeWire would take our streams, named after the program, for the device of that name
        self._context = lib.pa_context_new(lib.pa_threaded_mainloop_get_api(self._loop), b"voicewire live")
        lib.pa_context_set_state_callback(self._context, self._on_state, None)
        try:
            if lib.pa_context_connect(self._context, None, 1, None) < 0:  # 1: no autospawn
                raise DeviceError("the sound server does not answer")
            lib.pa_threaded_mainloop_start(self._loop)
            self._await(lambda: lib.pa_context_get_state(self._context), _READY, (_FAILED, _TERMINATED), "the sound server")
            with self._locked():
                if source:
                    self._connect_record(source, wanted)
                if sink:
                    self._connect_play(sink, wanted)
            for stream, name in ((self._record, self.name_in), (self._play, self.name_out)):
                if stream:
                    self._await(lambda s=stream: lib.pa_stream_get_state(s), _STREAM_READY, (_STREAM_FAILED, _STREAM_TERMINATED), f"device '{name}'")
            self._up = True
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def _locked(self) -> Any:
        self._lib.pa_threaded_mainloop_lock(self._loop)
        try:
            yield
        finally:
            self._lib.pa_threaded_mainloop_unlock(self._loop)

    def _await(self, state: Any, good: int, bad: tuple[int, ...], what: str) -> None:
        end = time.monotonic() + 3
        while True:
            self._changed.clear()
            with self._locked():
                now = state()
                why = self._lib.pa_strerror(self._lib.pa_context_errno(self._context)).decode(errors="replace")
            if now == good:
                return
            if now in bad or time.monotonic() > end:
                raise DeviceError(f"{what} cannot be opened: {why if now in bad else 'no answer within 3 s'}; see: voicewire doctor")
            self._changed.wait(0.2)

    def _stream(self, name: bytes, rate: int, channels: int) -> Any:
        spec = _Spec(_PCM_FLOAT32LE, rate, channels)
        stream = self._lib.pa_stream_new(self._context, name, c.byref(spec), None)
        self._lib.pa_stream_set_state_callback(stream, self._on_state, None)
        return stream

    def _connect_record(self, source: Device, wanted: Wanted) -> None:
        lib, self._record = self._lib, self._stream(b"voicewire in", self.rate_in, self.channels_in)
        lib.pa_stream_set_read_callback(self._record, self._on_read, None)
        lib.pa_stream_set_overflow_callback(self._record, self._on_over, None)
        block = int(wanted.period_s * self.rate_in) * 4 * self.channels_in
        attr = _Attr(_ANY, _ANY, _ANY, _ANY, block)
        lib.pa_stream_connect_record(self._record, source.name.encode(), c.byref(attr), _FLAGS)

    def _connect_play(self, sink: Device, wanted: Wanted) -> None:
        lib, self._play = self._lib, self._stream(b"voicewire out", self.rate_out, self.channels_out)
        lib.pa_stream_set_write_callback(self._play, self._on_write, None)
        lib.pa_stream_set_underflow_callback(self._play, self._on_under, None)
        block = int(wanted.period_s * self.rate_out) * 4 * self.channels_out
        # Two and a half blocks, asked for by halves: with two whole ones PulseAudio's null sink underflowed now and then, with four it added 15 ms.
        # No pre-buffering: after an underflow the delay stays what it was.
        attr = _Attr(_ANY, 5 * block // 2, 0, block // 2, _ANY)
        lib.pa_stream_connect_playback(self._play, sink.name.encode(), c.byref(attr), _FLAGS | _START_UNMUTED, None, None)

    # -- callbacks, in libpulse's thread, which holds the lock ------------------------------------------------------------
    def _state(self, *_: Any) -> None:
        self._changed.set()
        if not self._up or self._closed:
            return
        lib = self._lib
        streams = [lib.pa_stream_get_state(s) for s in (self._record, self._play) if s]
        if lib.pa_context_get_state(self._context) in (_FAILED, _TERMINATED) or any(s in (_STREAM_FAILED, _STREAM_TERMINATED) for s in streams):
            self._up = False
            self._calls.event("lost")

    def _readable(self, stream: int, _bytes: int, _: Any) -> None:
        now = time.monotonic()
        if not self._realtime:
            self._realtime = True
            try_realtime()
        data, size = c.c_void_p(), c.c_size_t()
        while self._lib.pa_stream_peek(stream, c.byref(data), c.byref(size)) == 0 and size.value:
            n = size.value // 4
            if data.value:
                x = np.frombuffer(c.string_at(data.value, size.value), np.float32)
            else:
                x = np.zeros(n, np.float32)  # a hole in the recording
            self._lib.pa_stream_drop(stream)
            self._calls.capture(x.reshape(-1, self.channels_in), now)

    def _writable(self, stream: int, n_bytes: int, _: Any) -> None:
        n = n_bytes // (4 * self.channels_out)
        if n and not self._closed:
            y = np.ascontiguousarray(self._calls.play(n), np.float32)
            self._lib.pa_stream_write(stream, y.ctypes.data, y.nbytes, None, 0, 0)

    # -- the rest -------------------------------------------------------------------------------------------------------
    def latency_s(self) -> tuple[float, float]:
        values = []
        with self._locked():
            for stream in (self._record, self._play):
                us, negative = c.c_uint64(), c.c_int()
                ok = self._up and stream is not None and self._lib.pa_stream_get_latency(stream, c.byref(us), c.byref(negative)) == 0
                values.append(us.value / 1e6 * (-1 if negative.value else 1) if ok else 0.0)
        return values[0], values[1]

    def close(self) -> None:
        if self._closed:
            return
        self._closed, self._up = True, False
        lib = self._lib
        with self._locked():
            for stream in (self._record, self._play):
                if stream:
                    lib.pa_stream_disconnect(stream)
                    lib.pa_stream_unref(stream)
            lib.pa_context_disconnect(self._context)
            lib.pa_context_unref(self._context)
        lib.pa_threaded_mainloop_stop(self._loop)
        lib.pa_threaded_mainloop_free(self._loop)
