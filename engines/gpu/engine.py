"""`GpuEngine`: the model on a device behind the `Engine` protocol, with host state for `Stream` and resident slots for the relay.

A state that `advance` returns is the mirror of rows on the device: arrays that every step brings up to date, so that a snapshot, or going on
on the CPU after the device is lost, needs nothing from the device. A state that came from elsewhere is copied to free rows first.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine import F32, Engine, EngineError, State, copy_state
from ..pcm_slots import HostPcmSlots, PcmSlots
from ..slots import HostSlots, Slots
from .device import DeviceLost
from .ends import PCM, SPECTRA, Ends
from .pcm_slots import DevicePcmSlots
from .resident import MIRRORED
from .slots import DeviceSlots
from .stepper import Stepper

STREAMS = 64  # rows that streams with host state share; who finds none is stepped on the CPU


class Held(dict[str, NDArray[Any]]):
    """A state that is on the device too, from row `first`."""

    first: int


class GpuEngine:
    """make(slots, mirror, ends): a stepper for so many. Thread-safe: streams of several threads take turns.

    name, how: what steps now; `why`: what was tried before, and what went wrong since, a line each; host_stft: why the STFT of `pcm_slots` stays
    on the host, if it does.
    """

    def __init__(self, name: str, cpu: Engine, make: Callable[[int, bool, Ends], Stepper]) -> None:
        self._name, self._cpu, self._make = name, cpu, make
        self.host_stft = ""
        self.weights = cpu.weights
        self.why: list[str] = []
        self.lost = ""
        self._lock = threading.Lock()
        self._streams = self._on_device(STREAMS)
        self._streams.prepare(1)
        self._taken = np.zeros(STREAMS, np.bool_)

    @property
    def name(self) -> str:
        return "onnx" if self.lost else self._name

    @property
    def how(self) -> str:
        if self.lost:
            return f"onnxruntime, CPU ({self._name} was lost)"
        return self._streams.how + (", STFT on the host" if self.host_stft else "")

    def _fell(self, why: str) -> None:
        if not self.lost:
            self.lost = why
            self.why.append(f"{self._name}: lost ({why}); the CPU steps now")

    def slots(self, capacity: int) -> Slots:
        """Resident slots; on the CPU once the device is lost."""
        return HostSlots(self._cpu, capacity) if self.lost else self._on_device(capacity)

    def pcm_slots(self, capacity: int) -> PcmSlots:
        """Resident slots with samples at both ends, STFT and all on the device."""
        if self.lost or self.host_stft:
            return HostPcmSlots(self.slots(capacity), capacity)
        return DevicePcmSlots(self._stepper(capacity, PCM), self._cpu, capacity, self._fell)

    def _on_device(self, capacity: int) -> DeviceSlots:
        return DeviceSlots(self._stepper(capacity, SPECTRA), self._cpu, capacity, self._fell)

    def _stepper(self, capacity: int, ends: Ends) -> Stepper:
        try:
            return self._make(capacity, capacity <= MIRRORED, ends)
        except DeviceLost as e:
            raise EngineError(f"{self._name} cannot hold {capacity} streams: {e}") from None

    def close(self) -> None:
        """Give the device's memory back, and its graphs: one that ends in its own time may spoil the capture of another. Nothing may be stepped any more."""
        self._streams.close()

    def init_state(self, batch: int, task: str = "restore") -> State:
        return self._cpu.init_state(batch, task)

    def step(self, x: F32, state: State) -> tuple[F32, State]:
        y, new = self.advance(x, copy_state(state))
        return y, copy_state(new)

    def advance(self, x: F32, state: State) -> tuple[F32, State]:
        with self._lock:
            held = state if isinstance(state, Held) else self._hold(state)
            if held is None:
                return self._cpu.advance(x, state)
            return self._streams.step(np.arange(held.first, held.first + len(x)), x).copy(), held  # the next step may be another thread's

    def _hold(self, state: State) -> Held | None:
        """The state on free rows that lie together, or None."""
        n = len(next(iter(state.values())))
        if n > STREAMS:
            return None
        free = np.convolve(~self._taken, np.ones(n, np.int64), "valid") == n
        if not free.any():
            return None
        first = int(np.argmax(free))
        for i in range(n):
            self._streams.attach(first + i, state={k: v[i : i + 1] for k, v in state.items()})
        assert self._streams.host is not None
        held = Held({k: v[first : first + n] for k, v in self._streams.host.rows.items()})
        held.first = first
        self._taken[first : first + n] = True
        weakref.finalize(held, self._release, first, n)
        return held

    def _release(self, first: int, n: int) -> None:
        self._taken[first : first + n] = False
