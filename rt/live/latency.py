"""True delay from microphone to virtual microphone: noise goes in, the same noise comes out, the two recordings are cross-correlated.

A bare copy through the same server (no model, no ring) is measured in the same run, so what is ours can be told from what is the server's.
Strength 0 makes the model run and pass the signal on unchanged, so the noise can be recognised.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import virtual
from .backend import DeviceError, Wanted, open_backend, pulse_module
from .controller import Live, LiveSettings
from .ring import Ring

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

RATE = 48000
_PROBE_S = 0.005
_WINDOW, _EVERY, _MOST = int(0.04 * RATE), int(0.02 * RATE), int(0.4 * RATE)
_TEST_SINK = "voicewire_test"


@dataclass(frozen=True)
class Delay:
    """Milliseconds over `n` measurements; `unheard`: windows in which the noise did not come out (a gap)."""

    p50: float
    p99: float
    p999: float
    worst: float
    n: int
    unheard: int


class _Tape:
    """Records mono blocks and when they came; plays silence."""

    def __init__(self) -> None:
        self._blocks: list[F32] = []
        self._ends: list[tuple[int, float]] = []
        self._samples = 0

    def capture(self, x: F32, now_s: float) -> None:
        self._blocks.append(x[:, 0].copy())
        self._samples += len(x)
        self._ends.append((self._samples, now_s))

    def play(self, n: int) -> F32:
        return np.zeros((n, 1), np.float32)

    def event(self, kind: str) -> None:
        pass

    def audio(self) -> tuple[F32, F64]:
        """→ samples [n], and for every tenth of a second the clock time of sample 0, by the least delayed block of a second around."""
        if not self._blocks:
            raise DeviceError("nothing was recorded; see: voicewire doctor")
        ends = np.array(self._ends)
        zero, at = ends[:, 1] - ends[:, 0] / RATE, ends[:, 0]
        centres = np.arange(0, self._samples, RATE // 10)
        return np.concatenate(self._blocks), np.array([zero[np.abs(at - c) <= RATE // 2].min(initial=np.inf) for c in centres])


class _Noise(_Tape):
    """Plays white noise at -26 dBFS."""

    def __init__(self) -> None:
        super().__init__()
        self._rng = np.random.default_rng(0)

    def play(self, n: int) -> F32:
        return (0.05 * self._rng.standard_normal((n, 1))).astype(np.float32)


class _Copy(_Tape):
    """A bare pass-through: what is captured is played, nothing in between but what the two callbacks need."""

    def __init__(self) -> None:
        super().__init__()
        self._ring = Ring(RATE, 1)
        self._started = False

    def capture(self, x: F32, now_s: float) -> None:
        self._ring.write(x.mean(1, keepdims=True))

    def play(self, n: int) -> F32:
        if not self._started and self._ring.fill >= n:  # begin with one block, not with what gathered while devices started
            self._ring.read(self._ring.fill - n)
            self._started = True
        y = self._ring.read(n)
        if len(y) < n:  # keep a copy honest: wait for a whole block again
            y = np.concatenate([y, np.zeros((n - len(y), 1), np.float32)])
        return y


def compare(a: tuple[F32, F64], b: tuple[F32, F64]) -> Delay:
    """a, b: (samples, time of sample 0 by tenths of a second) of what went in and what came out."""
    (x, x_s), (y, y_s) = a, b
    found, unheard = [], 0
    size = 1 << int(np.ceil(np.log2(_WINDOW + _MOST)))
    for at in range(RATE, len(x) - _WINDOW - _MOST - RATE // 2, _EVERY):
        heard_s = x_s[at // (RATE // 10)]
        # where in y the same moment lies; y's zero is looked up there
        start = int(at - (y_s[len(y_s) // 2] - heard_s) * RATE)
        if start < 0 or start + _WINDOW + _MOST > len(y):
            continue
        shift = (y_s[start // (RATE // 10)] - heard_s) * RATE
        w, v = x[at : at + _WINDOW], y[start : start + _WINDOW + _MOST]
        r = np.fft.irfft(np.fft.rfft(v, size) * np.conj(np.fft.rfft(w, size)), size)[:_MOST]
        lag = int(r.argmax())
        part = v[lag : lag + _WINDOW]
        if r[lag] < 0.5 * np.sqrt(float(w @ w) * float(part @ part) + 1e-12):
            unheard += 1
            continue
        found.append(1e3 * (lag + start + shift - at) / RATE)
    if not found:
        raise DeviceError("the noise played into the microphone was not heard at the virtual microphone; see: voicewire doctor")
    p50, p99, p999, worst = (round(float(v), 2) for v in np.percentile(found, [50, 99, 99.9, 100]))
    return Delay(p50, p99, p999, worst, len(found), unheard)


def _listen(backend: Any, source_in: str, seconds: float, progress: Callable[[float], None]) -> Delay:
    tapes = _Tape(), _Tape()
    with contextlib.ExitStack() as stack:
        for tape, name in zip(tapes, (source_in, virtual.MICROPHONE), strict=True):
            stack.callback(backend.listen(name, _PROBE_S, tape).close)
        began = time.monotonic()
        while (spent := time.monotonic() - began) < seconds + 2:
            time.sleep(0.1)
            progress(min(1.0, spent / (seconds + 2)))
    return compare(tapes[0].audio(), tapes[1].audio())


def measure(seconds: float, settings: LiveSettings, progress: Callable[[str, float], None] = lambda *_: None) -> dict[str, Any]:
    """`seconds` of the bare copy and as much of `live`, → {"copy": Delay, "live": Delay, "budget_ms": …, "counts": …}.

    settings: only period, cushion, task and back end count. DeviceError without a sound server.
    """
    probe, backend, owner = pulse_module().PulseBackend(), open_backend(settings.backend), os.getpid()
    name, kind = (virtual.MICROPHONE, "source") if backend.name == "jack" else (virtual.FEED, "microphone")
    source = f"{_TEST_SINK}.monitor"
    with contextlib.ExitStack() as stack:
        stack.callback(virtual.discard, virtual.test_sink(_TEST_SINK, owner))
        stack.callback(probe.emit(_TEST_SINK, 0.02, _Noise()).close)
        with contextlib.ExitStack() as bare:
            bare.callback(virtual.discard, virtual.create(kind, owner))
            bare.callback(backend.open(Wanted(source, name, settings.period_ms / 1e3), lambda *_: _Copy()).close)
            copy = _listen(probe, source, seconds, lambda share: progress("bare copy", share))
        live_settings = replace(settings, device_in=source, device_out="virtual", strength_db=0.0, backend=backend.name)
        with Live(live_settings) as live:
            last: dict[str, Any] = {}
            done = threading.Event()

            def follow() -> None:
                for status in live.statuses():
                    last.update(status)
                    if done.is_set():
                        return

            threading.Thread(target=follow, daemon=True).start()
            result = _listen(probe, source, seconds, lambda share: progress("live", share))
            done.set()
    return {"backend": backend.name, "copy": asdict(copy), "live": asdict(result), "budget_ms": last.get("delay_ms", {}), "counts": last.get("counts", {})}
