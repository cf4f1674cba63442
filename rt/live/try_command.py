"""`voicewire try`: a few seconds of one's own microphone, heard before and after, to know before the call what the others will hear."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from .. import asked, files
from ..lane import LIVE_STRENGTH_DB
from ..picture import before_after
from . import tape
from .keys import Keys

F32 = NDArray[np.float32]
CLIPPED = 0.999  # of full scale
QUIET_DBFS, NOISY_DB = -42.0, 12.0


@dataclass(frozen=True)
class Sound:
    """What a recording says of a microphone. Levels in dBFS: of the loudest tenth of its frames, and of the quietest; the same of the quietest afterwards."""

    speech_dbfs: float
    floor_dbfs: float
    floor_after_dbfs: float
    clipped_samples: int

    @property
    def advice(self) -> str:
        if self.clipped_samples:
            return f"{self.clipped_samples} samples are as loud as they can be: the microphone clips, which nothing can undo; turn it down."
        if self.speech_dbfs < QUIET_DBFS:
            return "That is quiet: turn the microphone up, or go nearer. (Did you speak?)"
        if self.speech_dbfs - self.floor_dbfs < NOISY_DB:
            return "There is nearly as much noise as speech: a microphone nearer to the mouth does more than any program."
        return "The level is good."


def listen_to(before: F32, after: F32, rate: int) -> Sound:
    """before, after: [samples]"""
    size = rate // 50

    def tenths(x: F32) -> tuple[float, float]:
        power = (x[: len(x) // size * size].reshape(-1, size).astype(np.float64) ** 2).mean(1)
        low, high = np.quantile(power, (0.1, 0.9))
        return 10 * float(np.log10(low + 1e-10)), 10 * float(np.log10(high + 1e-10))

    floor, speech = tenths(before)
    return Sound(speech, floor, tenths(after)[0], int((np.abs(before) >= CLIPPED).sum()))


def add(sub: Any, positive: Callable[[str], float], strength: Callable[[str], float]) -> None:
    p = sub.add_parser("try", help="record yourself for some seconds, hear it before and after: voicewire try")
    p.add_argument("--seconds", type=positive, default=6.0, help="how long to record (6)")
    p.add_argument("--in", dest="device_in", metavar="NAME", help="microphone by name (default: the system's)")
    p.add_argument("--out", dest="device_out", metavar="NAME", help="loudspeaker or headphones by name (default: the system's)")
    p.add_argument("--save", type=Path, metavar="DIR", help="leave before.wav, after.wav, removed.wav and spectrogram.png there")
    asked.add_options(p, strength)
    p.add_argument("--json", action="store_true", help="record, play nothing, print one JSON object")


def run(a: argparse.Namespace, console: Console) -> int:
    if a.seconds < 1 or a.seconds > 60:
        raise files.InputError("--seconds must be 1 to 60")
    if a.strength is None and (a.task or asked.usual_task(a.query, a.enroll, a.talker) or "restore") == "restore":
        a.strength = LIVE_STRENGTH_DB["restore"]  # as in a call
    stream = asked.open_stream(a, tape.RATE, 1, True)  # what is wrong with the options is said before anybody speaks
    before, rate = _record(a, console)
    if rate != stream.rate:
        stream = asked.open_stream(a, rate, 1, True)
    y, _ = files.process(before[:, None], stream)
    after = y[:, 0] if stream.outputs == 1 else y.mean(1)
    heard = {"before": before, "after": after, "removed": before - after}
    sound = listen_to(before, after, rate)
    if a.save:
        save(a.save, heard, rate)
    if a.json:
        print(json.dumps({k: round(v, 1) for k, v in asdict(sound).items()} | {"advice": sound.advice, "sample_rate": rate, "seconds": len(before) / rate}))
        return 0
    console.print(
        f"speech {sound.speech_dbfs:.0f} dBFS, noise {sound.floor_dbfs:.0f} dBFS before, {sound.floor_after_dbfs:.0f} after. {sound.advice}", highlight=False
    )
    _compare(a, console, heard, rate)
    return 0


def _record(a: argparse.Namespace, console: Console) -> tuple[F32, int]:
    shown = Console(stderr=True) if a.json else console
    shown.print(f"Speak for {a.seconds:.0f} seconds, as you would in a call.", highlight=False)
    meter = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]:.0f} s left"), console=shown, transient=True)
    with meter:
        level = meter.add_task("level", total=60, left=a.seconds)
        return tape.record(a.device_in, a.seconds, lambda db, left: meter.update(level, completed=60 + db, left=left))


def save(folder: Path, heard: dict[str, F32], rate: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, x in heard.items():
        files.write(folder / f"{name}.wav", x[:, None], rate)
    before_after(folder / "spectrogram.png", heard["before"], heard["after"], rate)


def _compare(a: argparse.Namespace, console: Console, heard: dict[str, F32], rate: int) -> None:
    """Before, then after; then what the keys say, where there is a terminal."""
    by_key = {"b": "before", "a": "after", "r": "removed"}
    with Keys() as keys:
        key = _play(a, console, keys, heard, "before", rate) or _play(a, console, keys, heard, "after", rate)
        if keys.there:
            console.print("keys: b before, a after, r what was removed, q quit", style="dim", highlight=False)
        while keys.there and key != "q":
            key = _play(a, console, keys, heard, by_key[key], rate) if key in by_key else keys.wait()


def _play(a: argparse.Namespace, console: Console, keys: Keys, heard: dict[str, F32], name: str, rate: int) -> str:
    """→ the key that ended it, or nothing"""
    pressed = ""
    bar = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[at]:.1f} s"), console=console, transient=True)

    def going_on(seconds: float) -> bool:
        nonlocal pressed
        bar.update(shown, completed=seconds, at=seconds)
        pressed = keys.pressed()
        return not pressed

    with bar:
        shown = bar.add_task(name, total=len(heard[name]) / rate, at=0.0)
        tape.play(heard[name], rate, a.device_out, going_on)
    return pressed
