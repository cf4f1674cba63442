"""`voicewire bench`: what a step costs here, and how that grows with streams and minutes."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from voicewire.engines.convert_engine import GRAPH
from voicewire.engines.engine import F32, Engine, open_engine, weights_for
from voicewire.engines.places import Place, places, separates
from voicewire.engines.query import Query, takes_queries
from voicewire.engines.voiceprint import RECOGNISED, Voiceprint, known, taken_by, voice_rows

from .realtime import normal, step_back, try_realtime
from .stream import Stream

_START = """
import sys, time
from voicewire.rt import Stream
import numpy as np
s = Stream({rate})
s.process(np.zeros(s.frame_samples, np.float32))
try:
    import resource
    mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
except ImportError:  # Windows
    mb = 0.0
print(mb, "torch" in sys.modules)
"""


def _rss_mb() -> float:
    try:
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return 0.0  # only Linux says


def tasks() -> tuple[str, ...]:
    """What the weights that are installed know, each its own (`weights_for`)."""
    found = {
        "extract": known(weights_for("extract")),
        "separate": separates(weights_for("separate")),
        "query": takes_queries(weights_for("query")),
        "convert": (weights_for("convert") / GRAPH).exists(),
    }
    return ("restore", *(task for task, there in found.items() if there))


def _somebody(engine: Engine, task: str) -> Voiceprint | tuple[Place, ...] | None:
    """A talker or a sound that means nothing: which it is makes no step cheaper."""
    if task == "restore":
        return None
    if task == "separate":
        return places(weights_for(task))
    if task == "convert":
        return Voiceprint(taken_by(engine), {}, np.ones(engine.init_state(1)["target.voice"].shape[1], np.float32), octave=7.5)
    state = engine.init_state(1, task)
    parts = {name: np.array(rows, np.float32) for name, rows in voice_rows(state).items()}
    nothing: F32 = np.zeros(state[RECOGNISED].shape[1] if RECOGNISED in state else 1, np.float32)
    return Query(engine.weights, parts, nothing, "anything") if task == "query" else Voiceprint(engine.weights, parts, nothing)


def measure(engine_name: str, rate: int, streams: int, frames: int, paced: bool, threads: int = 1, task: str = "restore") -> dict[str, float]:
    """Times `frames` steps of `streams` channels (one slot each). Paced: one step every 20 ms, as live; else back to back."""
    engine = open_engine(engine_name, weights_for(task), threads)
    stream = Stream(rate, streams, mode="each", engine=engine, task=task, voice=_somebody(engine, task))
    rng = np.random.default_rng(0)
    noise = (0.05 * rng.standard_normal((16, stream.frame_samples, streams))).astype(np.float32)
    noise = noise[..., 0] if streams == 1 else noise
    for block in noise:
        stream.process(block)
    gc.collect()
    gc.disable()
    rss = _rss_mb()
    steps = stream.time_steps()
    cpu, begin = time.process_time(), time.perf_counter()
    for i in range(frames):
        if paced and (wait := begin + i * 0.02 - time.perf_counter()) > 0:
            time.sleep(wait)
        stream.process(noise[i % len(noise)])
    cpu = time.process_time() - cpu
    gc.enable()
    ms = np.array(steps) * 1e3
    p50, p99, p999 = np.percentile(ms, [50, 99, 99.9])
    tenth = max(1, len(ms) // 10)
    return {
        "streams": streams, "p50_ms": p50, "p99_ms": p99, "p999_ms": p999, "max_ms": float(ms.max()), "rtf": cpu / (frames * 0.02),
        "rtf_per_stream": cpu / (frames * 0.02) / streams, "drift": float(np.median(ms[-tenth:]) / np.median(ms[:tenth])), "rss_growth_mb": _rss_mb() - rss,
    }  # fmt: skip


def start_up(rate: int) -> dict[str, Any]:
    """A fresh process from exec to the first processed frame."""
    begin = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", _START.format(rate=rate)], capture_output=True, text=True, check=True, env={**os.environ}).stdout.split()
    return {"seconds": time.perf_counter() - begin, "rss_mb": float(out[0]), "imports_torch": out[1] == "True"}


def run(
    console: Console, *, engine: str = "onnx", rate: int = 16000, seconds: float = 20.0, streams: tuple[int, ...] = (1, 2, 4, 8), as_json: bool = False
) -> None:
    """Print the table, or one JSON object."""
    start = start_up(rate)
    why_not = try_realtime()
    step_back()  # a call that runs beside this goes first
    rows: list[dict[str, Any]] = []
    try:
        with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
            jobs = [("paced", 1, "restore"), *(("hot", n, "restore") for n in streams), *(("hot", 1, task) for task in tasks()[1:])]
            measuring = bar.add_task("measuring", total=len(jobs))
            for kind, n, task in jobs:
                frames = int(seconds * 50) if kind == "paced" else max(200, int(seconds * 50 / n))
                rows.append({"kind": kind, "task": task, **measure(engine, rate, n, frames, kind == "paced", task=task)})
                bar.advance(measuring)
    finally:
        if not why_not:
            normal()
    if as_json:
        doc = {"engine": engine, "sample_rate": rate, "realtime": not why_not, "start": start, "rows": rows}
        console.file.write(json.dumps(doc, default=float) + "\n")
        return
    table = Table(title=f"{engine} engine, {rate} Hz, 20 ms frames, one thread, {'SCHED_FIFO' if not why_not else 'normal scheduling'}", title_justify="left")
    for head in ("step, ms", "streams", "p50", "p99", "p99.9", "RTF", "RTF each", "drift", "RSS +MB"):
        table.add_column(head, justify="left" if head == "step, ms" else "right")
    for r in rows:
        kind = r["kind"] if r["task"] == "restore" else f"{r['kind']}, {r['task']}"
        table.add_row(
            kind, str(r["streams"]), f"{r['p50_ms']:.2f}", f"{r['p99_ms']:.2f}", f"{r['p999_ms']:.2f}", f"{r['rtf']:.3f}", f"{r['rtf_per_stream']:.3f}",
            f"{r['drift']:.2f}", f"{r['rss_growth_mb']:.1f}",
        )  # fmt: skip
    console.print(table)
    torch = "with" if start["imports_torch"] else "without"
    console.print(
        "paced: a step every 20 ms, as live; hot: back to back. RTF: CPU time over audio time. drift: last tenth of the steps over the first", highlight=False
    )
    console.print(f"start to first processed frame: {start['seconds']:.2f} s, {start['rss_mb']:.0f} MB resident, {torch} torch", highlight=False)
    if why_not:
        console.print(why_not)
