"""The person in front of it: one picture in the terminal, ten times a second, and single keys."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import deque
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live as Picture
from rich.table import Table
from rich.text import Text

from voicewire.rt.lane import LIVE_STRENGTH_DB
from voicewire.rt.pipe import READER_GONE

from .controller import Live, LiveSettings
from .keys import Keys
from .remote import Remote

_HELP = "b bypass   m mute   + − strength   0 usual strength   t task   / query   q quit"
_STEP_DB = 3.0
_STEP_SHARE = 0.1  # of the way to another voice
_MOST_DB = 100.0  # nobody hears the rest


def _bar(db: float, width: int = 30) -> Text:
    filled = int(max(0.0, min(1.0, (db + 66) / 66)) * width)
    hot = max(0, filled - int(60 / 66 * width))
    return Text("█" * (filled - hot), "green") + Text("█" * hot, "red") + Text("·" * (width - filled), "dim") + Text(f" {max(db, -99):6.1f} dB")


class Screen:
    """What is shown; fed with reports."""

    def __init__(self, live: Live) -> None:
        self.live = live
        self.status: dict[str, Any] = {}
        self.events: deque[str] = deque(maxlen=5)
        self.waiting = self.note = ""
        self.typed: str | None = None  # the query that is being typed
        self._taken = 0.0
        self._set = False  # the newest event is a change from outside

    def take(self, report: dict[str, Any]) -> None:
        if "status" in report:
            self.status, self.waiting = report["status"], ""
            s = self.status
            if s["in_db"] > -60 and not s["bypass"] and not s["suspended"]:
                self._taken += 0.1 * (s["in_db"] - s["out_db"] - self._taken)
        elif "waiting" in report:
            self.waiting = report["waiting"]
        elif "event" in report and not report["event"]["kind"].startswith("speech"):
            if self._set and report["event"]["kind"] == "set":
                self.events.pop()  # a key held and let go again and again must not push out what matters
            self._set = report["event"]["kind"] == "set"
            self.events.append(describe(report["event"]))

    def picture(self) -> RenderableType:
        s, o = self.status, self.live.opened
        ends = f"   {o.get('in')} ({o.get('rate_in')} Hz)  →  {o.get('out')} ({o.get('rate_out')} Hz), {o.get('backend')}"
        head = Text.assemble(("voicewire live", "bold"), ends)
        if self.waiting:
            return Group(head, Text(f"waiting: {self.waiting}", "yellow"), Text(_HELP, "dim"))
        if not s:
            return Group(head, Text("starting", "dim"))
        grid = Table.grid(padding=(0, 2))
        grid.add_row("in", _bar(s["in_db"]))
        grid.add_row("out", _bar(s["out_db"]) + Text("   ● speech" if s.get("speaking") else "", "green"))
        state = self._state()
        if s["task"] == "convert":
            grid.add_row("other voice", f"{s['voice_strength']:5.0%} of the way{'   ' + state if state else ''}")
        else:
            strength = f"at most {self._strength():.0f} dB"
            grid.add_row("taken away", f"{self._taken:5.1f} dB   ({strength}){'   ' + state if state else ''}")
        d = s["delay_ms"]
        total, echo = sum(max(0.0, v) for v in d.values()), f" + echo {d['echo']:.0f}" if "echo" in d else ""
        grid.add_row("delay", f"{total:5.1f} ms = in {d['device_in']:.0f} + model {d['model']:.0f} + ring {d['ring']:.0f} + out {d['device_out']:.0f}{echo}")
        grid.add_row("step", f"{s['step_ms']:5.2f} ms of 20, worst {s['step_max_ms']:.2f}   clocks {s['drift_ppm']:+.0f} ppm")
        if "echo" in d:
            grid.add_row("echo", f"of '{s['echo']}' is taken out" if s["echo"] else Text("waits for the loudspeaker", "yellow"))
        faults = {k: v for k, v in s["counts"].items() if k not in ("opened", "lost", "moved", "query_refused", "not_recorded")}
        grid.add_row("gaps", ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in sorted(faults.items())) or "none")
        lines: list[RenderableType] = [head, grid]
        lines += [Text(e, "yellow") for e in self.events]
        lines.append(Text(f"query: {self.typed}▏" if self.typed is not None else self.note or _HELP, "dim"))
        return Group(*lines)

    def _state(self) -> str:
        s = self.status
        if s["mute"]:
            return "muted"
        if s["suspended"]:
            return "asleep: nobody records" if s["listeners"] == 0 else "asleep: silence"
        if s["bypass"] or s["task"] == "restore":
            return "bypassed" if s["bypass"] else ""
        if s["task"] != "query":
            return f"separate: talker {s['talker']}" if s["task"] == "separate" else str(s["task"])
        return f"query: {s['query']}" if s["query_gain_db"] is None else f"query: {s['query']} {s['query_gain_db']:+.0f} dB"

    def _strength(self) -> float:
        chosen: float | None = self.status.get("strength_db")
        return LIVE_STRENGTH_DB[self.status.get("task", "restore")] if chosen is None else chosen

    def key(self, k: str) -> bool:
        """Act on a key; → False to end."""
        s = self.status
        if k in ("\x03", "\x04") or (k == "q" and self.typed is None):
            return False
        self.note = ""
        if self.typed is not None:
            self._type(k)
            return True
        if k == "b":
            self.live.set(bypass=not s.get("bypass", False))
        elif k == "m":
            self.live.set(mute=not s.get("mute", False))
        elif s.get("task") == "convert" and k and k in "+=-0":
            step = {"-": -_STEP_SHARE, "0": 1.0}.get(k, _STEP_SHARE)
            self.live.set(voice_strength=min(max(0.0, round(s.get("voice_strength", 1.0) + step, 2)), 1.0))
        elif k in "+=-" and k:
            value = self._strength() + (_STEP_DB if k in "+=" else -_STEP_DB)
            self.live.set(strength_db=min(max(0.0, value), _MOST_DB))
        elif k == "0":
            self.live.set(strength_db=None)
        elif k == "/":
            self.typed = ""
        elif k in "12" and k and "separate" in self.live.tasks:
            self.live.set(talker=int(k), task="separate")
        elif k == "t":
            tasks = self.live.tasks
            if tasks == ("convert",):
                self.note = "the only task is convert, whose weights do nothing else"
            elif len(tasks) == 1:
                self.note = "the only task is restore; for extract start with --enroll, for separate with --talker, for query press /"
            else:
                self.live.set(task=tasks[(tasks.index(s.get("task", tasks[0])) + 1) % len(tasks)])
        return True

    def _type(self, k: str) -> None:
        """A key while a query is typed: Enter asks, Escape does not."""
        assert self.typed is not None
        if k in "\r\n":
            words, self.typed = self.typed, None
            try:
                self.live.set(query=words, task="query")
            except ValueError as e:
                self.note = str(e)
        elif k == "\x1b":
            self.typed = None
        else:
            self.typed = self.typed[:-1] if k in "\x7f\b" else self.typed + k


def describe(event: dict[str, Any]) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(event["at_s"]))
    length = f" {event['ms']:.0f} ms" if event.get("ms") else ""
    return f"{at} {event['kind'].replace('_', ' ')}{length}" + (f": {event['cause']}" if event.get("cause") else "")


def run(console: Console, settings: LiveSettings, *, seconds: float | None, quiet: bool, as_json: bool) -> None:
    """Live until q, Ctrl-C or for `seconds`. DeviceError when it cannot begin."""
    if hasattr(signal, "SIGPIPE"):  # an audio process that dies, or a program that asked something and left, must not take this one along
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    with Live(settings) as live, Remote(live):
        screen = Screen(live)
        try:
            if as_json:
                print(json.dumps({"opened": live.opened}), flush=True)
            elif not quiet:
                choose = "" if settings.device_in or settings.device_out else " Use headphones, or --out virtual for calls."
                if settings.device_out == "virtual":
                    choose = " Choose 'voicewire' as the microphone in your call."
                elif settings.device_in == "virtual":
                    choose = " Choose 'voicewire speaker' as the output of your call."
                console.print(f"{live.opened['in']} → {live.opened['out']}; {live.opened['model_ms']:.0f} ms model.{choose}", highlight=False, soft_wrap=True)
            if as_json or quiet or not console.is_terminal:
                _plain(live, screen, seconds, as_json, quiet)
            else:
                _shown(console, live, screen, seconds)
        except KeyboardInterrupt:
            pass
        except BrokenPipeError:  # whoever read what is printed has had enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(READER_GONE) from None
    counts = {k: v for k, v in screen.status.get("counts", {}).items() if v}
    if not quiet and not as_json:
        faults = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in sorted(counts.items())) or "no gaps"
        console.print(f"ended after {screen.status.get('frames', 0) * 0.02:.1f} s of work: {faults}", highlight=False)
        for path in live.opened.get("recording", []):
            console.print(f"recorded {path}", highlight=False, soft_wrap=True)


def _plain(live: Live, screen: Screen, seconds: float | None, as_json: bool, quiet: bool) -> None:
    told = 0.0
    for report in live.reports(seconds):
        screen.take(report)
        if as_json:
            if "status" in report:
                if time.monotonic() - told < 1.0:
                    continue
                told = time.monotonic()
            print(json.dumps(report), flush=True)
        elif "waiting" in report:
            if time.monotonic() - told > 5.0:
                told = time.monotonic()
                print(f"voicewire: waiting: {report['waiting']}", file=sys.stderr, flush=True)
        elif "event" in report and not quiet and not report["event"]["kind"].startswith("speech"):
            print(describe(report["event"]), flush=True)
        elif "event" in report and report["event"]["kind"] == "not_steerable":
            print(f"voicewire: {report['event']['cause']}", file=sys.stderr, flush=True)


def _shown(console: Console, live: Live, screen: Screen, seconds: float | None) -> None:
    with Keys() as keys, Picture(console=console, refresh_per_second=10, transient=True) as picture:
        for report in live.reports(seconds):
            screen.take(report)
            while k := keys.pressed():
                if not screen.key(k):
                    return
            picture.update(screen.picture())
