"""`voicewire enroll`: a recording of one talker becomes a voiceprint, from a file or from the microphone."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from voicewire.engines.voiceprint import Voiceprint, enrol

from . import files

if TYPE_CHECKING:
    from rich.console import Console

F32 = NDArray[np.float32]
VOICE_MAGIC = b"PK\x03\x04"  # of a voiceprint, which is an npz; no sound file begins so


def add(sub: Any, positive: Callable[[str], float]) -> None:
    p = sub.add_parser("enroll", help="make a voiceprint of one talker, for the task extract: voicewire enroll me.wav -o me.voice")
    p.add_argument("input", type=Path, nargs="?", metavar="IN", help="recording of that talker alone, 5 to 10 s of speech")
    p.add_argument("-o", "--out", type=Path, required=True, metavar="VOICE", help="file to write")
    p.add_argument("--in", dest="device_in", metavar="NAME", help="without IN: the microphone to record from, by name (default: the system's)")
    p.add_argument("--seconds", type=positive, default=8.0, help="how long to record from the microphone (8)")


def run(a: argparse.Namespace, console: Console) -> int:
    if not a.out.parent.is_dir() or a.out.is_dir() or not os.access(a.out.parent, os.W_OK):
        raise files.InputError(f"{a.out} cannot be written; choose a file in a folder that is there")
    if a.input is not None:
        files.check_apart(a.input, a.out)
    files.check_no_sound(a.out)
    if a.input is None:
        x, rate = record(a.device_in, a.seconds, console)
    else:
        x, rate, _ = files.read(a.input)
    voice = of_samples(x, rate)
    part = a.out.with_name(f".{a.out.name}.part")
    part.write_bytes(voice.to_bytes())
    os.replace(part, a.out)
    console.print(f"{a.out}: {a.out.stat().st_size / 1e3:.0f} kB; use it: voicewire live --task extract --enroll {a.out}", highlight=False, soft_wrap=True)
    return 0


def of_samples(x: F32, rate: int) -> Voiceprint:
    """x: [samples, channels]. ValueError for less than 1 s of speech."""
    return enrol(x.mean(1), rate)


def load(path: Path, weights: str) -> Voiceprint:
    """A voiceprint file, or a recording, which is enrolled on the spot."""
    return of_samples(*files.read(path)[:2]) if _is_recording(path) else Voiceprint.load(path, weights)


def file_bytes(path: Path) -> bytes:
    """The same as the bytes of a voiceprint file, for a relay, which knows its weights."""
    return of_samples(*files.read(path)[:2]).to_bytes() if _is_recording(path) else path.read_bytes()


def _is_recording(path: Path) -> bool:
    if not path.exists():
        raise files.InputError(f"no file {path} to know the talker by; make one: voicewire enroll ME.wav -o me.voice")
    if path.is_dir():
        raise files.InputError(f"{path} is a folder; to know the talker by, give a recording, or a file of voicewire enroll")
    with path.open("rb") as f:
        return f.read(4) != VOICE_MAGIC and path.suffix.lower() != ".voice"


def record(device: str | None, seconds: float, console: Console) -> tuple[F32, int]:
    """`seconds` from a microphone, with a level meter → ([samples, 1], rate). DeviceError when there is none."""
    from rich.progress import BarColumn, Progress, TextColumn

    from .live import tape

    console.print("Read something aloud, alone and close to the microphone.", highlight=False)
    meter = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]:.0f} s left"), console=console, transient=True)
    with meter:
        level = meter.add_task("level", total=60, left=seconds)
        x, rate = tape.record(device, seconds, lambda db, left: meter.update(level, completed=60 + db, left=left))
    return x[:, None], rate
