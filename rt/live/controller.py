"""`Live`: microphone (or virtual speaker) in, virtual microphone (or loudspeaker) out, for hours.

with Live(LiveSettings(device_out="virtual")) as live:
    live.set(strength_db=18.0)
    for status in live.statuses():
        print(status["delay_ms"], status["counts"])
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from voicewire.engines.sentence import check
from voicewire.rt.lane import check_query_gain, check_strength, check_task, check_voice_strength

from .backend import BACKENDS, DeviceError

_HUNG_S = 3.0  # the audio process reports ten times a second


def check_talker(talker: int | None) -> None:
    """ValueError with one line."""
    if talker not in (None, 1, 2):
        raise ValueError(f"talker must be 1 or 2, not {talker}")


@dataclass(frozen=True)
class LiveSettings:
    """device_in, device_out: names, None for the system's choice; "virtual": the virtual speaker / microphone. strength_db: see `Stream`, but None: 20.

    task: "restore"; "extract" with enroll: a voiceprint file or a recording of the talker; "query" with query: the sound to keep, in words, and with
    query_gain_db: see `Stream`; "separate" with talker: which of two to keep, 1 or 2 (1); "convert" with enroll: the talker to speak as, and with
    voice_strength: see `Stream`.
    period_ms: block length asked of the devices. cushion_ms: audio kept waiting against late steps; grows by itself where that is too little.
    echo: an output by name, or "default": what it plays is taken out of the microphone first (extra `[echo]`; PulseAudio and PipeWire).
    record: folder for before and after. backend: jack, pulse, portaudio or pyaudio (None: the best there is).
    """

    device_in: str | None = None
    device_out: str | None = None
    task: str = "restore"
    enroll: str | None = None
    talker: int | None = None
    query: str | None = None
    query_gain_db: float | None = None
    strength_db: float | None = None
    voice_strength: float = 1.0
    period_ms: float = 10.0
    cushion_ms: float = 10.0
    echo: str | None = None
    record: str | None = None
    backend: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.period_ms <= 100:
            raise ValueError(f"period_ms must be 1 to 100, not {self.period_ms}")
        if not 1 <= self.cushion_ms <= 200:
            raise ValueError(f"cushion_ms must be 1 to 200, not {self.cushion_ms}")
        if self.strength_db is not None and not self.strength_db >= 0:
            raise ValueError(f"strength_db must be 0 (change nothing) or more, not {self.strength_db}")
        check_talker(self.talker)
        check_task(self.task)
        if self.backend is not None and self.backend not in BACKENDS:
            raise ValueError(f"backend '{self.backend}' is unknown; there are: {', '.join(BACKENDS)}")
        check_query_gain(self.query_gain_db)
        check_voice_strength(self.voice_strength)
        if self.query is not None:
            check(self.query)


class Live:
    """Runs the audio process and looks after it: one that hangs or dies is replaced (the model then starts afresh).

    DeviceError from the constructor when the devices cannot be opened at the start; afterwards lost devices are waited for.
    """

    def __init__(self, settings: LiveSettings) -> None:
        self.settings = settings
        self.opened: dict[str, Any] = {}
        self.status: dict[str, Any] = {}  # the newest, and what is waited for, "" for nothing
        self.waiting = ""
        self.restarts = self.refusals = 0  # refusals: of queries, by the audio process; refused: why the last one
        self.refused = ""
        self._reports: queue.Queue[dict[str, Any]] = queue.Queue(1000)
        self._lock = threading.Lock()  # whoever changes something: the owner, its keys, other programs (`remote`)
        self._set: dict[str, Any] = {}
        self._query = settings.query
        self._separates = settings.task == "separate" or settings.talker is not None
        self._ended = False
        self._retired: subprocess.Popen[str] | None = None
        self._heard_at = time.monotonic()
        self._start(patient=False)
        first = self._first()
        if "fatal" in first:
            self.close()
            raise DeviceError(first["fatal"])
        self.opened = first["opened"]

    def _start(self, *, patient: bool) -> None:
        with self._lock:  # the settings first
            # -P and -c, not -m: no module is imported twice, and nothing in the working directory is
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; from voicewire.rt.live.process import main; raise SystemExit(main())"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            )  # fmt: skip
            self._send({"settings": asdict(self.settings), "patient": patient})
            if self._set:
                self._send({"set": self._set})
        threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        for line in process.stdout:
            self._heard_at = time.monotonic()
            with contextlib.suppress(ValueError):
                report = json.loads(line)
                self._hear(report)
                self._put(report)
        if process is not self._retired and not self._ended:
            self._put({"died": process.wait()})

    def _hear(self, report: dict[str, Any]) -> None:
        if "status" in report:
            self.status, self.waiting = report["status"], ""
        elif "waiting" in report:
            self.waiting = report["waiting"]
        elif report.get("event", {}).get("kind") == "query_refused":
            with self._lock:  # back to the words before, if there were any
                self._query = self._set["query"] = self.status["query"] if self.status else self.settings.query
                if self._query is None and self._set.get("task") == "query":
                    del self._set["task"]
                if self._query is None:
                    del self._set["query"]
                self.refused, self.refusals = report["event"]["cause"], self.refusals + 1

    def tell(self, kind: str, cause: str) -> None:
        """An event of the owner's, among the reports of the audio process."""
        self._put({"event": {"at_s": time.time(), "kind": kind, "ms": 0.0, "cause": cause}})

    def _put(self, report: dict[str, Any]) -> None:
        while True:
            try:
                return self._reports.put_nowait(report)
            except queue.Full:  # nobody reads: keep the newest
                with contextlib.suppress(queue.Empty):
                    self._reports.get_nowait()

    def _first(self) -> dict[str, Any]:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            with contextlib.suppress(queue.Empty):
                report = self._reports.get(timeout=0.5)
                if "fatal" in report or "opened" in report:
                    return report
                if "died" in report:
                    return {"fatal": f"the audio process ended with code {report['died']}; see: voicewire doctor"}
        return {"fatal": "the audio process does not answer; see: voicewire doctor"}

    def reports(self, timeout_s: float | None = None) -> Iterator[dict[str, Any]]:
        """What the audio process says, as it says it: {"status": …}, {"event": …}, {"waiting": …}, {"opened": …}; ends after timeout_s or `close`."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._ended and (end is None or time.monotonic() < end):
            try:
                report = self._reports.get(timeout=0.2)
            except queue.Empty:
                if time.monotonic() - self._heard_at > _HUNG_S:
                    self._replace(f"did not answer for {_HUNG_S:.0f} s")
                continue
            if "opened" in report:
                self.opened = report["opened"]
            if "died" in report or "fatal" in report:
                self._replace(f"ended ({report.get('fatal', report.get('died'))})")
                report = {"event": {"at_s": time.time(), "kind": "restarted", "ms": 0.0, "cause": "the audio process was replaced"}}
            yield report

    def statuses(self, timeout_s: float | None = None) -> Iterator[dict[str, Any]]:
        for report in self.reports(timeout_s):
            if "status" in report:
                yield report["status"]

    def _replace(self, why: str) -> None:
        if self._ended:
            return
        self.restarts += 1
        if self.restarts > 20:
            raise DeviceError(f"the audio process {why}, twenty times; see: voicewire doctor")
        self._retired = self._process  # that it ends is no news
        self._process.kill()
        self._process.wait()
        time.sleep(0.2)
        self._heard_at = time.monotonic() + 5
        self._start(patient=True)

    def set(
        self, *, bypass: bool | None = None, mute: bool | None = None, query: str | None = None, talker: int | None = None, task: str | None = None,
        **levels: float | None,
    ) -> None:  # fmt: skip
        """Change while running: bypass, mute, query (other words; where there were none, a query), talker (of those that `separate` tells apart), task,
        strength_db (None: what is usual for the task), query_gain_db (None: keep the queried sound alone) and voice_strength (of `convert`)."""
        if set(levels) - {"strength_db", "query_gain_db", "voice_strength"}:
            raise ValueError(f"there is no {', '.join(levels)}; there are: bypass, mute, query, talker, task, strength_db, query_gain_db, voice_strength")
        if (voice_strength := levels.get("voice_strength")) is not None:
            check_voice_strength(voice_strength)
        check_query_gain(levels.get("query_gain_db"))
        check_strength(levels.get("strength_db"))
        check_talker(talker)
        if query is not None:
            check(query)
        tasks = self._tasks(query or self._query)
        if task is not None and task not in tasks:
            raise ValueError(f"the task '{task}' cannot be chosen here; there are: {', '.join(tasks)}")
        given = (("bypass", bypass), ("mute", mute), ("query", query), ("talker", talker), ("task", task))
        with self._lock:
            self._query = query or self._query
            self._change({k: v for k, v in given if v is not None} | levels)

    def toggle(self, name: str) -> None:
        """Turn "bypass" or "mute" over."""
        if name not in ("bypass", "mute"):
            raise ValueError(f"'{name}' is nothing to toggle; there are: bypass, mute")
        with self._lock:
            self._change({name: not self._set.get(name, False)})

    def _change(self, change: dict[str, Any]) -> None:
        self._set |= change
        self._send({"set": change})

    @property
    def chosen(self) -> dict[str, Any]:
        """What holds now, by the names of `set`: what it was begun with, and what was set since."""
        s = self.settings
        began = {name: getattr(s, name) for name in ("task", "strength_db", "query", "query_gain_db", "voice_strength")}
        with self._lock:
            return {"bypass": False, "mute": False, "talker": s.talker or (1 if self._separates else None)} | began | self._set

    @property
    def tasks(self) -> tuple[str, ...]:
        """What `set` can choose. Where it was begun with convert, that alone; else extract where a talker is enrolled, separate where it was begun with,
        query where words were given."""
        return self._tasks(self._query)

    def _tasks(self, query: str | None) -> tuple[str, ...]:
        if self.settings.task == "convert":
            return ("convert",)
        known = {"extract": self.settings.enroll, "separate": self._separates, "query": query}
        return ("restore", *(task for task, there in known.items() if there))

    def close(self) -> None:
        """Stop; the virtual device goes with it. Idempotent."""
        self._ended = True
        with contextlib.suppress(BrokenPipeError, ValueError, AttributeError):
            self._process.stdin.close()  # type: ignore[union-attr]
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
