"""`voicewire set`: change what a running `voicewire live` does, or say what that is. Quick enough for a key of the desktop: see `remote`."""

from __future__ import annotations

import argparse
import json
import os
import sys

from ..parser import Parser
from . import remote

TYPE_CHECKING = False  # as in `voicewire.rt`
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_ANSWER_S = 5.0
# as said on the command line: as `Live.set` calls it, and what may be said
_SAID = {
    "mute": ("mute", "on, off or toggle"),
    "bypass": ("bypass", "on, off or toggle"),
    "strength": ("strength_db", "a number of dB, or usual"),
    "task": ("task", ""),
    "query": ("query", ""),
    "query-gain": ("query_gain_db", "a number of dB, or alone"),
    "talker": ("talker", "1 or 2"),
    "voice-strength": ("voice_strength", "a number from 0 to 1"),
}
_NONE = {("strength", "usual"), ("query-gain", "alone")}
HELP = "change a running live, or say how it stands: voicewire set mute toggle"


class Unreachable(ValueError):
    """Nobody, or not the one that is meant; one line."""


def add_options(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "settings",
        nargs="*",
        metavar="NAME VALUE",
        help="mute, bypass: on, off, toggle; strength: dB, or usual; task; query: words; query-gain: dB, or alone; talker: 1 or 2; "
        "voice-strength: 0 to 1. None: print the status",
    )
    p.add_argument("--to", metavar="WHICH", help="where several live run: microphone or speaker (the virtual one it makes), a process, or a device's name")
    p.add_argument("--json", action="store_true", help="print the status as one JSON object")


def request(words: Sequence[str]) -> dict[str, Any]:
    """Names and values, in turn → the request. ValueError with one line."""
    if len(words) % 2:
        raise ValueError(f"names and values come in pairs, and '{words[-1]}' has no value; several words of a query go in quotes")
    change: dict[str, Any] = {}
    toggles = []
    for said, value in zip(words[::2], words[1::2], strict=True):
        if said not in _SAID:
            raise ValueError(f"there is no '{said}'; there are: {', '.join(_SAID)}")
        name, may = _SAID[said]
        if name in remote.SWITCHES:
            if value not in ("on", "off", "toggle"):
                raise ValueError(f"{said} takes {may}, not '{value}'")
            if value == "toggle":
                toggles.append(name)
            else:
                change[name] = value == "on"
        elif not may:
            change[name] = value
        else:
            try:
                change[name] = None if (said, value) in _NONE else int(value) if name == "talker" else float(value)
            except ValueError:
                raise ValueError(f"{said} takes {may}, not '{value}'") from None
    if "task" not in change and (task := next((t for name, t in (("query", "query"), ("talker", "separate")) if name in change), "")):
        change["task"] = task  # what is meant by it
    if not words:
        return {"get": True}
    return {key: value for key, value in (("set", change), ("toggle", toggles)) if value}


def send(path: str, what: dict[str, Any]) -> dict[str, Any] | None:
    """→ the status; None where its process has died. Unreachable where a living one does not answer, ValueError for what it refuses."""
    try:
        s = remote.reach(path, _ANSWER_S)
        if s is None:
            return None
        with s:
            s.sendall(json.dumps(what).encode() + b"\n", remote.NO_SIGNAL)
            with s.makefile("rb") as answer:
                reply = json.loads(answer.readline(1 << 20))
    except (OSError, ValueError):
        raise Unreachable(f"voicewire live (process {os.path.basename(path)[10:-5]}) does not answer") from None
    if "error" in reply:
        raise ValueError(reply["error"])
    status: dict[str, Any] = reply["status"]
    return status


def _called(status: dict[str, Any]) -> str:
    return f"{status['pid']} ({status['in']} → {status['out']})"


def _fits(which: str, status: dict[str, Any]) -> bool:
    return which in status["virtual"] or any(which.lower() in (status[end] or "").lower() for end in ("in", "out"))


def choose(which: str | None) -> str:
    """The socket of the one that is meant. Unreachable."""
    if not remote.available():
        raise Unreachable("set needs UNIX sockets, which Python has not on this system; use the keys of voicewire live in its terminal")
    found = remote.sockets()
    if which is not None and which.isdecimal():
        found = [(pid, path) for pid, path in found if pid == int(which)]
    if len(found) > 1 or (found and which is not None and not which.isdecimal()):
        there = []
        for _, path in found:
            try:
                if status := send(path, {"get": True}):
                    there.append((path, status))
            except Unreachable:
                continue  # the others may be meant
        fit = [(path, status) for path, status in there if which is None or _fits(which, status)]
        if len(fit) > 1:
            several = f"several voicewire live run{f' that {which!r} fits' if which else ''}: {', '.join(_called(s) for _, s in fit)}"
            raise Unreachable(f"{several}; say which with --to")
        if there and not fit:
            raise Unreachable(f"no voicewire live is '{which}'; there are: {', '.join(_called(s) for _, s in there)}")
        found = [(status["pid"], path) for path, status in fit]
    if not found:
        raise Unreachable(f"no voicewire live runs{f' as {which}' if which else ''}; start one: voicewire live --out virtual")
    return found[0][1]


def text(status: dict[str, Any]) -> str:
    """For people."""
    s, state = status, remote.describe({k: status[k] for k in ("mute", "bypass")})
    task = str(s["task"])
    if task == "query":
        task += f" '{s['query']}'" + ("" if s["query_gain_db"] is None else f" {s['query_gain_db']:+g} dB")
    elif task == "separate":
        task += f", talker {s['talker']}"
    if task == "convert":
        far = f"{s['voice_strength']:.0%} of the way"
    else:
        far = f"at most {s['usual_strength_db'] if s['strength_db'] is None else s['strength_db']:g} dB"
    lines = [f"{_called(s)}: {task}, {far}, {state}"]
    if s["waiting"]:
        lines.append(f"waiting: {s['waiting']}")
    elif "in_db" in s:
        asleep = ("; asleep: nobody records" if s["listeners"] == 0 else "; asleep: silence") if s["suspended"] else ""
        delay = sum(max(0.0, v) for v in s["delay_ms"].values())
        lines.append(f"in {s['in_db']:.0f} dB, out {s['out_db']:.0f} dB, delay {delay:.0f} ms{asleep}")
    return "\n".join(lines)


def run(a: argparse.Namespace) -> int:
    """ValueError with one line, OSError."""
    what = request(a.settings)
    for _ in range(3):
        if status := send(choose(a.to), what):
            break  # else its process has died, and its socket is gone: is there another?
    else:
        raise Unreachable("voicewire live has just ended")
    if a.json:
        print(json.dumps(status))
    elif "get" in what:
        print(text(status))
    else:
        print(remote.describe({name: status[name] for name in (*what.get("set", {}), *what.get("toggle", []))}))
    return 0


def main(argv: Sequence[str]) -> int:
    # (a formatter that does not know its width imports shutil, which takes a fifth of the whole)
    p = Parser(prog="voicewire set", description=HELP, formatter_class=lambda prog: argparse.HelpFormatter(prog, width=100))
    add_options(p)
    try:
        return run(p.parse_args(argv))
    except (ValueError, OSError) as e:
        print(f"voicewire: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
