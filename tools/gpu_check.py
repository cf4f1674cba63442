"""Every check that needs an NVIDIA GPU, in order, inside ten minutes: a table, and JSON for the record.

    PYTHONPATH=.links:. python -m tools.gpu_check --json gpu_check.json     # or with voicewire installed: python -m tools.gpu_check
    python -m tools.gpu_check --only kernels,bench

Needs the repository, NumPy, ONNX Runtime, soundfile and rich; what else is missing (cuda-python, TensorRT, onnx, torch) makes its rows say so. Every row runs
in a process of its own with a time limit, so that one that crashes or hangs costs only itself. Exit code: 0 all rows held (or were skipped), 1 one
failed, 2 no GPU here.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parents[1]
BUDGET_S = 570.0
Verdict = Literal["ok", "FAILED", "skipped", "note"]


@dataclass
class Row:
    """What a check found. detail: for the JSON only."""

    name: str
    verdict: Verdict
    text: str
    seconds: float = 0.0
    detail: dict[str, Any] = field(default_factory=dict)


Found = tuple[Verdict, str, dict[str, Any]]


def held(good: bool, text: str, **detail: Any) -> Found:
    return ("ok" if good else "FAILED"), text, detail


# -- the checks; an EngineError or KernelError in one means that something it needs is not there ----------------------------
def gpu() -> Found:
    from voicewire.engines.gpu.cuda import bindings, capability

    major, minor = capability()
    r = bindings()
    name = r.cudaGetDeviceProperties(0)[1].name.decode().rstrip("\0")
    memory = r.cudaMemGetInfo()[2] / 2**30
    driver = r.cudaDriverGetVersion()[1]
    return "note", f"{name}, sm_{major}{minor}, {memory:.0f} GiB, driver for CUDA {driver // 1000}.{driver % 1000 // 10}", {}


def packages() -> Found:
    names = ("tensorrt", "tensorrt-rtx", "cuda-python", "cuda-bindings", "torch", "onnx", "onnxruntime", "numpy")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "-"
    return "note", f"Python {sys.version.split()[0]}, " + ", ".join(f"{n} {v}" for n, v in found.items()), found


def kernels() -> Found:
    from voicewire.kernels import ALL
    from voicewire.kernels.check import Gpu, check

    device = Gpu()
    checks = [check(device, kernel, slots) for kernel in ALL for slots in (1, 257)]
    wrong = [f"{c.entry} at {c.slots}: error {c.error:.1e}, replay {'equal' if c.replay_equal else 'DIFFERS'}" for c in checks if not c.ok]
    return held(not wrong, "; ".join(wrong) or f"{len(ALL)} kernels equal their twins, plain and in a graph, no spills", checks=[asdict(c) for c in checks])


def kernel_times() -> Found:
    from voicewire.kernels import ALL
    from voicewire.kernels.check import Gpu, measure

    device = Gpu()
    times = [measure(device, kernel, 4096) for kernel in ALL]
    return "note", "4,096 slots, us: " + ", ".join(f"{t.entry} {t.microseconds:.1f}" for t in times), {"times": [asdict(t) for t in times]}


def _open(way: str, precision: Any) -> Any:
    from voicewire.engines.engine import WEIGHTS
    from voicewire.engines.gpu.measure import variants

    return variants(WEIGHTS, precision)[way]()


def build() -> Found:
    from voicewire.engines.engine import WEIGHTS
    from voicewire.engines.gpu import chain, cuda

    said = []
    kinds: tuple[Any, ...] = ("fp32", "fp16")
    for precision in kinds:
        plans = chain.plans_for(WEIGHTS, precision, cuda.capability())
        for bucket in (1, 64):
            begin = time.perf_counter()
            size = len(plans(bucket))
            said.append(f"{precision}/{bucket} {size / 1e6:.1f} MB {time.perf_counter() - begin:.1f} s")
    return "ok", f"{plans.builder.tag}: " + ", ".join(said), {}


def _compare(way: str, precision: Any, slots_seconds: tuple[int, int]) -> Found:
    from voicewire.engines import open_engine
    from voicewire.engines.gpu.verify import compare, noise

    n, seconds = slots_seconds
    engine = _open(way, precision)
    slots = engine.slots(n)
    found = compare(slots, open_engine(), noise(n, 50 * seconds))
    if engine.lost:
        return held(False, f"the device was lost: {engine.lost}")
    text = f"{slots.how}: largest error {found.max_error:.1e}, {found.snr_db:.1f} dB over {seconds} s of {n} streams"
    return held(found.good(precision), text, **asdict(found))


def _speech(way: str) -> Found:
    """The bundled recording, 60 s of it, against ONNX Runtime on the CPU."""
    from tools.precision import spectra
    from voicewire.engines import open_engine
    from voicewire.engines.gpu.verify import compare

    engine = _open(way, "fp16")
    found = compare(engine.slots(1), open_engine(), spectra(60))
    if engine.lost:
        return held(False, f"the device was lost: {engine.lost}")
    return held(found.good("fp16"), f"60 s of speech in noise: {found.snr_db:.1f} dB", **asdict(found))


def _contract(way: str) -> Found:
    import numpy as np

    from voicewire.engines.contract import EngineSteps, verify_contract

    engine = _open(way, "fp32")
    verify_contract(EngineSteps(engine), (0.02 * np.random.default_rng(1).standard_normal((3, 40, 480, 2))).astype(np.float32))
    return held(not engine.lost, engine.lost or f"{engine.how}: pure, no leak between slots, reset is a fresh start, a snapshot is complete")


def _replay(graph: str, plain: str) -> Found:
    """One precision, one batch size, with and without graph: the same bits, state included."""
    import numpy as np

    from voicewire.engines.gpu.verify import noise

    x, results, how = noise(4, 60), [], []
    for way in (graph, plain):
        engine = _open(way, "fp16")
        slots = engine.slots(4)
        ys = [slots.step(np.arange(4), np.ascontiguousarray(x[:, t : t + 2])).copy() for t in range(0, x.shape[1], 2)]
        if engine.lost:
            return held(False, f"the device was lost: {engine.lost}")
        how.append(slots.how)
        results.append([*ys, *(v for row in range(4) for v in slots.export(row).values())])
        slots.close()
    if "one graph" not in how[0]:
        return held(False, f"no graph: {how[0]}")
    same = all(np.array_equal(a, b) for a, b in zip(*results, strict=True))
    return held(same, f"{'bit-equal' if same else 'DIFFERENT BITS'} over {x.shape[1] // 2} frames of 4 streams: {how[0]} / {how[1]}")


def _coming_and_going(way: str) -> Found:
    """Streams come and go over all buckets to 64, each against itself alone on the CPU."""
    import numpy as np

    from voicewire.engines import open_engine
    from voicewire.engines.gpu.verify import LARGEST_ERROR, noise

    engine, cpu, rng = _open(way, "fp32"), open_engine(), np.random.default_rng(3)
    slots, x = engine.slots(64), noise(64, 60)
    states: dict[int, Any] = {}
    worst = 0.0
    for t in range(60):
        here = int(2 ** rng.integers(0, 7))
        for row in range(here):
            if row not in states or rng.random() < 0.05:
                slots.attach(row)
                states[row] = cpu.init_state(1)
        rows = np.flatnonzero(rng.random(here) < 0.7)
        if not len(rows):
            continue
        frame = np.ascontiguousarray(x[rows, 2 * t : 2 * t + 2])
        y = slots.step(rows, frame)
        for i, row in enumerate(rows[:3]):  # the CPU looks at three of them
            want, after = cpu.advance(frame[i : i + 1], {k: v.copy() for k, v in states[int(row)].items()})
            worst = max(worst, float(np.abs(y[i] - want[0]).max()) / max(1e-3, float(np.abs(want).max())))
            states[int(row)] = after
        for row in rows[3:]:
            states[int(row)] = slots.export(int(row))
    return held(not engine.lost and worst < 10 * LARGEST_ERROR, engine.lost or f"worst error {worst:.1e} over 60 steps of 1 to 64 streams")


def lost() -> Found:
    """The device fails after 20 of 40 frames (simulated): the CPU goes on with the same frame."""
    import numpy as np

    from voicewire.engines import open_engine
    from voicewire.engines.engine import EngineError, State
    from voicewire.engines.gpu.device import DeviceLost
    from voicewire.engines.gpu.verify import noise

    try:
        engine = _open("tensorrt graph", "fp32")
    except EngineError:
        engine = _open("torch graph", "fp32")
    slots, cpu, x = engine.slots(2), open_engine(), noise(2, 40)

    def fail(stage: Any) -> Any:
        raise DeviceLost("simulated")

    state: State = cpu.init_state(2)
    worst = slowest = 0.0
    for t in range(40):
        if t == 20:
            slots.stepper.wait = fail
        frame = np.ascontiguousarray(x[:, 2 * t : 2 * t + 2])
        begin = time.perf_counter()
        y = slots.step(np.arange(2), frame)
        slowest = max(slowest, 1e3 * (time.perf_counter() - begin)) if t >= 20 else 0.0
        want, state = cpu.advance(frame, state)
        worst = max(worst, float(np.abs(y - want).max()))
    return held(bool(engine.lost) and worst < 1e-3 and slowest < 60, f"no frame missed, error {worst:.1e}, slowest frame after it {slowest:.1f} ms (bar 60)")


def gil() -> Found:
    """Another Python thread counts while this one waits for a large step."""
    import threading

    import numpy as np

    from voicewire.engines.engine import EngineError
    from voicewire.engines.gpu.verify import noise

    try:
        engine = _open("tensorrt graph", "fp16")
    except EngineError:
        engine = _open("torch graph", "fp16")
    n = 1024
    slots, x = engine.slots(n), np.resize(noise(8, 1), (n, 2, 480, 2))
    rows, counted, stop = np.arange(n), [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            counted[0] += 1

    def rate(seconds: float, work: Callable[[], object]) -> float:
        begin, before = time.perf_counter(), counted[0]
        while time.perf_counter() - begin < seconds:
            work()
        return (counted[0] - before) / (time.perf_counter() - begin)

    slots.step(rows, x)
    thread = threading.Thread(target=count)
    thread.start()
    try:
        alone, beside = rate(1.0, lambda: time.sleep(0.01)), rate(2.0, lambda: slots.collect(slots.submit(rows, x)))
    finally:
        stop.set()
        thread.join()
    share = beside / alone
    return held(share > 0.25, f"another thread ran at {share:.0%} of its speed during steps of {n} streams (bar 25 %)")


def bench() -> Found:
    from voicewire.engines.engine import WEIGHTS
    from voicewire.engines.gpu.measure import FRAME_MS, Timing, carried, sweep, variants

    rows: list[Any] = []
    missing: list[Any] = []
    size = (WEIGHTS / "model.onnx").stat().st_size
    for found in sweep(variants(WEIGHTS), (1, 64, 1024, 4096), 2.5, size, deadline=time.monotonic() + 200):
        (rows if isinstance(found, Timing) else missing).append(found)
    if not rows:
        return "skipped", "; ".join(map(str, missing)), {}
    best = min((t for t in rows if isinstance(t, Timing) and t.streams == 1), key=lambda t: t.p50_ms)
    most = carried([t for t in rows if isinstance(t, Timing)])
    text = f"one stream {best.p50_ms:.3f} ms ({best.variant}; bar 0.5); below a frame ({FRAME_MS:.0f} ms) at p99.9: " + ", ".join(
        f"{way} {n}" for way, n in most.items()
    )
    good = best.p50_ms <= 0.5 and max(most.values()) >= 4000
    return held(good, text, rows=[t.to_dict() for t in rows if isinstance(t, Timing)], missing=missing)


def profile() -> Found:
    """Where the time of a step of 4,096 streams goes, kernel by kernel (PyTorch, eager)."""
    import numpy as np
    import torch

    from voicewire.engines.gpu.verify import noise

    slots = _open("torch eager", "fp16").slots(4096)
    rows, x = np.arange(4096), np.resize(noise(8, 1), (4096, 2, 480, 2))
    slots.step(rows, x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as p:
        for _ in range(5):
            slots.step(rows, x)
    times = sorted(((e.key, e.device_time_total / 5e3) for e in p.key_averages()), key=lambda e: -e[1])[:12]
    return "note", "ms a step: " + ", ".join(f"{name[:40]} {ms:.2f}" for name, ms in times[:5]), {"kernels": times}


CHECKS: dict[str, tuple[float, Callable[[], Found]]] = {  # name → (time limit in seconds, check)
    "gpu": (30, gpu),
    "packages": (30, packages),
    "kernels": (60, kernels),
    "kernel times": (60, kernel_times),
    "tensorrt build": (120, build),
    "tensorrt fp32": (60, lambda: _compare("tensorrt graph", "fp32", (4, 4))),
    "tensorrt fp16 60 s": (90, lambda: _speech("tensorrt graph")),
    "tensorrt graph = enqueue": (60, lambda: _replay("tensorrt graph", "tensorrt enqueue")),
    "tensorrt contract": (60, lambda: _contract("tensorrt graph")),
    "tensorrt slots": (120, lambda: _coming_and_going("tensorrt graph")),
    "torch fp32": (60, lambda: _compare("torch graph", "fp32", (4, 4))),
    "torch fp16 60 s": (90, lambda: _speech("torch graph")),
    "torch graph = eager": (60, lambda: _replay("torch graph", "torch eager")),
    "torch contract": (60, lambda: _contract("torch graph")),
    "torch slots": (90, lambda: _coming_and_going("torch graph")),
    "lost": (60, lost),
    "gil": (60, gil),
    "bench": (300, bench),
    "profile": (60, profile),
}


def check(name: str) -> Row:
    """One check, in this process."""
    from voicewire.engines.engine import EngineError
    from voicewire.kernels import KernelError

    begin = time.perf_counter()
    try:
        verdict, text, detail = CHECKS[name][1]()
    except (EngineError, KernelError, ImportError) as e:
        verdict, text, detail = "skipped", str(e), {}
    except Exception as e:
        verdict, text, detail = "FAILED", f"{type(e).__name__}: {e}", {}
    return Row(name, verdict, text.replace("\n", " "), time.perf_counter() - begin, detail)


def apart(name: str, limit_s: float) -> Row:
    """One check in a process of its own."""
    begin = time.perf_counter()
    path = os.pathsep.join([str(ROOT / ".links"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "tools.gpu_check", "--row", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, cwd=ROOT, env={**os.environ, "PYTHONPATH": path})
    except subprocess.TimeoutExpired:
        return Row(name, "FAILED", f"not done after {limit_s:.0f} s", time.perf_counter() - begin)
    try:
        return Row(**json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        return Row(name, "FAILED", f"ended with {done.returncode}: {last}", time.perf_counter() - begin)


def run(names: list[str], one: Callable[[str, float], Row], budget_s: float = BUDGET_S) -> list[Row]:
    """The checks in order, as long as there is time; prints each as it ends."""
    from rich.console import Console

    console, rows, end = Console(soft_wrap=True, highlight=False), [], time.monotonic() + budget_s
    for name in names:
        left = end - time.monotonic()
        row = one(name, min(CHECKS[name][0], left)) if left > 5 else Row(name, "skipped", "no time left")
        console.print(f"{row.verdict:8} {row.name:26} {row.seconds:6.1f} s  {row.text}", markup=False)
        rows.append(row)
    return rows


def main(arguments: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found")
    p.add_argument("--only", help="some of the checks, by name: " + ", ".join(CHECKS))
    p.add_argument("--row", help=argparse.SUPPRESS)
    a = p.parse_args(arguments)
    try:
        import voicewire.engines  # noqa: F401
    except ImportError:
        sys.path.insert(0, str(ROOT / ".links"))
    if a.row:
        print(json.dumps(asdict(check(a.row)), default=float))
        return 0
    names = [n.strip() for n in a.only.split(",")] if a.only else list(CHECKS)
    if unknown := sorted(set(names) - set(CHECKS)):
        print(f"gpu_check: unknown check {', '.join(unknown)}; there are: {', '.join(CHECKS)}", file=sys.stderr)
        return 2
    if why := no_gpu():
        print(f"gpu_check: {why}; run it on a machine with an NVIDIA GPU", file=sys.stderr)
        return 2
    rows = run(names, apart)
    if a.json:
        a.json.write_text(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "rows": [asdict(r) for r in rows]}, indent=1) + "\n")
    return int(any(r.verdict == "FAILED" for r in rows))


def no_gpu() -> str:
    """Why there is no GPU to check, or nothing. PyTorch's word counts too: it may be there without cuda-python."""
    from voicewire.engines.engine import EngineError
    from voicewire.engines.gpu.cuda import capability

    try:
        capability()
    except EngineError as e:
        try:
            import torch
        except ImportError:
            return str(e)
        return "" if torch.cuda.is_available() else str(e)
    return ""


if __name__ == "__main__":
    raise SystemExit(main())
