"""Kernels on an NVIDIA GPU through the driver API of cuda-python: load a cubin, pack arguments, launch in a stream.

    function = load(RVQ_NEAREST, "sm_90")              # a CUDA context is current
    packed = pack(RVQ_NEAREST, z, codebooks, …)        # addresses of arrays as int, scalars by value; built once, reused every step
    enqueue(function, RVQ_NEAREST.geometry(slots=…, …), packed, stream)

`enqueue` neither allocates nor waits, so it can be captured into a CUDA graph; a graph copies the packed values when it captures.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from .kernel import Kernel, KernelError, Launch


@cache
def driver() -> Any:
    """The module `cuda.bindings.driver`, initialised; KernelError in one line where the package, the driver or a GPU is missing."""
    try:
        from cuda.bindings import driver as module
    except ImportError:
        raise KernelError("an NVIDIA GPU needs cuda-python: pip install 'voicewire[gpu]'") from None
    try:
        (error,) = module.cuInit(0)
    except (RuntimeError, OSError) as e:  # no libcuda
        raise KernelError(f"no NVIDIA driver here ({e})") from None
    if int(error) != 0:
        raise KernelError(f"no usable NVIDIA GPU here ({error.name})")
    return module


def checked(result: tuple[Any, ...]) -> Any:
    """The values of a driver call; KernelError with the name of its error."""
    error, *values = result
    if int(error) != 0:
        raise KernelError(f"CUDA: {error.name}")
    return values[0] if len(values) == 1 else tuple(values)


@dataclass(frozen=True)
class Function:
    """A kernel on the device. registers and local_bytes (spills and stack) are a thread's."""

    handle: Any
    module: Any  # keeps the handle valid
    registers: int
    local_bytes: int


@dataclass(frozen=True)
class Packed:
    """Arguments of one launch as cuLaunchKernel reads them: an array of addresses of values."""

    values: tuple[Any, ...]
    addresses: Any


def load(kernel: Kernel, arch: str) -> Function:
    """Compile (or take from the cache) and load into the current context."""
    d = driver()
    module = checked(d.cuModuleLoadData(kernel.compile(arch)))
    handle = checked(d.cuModuleGetFunction(module, kernel.entry.encode()))
    attribute = d.CUfunction_attribute
    registers = checked(d.cuFuncGetAttribute(attribute.CU_FUNC_ATTRIBUTE_NUM_REGS, handle))
    local_bytes = checked(d.cuFuncGetAttribute(attribute.CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, handle))
    return Function(handle, module, registers, local_bytes)


def pack(kernel: Kernel, *values: int | float) -> Packed:
    """One value a parameter: the device address of an array, or the scalar. TypeError for a wrong number."""
    if len(values) != len(kernel.parameters):
        raise TypeError(f"{kernel.entry} takes {len(kernel.parameters)} arguments, not {len(values)}")
    held = tuple(
        np.array([value], p.dtype if p.role == "scalar" else np.uint64)  # a scalar out of range is an OverflowError
        for p, value in zip(kernel.parameters, values, strict=True)
    )
    return Packed(held, np.array([v.ctypes.data for v in held], np.uint64))


def enqueue(function: Function, launch: Launch, packed: Packed, stream: Any) -> None:
    """Put one launch into the stream."""
    checked(driver().cuLaunchKernel(function.handle, *launch.grid, *launch.block, launch.shared_bytes, stream, packed.addresses.ctypes.data, 0))
