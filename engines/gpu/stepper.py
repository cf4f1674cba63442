"""The captured step: one graph a batch size, from pinned memory to pinned memory, state staying on the device.

    copy in (active, reset, x) ─► engine ─► state write-back ─► attention rows into their rings ─► copy out (y and, for a mirror, what is new)

State arrays are allocated once for the largest bucket; a bucket works on their first rows in place, so growing from one bucket to the next
moves nothing. Two pinned blocks a bucket take turns: one is filled or read while the other is in flight; each has its own graph and its own
execution context. Capture needs no clone of the state: with no slot active a step leaves every bit of it as it was, so warm-up and capture
may happen at any time. All runs in one stream, so the graphs share their blocks on the device.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from voicewire.kernels import KV_RING_WRITE

from ..config import HOPS_PER_FRAME
from ..engine import F32, State
from ..stft import BINS
from .device import Array, CaptureFailed, Device, Graph, Mark
from .layout import AT, FIXED, MOVING, POS, RINGS, Layout

ALIGN = 256  # bytes; what TensorRT asks of addresses
BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
WARM_UPS = 3
COPIED, COPIES = 256 * 2**20, 10  # bytes and copies of a measurement of bandwidth: beyond any cache
SPECTRUM = (HOPS_PER_FRAME, BINS - 1, 2)
Outputs = dict[str, NDArray[Any]]


def bucket_for(slots: int) -> int:
    """The smallest bucket that holds `slots`. ValueError above 4,096."""
    for bucket in BUCKETS:
        if bucket >= slots:
            return bucket
    raise ValueError(f"{slots} slots on one device; the most is {BUCKETS[-1]}")


@dataclass
class Stage:
    """One pinned block, to be filled by who steps. active, reset: [bucket]; x: [bucket, 2, 480, 2]."""

    active: NDArray[np.bool_]
    reset: NDArray[np.bool_]
    x: F32

    def clear(self) -> None:
        self.active[...] = self.reset[...] = False


class Stepper(Protocol):
    """Steps the first rows of the state it holds on a device."""

    @property
    def how(self) -> str:
        """What steps, for people: "tensorrt fp16, one graph a frame"."""

    @property
    def nodes(self) -> dict[int, int]:
        """Launches and copies that one launch of a graph stands for, by bucket; buckets without a graph are not there."""

    def bandwidth(self) -> float:
        """Bytes a second that a copy inside the device's memory reads and writes, measured; 0 where that means nothing."""

    def prepare(self, slots: int) -> None:
        """Get the bucket of `slots` ready: load, warm up, capture. Slow the first time; leaves the state as it is."""

    def stage(self, slots: int) -> Stage:
        """The next block to fill, of the bucket of `slots`; masks are cleared. Two may be in use."""

    def launch(self, stage: Any) -> None: ...

    def wait(self, stage: Any) -> Outputs:
        """`y` and, with a mirror, `moving.new`, `trunk.k.row`, `trunk.v.row`, [bucket, ...] each; good until the stage after next."""

    def write(self, row: int, state: State) -> None:
        """Set a row of the state, [1, ...] each; all of it, or the pinned prefix alone."""

    def read(self, row: int) -> State:
        """A copy of a row of the state, [1, ...] each."""

    def close(self) -> None: ...


class Block:
    """Tensors that lie together, so that one copy moves them: name → ([bucket, *shape], type)."""

    def __init__(self, fields: dict[str, tuple[tuple[int, ...], Any]], bucket: int) -> None:
        self.fields, self.offsets, self.size = {n: ((bucket, *s), np.dtype(t)) for n, (s, t) in fields.items()}, {}, 0
        for name, (shape, dtype) in self.fields.items():
            self.offsets[name] = self.size
            self.size += -(-int(np.prod(shape)) * dtype.itemsize // ALIGN) * ALIGN

    def on(self, memory: Array) -> dict[str, Array]:
        """Where the tensors are on the device."""
        return {n: Array(memory.address + self.offsets[n], shape, dtype) for n, (shape, dtype) in self.fields.items()}

    def views(self, memory: NDArray[np.uint8]) -> Outputs:
        """The tensors in host memory."""
        return {n: np.frombuffer(memory, dtype, int(np.prod(shape)), self.offsets[n]).reshape(shape) for n, (shape, dtype) in self.fields.items()}


@dataclass
class CapturedStage(Stage):
    out: Outputs
    work: Callable[[], None]
    graph: Graph | None = None
    mark: Mark | None = None


class CapturedStepper:
    """plan(bucket): the engine of a batch size; mirror: what is new of the state is copied out too; graphs: whether to capture."""

    def __init__(
        self, device: Device, plan: Callable[[int], bytes], layout: Layout, capacity: int, *, mirror: bool, kind: str = "tensorrt", graphs: bool = True
    ) -> None:
        self._device, self._plan, self._mirror, self._kind = device, plan, mirror, kind
        self._graphs = graphs
        self.why = ""  # why a graph could not be
        most = bucket_for(capacity)
        self.layout = layout
        self._state = {n: device.alloc((most, *shape), dtype) for n, (shape, dtype) in self.layout.arrays.items()}
        self._in = device.alloc((Block(self._inputs(), most).size,), np.uint8)
        self._out = device.alloc((Block(self._outputs(), most).size,), np.uint8)
        self._luggage = device.pinned(max(a.row(0).bytes for a in self._state.values()))
        self._stages: dict[int, list[CapturedStage]] = {}
        self._turn = 0
        prefix = {n: v for n, v in layout.first.items() if n in layout.packs[FIXED]}
        for row in range(capacity):
            self.write(row, prefix)

    @property
    def how(self) -> str:
        return f"{self._kind}, {'one graph a frame' if self._graphs else 'enqueued'}{f' ({self.why})' if self.why else ''}"

    @property
    def nodes(self) -> dict[int, int]:
        return {bucket: stages[0].graph.nodes for bucket, stages in self._stages.items() if stages[0].graph}

    def _inputs(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        return {"active": ((), np.bool_), "reset": ((), np.bool_), "x": (SPECTRUM, np.float32)}

    def _outputs(self, everything: bool = True) -> dict[str, tuple[tuple[int, ...], Any]]:
        arrays = self.layout.arrays
        rows = {f"{n}.row": ((arrays[n][0][0], *arrays[n][0][2:]), np.float32) for n in RINGS}
        new = {f"{n}.new": arrays[n] for n in (MOVING, POS)}
        return {"y": (SPECTRUM, np.float32), **({**new, **rows, AT: ((), np.int32)} if everything else {})}

    # -- getting ready -------------------------------------------------------------------------------------------------
    def prepare(self, slots: int) -> None:
        bucket = bucket_for(slots)
        if bucket in self._stages:
            return
        plan = self._plan(bucket)
        stages = [self._make(bucket, plan) for _ in range(2)]
        for stage in stages:
            for _ in range(WARM_UPS):
                stage.work()
            self._device.wait(self._device.mark())
            if self._graphs:
                try:
                    stage.graph = self._device.capture(stage.work)
                except CaptureFailed as e:
                    self._graphs, self.why = False, str(e)
        self._stages[bucket] = stages

    def _make(self, bucket: int, plan: bytes) -> CapturedStage:
        d, program = self._device, self._device.load(plan)
        given, made, copied = Block(self._inputs(), bucket), Block(self._outputs(), bucket), Block(self._outputs(self._mirror), bucket)
        pinned_in, pinned_out = d.pinned(given.size), d.pinned(copied.size)  # what is copied out is the front of what is made
        inputs, outputs = given.on(self._in), made.on(self._out)
        state = {n: a.first(bucket) for n, a in self._state.items()}
        for name, array in {**inputs, **state, **outputs}.items():
            program.bind(name, array.address)
        layers, window, *rest = state[RINGS[0]].shape[1:]
        row_words = int(np.prod(rest))
        rings, rows = [state[n] for n in RINGS], [outputs[f"{n}.row"] for n in RINGS]
        reset = replace(inputs["reset"], dtype=np.dtype(np.uint8))

        def work() -> None:
            d.copy(self._in.address, pinned_in.ctypes.data, given.size)
            program.enqueue()
            for name in (MOVING, POS):
                d.copy(state[name].address, outputs[f"{name}.new"].address, state[name].bytes)
            sizes = {"slots": bucket, "layers": layers, "row_words": row_words}
            d.call(KV_RING_WRITE, sizes, *rings, *rows, outputs[AT], reset, layers, window, row_words)
            d.copy(pinned_out.ctypes.data, self._out.address, copied.size)

        views = given.views(pinned_in)
        return CapturedStage(views["active"], views["reset"], views["x"], copied.views(pinned_out), work)

    # -- stepping ------------------------------------------------------------------------------------------------------
    def stage(self, slots: int) -> CapturedStage:
        self.prepare(slots)
        stage = self._stages[bucket_for(slots)][self._turn]
        self._turn = 1 - self._turn
        stage.clear()
        return stage

    def launch(self, stage: CapturedStage) -> None:
        if stage.graph is not None:
            self._device.launch(stage.graph)
        else:
            stage.work()
        stage.mark = self._device.mark()

    def wait(self, stage: CapturedStage) -> Outputs:
        assert stage.mark is not None
        self._device.wait(stage.mark)
        return stage.out

    # -- rows in and out, between steps --------------------------------------------------------------------------------
    def write(self, row: int, state: State) -> None:
        for name, value in self.layout.pack(state).items():
            to = self._state[name].row(row)
            self._luggage[: to.bytes] = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
            self._device.copy(to.address, self._luggage.ctypes.data, to.bytes)
            self._device.wait(self._device.mark())

    def read(self, row: int) -> State:
        arrays: State = {}
        for name, array in self._state.items():
            source = array.row(row)
            self._device.copy(self._luggage.ctypes.data, source.address, source.bytes)
            self._device.wait(self._device.mark())
            arrays[name] = self._luggage[: source.bytes].copy().view(source.dtype).reshape(source.shape)
        return self.layout.unpack(arrays)

    def bandwidth(self) -> float:
        memory = self._device.alloc((2 * COPIED,), np.uint8)
        seconds = []
        for _ in range(5):
            begin = time.perf_counter()
            for _ in range(COPIES):
                self._device.copy(memory.address, memory.address + COPIED, COPIED)
            self._device.wait(self._device.mark())
            seconds.append(time.perf_counter() - begin)
        return 2 * COPIED * COPIES / min(seconds)

    def close(self) -> None:
        self._stages.clear()
        self._device.close()
