"""The kernels' own `.cu` sources, built by g++ behind the host shim (tests/shim) and run as a launch would run them."""

from __future__ import annotations

import os
import platform
import re
import struct
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from voicewire.kernels import ALL, Kernel
from voicewire.kernels.build import FOLDER

SHIM = Path(__file__).parent / "shim"
FIBERS = ("-DFIBERS", "-O1")
SANITIZER = ("-fsanitize=thread", "-pthread", "-O1")
BARRIER = "__syncthreads();"
RACE = 66  # exit status of the thread sanitizer when it found something


@dataclass(frozen=True)
class Host:
    """A program that holds all kernels, and `controls`: names of kernels that each lack one barrier, `brokenN/entry`."""

    program: Path
    controls: tuple[str, ...]
    before: tuple[str, ...]

    def launch(
        self, kernel: Kernel, sizes: dict[str, int], arguments: tuple[Any, ...], *, order: int = 0, threads: int | None = None, entry: str | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run on copies of the arguments and write the arrays back, as the device would. threads: of a block, instead of the geometry's."""
        kernel.verify(*arguments)
        g = kernel.geometry(**sizes)
        parts = [struct.pack("=8I", *g.grid, threads or g.block[0], *g.block[1:], g.shared_bytes, len(arguments))]
        for p, value in zip(kernel.parameters, arguments, strict=True):
            data = np.array(value, p.dtype).tobytes() if p.role == "scalar" else value.tobytes()
            parts.append(struct.pack("=2I", p.role != "scalar", len(data)) + data)
        env = {**os.environ, "SHIM_ORDER": str(order), "TSAN_OPTIONS": f"exitcode={RACE} halt_on_error=1"}
        done = subprocess.run([*self.before, self.program, entry or kernel.entry], input=b"".join(parts), capture_output=True, env=env, timeout=300)
        at = 0
        for p, value in zip(kernel.parameters, arguments, strict=True):
            if p.role != "scalar" and done.stdout:
                value.reshape(-1)[:] = np.frombuffer(done.stdout, value.dtype, value.size, at)
                at += value.nbytes
        return done


def _inlined(source: str) -> str:
    """A source with its headers, but for the first of all, in place of their includes."""
    text = re.sub(r"#pragma once\n", "", (FOLDER / source).read_text())
    return re.sub(r'#include "(?!compat)(\w+\.h)"\n', lambda m: _inlined(m[1]), text).replace('#include "compat.h"\n', "")


def _controls() -> tuple[str, list[str]]:
    """Text and names of all kernels that lack one barrier: every barrier of every source is left out once."""
    text, names = "", []
    for source in sorted({k.source for k in ALL}):
        parts = _inlined(source).replace('extern "C" ', "").split(BARRIER)
        for i in range(1, len(parts)):
            space = f"broken{len(names)}"
            whole = BARRIER.join(parts[:i]) + BARRIER.join(parts[i:])
            entry = re.findall(r"(\w+)\(\n", whole[: len(BARRIER.join(parts[:i]))])[-1:] or [next(k.entry for k in ALL if k.source == source)]
            text += f"namespace {space} {{\n{whole}}}\n"
            names.append(f"{space}/{entry[0]}")
    return text, names


def has_compiler() -> bool:
    try:
        return subprocess.run(["g++", "--version"], capture_output=True).returncode == 0
    except OSError:
        return False


@cache
def _fixed_addresses() -> tuple[str, ...]:
    """The thread sanitizer of g++ 12 cannot place its memory where the system spreads addresses widely; `setarch -R` stops that."""
    command = ("setarch", platform.machine(), "-R")
    try:
        return command if subprocess.run([*command, "true"], capture_output=True).returncode == 0 else ()
    except OSError:
        return ()


def _compile(folder: Path, main: str, flags: tuple[str, ...], output: str) -> tuple[Path, list[str]]:
    broken, controls = _controls()
    lines = ['#include "compat.h"', "namespace shipped {", *(f'#include "{name}"' for name in sorted({k.source for k in ALL})), "}"]
    lines += [broken, "using namespace shipped;", "#define ENTRIES " + " ".join(f"ENTRY({k.entry})" for k in ALL)]
    lines += ["#define BROKEN_ENTRIES " + " ".join(f"BROKEN({name.replace('/', ', ')})" for name in controls), ""]
    (folder / "sources.inc").write_text("\n".join(lines))
    options = ["-std=c++20", "-g1", "-Wall", "-Wno-unknown-pragmas", "-DHOST_SHIM", *flags, f"-I{folder}", f"-I{SHIM}", f"-I{FOLDER}"]
    done = subprocess.run(["g++", *options, str(SHIM / main), "-o", str(folder / output)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]
    return folder / output, controls


def build(folder: Path, flags: tuple[str, ...]) -> Host:
    """All kernels as one program that runs a launch from its standard input."""
    program, controls = _compile(folder, "main.cpp", flags, "host")
    return Host(program, tuple(controls), _fixed_addresses() if flags == SANITIZER else ())


def build_driver(folder: Path) -> Path:
    """All kernels as a `libcuda.so.1` that cuda-python loads where LD_LIBRARY_PATH names its folder."""
    return _compile(folder, "fake_driver.cpp", (*FIBERS, "-shared", "-fPIC"), "libcuda.so.1")[0]
