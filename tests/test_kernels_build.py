"""NVRTC compiles every kernel for every architecture without a spill, and the cache of cubins trusts nothing it finds. No GPU needed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from voicewire.kernels import ALL, ARCHITECTURES, KernelError, build, cache

SOURCES = sorted({k.source for k in ALL})
SOURCE, ARCH = "kv_ring.cu", "sm_90"


@pytest.fixture(autouse=True)
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        build.compiler()
    except KernelError as e:
        pytest.skip(str(e))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def reports(log: str) -> dict[str, tuple[int, int, int]]:
    """By entry: bytes of stack, of spill stores, of spill loads."""
    pattern = r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    return {name: (int(a), int(b), int(c)) for name, a, b, c in re.findall(pattern, log, re.DOTALL)}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_kernel_compiles_without_spills(arch: str) -> None:
    for source in SOURCES:
        cubin, log = build.compile_source(source, (build.FOLDER / source).read_bytes(), arch)
        entries = {k.entry for k in ALL if k.source == source}
        assert cubin.startswith(b"\x7fELF") and all(entry.encode() in cubin for entry in entries)
        assert reports(log) == {entry: (0, 0, 0) for entry in entries}


def test_a_spill_is_seen() -> None:
    """The control: a kernel that cannot keep what it holds in the registers it is allowed."""
    text = b"""extern "C" __global__ void __launch_bounds__(1024) spills(const float* x, float* y) {
        float a[96];
    #pragma unroll
        for (int i = 0; i < 96; ++i) a[i] = x[i * blockDim.x + threadIdx.x];
        __syncthreads();
    #pragma unroll
        for (int i = 0; i < 96; ++i) y[(95 - i) * blockDim.x + threadIdx.x] = a[i] * a[(i * 7) % 96];
    }"""
    stack, stores, loads = reports(build.compile_source("spills.cu", text, ARCH)[1])["spills"]
    assert stack > 0 and stores > 0 and loads > 0


def test_errors_are_one_line() -> None:
    for text, arch, words in ((b"__global__ void f() { nope(); }", ARCH, "x.cu(1): error"), (b"", "sm_1", "--gpu-architecture")):
        with pytest.raises(KernelError, match=r"x\.cu does not compile for") as caught:
            build.compile_source("x.cu", text, arch)
        assert words in str(caught.value) and "\n" not in str(caught.value)


def kept() -> Path:
    (path,) = cache.folder().iterdir()
    return path


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes every compilation."""
    calls: list[str] = []
    real = build.compile_source

    def compile_source(source: str, text: bytes, arch: str) -> tuple[bytes, str]:
        calls.append(source)
        return real(source, text, arch)

    monkeypatch.setattr(build, "compile_source", compile_source)
    return calls


def test_a_kept_cubin_is_not_built_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    first = cache.cubin(SOURCE, ARCH)
    assert cache.cubin(SOURCE, ARCH) == first and calls == [SOURCE]
    assert kept().read_bytes().endswith(first)


@pytest.mark.parametrize("spoil", ["truncated", "empty", "foreign", "one bit", "of another key", "a folder"])
def test_a_cubin_that_is_not_ours_is_built_again(spoil: str, monkeypatch: pytest.MonkeyPatch) -> None:
    good = cache.cubin(SOURCE, ARCH)
    path = kept()
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[len(changed) // 2] ^= 1
    spoiled = {"truncated": whole[:-100], "empty": b"", "foreign": b"\x7fELF" * 100, "one bit": bytes(changed)}
    if spoil == "a folder":
        path.unlink()
        path.mkdir()
    elif spoil == "of another key":
        cache.store(path, b"another key", b"\x7fELF something else")
    else:
        path.write_bytes(spoiled[spoil])
    calls = counted(monkeypatch)
    assert cache.cubin(SOURCE, ARCH) == good and calls == [SOURCE]
    if spoil != "a folder":
        assert path.read_bytes() == whole, "the good cubin was not put back"


def test_the_key_knows_all_that_decides_a_cubin(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [cache.key(b"text", ARCH), cache.key(b"other", ARCH), cache.key(b"text", "sm_80")]
    with monkeypatch.context() as m:
        m.setattr(build, "headers", lambda: {"compat.h": b"changed"})
        keys.append(cache.key(b"text", ARCH))
    with monkeypatch.context() as m:
        m.setattr(build, "compiler", lambda: "nvrtc 99.0")
        keys.append(cache.key(b"text", ARCH))
    with monkeypatch.context() as m:
        m.setattr(build, "OPTIONS", ("--std=c++17",))
        keys.append(cache.key(b"text", ARCH))
    assert len(set(keys)) == len(keys)


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache.cubin(SOURCE, ARCH).startswith(b"\x7fELF")
