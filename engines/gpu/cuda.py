"""The device that is a GPU: memory, one stream, graphs and kernels through cuda-python, engines through TensorRT. Imported only where asked for.

Not run on a GPU where it was written; `python -m tools.gpu_check` proves it on one. cuda-python lets other Python threads run inside
cudaEventSynchronize (`with nogil` in cuda/bindings/runtime.pyx, 13.0), and the events here block instead of spinning.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voicewire.kernels import Kernel, KernelError, launch

from ..engine import EngineError
from . import trt
from .device import Array, CaptureFailed, DeviceLost, Graph, Mark, uncollected

MARKS = 8  # events that take turns; two steps under way need two


def bindings() -> Any:
    """cuda-python's runtime module. EngineError where it is not installed."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        raise EngineError("no cuda-python: pip install 'voicewire[gpu]'") from None
    return runtime


def capability(ordinal: int = 0) -> tuple[int, int]:
    """Compute capability of a GPU, (9, 0) for Hopper. EngineError where there is none."""
    runtime = bindings()
    attribute = runtime.cudaDeviceAttr
    values = []
    for name in (attribute.cudaDevAttrComputeCapabilityMajor, attribute.cudaDevAttrComputeCapabilityMinor):
        try:
            error, value = runtime.cudaDeviceGetAttribute(name, ordinal)
        except RuntimeError as e:  # no driver library at all
            raise EngineError(f"no NVIDIA GPU here ({e})") from None
        if int(error):
            raise EngineError(f"no NVIDIA GPU here ({error.name})")
        values.append(int(value))
    return values[0], values[1]


def name(ordinal: int = 0) -> str:
    """Of a GPU, "" where it cannot be told."""
    try:
        error, properties = bindings().cudaGetDeviceProperties(ordinal)
    except (EngineError, RuntimeError):
        return ""
    return "" if int(error) else str(properties.name.decode().rstrip("\0"))


@dataclass
class CudaGraph:
    executable: Any
    nodes: int


@dataclass
class CudaMark:
    event: Any


class TrtProgram:
    """A TensorRT engine with one execution context."""

    def __init__(self, engine: Any, stream: int) -> None:
        self._engine, self._stream = engine, stream
        self._context = engine.create_execution_context()
        if self._context is None:
            raise EngineError("TensorRT gives no execution context (out of memory?)")
        self._names = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}

    def bind(self, name: str, address: int) -> None:
        if name not in self._names:
            raise EngineError(f"the engine has no tensor {name}")
        if not self._context.set_tensor_address(name, address):
            raise EngineError(f"TensorRT refuses the address of {name}")

    def enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream):
            raise DeviceLost("TensorRT could not enqueue the step")


class CudaDevice:
    """One GPU, one stream. EngineError when it cannot be had, DeviceLost when it fails later."""

    def __init__(self, ordinal: int = 0) -> None:
        self.capability = capability(ordinal)
        self._runtime = bindings()
        r = self._runtime
        self._ordinal, self.name = ordinal, ""
        self._check(r.cudaSetDevice(ordinal))
        self._check(r.cudaFree(0))  # makes the context that kernels and TensorRT use too
        self.name = name(ordinal)
        self._stream = self._check(r.cudaStreamCreateWithFlags(r.cudaStreamNonBlocking))
        flags = r.cudaEventBlockingSync | r.cudaEventDisableTiming
        self._events = [self._check(r.cudaEventCreateWithFlags(flags)) for _ in range(MARKS)]
        self._marks = itertools.cycle([CudaMark(event) for event in self._events])
        self._memory: list[int] = []
        self._pinned: list[int] = []
        self._functions: dict[str, launch.Function] = {}
        self._logger: Any = None
        self._loaded: dict[int, Any] = {}  # engines by the identity of their plan: two contexts share the weights
        self._keep: list[Any] = []
        self._graphs: list[Any] = []

    def _check(self, result: tuple[Any, ...]) -> Any:
        error, *values = result
        if error == self._runtime.cudaError_t.cudaErrorMemoryAllocation:
            raise EngineError(f"the GPU {self.name} has not enough free memory")
        if int(error):
            raise DeviceLost(f"CUDA: {error.name}")
        return values[0] if len(values) == 1 else values

    # -- memory --------------------------------------------------------------------------------------------------------
    def alloc(self, shape: tuple[int, ...], dtype: type[Any] | np.dtype[Any]) -> Array:
        array = Array(0, shape, np.dtype(dtype))
        address = int(self._check(self._runtime.cudaMalloc(max(1, array.bytes))))
        self._memory.append(address)
        self._check(self._runtime.cudaMemsetAsync(address, 0, array.bytes, self._stream))
        return Array(address, shape, np.dtype(dtype))

    def pinned(self, size: int) -> NDArray[np.uint8]:
        address = int(self._check(self._runtime.cudaHostAlloc(max(1, size), self._runtime.cudaHostAllocDefault)))
        self._pinned.append(address)
        memory = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        memory[...] = 0
        return memory

    def copy(self, to: int, source: int, size: int) -> None:
        r = self._runtime
        self._check(r.cudaMemcpyAsync(to, source, size, r.cudaMemcpyKind.cudaMemcpyDefault, self._stream))

    # -- work ----------------------------------------------------------------------------------------------------------
    def load(self, plan: bytes) -> TrtProgram:
        if id(plan) not in self._loaded:
            self._logger = self._logger or trt.logger()
            runtime = trt.made("Runtime", self._logger)
            engine = runtime.deserialize_cuda_engine(plan)
            if engine is None:
                raise EngineError(f"{trt.module().__name__} cannot run its engine on {self.name}: {self._logger.last}")
            self._keep += [plan, runtime]
            self._loaded[id(plan)] = engine
        return TrtProgram(self._loaded[id(plan)], int(self._stream))

    def call(self, kernel: Kernel, sizes: dict[str, int], *arguments: Array | int) -> None:
        self._check(self._runtime.cudaSetDevice(self._ordinal))  # this thread may not have seen the context yet
        if kernel.entry not in self._functions:
            major, minor = self.capability
            try:
                self._functions[kernel.entry] = launch.load(kernel, f"sm_{major}{minor}")
            except KernelError as e:
                raise EngineError(str(e)) from None
        packed = launch.pack(kernel, *(a.address if isinstance(a, Array) else a for a in arguments))
        try:
            launch.enqueue(self._functions[kernel.entry], kernel.geometry(**sizes), packed, int(self._stream))
        except KernelError as e:
            raise DeviceLost(str(e)) from None

    def capture(self, work: Callable[[], None]) -> CudaGraph:
        with uncollected():
            return self._captured(work)

    def _captured(self, work: Callable[[], None]) -> CudaGraph:
        r = self._runtime
        self._check(r.cudaStreamBeginCapture(self._stream, r.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
        refused = ""
        try:
            work()
        except (DeviceLost, EngineError) as e:
            refused = str(e)
        error, graph = r.cudaStreamEndCapture(self._stream)
        if refused or int(error):
            r.cudaGetLastError()  # a refused capture is not a lost device
            raise CaptureFailed(refused or f"CUDA: {error.name}")
        nodes = int(self._check(r.cudaGraphGetNodes(graph))[1])
        executable = self._check(r.cudaGraphInstantiate(graph, 0))
        self._graphs.append(executable)
        self._check(r.cudaGraphUpload(executable, self._stream))
        self._check(r.cudaGraphDestroy(graph))
        return CudaGraph(executable, nodes)

    def launch(self, graph: Graph) -> None:
        assert isinstance(graph, CudaGraph)
        self._check(self._runtime.cudaGraphLaunch(graph.executable, self._stream))

    def mark(self) -> CudaMark:
        mark = next(self._marks)
        self._check(self._runtime.cudaEventRecord(mark.event, self._stream))
        return mark

    def wait(self, mark: Mark) -> None:
        assert isinstance(mark, CudaMark)
        self._check(self._runtime.cudaEventSynchronize(mark.event))

    def close(self) -> None:
        r = self._runtime  # errors of a lost device say nothing new
        r.cudaStreamSynchronize(self._stream)
        for graph in self._graphs:
            r.cudaGraphExecDestroy(graph)
        self._graphs.clear()
        self._loaded.clear()
        self._keep.clear()
        for address in self._memory:
            r.cudaFree(address)
        self._memory.clear()
        for event in self._events:
            r.cudaEventDestroy(event)
        self._events.clear()
        r.cudaStreamDestroy(self._stream)
        # pinned memory stays: results that were fetched are views of it
