"""What a kernel is to the rest of voicewire: a source, a launch geometry, a cost and a NumPy twin, in one frozen object.

    cubin = kernel.compile("sm_90")                    # bytes, from the cache on disk when it is there
    launch = kernel.geometry(slots=4096)               # grid, block, shared_bytes for cuLaunchKernel
    kernel.twin(pcm, tail, …)                          # the same arguments in the same order as the launch, on NumPy arrays, written in place

Arguments: one per entry of `kernel.parameters`, in order. An array is C-contiguous, the shape and type stand in the docstring of the
module that defines the kernel; a scalar is passed by value. On the device an array is its address (`launch.py` packs both).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Role = Literal["in", "out", "inout", "scalar"]


class KernelError(RuntimeError):
    """A kernel that cannot be compiled or launched: one line that says what to do."""


@dataclass(frozen=True)
class Launch:
    """Geometry of one launch: blocks, threads a block, bytes of dynamic shared memory."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int = 0


@dataclass(frozen=True)
class Cost:
    """What one launch must at least move through device memory, and how much arithmetic it does."""

    bytes: int
    flops: int
    launches: int = 1


@dataclass(frozen=True)
class Parameter:
    """One argument. dtype: a NumPy name (an array of bool may stand for uint8), or `word`: any element type whose rows are whole 32-bit
    words (copied, never computed with)."""

    name: str
    dtype: str
    role: Role


def parameters(text: str) -> tuple[Parameter, ...]:
    """`name dtype role` a line → parameters; lines without a role are scalars."""
    found = []
    for line in text.strip().splitlines():
        name, dtype, *role = line.split()
        found.append(Parameter(name, dtype, role[0] if role else "scalar"))  # type: ignore[arg-type]
    return tuple(found)


@dataclass(frozen=True)
class Kernel:
    """entry: the extern "C" name in `source`, a file of this folder. `geometry` and `cost` take the sizes named in the module's docstring.

    tolerance: the most that outputs of the device may differ from the twin's; 0 is bit for bit.
    """

    entry: str
    source: str
    parameters: tuple[Parameter, ...]
    geometry: Callable[..., Launch]
    cost: Callable[..., Cost]
    reference: Callable[..., None]
    tolerance: float = 0.0

    def compile(self, arch: str) -> bytes:
        """arch: `sm_80`, `sm_90`, … → the cubin, from the cache or built. KernelError in one line without NVRTC."""
        from .cache import cubin

        return cubin(self.source, arch)

    def twin(self, *arguments: Any) -> None:
        """The launch on NumPy arrays, outputs written in place. TypeError for an argument the device would misread."""
        self.verify(*arguments)
        self.reference(*arguments)

    def verify(self, *arguments: Any) -> None:
        """TypeError for a wrong number of arguments, a wrong element type, or an array that is not C-contiguous."""
        if len(arguments) != len(self.parameters):
            raise TypeError(f"{self.entry} takes {len(self.parameters)} arguments, not {len(arguments)}")
        for p, value in zip(self.parameters, arguments, strict=True):
            if p.role == "scalar":
                if not np.isscalar(value):
                    raise TypeError(f"{self.entry}: {p.name} is a {p.dtype} scalar, not {type(value).__name__}")
            elif not isinstance(value, np.ndarray) or not value.flags.c_contiguous:
                raise TypeError(f"{self.entry}: {p.name} is a C-contiguous array")
            elif p.dtype not in ("word", value.dtype.name) and (p.dtype, value.dtype.name) != ("uint8", "bool"):
                raise TypeError(f"{self.entry}: {p.name} is {p.dtype}, not {value.dtype}")
