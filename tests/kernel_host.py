"""The kernels' own `.cu` sources, built by g++ behind the host shim (tests/shim) and run as a launch would run them."""

from __future__ import annotations

import os
import platform
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voicewire.kernels import ALL, Kernel
from voicewire.kernels.build import FOLDER

SHIM = Path(__file__).parent / "shim"
SANITIZE = ("-fsanitize=thread", "-pthread", "-O1")
FIBERS = ("-DFIBERS", "-O2")


@dataclass(frozen=True)
class Host:
    """A program that holds all kernels. `launch` copies the arguments in, runs, and copies the arrays back."""

    program: Path
    before: tuple[str, ...] = ()

    def launch(self, kernel: Kernel, sizes: dict[str, int], *arguments: Any, order: int = 0) -> None:
        kernel.verify(*arguments)
        g = kernel.geometry(**sizes)
        parts = [struct.pack("=8I", *g.grid, *g.block, g.shared_bytes, len(arguments))]
        for p, value in zip(kernel.parameters, arguments, strict=True):
            data = np.dtype(p.dtype).type(value).tobytes() if p.role == "scalar" else value.tobytes()
            parts.append(struct.pack("=2I", p.role != "scalar", len(data)) + data)
        done = self.run(kernel.entry, b"".join(parts), order)
        if done.returncode:
            raise AssertionError(f"{kernel.entry}: exit {done.returncode}: {done.stderr.decode(errors='replace')[:3000]}")
        at = 0
        for p, value in zip(kernel.parameters, arguments, strict=True):
            if p.role != "scalar":
                value.reshape(-1)[:] = np.frombuffer(done.stdout, value.dtype, value.size, at)
                at += value.nbytes

    def run(self, entry: str, data: bytes, order: int) -> subprocess.CompletedProcess[bytes]:
        env = {**os.environ, "SHIM_ORDER": str(order), "TSAN_OPTIONS": "exitcode=66"}
        return subprocess.run([*self.before, self.program, entry], input=data, capture_output=True, env=env, timeout=120)


def build(folder: Path, flags: tuple[str, ...], without_barrier: str | None = None) -> Host:
    """Compile all sources into one program. without_barrier: a source or header that loses its last `__syncthreads();`, as a control."""
    for path in [*FOLDER.glob("*.cu"), *FOLDER.glob("*.h")]:
        shutil.copy(path, folder)
    if without_barrier is not None:
        path = folder / without_barrier
        before, barrier, after = path.read_text().rpartition("__syncthreads();")
        assert barrier, f"{without_barrier} has no barrier"
        path.write_text(before + after)
    sources = "".join(f'#include "{name}"\n' for name in sorted({k.source for k in ALL}))
    (folder / "sources.inc").write_text(sources + "#define ENTRIES " + " ".join(f"ENTRY({k.entry})" for k in ALL) + "\n")
    program = folder / "host"
    command = ["g++", "-std=c++20", "-g1", "-Wall", "-Wno-unknown-pragmas", "-DHOST_SHIM", *flags, f"-I{folder}", f"-I{SHIM}", str(SHIM / "main.cpp"), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]
    # the sanitizer of g++ 12 cannot place its shadow memory where the kernel randomises addresses widely
    fixed = ("setarch", platform.machine(), "-R") if "-fsanitize=thread" in flags else ()
    return Host(program, fixed)
