"""What the captured step asks of a device: memory by address, copies in stream order, loaded engines, kernels, graphs.

Two keep it: `cuda.CudaDevice`, and `fake.FakeDevice` on NumPy and ONNX Runtime, which tests everything above this line without a GPU.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from voicewire.kernels import Kernel


class DeviceLost(RuntimeError):
    """The device does not answer any more, or answered with an error: nothing on it is to be trusted."""


class CaptureFailed(RuntimeError):
    """This work cannot be captured into a graph; it may still be enqueued."""


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage is collected meanwhile: a graph or an execution context that ends while another graph is captured spoils that capture."""
    gc.collect()
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@dataclass(frozen=True)
class Array:
    """A C-contiguous array in the device's memory."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def first(self, rows: int) -> Array:
        """Its first rows."""
        return Array(self.address, (rows, *self.shape[1:]), self.dtype)

    def row(self, i: int) -> Array:
        """[1, ...]"""
        one = self.first(1)
        return Array(self.address + i * one.bytes, one.shape, self.dtype)


class Program(Protocol):
    """An engine loaded on the device, with one execution context."""

    def bind(self, name: str, address: int) -> None:
        """Where an input is read or an output written, for all following `enqueue`."""

    def enqueue(self) -> None:
        """Run once, in stream order."""


class Graph(Protocol):
    @property
    def nodes(self) -> int:
        """Launches and copies that one replay stands for."""


class Mark(Protocol):
    """A point in the stream."""


class Device(Protocol):
    """One device and one stream on it. Everything between `pinned` and `wait` is asynchronous; DeviceLost where the device fails, EngineError
    where it has no room or cannot run an engine."""

    name: str

    def alloc(self, shape: tuple[int, ...], dtype: type[Any] | np.dtype[Any]) -> Array:
        """Zeros on the device, at an address TensorRT likes (256 bytes)."""

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """Page-locked host memory, zeros: the other end of copies."""

    def copy(self, to: int, source: int, size: int) -> None:
        """Bytes from one address to another, device or pinned."""

    def load(self, plan: bytes) -> Program: ...

    def call(self, kernel: Kernel, sizes: dict[str, int], *arguments: Array | int) -> None:
        """One launch of a kernel. sizes: those of its geometry; arguments: as its parameters say, arrays of the device and scalars."""

    def capture(self, work: Callable[[], None]) -> Graph:
        """A graph of what `work` does, which is not done now. CaptureFailed where it cannot be one."""

    def launch(self, graph: Graph) -> None: ...

    def mark(self) -> Mark: ...

    def wait(self, mark: Mark) -> None:
        """Sleep until the stream has passed the mark; other Python threads run meanwhile."""

    def close(self) -> None:
        """Give everything back. Never raises."""
