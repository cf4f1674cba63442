"""`voicewire demo`: a bundled recording through the live path; sound files, a picture and a table. Needs no sound card."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from voicewire.engines.query import ask
from voicewire.engines.voiceprint import Voiceprint, enrol

from . import files as audio
from .lane import LIVE_STRENGTH_DB
from .picture import before_after
from .stream import Stream

F32 = NDArray[np.float32]
TASKS = ("restore", "extract", "separate", "query")


def si_sdr_db(estimate: F32, reference: F32) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019)."""
    e, r = estimate - estimate.mean(), reference - reference.mean()
    target = (e @ r) / (r @ r + 1e-9) * r
    return float(10 * np.log10((target @ target + 1e-12) / ((e - target) @ (e - target) + 1e-12)))


def pause_level_db(x: F32, reference: F32, rate: int) -> float:
    """Level where nobody speaks (reference more than 45 dB under its loudest), dB re full scale."""
    n = rate // 50
    frames = reference[: len(reference) // n * n].reshape(-1, n)
    power = (frames**2).mean(1)
    quiet = power < power.max() * 10**-4.5
    level = (x[: len(x) // n * n].reshape(-1, n)[quiet] ** 2).mean() if quiet.any() else 0.0
    return float(10 * np.log10(level + 1e-12))


def telephone(samples: int, rate: int) -> F32:
    """An electronic telephone: two tones in turn, 20 times a second, for a second of every two and a half."""
    t = np.arange(samples) / rate
    tone = np.where(t * 20 % 1 < 0.5, np.sin(2 * np.pi * 1300 * t), np.sin(2 * np.pi * 1600 * t))
    x: F32 = (0.1 * tone * (t % 2.5 < 1.0)).astype(np.float32)
    return x


@dataclass(frozen=True)
class Wanted:
    """One sound that is to be had from the mixture: its name, itself, whom or what to ask for, the file it is written to."""

    name: str
    target: F32
    voice: Voiceprint | None
    file: str = "after.wav"


@dataclass(frozen=True)
class Scene:
    title: str
    before: F32
    wanted: tuple[Wanted, ...]


def scene(task: str) -> tuple[Scene, int]:
    """→ what is heard in the demo of this task, and the rate. Arrays: [samples] float32."""
    with as_file(files("voicewire.rt") / "samples") as folder:
        names = ("clean", "noisy") if task in ("restore", "query") else ("clean", "other", "enrol", "other_enrol")
        clips = {name: audio.read(folder / f"{name}.flac") for name in names}
    x, rate = {name: clip[0][:, 0] for name, clip in clips.items()}, clips["clean"][1]
    if task == "restore":
        return Scene("speech beside a 3D printer", x["noisy"], (Wanted("the reader", x["clean"], None),)), rate
    if task == "query":
        query = "a person talking"
        ringing = Scene("a reader while the telephone rings", x["clean"] + telephone(len(x["clean"]), rate), (Wanted(f"'{query}'", x["clean"], ask(query)),))
        return ringing, rate
    if task == "convert":
        return Scene("a reader", x["clean"], (Wanted("the other", x["other"], enrol(x["other_enrol"], rate)),)), rate
    voices = (None, None) if task == "separate" else (enrol(x["enrol"], rate), enrol(x["other_enrol"], rate))
    people = (Wanted("the reader", x["clean"], voices[0]), Wanted("the other", x["other"], voices[1], "other.wav"))
    return Scene("two talkers, equally loud", x["clean"] + x["other"], people), rate


def hear(heard: Scene, rate: int, task: str) -> tuple[list[F32], audio.Report]:
    """→ for everything that is wanted what comes out, [samples]."""
    if task != "separate":
        done = [audio.process(heard.before[:, None], Stream(rate, task=task, voice=w.voice, strength_db=LIVE_STRENGTH_DB.get(task))) for w in heard.wanted]
        return [y[:, 0] for y, _ in done], done[-1][1]
    y, report = audio.process(heard.before[:, None], Stream(rate, task=task, strength_db=LIVE_STRENGTH_DB.get(task)))
    orders = ([y[:, 0], y[:, 1]], [y[:, 1], y[:, 0]])  # which talker is first is the model's business
    return max(orders, key=lambda ys: sum(si_sdr_db(a, w.target) for a, w in zip(ys, heard.wanted, strict=True))), report


def converted_rows(heard: Scene, result: F32, rate: int) -> list[tuple[str, str, str]]:
    """Rows of the table for a conversion: whose voice it is, by voicewire's own encoder, and how high."""
    (wanted,) = heard.wanted
    assert wanted.voice is not None
    target, before, after = wanted.voice, enrol(heard.before, rate), enrol(result, rate)
    size = float(target.voice @ target.voice)
    high = [f"{2**v.octave:.0f}" if v.octave is not None else "none heard" for v in (before, after, target)]
    return [
        (f"likeness to {wanted.name}, -1 to 1", f"{float(before.voice @ target.voice) / size:.2f}", f"{float(after.voice @ target.voice) / size:.2f}"),
        ("likeness to before", "1.00", f"{float(after.voice @ before.voice) / size:.2f}"),
        (f"mean pitch, Hz (wanted: {high[2]})", high[0], high[1]),
    ]


def run(out: Path, console: Console, task: str = "restore") -> dict[str, Path]:
    """Write before.wav, after.wav (and other.wav) and spectrogram.png to `out`; print the table. → the paths by name."""
    heard, rate = scene(task)
    out.mkdir(parents=True, exist_ok=True)
    paths = {name: out / name for name in ("before.wav", *(w.file for w in heard.wanted), "spectrogram.png")}
    audio.write(paths["before.wav"], heard.before[:, None], rate)
    table = Table(title=f"{heard.title}, {len(heard.before) / rate:.1f} s, {rate} Hz", title_justify="left")
    for head in ("", "before", "after"):
        table.add_column(head, justify="right" if head else "left")
    results, report = hear(heard, rate, task)
    for w, a in zip(heard.wanted, results, strict=True):
        audio.write(paths[w.file], a[:, None], rate)
        if w is heard.wanted[0]:
            before_after(paths["spectrogram.png"], heard.before, a, rate, (f"before: {heard.title}", f"after: {w.name}"))
        if task == "convert":
            for row in converted_rows(heard, a, rate):
                table.add_row(*row)
            continue
        b, c = heard.before, w.target
        table.add_row(f"SI-SDR to {w.name}, dB (higher is cleaner)", f"{si_sdr_db(b, c):.1f}", f"{si_sdr_db(a, c):.1f}")
        table.add_row("  level in the pauses, dB", f"{pause_level_db(b, c, rate):.1f}", f"{pause_level_db(a, c, rate):.1f}")
    table.add_row("delay, ms", "0", f"{report.latency_ms:.1f}")
    table.add_row("share of one core", "0 %", f"{report.rtf:.1%}")
    console.print(table)
    for path in paths.values():
        console.print(f"wrote {path}", soft_wrap=True)
    return paths
