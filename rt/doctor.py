"""`voicewire doctor`: what works here, what does not, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from rich.console import Console
from rich.markup import escape

from voicewire.engines.engine import open_engine

from .realtime import lock_memory, normal, try_realtime

EXTRAS = {  # of pyproject.toml, those that add to what the commands do: a package of each, and what
    "query": ("wordllama", "a sound named in words"),
    "media": ("av", "films and phone recordings"),
    "opus": ("av", "Opus on the relay"),
    "echo": ("livekit", "live --echo"),
    "fast": ("uvloop", "more streams on the relay"),
}


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
        try_realtime()  # as live has it
        rng = np.random.default_rng(0)
        for _ in range(100):
            stream.process((0.01 * rng.standard_normal(stream.frame_samples)).astype(np.float32))
    except Exception as e:
        return Finding("fault", f"the onnx engine does not run: {e}", "install it again: pip install --force-reinstall onnxruntime")
    finally:
        normal()
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


def _memory() -> Finding:
    why_not = lock_memory()
    return Finding("note", "memory is not locked for live audio", why_not) if why_not else Finding("ok", "memory may be locked for live audio")


def _sound() -> Iterator[Finding]:
    from .live.backend import DeviceError, open_backend

    try:
        backend = open_backend()
        devices = backend.devices()
    except DeviceError as e:
        yield Finding("note", "no live audio here; files and the demo work without", str(e))
        return
    ours = [d for d in devices if d.name.startswith("voicewire")]
    inputs, outputs = ([d for d in devices if d.kind == kind and d not in ours] for kind in ("input", "output"))
    server = devices[0].api if devices else backend.name
    if not inputs or not outputs:
        yield Finding("note", f"{server}: {len(inputs)} microphones, {len(outputs)} outputs", "plug one in; files and the demo work without")
        return
    default = next((d.name for d in inputs if d.default), inputs[0].name)
    yield Finding("ok", f"sound: {server} through {backend.name}, {len(inputs)} inputs, {len(outputs)} outputs; microphone {default}")
    if backend.name not in ("jack", "pulse") and sys.platform.startswith("linux"):
        yield Finding(
            "note", "no PulseAudio or PipeWire server, so no virtual microphone", "start one: systemctl --user start pipewire-pulse, or pulseaudio --start"
        )


def _virtual() -> Iterator[Finding]:
    from .live import virtual
    from .live.backend import DeviceError

    try:
        if sys.platform.startswith("linux"):
            with virtual.control("doctor") as pulse:
                cleaned = virtual.clean(pulse)
                made = virtual.present(pulse)
            if cleaned:
                yield Finding("ok", f"{cleaned} virtual devices left behind by a crash were removed")
            yield Finding("ok", f"virtual devices: {', '.join(made) or 'none now'}; voicewire live --out virtual makes the microphone")
        elif found := virtual.cable():
            yield Finding("ok", f"virtual cable: live --out '{found[0]}', and choose '{found[1]}' in the call")
        else:
            virtual.refuse_elsewhere()
    except DeviceError as e:
        yield Finding("note", "no virtual microphone", str(e))


def _gpu() -> Finding:
    """What `--engine auto` would take, without making engines that are not there yet."""
    from voicewire.engines.engine import WEIGHTS, EngineError
    from voicewire.engines.gpu import chain, cuda

    try:
        capability = cuda.capability()
    except EngineError as e:
        return Finding("ok", f"{e}; not needed, the onnx engine runs on the CPU")
    gpu = f"NVIDIA GPU of compute capability {capability[0]}.{capability[1]}"
    try:
        plans = chain.plans_for(WEIGHTS, chain.PRECISION, capability)
    except EngineError as e:
        return Finding("note", f"{gpu}, but {e}", "--engine auto then takes PyTorch's CUDA graphs if torch is installed, else the CPU")
    if not plans.kept(1):
        return Finding("note", f"{gpu}, {plans.builder.tag}, engines not built yet", "voicewire build; the first start with --engine tensorrt does it too")
    engine = open_engine("auto")
    lines = "; ".join(getattr(engine, "why", []))
    what = f"{gpu}: --engine auto steps on {getattr(engine, 'how', engine.name)}"
    return Finding("note", what, f"not on TensorRT: {lines}") if lines else Finding("ok", what)


def _extras() -> Finding:
    """What more was installed, and what may be."""
    missing = [f"{name} ({what})" for name, (package, what) in EXTRAS.items() if not _installed(package)]
    there = [name for name, (package, _) in EXTRAS.items() if _installed(package)]
    advice = f"there are also: {', '.join(missing)}; pip install 'voicewire[NAME]'" if missing else ""
    return Finding("ok", f"extras: {', '.join(there) or 'none'}", advice)


def findings() -> Iterator[Finding]:
    yield _python()
    yield _engine()
    yield _scheduling()
    yield _memory()
    yield from _sound()
    yield from _virtual()
    yield _gpu()
    yield _extras()


def run(console: Console, as_json: bool = False) -> int:
    """Print one line a finding, or all of them as one JSON list; → 1 when something is broken, else 0."""
    worst = 0
    if as_json:
        found = list(findings())
        print(json.dumps([asdict(f) for f in found]))
        return int(any(f.status == "fault" for f in found))
    for f in findings():
        mark = {"ok": "[green]ok   [/]", "note": "[yellow]note [/]", "fault": "[red]FAULT[/]"}[f.status]
        console.print(f"{mark} {escape(f.what)}" + (f"\n      → {escape(f.advice)}" if f.advice else ""), highlight=False, soft_wrap=True)
        worst |= f.status == "fault"
    return int(worst)
