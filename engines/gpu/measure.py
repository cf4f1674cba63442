"""What a step costs on a device: times by batch size, launches, bytes, the floor that memory bandwidth sets, and what is left to the host."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..config import HOPS_PER_FRAME, HOPS_PER_SECOND
from ..engine import Engine, EngineError
from ..pcm_slots import HostPcmSlots, PcmSlots, open_pcm_slots
from ..slots import open_slots
from ..stft import hop_samples
from .chain import PRECISION, open_tensorrt, open_torch
from .device import DeviceLost
from .ends import Ends, Fields
from .engine import GpuEngine
from .layout import FIXED, MOVING, RINGS, Layout
from .lower import Precision
from .resident import Resident
from .stepper import bucket_for
from .verify import noise_pcm

FRAME_MS = 1e3 * HOPS_PER_FRAME / HOPS_PER_SECOND
LEAST_STEPS = 200
WARM = 8


@dataclass(frozen=True)
class Timing:
    """Times of whole steps, samples to samples. launches: what the host starts a step; nodes: what that is on the device, 0 where unknown;
    floor_ms: what moving the weights and the state of the slots takes at the device's bandwidth, 0 where unknown; host_us: what a stream costs the
    host a step, CPU time of the thread that steps."""

    variant: str
    streams: int
    steps: int
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    launches: int = 0
    nodes: int = 0
    moved_mb: float = 0.0
    floor_ms: float = 0.0
    host_us: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Way:
    """One way to step. host_stft: the graph holds the engine alone, the STFT and its inverse are NumPy's."""

    open: Callable[[], Engine]
    host_stft: bool = False


def variants(weights: Path, precision: Precision = PRECISION) -> dict[str, Way]:
    """All ways to step on a GPU, in the order of the chain."""
    tensorrt, torch = partial(open_tensorrt, weights, precision=precision), partial(open_torch, weights, precision=precision)
    return {
        "tensorrt graph": Way(tensorrt),
        "tensorrt enqueue": Way(partial(tensorrt, graphs=False)),
        "tensorrt graph, host STFT": Way(tensorrt, host_stft=True),
        "torch graph": Way(torch),
        "torch eager": Way(partial(torch, graphs=False)),
        "torch graph, host STFT": Way(torch, host_stft=True),
    }


def bytes_moved(layout: Layout, weights_bytes: int, slots: int, ends: Ends) -> int:
    """The least a step moves: weights once; each slot's rings, packs and what its ends take read, its new rows, pack and what its ends make
    written; what the ends carry or keep between their kernels and the engine both."""

    def size(fields: Fields) -> int:
        return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in fields.values())

    arrays = layout.arrays
    window = arrays[RINGS[0]][0][1]
    state = size({n: arrays[n] for n in RINGS}) * (1 + 1 / window) + 2 * size({MOVING: arrays[MOVING]}) + size({FIXED: arrays[FIXED]})
    return int(weights_bytes + slots * (state + size(ends.given) + size(ends.made) + 2 * (size(ends.scratch) + size(ends.carried))))


Step = Callable[[int], object]  # of frame t


def pcm_steps(slots: PcmSlots, n: int, rate: int = 16000) -> Step:
    """Steps of the first n slots, which begin afresh: int16 in and out, as the relay's clients send it, an array a stream."""
    rows, hop, dry = np.arange(n), hop_samples(rate), np.full(n, 0.05, np.float32)
    x = np.rint(32768 * noise_pcm(min(n, 64), 8, hop).clip(-1, 0.999)).astype(np.int16)
    for row in range(n):
        slots.attach(row, hop, whole=True)
    frames = [[x[row % len(x), t].copy() for row in range(n)] for t in range(x.shape[1])]
    return lambda t: slots.step(rows, frames[t % len(frames)], dry)


def time_steps(step: Step, seconds: float, least: int = LEAST_STEPS) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], float]:
    """Milliseconds of single steps, back to back, for about `seconds`, and up to four times as long for at least `least` steps; and the seconds that
    this thread ran in all of them."""
    for t in range(WARM):  # loads, captures, warms up
        step(t)
    times: list[float] = []
    gc.collect()
    gc.disable()
    start, ran = time.perf_counter(), time.thread_time()
    while (spent := time.perf_counter() - start) < seconds or (len(times) < least and spent < 4 * seconds):
        begin = time.perf_counter()
        step(len(times))
        times.append(1e3 * (time.perf_counter() - begin))
    ran = time.thread_time() - ran
    gc.enable()
    return np.array(times), ran


def measure(variant: str, way: Way, engine: Engine, n: int, seconds: float, weights_bytes: int = 0, least: int = LEAST_STEPS) -> Timing:
    """One row of the table: n streams of the engine. EngineError when the device is lost meanwhile, or the STFT is not where the way has it."""
    if not way.host_stft and (why := getattr(engine, "host_stft", "")):
        raise EngineError(f"the STFT stays on the host ({why})")
    slots: Any = open_slots(engine, n) if way.host_stft else open_pcm_slots(engine, n)
    steps: PcmSlots = HostPcmSlots(slots, n) if way.host_stft else slots
    extra: dict[str, Any] = {}
    try:
        ms, ran = time_steps(pcm_steps(steps, n), seconds, least)
        if isinstance(slots, Resident):
            if slots.lost:
                raise EngineError(f"lost at {n} streams: {slots.lost}")
            moved = bytes_moved(Layout(engine.init_state(1)), weights_bytes, n, slots.stepper.ends)
            bandwidth = slots.stepper.bandwidth()
            nodes = slots.stepper.nodes.get(bucket_for(n), 0)
            extra = {"launches": 1 if nodes else 0, "nodes": nodes, "moved_mb": moved / 1e6, "floor_ms": 1e3 * moved / bandwidth if bandwidth else 0.0}
            extra["host_us"] = 1e6 * ran / (len(ms) * n)
    finally:
        slots.close()
    p50, p99, p999 = (float(p) for p in np.percentile(ms, [50, 99, 99.9]))
    return Timing(variant, n, len(ms), p50, p99, p999, float(ms.max()), **extra)


def sweep(ways: dict[str, Way], streams: tuple[int, ...], seconds: float, weights_bytes: int, deadline: float | None = None) -> Iterator[Timing | str]:
    """Every way at every number of streams; a line for a way that cannot be had, fails, or would start after `deadline` (time.monotonic)."""
    for variant, way in ways.items():
        engine: Engine | None = None
        try:
            engine = way.open()
            for n in streams:
                if deadline is not None and time.monotonic() > deadline:
                    yield f"{variant}, {n} streams: no time left"
                    break
                yield measure(variant, way, engine, n, seconds, weights_bytes)
        except (EngineError, DeviceLost) as e:
            yield f"{variant}: {e}"
        finally:
            if isinstance(engine, GpuEngine):
                engine.close()


def carried(timings: list[Timing], limit_ms: float = FRAME_MS) -> dict[str, int]:
    """variant → the most streams measured whose p99.9 stays below a frame; 0 for none."""
    found: dict[str, int] = {}
    for t in timings:
        found[t.variant] = max(found.get(t.variant, 0), t.streams if t.p999_ms < limit_ms else 0)
    return found
