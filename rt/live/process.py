"""The audio process: devices, rings and model, and nothing else, so that no other Python work can make audio late.

Started by `Live` as `python -m voicewire.rt.live.process`. Lines of JSON: commands on standard input, reports on standard output.
It ends when its standard input ends, so it never outlives its owner, and takes its virtual device along.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from voicewire.engines.engine import EngineError, open_engine, weights_for
from voicewire.engines.places import Place, place
from voicewire.engines.query import Query, ask
from voicewire.engines.voiceprint import Voiceprint, taken_by
from voicewire.rt.lane import check_task
from voicewire.rt.realtime import lock_memory, try_realtime
from voicewire.rt.stream import Stream, check_voice

from . import virtual
from .backend import Calls, DeviceError, NotThere, Session, Wanted, open_backend
from .echo import DELAY_MS, USUAL, Canceller, Loudspeaker
from .pipeline import Controls, Log, Meter, Pipeline
from .record import Recorder

_REPORT_S = 0.1
_RETRY_S = 0.25
_SETTLE_S = 0.3  # a headset that is plugged in may become the default more than once
_LOYAL = 8  # refusals by a server that is there, before another back end is tried


class AudioProcess:
    """settings: the fields of `LiveSettings`, as JSON."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        task = check_task(settings["task"])
        asked = {"query": settings["query"], "extract": settings["enroll"], "separate": settings["talker"]}
        usual = next((t for t, what in asked.items() if what is not None), task)
        engine = open_engine(weights=weights_for(task if task == "convert" else usual))
        voices: dict[str, Voiceprint] = {}
        if settings["enroll"]:
            from voicewire.rt import enroll  # reads sound files, which nothing else here does

            voices["convert" if task == "convert" else "extract"] = enroll.load(Path(settings["enroll"]), taken_by(engine))
        if settings["query"] is not None:
            voices["query"] = ask(settings["query"])
        if task == "separate" or settings["talker"] is not None:
            voices["separate"] = place(settings["talker"] or 1)
        check_voice(task, voices.get(task), engine)
        self.engine, self.controls = engine, Controls(settings["strength_db"], task, voices, settings["query_gain_db"], settings["voice_strength"])
        self.log, self.meter = Log(), Meter()
        self.stream: Stream | None = None
        self._wake = threading.Event()
        self._ended = self._lost = False
        self._session: Session | None = None
        self._pipeline: Pipeline | None = None
        self._recorder: Recorder | None = None
        self._canceller = Canceller(48000) if settings["echo"] else None
        self._loudspeaker = Loudspeaker(settings["echo"], self._far, settings["period_ms"] / 1e3) if settings["echo"] else None
        self._owns_virtual = False
        self._opening = 0  # counts attempts, so that what belongs to an older one knows
        self._session_names: tuple[str, str] | None = None
        self._backend: str | None = None
        self._defaults = self._followed = ("", "")  # the system's input and output, as it says, and when they were last followed
        self._defaults_at = 0.0

    # -- devices ---------------------------------------------------------------------------------------------------------
    def _wanted(self, backend: str) -> Wanted:
        s = self.settings
        name_in, name_out = s["device_in"], s["device_out"]
        if self._session_names:  # part of a name was enough to begin with; now it must be the same device
            name_in, name_out = (n if w not in (None, "virtual") else w for n, w in zip(self._session_names, (name_in, name_out), strict=True))
        if name_out == "virtual":
            name_out = self._microphone(backend)
            if backend in ("portaudio", "pyaudio") and sys.platform.startswith("linux"):
                os.environ["PULSE_SINK"], name_out = name_out, "pulse"  # ALSA's way into the sound server
        if name_in == "virtual":
            name_in = self._speaker()
        return Wanted(name_in, name_out, s["period_ms"] / 1e3, exact=self._session_names is not None)

    def _microphone(self, backend: str) -> str:
        if not sys.platform.startswith("linux"):
            found = virtual.cable()
            if found is None:
                virtual.refuse_elsewhere()
            assert found
            return found[0]
        name, made = virtual.microphone(os.getpid(), backend == "jack")
        self._owns_virtual |= made
        threading.Thread(target=self._watch_listeners, args=(self._opening,), daemon=True).start()
        return name

    def _speaker(self) -> str:
        self._owns_virtual |= bool(virtual.create("speaker", os.getpid()))
        return f"{virtual.SPEAKER}.monitor"

    def _watch_listeners(self, opening: int) -> None:
        with contextlib.suppress(DeviceError):
            virtual.watch_listeners(self._listeners, lambda: self._ended or opening != self._opening)
        if opening == self._opening:
            self.controls.listeners = -1

    def _listeners(self, n: int) -> None:
        self.controls.listeners = n

    def _watch_defaults(self, opening: int) -> None:
        while not self._ended and opening == self._opening:
            with contextlib.suppress(DeviceError):  # a busy server that did not answer once is asked again
                virtual.watch_defaults(self._default, lambda: self._ended or opening != self._opening)
            time.sleep(_RETRY_S)

    def _watch_loudspeaker(self, loudspeaker: Loudspeaker) -> None:  # to open one may take seconds
        while not self._ended:
            if heard := loudspeaker.look(self._defaults[1]):
                self.log.add("moved", cause=f"what '{heard}' plays is taken out now")
            time.sleep(_REPORT_S)
        loudspeaker.close()

    def _default(self, source: str, sink: str) -> None:
        if (source, sink) != self._defaults:
            self._defaults, self._defaults_at = (source, sink), time.monotonic()

    def _elsewhere(self, session: Session) -> str:
        """The device that became the default of an end for which nobody asked for another, and is not in use yet; "" if there is none. Not one of ours, nor
        what a loudspeaker plays."""
        if self._defaults == self._followed or time.monotonic() - self._defaults_at < _SETTLE_S:
            return ""
        ends = zip((self.settings["device_in"], self.settings["device_out"]), (session.name_in, session.name_out), self._defaults, strict=True)
        return next((d for asked, here, d in ends if asked is None and d not in ("", here) and not d.startswith("voicewire") and ".monitor" not in d), "")

    def _ready(self, rate_in: int, channels_in: int, rate_out: int, channels_out: int) -> Calls:
        if self.stream is None or self.stream.rate != rate_in:
            task = self.controls.task
            self.stream = Stream(rate_in, engine=self.engine, task=task, voice=self.controls.voices.get(task))
        if self._recorder and self._recorder.rate != rate_in:  # another microphone: another pair of files
            self._recorder.close()
            self._recorder = None
        if self._canceller and self._canceller.rate != rate_in:
            self._canceller = Canceller(rate_in)
        if self.settings["record"] and self._recorder is None:
            late = self.stream.latency_samples + (round(DELAY_MS * rate_in / 1e3) if self._canceller else 0)
            self._recorder = Recorder(Path(self.settings["record"]), rate_in, late, self._not_recorded)
        s = self.settings
        self._pipeline = Pipeline(
            self.stream, channels_in, rate_out, channels_out, period_s=s["period_ms"] / 1e3, cushion_s=s["cushion_ms"] / 1e3,
            controls=self.controls, log=self.log, meter=self.meter, lost=self._on_lost, recorder=self._recorder,
            canceller=self._canceller,
        )  # fmt: skip
        return self._pipeline

    def _far(self, x: Any) -> None:  # from the thread that listens to the loudspeaker
        if self._canceller:
            self._canceller.far(x)

    def _not_recorded(self, why: str) -> None:  # from the recorder's thread
        self.log.add("not_recorded", cause=why)

    def _on_lost(self) -> None:  # from the back end's thread
        self._lost = True
        self._wake.set()

    def _open(self, last: str | None = None) -> None:
        """last: the back end to stay with; None: the one asked for, or the best there is."""
        self._lost = False
        self._opening += 1
        fixed = self.settings["backend"] or last
        backend = open_backend(fixed)
        try:
            self._session = backend.open(self._wanted(backend.name), self._ready)
        except DeviceError:
            self._close()
            if backend.name != "jack" or fixed:
                raise
            self._forget_virtual()  # nobody asked for JACK: the other way round
            backend = open_backend("pulse")
            try:
                self._session = backend.open(self._wanted(backend.name), self._ready)
            except BaseException:
                self._close()
                raise
        except BaseException:
            self._close()
            raise
        s = self._session
        assert self.stream
        if backend.name == "pulse":
            virtual.from_now(s.name_in, s.name_out)
        if backend.name in ("jack", "pulse") and (None in (self.settings["device_in"], self.settings["device_out"]) or self.settings["echo"] == USUAL):
            threading.Thread(target=self._watch_defaults, args=(self._opening,), daemon=True).start()
        self._session_names, self._backend = (s.name_in, s.name_out), backend.name
        say(
            opened={
                "backend": backend.name, "in": s.name_in, "out": s.name_out, "rate_in": s.rate_in, "channels_in": s.channels_in,
                "rate_out": s.rate_out, "channels_out": s.channels_out, "model_ms": self.stream.latency_ms, "pid": os.getpid(),
                "recording": [str(p) for p in self._recorder.paths] if self._recorder else [],
            }
        )  # fmt: skip

    def _close(self) -> None:
        session, self._session = self._session, None
        if session:
            session.close()
        pipeline, self._pipeline = self._pipeline, None
        if pipeline:
            pipeline.close()

    # -- main ------------------------------------------------------------------------------------------------------------
    def run(self, patient: bool) -> int:
        """patient: wait for devices that are not there, also at the start."""
        threading.Thread(target=self._commands, daemon=True).start()
        try:
            try:
                if self._loudspeaker:
                    if not patient:
                        self._loudspeaker.open()
                    threading.Thread(target=self._watch_loudspeaker, args=(self._loudspeaker,), daemon=True).start()
                self._open()
            except DeviceError:
                if not patient:
                    raise
                self._lost = True
            gc.collect()
            gc.freeze()  # nothing made so far is garbage: never look at it again
            while not self._ended:
                self._wake.wait(_REPORT_S)
                self._wake.clear()
                if self._lost:
                    self._followed = ("", "")
                    self._reopen("lost", "a device or the sound server went away")
                elif self._session and (now := self._elsewhere(self._session)):
                    self._followed = self._defaults
                    self._reopen("moved", f"the system's choice is now '{now}'")
                elif self._session:
                    self._report(self._session)
        finally:
            self._close()
            self._forget_virtual()  # first: a disk that stands still must not leave devices behind
            if self._recorder:
                self._recorder.close()
            for e in self.log.fresh():
                say(event=e.__dict__)
        return 0

    def _forget_virtual(self) -> None:
        if self._owns_virtual:
            self._owns_virtual = False
            with contextlib.suppress(DeviceError):
                virtual.remove(os.getpid())

    def _reopen(self, kind: str, cause: str) -> None:
        self.log.add(kind, cause=cause)
        self._close()
        refused = 0
        while not self._ended:
            for e in self.log.fresh():
                say(event=e.__dict__)
            try:
                # a server that has just started lists devices before it connects them: no reason to take a slower way for good
                self._open(self._backend if refused < _LOYAL else None)
                self.log.add("opened")
                return
            except DeviceError as e:
                refused += not isinstance(e, NotThere)
                say(waiting=str(e))
                time.sleep(_RETRY_S)

    def _report(self, session: Session) -> None:
        pipeline = self._pipeline
        if not pipeline or not self.stream:
            return
        for e in self.log.fresh():
            say(event=e.__dict__)
        device_in, device_out = session.latency_s()
        edge, query, talker = pipeline.edge, self.controls.voices.get("query"), self.controls.voices.get("separate")
        delay = {
            "device_in": 1e3 * device_in, "model": self.stream.latency_ms, "ring": edge.delay_ms, "device_out": 1e3 * device_out,
        }  # fmt: skip
        if self._loudspeaker:
            delay["echo"] = DELAY_MS
        say(
            status=self.meter.take() | {
                "delay_ms": {k: round(v, 1) for k, v in delay.items()}, "drift_ppm": round(1e6 * edge.control.deviation, 1),
                "cushion_ms": round(1e3 * edge.cushion_s, 1), "suspended": pipeline.suspended, "speaking": pipeline.speaking,
                "listeners": self.controls.listeners, "counts": dict(self.log.counts), "frames": self.stream.frames, "bypass": self.controls.bypass,
                "mute": self.controls.mute, "strength_db": self.controls.strength_db, "task": self.controls.task, "query_gain_db": self.controls.query_gain_db,
                "voice_strength": self.controls.voice_strength,
                "echo": self._loudspeaker.hears if self._loudspeaker else None,
                "query": query.text if isinstance(query, Query) else None, "talker": talker.number if isinstance(talker, Place) else None,
            }
        )  # fmt: skip

    def _commands(self) -> None:
        for line in sys.stdin:
            command = json.loads(line)
            given = command.get("set", {})
            if "query" in given:  # before the task that may need it
                self._ask(given.pop("query"))
            if "talker" in given and "separate" in self.controls.voices:
                self.controls.voices = self.controls.voices | {"separate": place(given.pop("talker"))}
            for name, value in given.items():
                # (after a refused query there may be none; the converter's weights do nothing else)
                if name != "task" or value in self.controls.voices or (value == "restore" and "convert" not in self.controls.voices):
                    setattr(self.controls, name, value)
        self._ended = True
        self._wake.set()

    def _ask(self, text: str) -> None:
        """Other words, made ready here, beside the audio."""
        try:
            asked = ask(text)
            if asked.weights != self.engine.weights:
                raise ValueError("the weights in use only restore; start with --query, and other words can be given while it runs")
            self.controls.voices = self.controls.voices | {"query": asked}
        except (ValueError, EngineError) as e:
            self.log.add("query_refused", cause=str(e))


_out = threading.Lock()


def say(**message: Any) -> None:
    """One line to the owner; a closed pipe means the owner is gone, which the end of standard input tells as well."""
    with _out, contextlib.suppress(BrokenPipeError, ValueError):
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the owner decides
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    sys.setswitchinterval(5e-4)
    # Every thread, the reporting one too: an ordinary thread that is put aside while it holds the interpreter's lock would hold up the real-time ones.
    try_realtime()
    lock_memory()
    start = json.loads(sys.stdin.readline())
    try:
        return AudioProcess(start["settings"]).run(start["patient"])
    except (DeviceError, EngineError, ValueError, OSError) as e:
        say(fatal=str(e))
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
