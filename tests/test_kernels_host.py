"""The kernels' `.cu` sources run on the CPU behind a shim of CUDA's words: arithmetic, indexing, masks and barriers, against the NumPy twins.

What this cannot show: the memory model of a GPU between blocks, limits of a launch, speed. `tools` has the check for a GPU.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_host import FIBERS, RACE, SANITIZER, Host, build, build_driver, has_compiler

from voicewire.engines import stft
from voicewire.kernels import ALL, RVQ_NEAREST, STFT_ANALYSE, STFT_SYNTHESISE, Kernel, KernelError
from voicewire.kernels.cases import CASES, error

pytestmark = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler: kernels are not tried on the CPU (apt-get install g++)")
each = pytest.mark.parametrize("kernel", ALL, ids=lambda k: k.entry)
BY_ENTRY = {k.entry: k for k in ALL}
SIZES = {
    "rvq_nearest": {"layers": (1, 3), "codes": (1, 80), "dim": (1, 40)},
    "depth_sample": {"codes": (1, 70), "row_words": (1, 70)},
    "kv_ring_write": {"layers": (1, 3), "window": (1, 9), "row_words": (1, 40)},
}
TWO_WARPS = {  # as small as shows a race between two warps
    "rvq_nearest": {"codes": 70, "dim": 70, "layers": 2}, "depth_sample": {"codes": 60, "row_words": 70}, "kv_ring_write": {"window": 7, "row_words": 70},
}  # fmt: skip


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    return build(tmp_path_factory.mktemp("fibers"), FIBERS)


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Host:
    made = build(tmp_path_factory.mktemp("sanitizer"), SANITIZER)
    sizes, arguments = CASES[ALL[0].entry](np.random.default_rng(0), 1)
    told = made.launch(ALL[0], sizes, arguments, threads=32).stderr.decode(errors="replace")
    if "FATAL: ThreadSanitizer" in told:
        pytest.skip(f"the thread sanitizer does not run here: {told.strip().splitlines()[0]}")
    return made


def twin(kernel: Kernel, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    expected = copy.deepcopy(arguments)
    kernel.twin(*expected)
    return expected


def run(host: Host, kernel: Kernel, sizes: dict[str, int], arguments: tuple[Any, ...], **options: Any) -> tuple[Any, ...]:
    """What the source makes of copies of the arguments."""
    got = copy.deepcopy(arguments)
    done = host.launch(kernel, sizes, got, **options)
    assert done.returncode == 0, f"{kernel.entry}: exit {done.returncode}: {done.stderr.decode(errors='replace')[:3000]}"
    return got


# -- against the twins -------------------------------------------------------------------------------------------------


@each
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_source_is_its_twin(host: Host, kernel: Kernel, data: st.DataObject) -> None:
    """Any small sizes, odd numbers of slots, inactive and reset ones, blocks and threads in any order."""
    small = {name: data.draw(st.integers(*span), name) for name, span in SIZES.get(kernel.entry, {}).items()}
    slots, seed, order = data.draw(st.integers(1, 9), "slots"), data.draw(st.integers(0, 999), "seed"), data.draw(st.integers(0, 9), "order")
    sizes, arguments = CASES[kernel.entry](np.random.default_rng(seed), slots, **small)
    assert error(kernel, twin(kernel, arguments), run(host, kernel, sizes, arguments, order=order)) <= kernel.tolerance


@each
def test_source_is_its_twin_at_full_size(host: Host, kernel: Kernel) -> None:
    sizes, arguments = CASES[kernel.entry](np.random.default_rng(1), 3)
    assert error(kernel, twin(kernel, arguments), run(host, kernel, sizes, arguments)) <= kernel.tolerance


def test_codes_of_real_numbers_are_the_nearest_up_to_rounding(host: Host) -> None:
    rng = np.random.default_rng(2)
    z, books = rng.standard_normal((6, 16), np.float32), rng.standard_normal((4, 16, 200), np.float32)
    half_norms, index, quantised = 0.5 * np.square(books).sum(1), np.zeros((6, 4), np.int32), np.zeros((6, 16), np.float32)
    sizes = {"slots": 6, "layers": 4, "codes": 200, "dim": 16}
    got = run(host, RVQ_NEAREST, sizes, (z, books, half_norms, np.ones(6, np.uint8), index, quantised, 6, 4, 200, 16))
    left = z.astype(np.float64)
    for layer in range(4):
        score = half_norms[layer] - left @ books[layer]
        chosen = got[4][:, layer]
        assert (score[np.arange(6), chosen] <= score.min(1) + 1e-4).all()
        left -= books[layer][:, chosen].T
    np.testing.assert_allclose(got[5], z - left, atol=1e-5)


def test_stft_through_the_sources_is_the_engines(host: Host) -> None:
    """Three frames at five rates, shares of the input and louder and quieter, both states carried, against `engines.stft` itself. Bar: 1e-4."""
    rng = np.random.default_rng(3)
    hop = np.array([stft.hop_samples(r) for r in (8000, 11025, 16000, 44100, 48000)], np.int32)
    slots, on, off = len(hop), np.ones(len(hop), np.uint8), np.zeros(len(hop), np.uint8)
    dry = np.array([0, 0.05, -0.1, 1, -4], np.float32)
    tail, overlap = (np.zeros((slots, 480), np.float32) for _ in range(2))
    tails, overlaps = ([np.zeros((1, h), np.float32) for h in hop] for _ in range(2))
    for _ in range(3):
        pcm, spec, out = rng.standard_normal((slots, 960), np.float32), np.zeros((slots, 2, 480, 2), np.float32), np.zeros((slots, 960), np.float32)
        _, tail, *_, spec = run(host, STFT_ANALYSE, {"slots": slots}, (pcm, tail, hop, on, off, spec))
        speech = spec * rng.random(spec.shape, np.float32)
        _, _, tail, overlap, *_, out = run(host, STFT_SYNTHESISE, {"slots": slots}, (speech, pcm, tail, overlap, hop, dry, on, off, out))
        for s, h in enumerate(hop):
            expected, tails[s] = stft.analyse(tails[s], pcm[s : s + 1, : 2 * h])
            samples, overlaps[s] = stft.finish(overlaps[s], expected, speech[s : s + 1], dry[s : s + 1])
            assert np.abs(spec[s] - expected[0, :, :-1]).max() < 1e-4 and np.abs(out[s, : 2 * h] - samples[0]).max() < 1e-4
            np.testing.assert_array_equal(tail[s, :h], tails[s][0])


def test_slots_outside_the_rates_are_left_alone(host: Host) -> None:
    for kernel in (STFT_ANALYSE, STFT_SYNTHESISE):
        sizes, arguments = CASES[kernel.entry](np.random.default_rng(4), 4)
        of = {p.name: a for p, a in zip(kernel.parameters, arguments, strict=True)}
        of["hop"][:] = [0, -3, 481, 2**30]
        of["reset"][:] = 0
        got = run(host, kernel, sizes, arguments)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(arguments, got, strict=True))


# -- barriers ----------------------------------------------------------------------------------------------------------


def two_warps(kernel: Kernel) -> tuple[dict[str, int], tuple[Any, ...]]:
    return CASES[kernel.entry](np.random.default_rng(7), 3, **TWO_WARPS.get(kernel.entry, {}))


@each
def test_no_data_race(sanitized: Host, kernel: Kernel) -> None:
    sizes, arguments = two_warps(kernel)
    assert error(kernel, twin(kernel, arguments), run(sanitized, kernel, sizes, arguments, threads=64)) <= kernel.tolerance


def test_the_sanitizer_finds_every_barrier_that_is_left_out(sanitized: Host) -> None:
    assert len(sanitized.controls) >= 8
    for control in sanitized.controls:
        kernel = BY_ENTRY[control.split("/")[1]]
        sizes, arguments = two_warps(kernel)
        done = sanitized.launch(kernel, sizes, arguments, threads=64, entry=control)
        assert done.returncode == RACE and b"data race" in done.stderr, f"{control}: the sanitizer saw nothing"


def test_some_order_of_threads_shows_every_barrier_that_is_left_out(host: Host) -> None:
    for control in host.controls:
        kernel = BY_ENTRY[control.split("/")[1]]
        sizes, arguments = two_warps(kernel)
        expected, errors = twin(kernel, arguments), []
        for order in range(3):
            got = copy.deepcopy(arguments)
            assert host.launch(kernel, sizes, got, threads=64, order=order, entry=control).returncode == 0
            errors.append(error(kernel, expected, got))
        assert max(errors) > kernel.tolerance, f"{control}: the answer stayed right"


# -- launches through cuda-python --------------------------------------------------------------------------------------


def test_the_gpu_check_runs_on_a_driver_made_of_the_shim(tmp_path: Path) -> None:
    """cuda-python loads a `libcuda.so.1` of ours: the calls, handles and packed arguments of launch.py and check.py are the real ones."""
    try:
        for kernel in ALL:  # into the cache: NVRTC itself would take the driver for a real one
            kernel.compile("sm_90")
    except KernelError as e:
        pytest.skip(str(e))
    build_driver(tmp_path)
    code = """
from voicewire.kernels import ALL
from voicewire.kernels.check import Gpu, check, measure
gpu = Gpu()
assert (gpu.name, gpu.arch) == ("host shim", "sm_90")
for kernel in ALL:
    done = check(gpu, kernel, slots=2)
    assert done.ok, done
    timing = measure(gpu, kernel, slots=1, launches=2, replays=1)
    assert abs(timing.microseconds - 500) < 1e-6, timing  # the driver says that a millisecond has passed
    print(kernel.entry)
"""
    env = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [k.entry for k in ALL]
