"""The captured step: one graph a batch size, from pinned memory to pinned memory, state staying on the device.

    copy in (active, reset, x) ─► engine ─► state write-back ─► ring rows ─► copy out (y and, where there is a mirror, the new state)

State arrays are allocated once for the largest bucket; a bucket works on their first rows in place, so growing from one bucket to the next
moves nothing. Two pinned blocks a bucket take turns: one is filled or read while the other is in flight; each has its own graph and its own
execution context. Capture needs no clone of the state: with no slot active a step leaves every bit of it as it was, so warm-up and capture may happen
at any time. All runs in one stream, so the graphs share their blocks on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..config import HOPS_PER_FRAME
from ..engine import F32, State
from ..stft import BINS
from .device import CaptureFailed, Device, Graph, Mark
from .lower import AT, POS, RINGS

Bits = NDArray[np.bool_]
ALIGN = 256  # bytes; what TensorRT asks of addresses
BUCKETS = tuple(2**i for i in range(13))  # 1 ... 4,096
WARM_UPS = 3


def bucket_for(slots: int) -> int:
    """The smallest bucket that holds `slots`. ValueError above 4,096."""
    for bucket in BUCKETS:
        if bucket >= slots:
            return bucket
    raise ValueError(f"{slots} slots on one device; the most is {BUCKETS[-1]}")


class Stage(Protocol):
    """One pinned block: what a step reads."""

    active: Bits
    reset: Bits
    x: F32


class Stepper(Protocol):
    """Steps the first rows of the state it holds on a device."""

    how: str  # "tensorrt, graph", for people

    def prepare(self, slots: int) -> None:
        """Get the bucket of `slots` ready: load, warm up, capture. Slow the first time; leaves the state as it is."""

    def stage(self, slots: int) -> Stage:
        """The next block to fill, of the bucket of `slots`; masks are cleared. Two may be in use."""

    def launch(self, stage: Any) -> None: ...

    def wait(self, stage: Any) -> dict[str, NDArray[Any]]:
        """`y` and, with a mirror, `NAME.new`, `trunk.at` and the ring rows, [bucket, ...] each; good until the stage after next."""

    def write(self, row: int, state: State) -> None:
        """Set a row of the state. state: [1, ...] each, or some of them."""

    def read(self, row: int) -> State:
        """A copy of a row of the state, [1, ...] each."""

    def close(self) -> None: ...


@dataclass
class Field:
    """A tensor inside a block: [bucket, *shape] at `offset`."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int = 0

    def size(self, bucket: int) -> int:
        return bucket * int(np.prod(self.shape)) * self.dtype.itemsize


def place(fields: dict[str, Field], bucket: int) -> int:
    """Give the fields of one block their offsets; → bytes of the block."""
    at = 0
    for f in fields.values():
        f.offset = at
        at += -(-f.size(bucket) // ALIGN) * ALIGN
    return at


@dataclass
class CapturedStage:
    """A pinned block of one bucket and the work that belongs to it."""

    active: Bits
    reset: Bits
    x: F32
    out: dict[str, NDArray[Any]]
    work: Callable[[], None]
    graph: Graph | None = None
    mark: Mark | None = None


class CapturedStepper:
    """`plan(bucket)` gives the engine of a batch size; first: the state of a fresh slot, [1, ...] each; mirror: new states are copied out too."""

    def __init__(self, device: Device, plan: Callable[[int], bytes], first: State, capacity: int, *, mirror: bool, kind: str = "tensorrt") -> None:
        self._device, self._plan, self._mirror = device, plan, mirror
        self._kind = kind
        self._graphs = True
        self.why = ""  # why there is no graph
        most = bucket_for(capacity)
        self._state = {n: Field(v.shape[1:], v.dtype) for n, v in first.items()}
        self._at = {n: device.alloc(f.size(most)) for n, f in self._state.items()}
        self._small = [n for n in first if n not in RINGS and not n.startswith("trunk.prefix")]
        self._in_at, self._out_at = device.alloc(place(self._inputs(), most)), device.alloc(place(self._outputs(), most))
        self._luggage = device.pinned(max(f.size(1) for f in self._state.values()))
        self._stages: dict[int, list[CapturedStage]] = {}
        self._turn = 0
        for row in range(most):  # pinned prefixes; the rest is zeros
            self.write(row, {n: v for n, v in first.items() if n not in RINGS and v.any()})

    @property
    def how(self) -> str:
        return f"{self._kind}, {'graph' if self._graphs else 'enqueue'}"

    @property
    def nodes(self) -> dict[int, int]:
        """Launches and copies inside one graph launch, by bucket."""
        return {bucket: stages[0].graph.nodes for bucket, stages in self._stages.items() if stages[0].graph}

    def _inputs(self) -> dict[str, Field]:
        flag = np.dtype(np.bool_)
        return {"active": Field((), flag), "reset": Field((), flag), "x": Field((HOPS_PER_FRAME, BINS - 1, 2), np.dtype(np.float32))}

    def _outputs(self, everything: bool = True) -> dict[str, Field]:
        fields = {"y": Field((HOPS_PER_FRAME, BINS - 1, 2), np.dtype(np.float32))}
        if everything:
            fields |= {f"{n}.new": Field(self._state[n].shape, self._state[n].dtype) for n in self._small}
            for n in RINGS:
                layers, _, *rest = self._state[n].shape
                fields[f"{n}.row"] = Field((layers, *rest), self._state[n].dtype)
            fields[AT] = Field((), np.dtype(np.int32))
        return fields

    # -- getting ready -------------------------------------------------------------------------------------------------
    def prepare(self, slots: int) -> None:
        bucket = bucket_for(slots)
        if bucket in self._stages:
            return
        plan = self._plan(bucket)
        stages = [self._make(bucket, plan) for _ in range(2)]
        for stage in stages:
            stage.active[...] = stage.reset[...] = False
            stage.x[...] = 0
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
        inputs, outputs = self._inputs(), self._outputs()
        in_bytes, _ = place(inputs, bucket), place(outputs, bucket)
        out_bytes = place(self._outputs(self._mirror), bucket)  # what is copied out is the front of the block
        pinned_in, pinned_out = d.pinned(in_bytes), d.pinned(out_bytes)
        for name, f in inputs.items():
            program.bind(name, self._in_at + f.offset)
        for name, f in outputs.items():
            program.bind(name, self._out_at + f.offset)
        for name, address in self._at.items():
            program.bind(name, address)

        def work() -> None:
            d.copy(self._in_at, pinned_in.ctypes.data, in_bytes)
            program.enqueue()
            for name in self._small:
                d.copy(self._at[name], self._out_at + outputs[f"{name}.new"].offset, self._state[name].size(bucket))
            for name in RINGS:
                layers, window, *rest = self._state[name].shape
                row, at = (self._out_at + outputs[key].offset for key in (f"{name}.row", AT))
                d.write_ring(self._at[name], row, at, bucket, layers, window, int(np.prod(rest)))
            d.copy(pinned_out.ctypes.data, self._out_at, out_bytes)

        def view(block: NDArray[np.uint8], f: Field) -> NDArray[Any]:
            return block[f.offset : f.offset + f.size(bucket)].view(f.dtype).reshape(bucket, *f.shape)

        out = {name: view(pinned_out, outputs[name]) for name in self._outputs(self._mirror)}
        return CapturedStage(view(pinned_in, inputs["active"]), view(pinned_in, inputs["reset"]), view(pinned_in, inputs["x"]), out, work)

    # -- stepping ------------------------------------------------------------------------------------------------------
    def stage(self, slots: int) -> CapturedStage:
        self.prepare(slots)
        stage = self._stages[bucket_for(slots)][self._turn]
        self._turn = 1 - self._turn
        stage.active[...] = stage.reset[...] = False
        return stage

    def launch(self, stage: CapturedStage) -> None:
        if stage.graph is not None:
            self._device.launch(stage.graph)
        else:
            stage.work()
        stage.mark = self._device.mark()

    def wait(self, stage: CapturedStage) -> dict[str, NDArray[Any]]:
        assert stage.mark is not None
        self._device.wait(stage.mark)
        return stage.out

    # -- rows in and out, between steps --------------------------------------------------------------------------------
    def write(self, row: int, state: State) -> None:
        for name, value in state.items():
            size = self._state[name].size(1)
            self._luggage[:size] = np.ascontiguousarray(value[0]).reshape(-1).view(np.uint8)
            self._device.copy(self._at[name] + row * size, self._luggage.ctypes.data, size)
            self._device.wait(self._device.mark())

    def read(self, row: int) -> State:
        state: State = {}
        for name, f in self._state.items():
            size = f.size(1)
            self._device.copy(self._luggage.ctypes.data, self._at[name] + row * size, size)
            self._device.wait(self._device.mark())
            state[name] = self._luggage[:size].copy().view(f.dtype).reshape(1, *f.shape)
        return state

    def close(self) -> None:
        self._stages.clear()
        self._device.close()


__all__ = ["AT", "BUCKETS", "POS", "CapturedStepper", "Stage", "Stepper", "bucket_for"]
