"""Capture ring → model → output edge: what one open pair of devices runs, and the counters of everything that can go wrong."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from voicewire.engines.voiceprint import Voiceprint
from voicewire.rt.lane import LIVE_STRENGTH_DB, to_float
from voicewire.rt.realtime import try_realtime
from voicewire.rt.stream import Stream

from .echo import Canceller
from .edge import OutputEdge
from .record import Recorder
from .ring import Ring

F32 = NDArray[np.float32]

_SILENCE = 1e-4  # -80 dBFS: no microphone that is on is that quiet
_SUSPEND_S = 1.0
_FADE_S = 0.01  # into and out of mute
SPEECH = ("speech", "speech_ended")  # events that are no trouble
_SAME_S = 10.0  # a fault that comes again and again is said so often
_WARM_S = 2.0  # while devices start they report all kinds of things


@dataclass(frozen=True)
class Event:
    """kind: device_overflow, device_underflow, starved, dropped, late_step, lost, moved, opened, query_refused, not_recorded, fault; speech, speech_ended.
    at_s: Unix time. ms: of audio."""

    at_s: float
    kind: str
    ms: float = 0.0
    cause: str = ""


class Log:
    """Counts by kind, and the newest events; bounded."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.newest: deque[Event] = deque(maxlen=200)
        self._lock = threading.Lock()
        self._fresh: deque[Event] = deque(maxlen=200)

    def add(self, kind: str, ms: float = 0.0, cause: str = "") -> None:
        e = Event(time.time(), kind, round(ms, 2), cause)
        with self._lock:
            if kind not in SPEECH:
                self.counts[kind] += 1
            again = kind == "fault" and any(b.kind == kind and b.cause == cause and e.at_s - b.at_s < _SAME_S for b in reversed(self.newest))
            if not again:  # every block, perhaps: counted, but said now and then
                self.newest.append(e)
                self._fresh.append(e)

    def fresh(self) -> list[Event]:
        """Events since the last call."""
        with self._lock:
            events = list(self._fresh)
            self._fresh.clear()
        return events


class Controls:
    """What the person in front of it can change while it runs; read once a block."""

    def __init__(
        self, strength_db: float | None, task: str = "restore", voices: dict[str, Voiceprint] | None = None, query_gain_db: float | None = None,
        voice_strength: float = 1.0,
    ) -> None:  # fmt: skip
        self.strength_db, self.query_gain_db, self.bypass, self.mute, self.task = strength_db, query_gain_db, False, False, task
        self.voice_strength = voice_strength
        self.voices = voices or {}  # by task: of the talker to extract or to speak as, of the sound to keep
        self.listeners = -1  # programs that record from the virtual microphone; -1: unknown, so assume there are some


class Meter:
    """Levels and step times since the last `take`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        self._energy = np.zeros(2)
        self._peak = np.zeros(2)
        self._samples = 0
        self._steps: list[float] = []

    def add(self, x: F32, y: F32, step_s: float | None) -> None:
        with self._lock:
            self._energy += [float(np.dot(x, x)), float(np.dot(y, y))]
            self._peak = np.maximum(self._peak, [float(np.abs(x).max(initial=0)), float(np.abs(y).max(initial=0))])
            self._samples += len(x)
            if step_s is not None and len(self._steps) < 10_000:
                self._steps.append(step_s)

    def take(self) -> dict[str, float]:
        with self._lock:
            n, energy, peak, steps = max(1, self._samples), self._energy, self._peak, self._steps
            self._reset()
        db = 10 * np.log10(energy / n + 1e-12)
        return {
            "in_db": round(float(db[0]), 1), "out_db": round(float(db[1]), 1),
            "in_peak": round(float(peak[0]), 4), "out_peak": round(float(peak[1]), 4),
            "step_ms": round(1e3 * float(np.mean(steps)), 2) if steps else 0.0,
            "step_max_ms": round(1e3 * float(np.max(steps)), 2) if steps else 0.0,
        }  # fmt: skip


class Pipeline:
    """One pair of devices, running. Callbacks touch rings and counters only; the model runs in the worker thread.

    `stream` (at the capture rate, one channel) and its state outlive the pipeline.
    """

    def __init__(
        self, stream: Stream, channels_in: int, rate_out: int, channels_out: int, *,
        period_s: float, cushion_s: float, controls: Controls, log: Log, meter: Meter, lost: Callable[[], None], recorder: Recorder | None,
        canceller: Canceller | None = None,
    ) -> None:  # fmt: skip
        self.stream, self.controls, self.log, self.meter = stream, controls, log, meter
        self._lost, self._recorder, self._canceller = lost, recorder, canceller
        self._block = max(1, round(period_s * stream.rate))
        self._ring = Ring(stream.rate, 1)
        self.edge = OutputEdge(stream.rate, rate_out, channels_out, period_s=period_s, cushion_s=cushion_s, event=self._edge_event)
        self._some = threading.Event()
        self._ended = False
        self._captured_at = time.monotonic()
        self._capture_gap_s = self._step_s = 0.0
        self._quiet = 0
        self._gain = 1.0
        self.suspended = self.speaking = False
        self._processed = self._began = 0  # samples, in all and when speech began
        self._worker = threading.Thread(target=self._work, name="model", daemon=True)
        self._worker.start()

    # -- from the devices' threads -------------------------------------------------------------------------------------
    def capture(self, x: F32, now_s: float) -> None:
        self._capture_gap_s = max(0.9 * self._capture_gap_s, now_s - self._captured_at)
        self._captured_at = now_s
        x = to_float(x)[0]  # before the channels meet: what is wrong with one is not the other's
        mono = x if x.shape[1] == 1 else x.mean(1, keepdims=True)
        if lost := len(x) - self._ring.write(mono):
            self.log.add("dropped", 1e3 * lost / self.stream.rate, "the model was stopped for a second")
        self.edge.captured(len(x), now_s, lost)
        self._some.set()

    def play(self, n: int) -> F32:
        return self.edge.pull(n)

    def event(self, kind: str) -> None:
        if kind == "lost":
            self._lost()
        elif self._warm:
            self.log.add(f"device_{kind}", cause="the sound server or its device was late" if kind == "underflow" else "this machine is overloaded")

    @property
    def _warm(self) -> bool:
        return self._processed >= _WARM_S * self.stream.rate

    def _edge_event(self, kind: str, ms: float) -> None:
        if not self._warm or time.monotonic() - self._captured_at > 0.2:
            return  # devices are starting, or the microphone has stopped; that is reported as lost or lies in the device
        if self._step_s > self.edge.cushion_s:
            cause = f"a step of the model took {1e3 * self._step_s:.0f} ms"
        elif self._capture_gap_s > 2.5 * self._block / self.stream.rate:
            cause = f"the microphone paused for {1e3 * self._capture_gap_s:.0f} ms"
        else:
            cause = "the processor was busy elsewhere"
        self.log.add(kind, ms, cause)

    # -- worker ----------------------------------------------------------------------------------------------------------
    def _work(self) -> None:
        try_realtime()
        while not self._ended:
            if not self._some.wait(0.25):
                self.edge.input_lost()
                continue
            self._some.clear()
            while not self._ended and (x := self._ring.read(self._block)).size:
                came = x[:, 0]
                try:
                    came, near = (came, came) if self._canceller is None else self._canceller.near(came)
                    if not near.size:
                        continue
                    y = self._model(near)
                except Exception as e:  # a fault of ours must not be a dead microphone
                    self.log.add("fault", cause=f"{type(e).__name__}: {e}")
                    self.stream.reset()
                    y = np.zeros(len(came), np.float32)
                self.edge.push(y)
                if self._recorder:
                    self._recorder.add(came, y)

    def _model(self, x: F32) -> F32:
        c = self.controls
        loud = bool(np.abs(x).max() > _SILENCE)
        self._quiet = 0 if loud else self._quiet + len(x)
        self._processed += len(x)
        slept, self.suspended = self.suspended, c.listeners == 0 or self._quiet > _SUSPEND_S * self.stream.rate
        if self.suspended:
            y = np.zeros(len(x), np.float32)
            self._gain = 0.0 if c.mute else 1.0  # nobody hears it change
            self.meter.add(x, y, None)
            self._hear(False)
            return y
        if slept:
            self.stream.hush()  # the last words before the pause are not the first after it
        task = c.task  # once: another thread may change it
        voice = c.voices.get(task)
        if task != self.stream.task or voice is not self.stream.voice:
            self.stream.ask(task, voice)
        self.stream.bypass = c.bypass
        self.stream.strength_db = LIVE_STRENGTH_DB.get(task) if c.strength_db is None else c.strength_db
        self.stream.query_gain_db = c.query_gain_db
        if self.stream.voice_strength != c.voice_strength:
            self.stream.voice_strength = c.voice_strength
        frames, began = self.stream.frames, time.perf_counter()
        y = np.asarray(self.stream.process(x), np.float32)
        self._hear(self.stream.speaking)
        stepped = self.stream.frames > frames
        step_s = time.perf_counter() - began
        if stepped:
            self._step_s = step_s
            if step_s > 0.5 * self.stream.frame_samples / self.stream.rate and self._warm:
                self.log.add("late_step", 1e3 * step_s)
        gain = 0.0 if c.mute else 1.0
        if gain != self._gain or gain == 0.0:
            step = (1.0 if gain > self._gain else -1.0) / (_FADE_S * self.stream.rate)
            ramp = np.clip(self._gain + step * np.arange(1, len(y) + 1, dtype=np.float32), 0.0, 1.0)
            y, self._gain = y * ramp, float(ramp[-1])
        self.meter.add(x, y, step_s if stepped else None)
        return y

    def _hear(self, speaking: bool) -> None:
        if speaking != self.speaking:
            self.speaking = speaking
            self.log.add(SPEECH[not speaking], 0.0 if speaking else 1e3 * (self._processed - self._began) / self.stream.rate)
            self._began = self._processed

    def close(self) -> None:
        self._ended = True
        self._some.set()
        self._worker.join(2)
        self._hear(False)
