"""A source of this folder to a cubin, by NVRTC (no GPU, no driver, no CUDA toolkit: `pip install 'voicewire[gpu]'`)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from .kernel import KernelError

FOLDER = Path(__file__).parent
OPTIONS = ("--std=c++17", "--ptxas-options=-v")
MISSING = "compiling the CUDA kernels needs NVRTC: pip install 'voicewire[gpu]'"


@cache
def _nvrtc() -> Any:
    """The module `cuda.bindings.nvrtc` with its library loaded; KernelError where either is missing."""
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError, OSError) as e:  # no package; no library; a library that does not load
        raise KernelError(f"{MISSING} ({str(e).splitlines()[0]})") from None
    return nvrtc


def _checked(result: tuple[Any, ...]) -> Any:
    error, *values = result
    if int(error) != 0:
        raise KernelError(f"NVRTC: {error.name}")
    return values[0] if len(values) == 1 else values


def compiler() -> str:
    """Name and version of the compiler, for the cache."""
    major, minor = _checked(_nvrtc().nvrtcVersion())
    return f"nvrtc {major}.{minor}"


def headers() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(FOLDER.glob("*.h"))}


def compile_source(source: str, text: bytes, arch: str) -> tuple[bytes, str]:
    """source: the file's name in messages, text: its CUDA C++, arch: `sm_90`, … → (cubin, the assembler's report: registers and spills
    of every entry). KernelError with the compiler's first error."""
    nvrtc, include = _nvrtc(), headers()
    program = _checked(nvrtc.nvrtcCreateProgram(text, source.encode(), len(include), list(include.values()), [name.encode() for name in include]))
    try:
        options = [f"--gpu-architecture={arch}".encode(), *(o.encode() for o in OPTIONS)]
        (error,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        report = bytearray(_checked(nvrtc.nvrtcGetProgramLogSize(program)))
        _checked(nvrtc.nvrtcGetProgramLog(program, report))
        log = report.decode(errors="replace").rstrip("\0 \n")
        if int(error) != 0:
            first = next((line for line in log.splitlines() if "error" in line), log or error.name)
            raise KernelError(f"{source} does not compile for {arch}: {first}")
        cubin = bytearray(_checked(nvrtc.nvrtcGetCUBINSize(program)))
        _checked(nvrtc.nvrtcGetCUBIN(program, cubin))
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return bytes(cubin), log
