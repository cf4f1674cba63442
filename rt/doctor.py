"""`voicewire doctor`: what works here, what does not, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.markup import escape

from .realtime import normal, try_realtime


@dataclass(frozen=True)
class Finding:
    """status: "ok", "note" (works without it) or "fault" (voicewire cannot do its job)."""

    status: str
    what: str
    advice: str = ""


def _python() -> Finding:
    version = importlib.metadata.version("voicewire") if _installed("voicewire") else "not installed (run from the tree)"
    return Finding("ok", f"voicewire {version}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _engine() -> Finding:
    from .stream import Stream

    try:
        begin = time.perf_counter()
        stream = Stream(48000)
        opened = time.perf_counter() - begin
        steps = stream.time_steps()
        rng = np.random.default_rng(0)
        for _ in range(100):
            stream.process((0.01 * rng.standard_normal(stream.frame_samples)).astype(np.float32))
    except Exception as e:
        return Finding("fault", f"the onnx engine does not run: {e}", "reinstall: pip install --force-reinstall voicewire onnxruntime")
    p50, p99 = np.percentile(steps, [50, 99]) * 1e3
    text = f"onnx engine: weights {stream.engine.weights}, opened in {opened:.2f} s, a 20 ms frame takes {p50:.1f} ms (p99 {p99:.1f} ms)"
    if p50 > 10:
        return Finding("fault", text, "this processor is too slow or too busy for live use; close other programs or use files")
    return Finding("ok", text)


def _scheduling() -> Finding:
    why_not = try_realtime()
    if why_not:
        return Finding("note", "no real-time scheduling", why_not)
    normal()
    return Finding("ok", "real-time scheduling is allowed")


def _sound() -> Finding:
    try:
        import sounddevice as sd

        devices = sd.query_devices()
    except OSError:
        return Finding("note", "no PortAudio library, so no live audio", "install it: apt-get install libportaudio2")
    except Exception as e:
        return Finding("note", f"sound devices cannot be listed: {e}", "check that a sound server (PipeWire or PulseAudio) runs")
    inputs = [d["name"] for d in devices if d["max_input_channels"]]
    outputs = [d["name"] for d in devices if d["max_output_channels"]]
    if not inputs or not outputs:
        return Finding("note", f"{len(inputs)} microphones, {len(outputs)} outputs", "plug one in or start the sound server; files and the demo work without")
    return Finding("ok", f"sound: {len(inputs)} inputs, {len(outputs)} outputs; default {sd.query_devices(kind='input')['name']}")


def _gpu() -> Finding:
    from importlib.util import find_spec

    found = [name for name in ("tensorrt", "tensorrt_rtx") if find_spec(name)]
    if not found:
        return Finding("ok", "no TensorRT; not needed, the engine of this version runs on the CPU")
    return Finding("note", f"{found[0]} is installed", "this version has no GPU engine yet; the CPU engine is used")


CHECKS: tuple[Callable[[], Finding], ...] = (_python, _engine, _scheduling, _sound, _gpu)


def findings() -> Iterator[Finding]:
    for check in CHECKS:
        yield check()


def run(console: Console) -> int:
    """Print one line a finding; → 1 when something is broken, else 0."""
    worst = 0
    for f in findings():
        mark = {"ok": "[green]ok   [/]", "note": "[yellow]note [/]", "fault": "[red]FAULT[/]"}[f.status]
        console.print(f"{mark} {escape(f.what)}" + (f"\n      → {escape(f.advice)}" if f.advice else ""), highlight=False, soft_wrap=True)
        worst |= f.status == "fault"
    return int(worst)
