"""What the captured step asks of a device: memory by address, copies in stream order, loaded engines, one kernel, graphs.

Two keep it: `cuda.CudaDevice`, and `fake.FakeDevice` on NumPy and ONNX Runtime, which tests everything above this line without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class DeviceLost(RuntimeError):
    """The device does not answer any more, or answered with an error: nothing on it is to be trusted."""


class CaptureFailed(RuntimeError):
    """This work cannot be captured into a graph; it may still be enqueued."""


class Program(Protocol):
    """An engine loaded on the device, with one execution context."""

    def bind(self, name: str, address: int) -> None:
        """Where an input is read or an output written, for all following `enqueue`."""

    def enqueue(self) -> None:
        """Run once, in stream order."""


class Graph(Protocol):
    nodes: int  # launches and copies that one replay stands for


class Mark(Protocol):
    """A point in the stream."""


class Device(Protocol):
    """One device and one stream on it. Everything between `pinned` and `wait` is asynchronous; DeviceLost where the device fails."""

    name: str

    def alloc(self, size: int) -> int:
        """Address of `size` bytes of zeros on the device."""

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """Page-locked host memory, zeros: the other end of copies."""

    def copy(self, to: int, source: int, size: int) -> None:
        """Bytes from one address to another, device or pinned."""

    def load(self, plan: bytes) -> Program: ...

    def write_ring(self, ring: int, row: int, at: int, slots: int, layers: int, window: int, width: int) -> None:
        """ring[s, :, at[s]] = row[s] for all slots with at[s] >= 0. ring: [slots, layers, window, width], row: [slots, layers, width] float32,
        at: [slots] int32; addresses."""

    def capture(self, work: Callable[[], None]) -> Graph:
        """A graph of what `work` does, which is not done now. CaptureFailed where it cannot be one."""

    def launch(self, graph: Graph) -> None: ...

    def mark(self) -> Mark: ...

    def wait(self, mark: Mark) -> None:
        """Sleep until the stream has passed the mark; other Python threads run meanwhile."""

    def close(self) -> None:
        """Give everything back. Never raises."""
