"""Every kernel on the GPU at hand against its NumPy twin, and how fast it runs there.

gpu = Gpu()
for kernel in ALL:
    print(check(gpu, kernel, slots=257), measure(gpu, kernel, slots=1024))
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from .cases import CASES, error
from .kernel import Kernel, Launch
from .launch import Packed, checked, driver, enqueue, load, pack


class Gpu:
    """The first GPU, its primary context and one stream. KernelError in one line where there is none."""

    def __init__(self) -> None:
        d = driver()
        device = checked(d.cuDeviceGet(0))
        attribute = d.CUdevice_attribute
        major = checked(d.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device))
        minor = checked(d.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device))
        self.name = checked(d.cuDeviceGetName(128, device)).split(b"\0")[0].decode()
        self.arch = f"sm_{major}{minor}"
        checked(d.cuCtxSetCurrent(checked(d.cuDevicePrimaryCtxRetain(device))))
        self.stream = checked(d.cuStreamCreate(int(d.CUstream_flags.CU_STREAM_NON_BLOCKING)))

    def wait(self) -> None:
        checked(driver().cuStreamSynchronize(self.stream))

    @contextmanager
    def graph(self, work: Callable[[], None]) -> Iterator[Any]:
        """What `work` enqueues, captured."""
        d = driver()
        checked(d.cuStreamBeginCapture(self.stream, d.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL))
        try:
            work()
        finally:
            captured = checked(d.cuStreamEndCapture(self.stream))
        ready = checked(d.cuGraphInstantiate(captured, 0))
        try:
            yield ready
        finally:
            checked(d.cuGraphExecDestroy(ready))
            checked(d.cuGraphDestroy(captured))


class OnDevice:
    """The arguments of one launch, copied to device memory; freed at the end of a `with`."""

    def __init__(self, kernel: Kernel, arguments: tuple[Any, ...]) -> None:
        self._kernel, self._arguments = kernel, arguments
        self._held: list[Any] = []

    def __enter__(self) -> Packed:
        d, values = driver(), []
        for p, value in zip(self._kernel.parameters, self._arguments, strict=True):
            if p.role != "scalar":
                self._held.append(checked(d.cuMemAlloc(value.nbytes)))
                checked(d.cuMemcpyHtoD(self._held[-1], value.ctypes.data, value.nbytes))
                value = int(self._held[-1])
            values.append(value)
        checked(d.cuCtxSynchronize())  # the launch is in another stream than the copies, which may still be under way
        return pack(self._kernel, *values)

    def fetch(self) -> None:
        """Device memory back into the arrays of the arguments."""
        arrays = (a for p, a in zip(self._kernel.parameters, self._arguments, strict=True) if p.role != "scalar")
        for address, array in zip(self._held, arrays, strict=True):
            checked(driver().cuMemcpyDtoH(array.ctypes.data, address, array.nbytes))

    def __exit__(self, *_: object) -> None:
        for address in self._held:
            checked(driver().cuMemFree(address))


@dataclass(frozen=True)
class Check:
    """One kernel against its twin. error: as `cases.error`; replay_equal: a graph's replay gives the bits of the plain launch."""

    entry: str
    slots: int
    error: float
    tolerance: float
    replay_equal: bool
    registers: int
    local_bytes: int

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance and self.replay_equal and self.local_bytes == 0


@dataclass(frozen=True)
class Timing:
    """One launch out of many in a CUDA graph; rates by `Kernel.cost`, as if every slot took part."""

    entry: str
    slots: int
    microseconds: float
    bytes_per_s: float
    flops_per_s: float


def _case(kernel: Kernel, slots: int, seed: int) -> tuple[dict[str, int], Launch, tuple[Any, ...]]:
    sizes, arguments = CASES[kernel.entry](np.random.default_rng(seed), slots)
    return sizes, kernel.geometry(**sizes), arguments


def check(gpu: Gpu, kernel: Kernel, slots: int, seed: int = 0) -> Check:
    """Launch on random data, plainly and from a graph, and compare. KernelError for an error of the device."""
    _, launch, arguments = _case(kernel, slots, seed)
    function = load(kernel, gpu.arch)
    expected, plain, replayed = arguments, copy.deepcopy(arguments), copy.deepcopy(arguments)
    device = OnDevice(kernel, plain)
    with device as packed:
        enqueue(function, launch, packed, gpu.stream)
        gpu.wait()
        device.fetch()
    device = OnDevice(kernel, replayed)
    with device as packed, gpu.graph(lambda: enqueue(function, launch, packed, gpu.stream)) as graph:
        checked(driver().cuGraphLaunch(graph, gpu.stream))
        gpu.wait()
        device.fetch()
    kernel.twin(*expected)
    pairs = zip(kernel.parameters, plain, replayed, strict=True)
    same = all(p.role == "scalar" or a.tobytes() == b.tobytes() for p, a, b in pairs)
    return Check(kernel.entry, slots, error(kernel, expected, plain), kernel.tolerance, same, function.registers, function.local_bytes)


def measure(gpu: Gpu, kernel: Kernel, slots: int, launches: int = 50, replays: int = 10) -> Timing:
    """The mean time of a launch, from events around `replays` replays of a graph of `launches` launches, after one to warm up."""
    d = driver()
    sizes, launch, arguments = _case(kernel, slots, seed=0)
    function = load(kernel, gpu.arch)
    start, end = checked(d.cuEventCreate(0)), checked(d.cuEventCreate(0))

    def many() -> None:
        for _ in range(launches):
            enqueue(function, launch, packed, gpu.stream)

    with OnDevice(kernel, arguments) as packed, gpu.graph(many) as graph:
        checked(d.cuGraphLaunch(graph, gpu.stream))
        checked(d.cuEventRecord(start, gpu.stream))
        for _ in range(replays):
            checked(d.cuGraphLaunch(graph, gpu.stream))
        checked(d.cuEventRecord(end, gpu.stream))
        checked(d.cuEventSynchronize(end))
        seconds = checked(d.cuEventElapsedTime(start, end)) / 1000 / (launches * replays)
    for event in (start, end):
        checked(d.cuEventDestroy(event))
    cost = kernel.cost(**sizes)
    return Timing(kernel.entry, slots, seconds * 1e6, cost.bytes / seconds, cost.flops / seconds)
