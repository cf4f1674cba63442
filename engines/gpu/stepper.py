"""The captured step: one graph a batch size, from pinned memory to pinned memory, state staying on the device.

    copy in (masks, samples) ─► STFT ─► engine ─► state write-back ─► attention rows into their rings ─► inverse STFT ─► copy out

With spectra at both ends instead of samples, the STFT stays on the host (`ends`). With a mirror, what is new of the state is copied out too.

State arrays are allocated once for the largest bucket; a bucket works on their first rows in place, so growing from one bucket to the next
moves nothing. Two pinned blocks a bucket take turns: one is filled or read while the other is in flight; each has its own graph and its own
execution context. Capture needs no clone of the state: with no slot active a step leaves every bit of it as it was, so warm-up and capture
may happen at any time. All runs in one stream, so the graphs share their blocks on the device.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from voicewire.kernels import KV_RING_WRITE

from ..engine import State
from .device import Array, CaptureFailed, Device, Graph, Mark
from .ends import SPECTRA, Block, Ends, Fields, Views
from .layout import AT, FIXED, MOVING, POS, RINGS, Layout

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
WARM_UPS = 3
COPIED, COPIES = 256 * 2**20, 10  # bytes and copies of a measurement of bandwidth: beyond any cache


def bucket_for(slots: int) -> int:
    """The smallest bucket that holds `slots`. ValueError above 4,096."""
    for bucket in BUCKETS:
        if bucket >= slots:
            return bucket
    raise ValueError(f"{slots} slots on one device; the most is {BUCKETS[-1]}")


@dataclass
class Stage:
    """One pinned block, to be filled by who steps. active, reset: [bucket]; given: what else the ends take, [bucket, ...] each."""

    active: NDArray[np.bool_]
    reset: NDArray[np.bool_]
    given: Views

    def clear(self) -> None:
        self.active[...] = self.reset[...] = False


class Stepper(Protocol):
    """Steps the first rows of the state it holds on a device."""

    @property
    def ends(self) -> Ends:
        """What goes in and comes out."""

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

    def wait(self, stage: Any) -> Views:
        """What the ends make and, with a mirror, what is new of the state, [bucket, ...] each; good until the stage after next."""

    def write(self, row: int, state: State) -> None:
        """Set a row of the state, [1, ...] each; all of it, with what the ends carry, or the pinned prefix alone."""

    def read(self, row: int) -> State:
        """A copy of a row of the state, [1, ...] each."""

    def close(self) -> None: ...


def new_fields(layout: Layout, ends: Ends) -> Fields:
    """What a step brings of the state, for the host's mirror."""
    rows = {f"{n}.row": ((layout.arrays[n][0][0], *layout.arrays[n][0][2:]), np.float32) for n in RINGS}
    new = {f"{n}.new": layout.arrays[n] for n in (MOVING, POS)}
    return {**new, **rows, AT: ((), np.int32), **{f"{n}.new": kind for n, kind in ends.carried.items()}}


def _on_device(block: Block, memory: Array) -> dict[str, Array]:
    return {n: Array(memory.address + block.offsets[n], shape, dtype) for n, (shape, dtype) in block.fields.items()}


@dataclass
class CapturedStage(Stage):
    out: Views
    work: Callable[[], None]
    graph: Graph | None = None
    mark: Mark | None = None


class CapturedStepper:
    """plan(bucket): the engine of a batch size; mirror: what is new of the state is copied out too; graphs: whether to capture."""

    def __init__(
        self, device: Device, plan: Callable[[int], bytes], layout: Layout, capacity: int, *, mirror: bool, ends: Ends = SPECTRA,
        kind: str = "tensorrt", graphs: bool = True,
    ) -> None:  # fmt: skip
        self._device, self._plan, self._mirror, self._kind = device, plan, mirror, kind
        self._graphs = graphs
        self.why = ""  # why a graph could not be
        most = bucket_for(capacity)
        self.layout, self.ends = layout, ends
        self._state = {n: device.alloc((most, *shape), dtype) for n, (shape, dtype) in {**layout.arrays, **ends.carried}.items()}
        self._scratch = {n: device.alloc((most, *shape), dtype) for n, (shape, dtype) in ends.scratch.items()}
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

    def _inputs(self) -> Fields:
        return {"active": ((), np.bool_), "reset": ((), np.bool_), **self.ends.given}

    def _outputs(self, everything: bool = True) -> Fields:
        """What is copied out comes first."""
        return {**self.ends.made, **(new_fields(self.layout, self.ends) if everything else {})}

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
        pinned_in, pinned_out = d.pinned(given.size), d.pinned(copied.size)
        inputs, outputs = _on_device(given, self._in), _on_device(made, self._out)
        state = {n: a.first(bucket) for n, a in self._state.items()}
        of = {**inputs, **state, **{n: a.first(bucket) for n, a in self._scratch.items()}, **outputs}
        carried = list(self.ends.carried)
        for name in ("x", "active", "reset", *self.layout.arrays, "y", *(n for n in new_fields(self.layout, SPECTRA))):
            program.bind(name, of[name].address)
        layers, window, *rest = state[RINGS[0]].shape[1:]
        row_words = int(np.prod(rest))
        rings, rows = [state[n] for n in RINGS], [outputs[f"{n}.row"] for n in RINGS]

        def work() -> None:
            d.copy(self._in.address, pinned_in.ctypes.data, given.size)
            self.ends.before(d.call, bucket, of)
            program.enqueue()
            for name in (MOVING, POS):
                d.copy(state[name].address, outputs[f"{name}.new"].address, state[name].bytes)
            sizes = {"slots": bucket, "layers": layers, "row_words": row_words}
            d.call(KV_RING_WRITE, sizes, *rings, *rows, outputs[AT], inputs["reset"], layers, window, row_words)
            self.ends.after(d.call, bucket, of)
            for name in carried if self._mirror else ():
                d.copy(outputs[f"{name}.new"].address, state[name].address, state[name].bytes)
            d.copy(pinned_out.ctypes.data, self._out.address, copied.size)

        views = given.views(pinned_in)
        return CapturedStage(views["active"], views["reset"], views, copied.views(pinned_out), work)

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

    def wait(self, stage: CapturedStage) -> Views:
        assert stage.mark is not None
        self._device.wait(stage.mark)
        return stage.out

    # -- rows in and out, between steps --------------------------------------------------------------------------------
    def write(self, row: int, state: State) -> None:
        for name, value in {**self.layout.pack(state), **{n: state[n] for n in self.ends.carried if n in state}}.items():
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
        return {**self.layout.unpack(arrays), **{n: arrays[n] for n in self.ends.carried}}

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
