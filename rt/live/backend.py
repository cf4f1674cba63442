"""What a back end is: a way to open one input and one output device and be called for every block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

BACKENDS = ("jack", "pulse", "portaudio", "pyaudio")


class DeviceError(RuntimeError):
    """A device or a sound system cannot be used; the message is one line that says what to do."""


class NotThere(DeviceError):
    """A device or the sound server is not there now; it may come."""


@dataclass(frozen=True)
class Device:
    """kind: "input" or "output". name: what it is opened by. api: sound system it belongs to."""

    kind: str
    name: str
    description: str
    rate: int
    channels: int
    api: str
    default: bool = False


@dataclass(frozen=True)
class Wanted:
    """What to open: names (None: the system's choice), and block length. exact: these very devices, part of a name is not enough."""

    name_in: str | None
    name_out: str | None
    period_s: float
    exact: bool = False


class Calls(Protocol):
    """What an open pair of devices calls, from its own threads."""

    def capture(self, x: F32, now_s: float) -> None:
        """x: [n, channels] float32 arrived; the array is the callee's."""

    def play(self, n: int) -> F32:
        """→ [n, channels] float32 to play."""

    def event(self, kind: str) -> None:
        """ "overflow" or "underflow" of a device, or "lost": a device or the server is gone, close and open again."""


class Session(Protocol):
    """An open, running pair of devices."""

    rate_in: int
    channels_in: int
    rate_out: int
    channels_out: int
    name_in: str
    name_out: str

    def latency_s(self) -> tuple[float, float]:
        """(input, output) buffering inside the sound system, as it reports it."""

    def close(self) -> None:
        """Stop and release; idempotent."""


# (rate_in, channels_in, rate_out, channels_out) → the callee; called once, before the first block
Ready = Callable[[int, int, int, int], Calls]


class Backend(Protocol):
    name: str

    def devices(self) -> list[Device]:
        """What can be opened now. DeviceError when the sound system cannot be reached."""

    def open(self, wanted: Wanted, ready: Ready) -> Session:
        """DeviceError when it cannot be opened."""


def find(devices: list[Device], kind: str, name: str | None, exact: bool = False) -> Device:
    """By exact name, else (not if `exact`) exact description, else the only one that contains it; None: the default, else the first.

    NotThere if there is none, DeviceError if several fit.
    """
    mine = [d for d in devices if d.kind == kind]
    if name is None:
        mine = [d for d in mine if not d.name.startswith("voicewire")]  # never our own virtual devices, also where they became the default
        found = [d for d in mine if d.default] or [d for d in mine if not d.name.endswith(".monitor")] or mine  # a monitor is what a loudspeaker plays
    else:
        found = [d for d in mine if d.name == name] or [d for d in mine if d.description == name and not exact]
        if not found and not exact:
            found = [d for d in mine if name.lower() in d.name.lower() or name.lower() in d.description.lower()]
            if len(found) > 1:  # Windows lists a device once for each of its interfaces
                usual = {d.api for d in mine if d.default}
                found = [d for d in found if d.api in usual] or found
            if len(found) > 1:
                names = ", ".join(d.name for d in found)
                raise DeviceError(f"'{name}' fits several {kind} devices ({names}); give more of the name")
    if not found:
        there = ", ".join(d.name for d in devices if d.kind == kind) or "none"
        what = f"no {kind} device" if name is None else f"no {kind} device '{name}'"
        raise NotThere(f"{what}; there are: {there} (voicewire devices lists them)")
    return found[0]


def find_pair(devices: list[Device], wanted: Wanted) -> tuple[Device, Device]:
    """→ (input, output). DeviceError if one of them is missing."""
    return find(devices, "input", wanted.name_in, wanted.exact), find(devices, "output", wanted.name_out, wanted.exact)


def pulse_module() -> Any:
    """The module `pulse`. DeviceError where libpulse is missing (its packages load it at import)."""
    try:
        from . import pulse
    except (ImportError, OSError):
        raise DeviceError("no libpulse library, so PulseAudio and PipeWire cannot be used; install it: apt-get install libpulse0") from None
    return pulse


def open_backend(name: str | None = None) -> Backend:
    """The named back end, or the best of this machine: JACK ports on PipeWire, else a PulseAudio server, else PortAudio."""
    if name not in (None, *BACKENDS):
        raise DeviceError(f"unknown back end '{name}'; there are: {', '.join(BACKENDS)}")
    if name in (None, "jack"):
        try:
            from .jack_backend import JackBackend

            return JackBackend()
        except DeviceError:
            if name == "jack":
                raise
    if name in (None, "pulse"):
        try:
            backend: Backend = pulse_module().PulseBackend()
            return backend
        except DeviceError:
            if name == "pulse":
                raise
    if name == "pyaudio":
        from .pyaudio_backend import PyAudioBackend

        return PyAudioBackend()
    from .portaudio import PortAudioBackend

    return PortAudioBackend()
