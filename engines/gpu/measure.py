"""What a step costs on a device: times by batch size, launches, bytes, and the floor that memory bandwidth sets."""

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
from ..slots import Slots, open_slots
from .chain import PRECISION, open_tensorrt, open_torch
from .device import DeviceLost
from .layout import FIXED, MOVING, RINGS, Layout
from .lower import Precision
from .slots import DeviceSlots
from .stepper import SPECTRUM, bucket_for
from .verify import noise

FRAME_MS = 1e3 * HOPS_PER_FRAME / HOPS_PER_SECOND
LEAST_STEPS = 200


@dataclass(frozen=True)
class Timing:
    """Times of whole steps, host memory to host memory. launches: what the host starts a step; nodes: what that is on the device, 0 where unknown;
    floor_ms: what moving the weights and the state of the slots takes at the device's bandwidth, 0 where unknown."""

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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def variants(weights: Path, precision: Precision = PRECISION) -> dict[str, Callable[[], Engine]]:
    """All ways to step on a GPU, in the order of the chain: name → how to open it."""
    return {
        "tensorrt graph": partial(open_tensorrt, weights, precision=precision),
        "tensorrt enqueue": partial(open_tensorrt, weights, precision=precision, graphs=False),
        "torch graph": partial(open_torch, weights, precision=precision),
        "torch eager": partial(open_torch, weights, precision=precision, graphs=False),
    }


def bytes_moved(layout: Layout, weights_bytes: int, slots: int) -> int:
    """The least a step moves: weights once; each slot's rings, packs and spectrum read, its new rows, pack and spectrum written."""
    arrays = layout.arrays
    size = {n: int(np.prod(shape)) * dtype.itemsize for n, (shape, dtype) in arrays.items()}
    window = arrays[RINGS[0]][0][1]
    slot = sum(size[n] * (1 + 1 / window) for n in RINGS) + 2 * size[MOVING] + size[FIXED] + 2 * 4 * int(np.prod(SPECTRUM))
    return int(weights_bytes + slots * slot)


def time_steps(slots: Slots, n: int, seconds: float, least: int = LEAST_STEPS) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Milliseconds of single steps of the first n slots, back to back, for about `seconds` and at least `least` steps."""
    rows, x = np.arange(n), noise(min(n, 64), 8)
    frames = [np.ascontiguousarray(np.resize(x[:, t : t + HOPS_PER_FRAME], (n, *SPECTRUM))) for t in range(0, x.shape[1], HOPS_PER_FRAME)]
    for frame in frames:  # loads, captures, warms up
        slots.step(rows, frame)
    times: list[float] = []
    gc.collect()
    gc.disable()
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        begin = time.perf_counter()
        slots.step(rows, frames[len(times) % len(frames)])
        times.append(1e3 * (time.perf_counter() - begin))
    gc.enable()
    return np.array(times)


def measure(variant: str, engine: Engine, n: int, seconds: float, weights_bytes: int = 0, least: int = LEAST_STEPS) -> Timing:
    """One row of the table: n streams of the engine. EngineError when the device is lost meanwhile."""
    slots = open_slots(engine, n)
    try:
        ms = time_steps(slots, n, seconds, least)
        if not isinstance(slots, DeviceSlots):
            extra: dict[str, Any] = {}
        elif slots.lost:
            raise EngineError(f"lost at {n} streams: {slots.lost}")
        else:
            moved = bytes_moved(Layout(engine.init_state(1)), weights_bytes, n)
            bandwidth = slots.stepper.bandwidth()
            nodes = slots.stepper.nodes.get(bucket_for(n), 0)
            extra = {"launches": 1 if nodes else 0, "nodes": nodes, "moved_mb": moved / 1e6, "floor_ms": 1e3 * moved / bandwidth if bandwidth else 0.0}
    finally:
        slots.close()
    p50, p99, p999 = (float(p) for p in np.percentile(ms, [50, 99, 99.9]))
    return Timing(variant, n, len(ms), p50, p99, p999, float(ms.max()), **extra)


def sweep(
    ways: dict[str, Callable[[], Engine]], streams: tuple[int, ...], seconds: float, weights_bytes: int, deadline: float | None = None
) -> Iterator[Timing | str]:
    """Every way at every number of streams; a line for a way that cannot be had, fails, or would start after `deadline` (time.monotonic)."""
    for variant, open_one in ways.items():
        try:
            engine = open_one()
            for n in streams:
                if deadline is not None and time.monotonic() > deadline:
                    yield f"{variant}, {n} streams: no time left"
                    break
                yield measure(variant, engine, n, seconds, weights_bytes)
        except (EngineError, DeviceLost) as e:
            yield f"{variant}: {e}"


def carried(timings: list[Timing], limit_ms: float = FRAME_MS) -> dict[str, int]:
    """variant → the most streams measured whose p99.9 stays below a frame; 0 for none."""
    found: dict[str, int] = {}
    for t in timings:
        found[t.variant] = max(found.get(t.variant, 0), t.streams if t.p999_ms < limit_ms else 0)
    return found
