"""`voicewire demo`: the bundled noisy recording through the live path; sound files, a picture and a table. Needs no sound card."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from . import files as audio
from .picture import before_after
from .stream import Stream

F32 = NDArray[np.float32]


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


def run(out: Path, console: Console) -> dict[str, Path]:
    """Write before.wav, after.wav and spectrogram.png to `out`; print the table. → the paths by name."""
    out.mkdir(parents=True, exist_ok=True)
    with as_file(files("voicewire.rt") / "samples") as folder:
        noisy, rate, _ = audio.read(folder / "noisy.flac")
        clean, _, _ = audio.read(folder / "clean.flac")
    after, report = audio.process(noisy, Stream(rate))
    paths = {name: out / name for name in ("before.wav", "after.wav", "spectrogram.png")}
    audio.write(paths["before.wav"], noisy, rate)
    audio.write(paths["after.wav"], after, rate)
    before_after(paths["spectrogram.png"], noisy[:, 0], after[:, 0], rate, ("before: speech beside a 3D printer", "after: voicewire"))
    table = Table(title=f"{len(noisy) / rate:.1f} s of speech beside a 3D printer, {rate} Hz", title_justify="left")
    for head in ("", "before", "after"):
        table.add_column(head, justify="right" if head else "left")
    b, a, c = noisy[:, 0], after[:, 0], clean[:, 0]
    table.add_row("SI-SDR, dB (higher is cleaner)", f"{si_sdr_db(b, c):.1f}", f"{si_sdr_db(a, c):.1f}")
    table.add_row("level in the pauses, dB", f"{pause_level_db(b, c, rate):.1f}", f"{pause_level_db(a, c, rate):.1f}")
    table.add_row("delay, ms", "0", f"{report.latency_ms:.1f}")
    table.add_row("share of one core", "0 %", f"{report.rtf:.1%}")
    console.print(table)
    for path in paths.values():
        console.print(f"wrote {path}", soft_wrap=True)
    return paths
