"""Rows of `tools.gpu_check` about the parts: the GPU, the kernels, the engines. Imports wait until a row runs, so that one that lacks something says so
by itself: an EngineError, a KernelError or an ImportError means that something it needs is not there."""

from __future__ import annotations

import importlib.metadata
import sys
import time
from dataclasses import asdict
from typing import Any, Literal

Verdict = Literal["ok", "FAILED", "skipped", "note"]
Found = tuple[Verdict, str, dict[str, Any]]


def held(good: bool, text: str, **detail: Any) -> Found:
    return ("ok" if good else "FAILED"), text, detail


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


def opened(way: str, precision: Any) -> Any:
    from voicewire.engines.engine import WEIGHTS
    from voicewire.engines.gpu.measure import variants

    return variants(WEIGHTS, precision)[way].open()


def opened_any(precision: Any) -> Any:
    """TensorRT where it runs, else PyTorch."""
    from voicewire.engines.engine import EngineError

    try:
        return opened("tensorrt graph", precision)
    except EngineError:
        return opened("torch graph", precision)


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


def compared(way: str, precision: Any, slots_seconds: tuple[int, int]) -> Found:
    from voicewire.engines import open_engine
    from voicewire.engines.gpu.verify import compare, noise

    n, seconds = slots_seconds
    engine = opened(way, precision)
    slots = engine.slots(n)
    found = compare(slots, open_engine(), noise(n, 50 * seconds))
    if engine.lost:
        return held(False, f"the device was lost: {engine.lost}")
    text = f"{slots.how}: largest error {found.max_error:.1e}, {found.snr_db:.1f} dB over {seconds} s of {n} streams"
    return held(found.good(precision), text, **asdict(found))


def speech(way: str) -> Found:
    """The bundled recording, 60 s of it, against ONNX Runtime on the CPU."""
    from tools.precision import recording
    from voicewire.engines import open_engine
    from voicewire.engines.gpu.verify import compare_pcm

    engine = opened(way, "fp16")
    found = compare_pcm(engine.pcm_slots(1), open_engine(), recording(60), dry=0.0)
    if engine.lost:
        return held(False, f"the device was lost: {engine.lost}")
    return held(found.good("fp16"), f"60 s of speech in noise: {found.snr_db:.1f} dB", **asdict(found))


def contract(way: str) -> Found:
    import numpy as np

    from voicewire.engines.contract import EngineSteps, verify_contract

    engine = opened(way, "fp32")
    verify_contract(EngineSteps(engine), (0.02 * np.random.default_rng(1).standard_normal((3, 40, 480, 2))).astype(np.float32))
    return held(not engine.lost, engine.lost or f"{engine.how}: pure, no leak between slots, reset is a fresh start, a snapshot is complete")


def coming_and_going(way: str) -> Found:
    """Streams come and go over all buckets to 64, each against itself alone on the CPU."""
    import numpy as np

    from voicewire.engines import open_engine
    from voicewire.engines.gpu.verify import LARGEST_ERROR, noise

    engine, cpu, rng = opened(way, "fp32"), open_engine(), np.random.default_rng(3)
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
