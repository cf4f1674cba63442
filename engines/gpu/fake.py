"""A device made of NumPy and ONNX Runtime: the same addresses, stream order, graphs and failures as a GPU, none of its speed.

Work is queued and done only when somebody waits, so a buffer that is read too early or written too late shows. An address that belongs to
nobody loses the device, as on a GPU. A graph keeps the addresses that were bound when it was captured.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from voicewire.kernels import Kernel

from .device import Array, CaptureFailed, DeviceLost, Graph, Mark

Work = Callable[[], None]
_TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}


@dataclass
class FakeGraph:
    work: list[Work] = field(default_factory=list)

    @property
    def nodes(self) -> int:
        return len(self.work)


@dataclass
class FakeMark:
    at: int


@lru_cache(maxsize=8)
def _session(plan: bytes) -> Any:
    """Loaded once: contexts share the weights."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(plan, options, providers=["CPUExecutionProvider"])


class FakeProgram:
    """The lowered ONNX itself, on the CPU."""

    def __init__(self, device: FakeDevice, plan: bytes) -> None:
        self._device = device
        self._session = _session(plan)
        self._inputs, self._outputs = self._session.get_inputs(), self._session.get_outputs()
        self._bound: dict[str, int] = {}

    def bind(self, name: str, address: int) -> None:
        if name not in {t.name for t in (*self._inputs, *self._outputs)}:
            raise KeyError(name)
        self._bound[name] = address

    def enqueue(self) -> None:
        bound = dict(self._bound)

        def tensor(t: Any) -> NDArray[Any]:
            return self._device.array(bound[t.name], tuple(t.shape), _TYPES[t.type])

        def run() -> None:
            results = self._session.run(None, {t.name: tensor(t) for t in self._inputs})
            for t, value in zip(self._outputs, results, strict=True):
                tensor(t)[...] = value

        self._device.queue(run)


class FakeDevice:
    """lost: set it, and the device does not answer any more; captures: whether graphs can be captured."""

    name = "NumPy"

    def __init__(self, captures: bool = True) -> None:
        self._captures = captures
        self.lost = False
        self.launches = 0
        self._bases: list[int] = []
        self._memory: dict[int, NDArray[np.uint8]] = {}
        self._queue: list[Work] = []
        self._done = 0  # work of the queue's past
        self._capturing: list[Work] | None = None

    # -- memory --------------------------------------------------------------------------------------------------------
    def alloc(self, shape: tuple[int, ...], dtype: type[Any] | np.dtype[Any]) -> Array:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return Array(int(self.pinned(size).ctypes.data), shape, np.dtype(dtype))

    def pinned(self, size: int) -> NDArray[np.uint8]:
        if self._capturing is not None:
            raise DeviceLost("memory was asked for while a graph was captured")
        memory = np.zeros(size, np.uint8)
        bisect.insort(self._bases, memory.ctypes.data)
        self._memory[memory.ctypes.data] = memory
        return memory

    def bytes_at(self, address: int, size: int) -> NDArray[np.uint8]:
        i = bisect.bisect_right(self._bases, address) - 1
        base = self._bases[i] if i >= 0 else 0
        if i < 0 or address + size > base + len(self._memory[base]):
            self.lost = True
            raise DeviceLost(f"illegal memory access: {size} bytes at {address:#x}")
        return self._memory[base][address - base : address - base + size]

    def array(self, address: int, shape: tuple[int, ...], dtype: type[Any] | np.dtype[Any]) -> NDArray[Any]:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.bytes_at(address, size).view(dtype).reshape(shape)

    # -- the stream ----------------------------------------------------------------------------------------------------
    def queue(self, work: Work) -> None:
        self._alive()
        (self._queue if self._capturing is None else self._capturing).append(work)

    def _alive(self) -> None:
        if self.lost:
            raise DeviceLost("the device is lost")

    def copy(self, to: int, source: int, size: int) -> None:
        def run() -> None:
            self.bytes_at(to, size)[...] = self.bytes_at(source, size)

        self.queue(run)

    def load(self, plan: bytes) -> FakeProgram:
        return FakeProgram(self, plan)

    def call(self, kernel: Kernel, sizes: dict[str, int], *arguments: Array | int) -> None:
        kernel.geometry(**sizes)

        def run() -> None:
            kernel.twin(*(self.array(a.address, a.shape, a.dtype) if isinstance(a, Array) else a for a in arguments))

        self.queue(run)

    def capture(self, work: Work) -> FakeGraph:
        if not self._captures:
            raise CaptureFailed("the fake device was told not to capture")
        self._capturing = []
        try:
            work()
            return FakeGraph(self._capturing)
        finally:
            self._capturing = None

    def launch(self, graph: Graph) -> None:
        assert isinstance(graph, FakeGraph)
        self._alive()
        self.launches += 1
        self._queue += graph.work

    def mark(self) -> FakeMark:
        self._alive()
        return FakeMark(self._done + len(self._queue))

    def wait(self, mark: Mark) -> None:
        assert isinstance(mark, FakeMark)
        if self._capturing is not None:
            raise DeviceLost("the host waited while a graph was captured")
        self._alive()
        while self._done < mark.at:
            self._queue.pop(0)()
            self._done += 1

    def close(self) -> None:
        self._memory.clear()
        self._bases.clear()
