"""cuda-python's runtime and TensorRT as `CudaDevice` calls them, on the CPU: memory is the host's, a stream does its work at once, an engine is
the lowered ONNX. Every call goes to the real bindings first, where there is no driver and it can do nothing but complain about its arguments."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from cuda.bindings import runtime as real
from numpy.typing import NDArray

from voicewire.engines.gpu import cuda, trt

_KINDS = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}
OK = real.cudaError_t.cudaSuccess


def at(address: int, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)).view(dtype).reshape(shape)


class Runtime:
    """fails: what every call answers from now on; captures: whether a capture ends well; room: bytes left."""

    def __init__(self) -> None:
        self.fails = OK
        self.captures = True
        self.room = 2**40
        self.calls: dict[str, int] = {}
        self._memory: dict[int, NDArray[np.uint8]] = {}
        self._recording: list[Callable[[], None]] | None = None
        self._graphs: dict[int, list[Callable[[], None]]] = {}
        self._captured = 0
        self._without_driver = real.cudaGetDeviceCount()[0] == real.cudaError_t.cudaErrorInsufficientDriver

    def __getattr__(self, name: str) -> Any:
        found = getattr(real, name)
        mine = getattr(type(self), f"do_{name}", None)
        if mine is None:
            assert not name.startswith("cuda") or not callable(found) or isinstance(found, type), f"the stub has no {name}"
            return found

        def call(*arguments: Any) -> tuple[Any, ...]:
            if self._without_driver:
                found(*arguments)  # TypeError for what the bindings do not take
            self.calls[name] = self.calls.get(name, 0) + 1
            if self.fails != OK:
                return (self.fails, None, None) if name == "cudaGraphGetNodes" else (self.fails, None)
            answer = mine(self, *arguments)
            return answer if isinstance(answer, tuple) else (OK,) if answer is None else (OK, answer)

        return call

    def do(self, work: Callable[[], None]) -> None:
        if self._recording is None:
            work()
        else:
            self._recording.append(work)

    def _new(self, size: int) -> Any:
        assert self._recording is None, "memory while capturing"
        if size > self.room:
            return real.cudaError_t.cudaErrorMemoryAllocation, None
        memory = np.zeros(size + 256, np.uint8)
        address = -(-memory.ctypes.data // 256) * 256
        self._memory[address] = memory
        return address

    def do_cudaMalloc(self, size: int) -> Any:
        return self._new(size)

    def do_cudaHostAlloc(self, size: int, flags: int) -> Any:
        return self._new(size)

    def do_cudaFree(self, address: int) -> None:
        if address:
            del self._memory[address]

    def do_cudaMemcpyAsync(self, to: int, source: int, size: int, kind: Any, stream: Any) -> None:
        self.do(lambda: ctypes.memmove(to, source, size) and None)

    def do_cudaMemsetAsync(self, to: int, value: int, size: int, stream: Any) -> None:
        self.do(lambda: ctypes.memset(to, value, size) and None)

    def do_cudaSetDevice(self, ordinal: int) -> None: ...

    def do_cudaGetLastError(self) -> None: ...

    def do_cudaDeviceGetAttribute(self, attribute: Any, ordinal: int) -> int:
        return 9 if attribute == real.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor else 0

    def do_cudaGetDeviceProperties(self, ordinal: int) -> Any:
        return SimpleNamespace(name=b"stub\0\0")

    def do_cudaStreamCreateWithFlags(self, flags: int) -> Any:
        return real.cudaStream_t(1)

    def do_cudaEventCreateWithFlags(self, flags: int) -> Any:
        assert flags == real.cudaEventBlockingSync | real.cudaEventDisableTiming
        return real.cudaEvent_t(2)

    def do_cudaEventRecord(self, event: Any, stream: Any) -> None: ...

    def do_cudaEventSynchronize(self, event: Any) -> None:
        assert self._recording is None, "the host waits while capturing"

    def do_cudaStreamBeginCapture(self, stream: Any, mode: Any) -> None:
        self._recording = []

    def do_cudaStreamEndCapture(self, stream: Any) -> Any:
        work, self._recording = self._recording, None
        if not self.captures:
            return real.cudaError_t.cudaErrorStreamCaptureInvalidated, None
        assert work is not None
        self._captured += 1
        self._graphs[self._captured] = work
        return real.cudaGraph_t(self._captured)

    def do_cudaGraphGetNodes(self, graph: Any) -> Any:
        return OK, None, len(self._graphs[int(graph)])

    def do_cudaGraphInstantiate(self, graph: Any, flags: int) -> Any:
        return real.cudaGraphExec_t(int(graph))

    def do_cudaGraphUpload(self, graph: Any, stream: Any) -> None: ...

    def do_cudaGraphDestroy(self, graph: Any) -> None: ...

    def do_cudaStreamSynchronize(self, stream: Any) -> None:
        assert self._recording is None, "the host waits while capturing"

    def do_cudaGraphExecDestroy(self, graph: Any) -> None:
        del self._graphs[int(graph)]

    def do_cudaEventDestroy(self, event: Any) -> None: ...

    def do_cudaStreamDestroy(self, stream: Any) -> None: ...

    def do_cudaGraphLaunch(self, graph: Any, stream: Any) -> None:
        for work in self._graphs[int(graph)]:
            work()


class Context:
    def __init__(self, runtime: Runtime, session: Any) -> None:
        self._runtime, self._session = runtime, session
        self._bound: dict[str, int] = {}

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % 256 == 0
        self._bound[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        bound, session = dict(self._bound), self._session
        assert stream == 1

        def tensor(t: Any) -> NDArray[Any]:
            return at(bound[t.name], tuple(t.shape), _KINDS[t.type])

        def run() -> None:
            for t, value in zip(session.get_outputs(), session.run(None, {t.name: tensor(t) for t in session.get_inputs()}), strict=True):
                tensor(t)[...] = value

        self._runtime.do(run)
        return True


def install(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    """From here on `CudaDevice` is on the stub."""
    runtime = Runtime()

    class TrtRuntime:
        def __init__(self, logger: Any) -> None: ...

        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            if plan.startswith(b"bad"):
                return None
            session = ort.InferenceSession(plan, providers=["CPUExecutionProvider"])
            names = [t.name for t in (*session.get_inputs(), *session.get_outputs())]
            return SimpleNamespace(num_io_tensors=len(names), get_tensor_name=names.__getitem__, create_execution_context=lambda: Context(runtime, session))

    def enqueue(kernel: Any, geometry: Any, packed: Any, stream: Any) -> None:
        given = {p.name: v.item() for p, v in zip(kernel.parameters, packed.values, strict=True)}
        n, layers, window, words = geometry.grid[0], *(given.get(name, 0) for name in ("layers", "window", "row_words"))
        shapes: dict[str, tuple[int, ...]] = {
            **dict.fromkeys(("k", "v"), (n, layers, window, words)), **dict.fromkeys(("k_row", "v_row"), (n, layers, words)),
            **dict.fromkeys(("block", "pcm", "heard"), (n, 960)), **dict.fromkeys(("tail", "overlap"), (n, 480)), "spec": (n, 2, 480, 2),
        }  # fmt: skip
        arguments = [
            given[p.name] if p.role == "scalar" else at(given[p.name], shapes.get(p.name, (n,)), np.float32 if p.dtype == "word" else p.dtype)
            for p in kernel.parameters
        ]
        runtime.do(lambda: kernel.twin(*arguments))

    monkeypatch.setattr(cuda, "bindings", lambda: runtime)
    monkeypatch.setattr(trt, "module", lambda: SimpleNamespace(__name__="stub", Runtime=TrtRuntime))
    monkeypatch.setattr(trt, "logger", lambda: SimpleNamespace(last="no reason"))
    monkeypatch.setattr(cuda.launch, "load", lambda kernel, arch: kernel)
    monkeypatch.setattr(cuda.launch, "enqueue", enqueue)
    return runtime
