"""The kernels' NumPy twins against the code that voicewire runs on a CPU, and the interface they share. The `.cu` sources: test_kernels_host.py."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voicewire import kernels
from voicewire.engines import stft
from voicewire.engines.net.trunk import write_rows
from voicewire.kernels import ALL, DEPTH_SAMPLE, KV_RING_WRITE, RVQ_NEAREST, Kernel
from voicewire.kernels.build import FOLDER
from voicewire.kernels.cases import CASES, HOPS
from voicewire.kernels.philox import philox
from voicewire.kernels.sampling import gumbel
from voicewire.rt.lane import to_int16
from voicewire.rt.relay import mulaw

each = pytest.mark.parametrize("kernel", ALL, ids=lambda k: k.entry)
F32 = np.float32


# -- STFT --------------------------------------------------------------------------------------------------------------


@given(rates=st.lists(st.integers(stft.MIN_RATE, stft.MAX_RATE), min_size=1, max_size=5), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_stft_twins_are_the_engines_stft(rates: list[int], seed: int) -> None:
    """Four frames at any rates and shares of the input, the states carried, slot 0 paused in one frame and the last slot reset in another."""
    rng, slots = np.random.default_rng(seed), len(rates)
    hop = np.array([stft.hop_samples(r) for r in rates], np.int32)
    tail, overlap = (np.zeros((slots, 480), F32) for _ in range(2))
    tails, overlaps = ([np.zeros((1, h), F32) for h in hop] for _ in range(2))
    for t in range(4):
        pcm, spec, out = rng.standard_normal((slots, 960)).astype(F32), np.full((slots, 2, 480, 2), 7, F32), np.full((slots, 960), 7, F32)
        active, reset, dry = np.ones(slots, np.uint8), np.zeros(slots, np.uint8), rng.choice([0, 0.05, 1, -1e-5, -2], slots).astype(F32)
        active[0], reset[-1] = t != 1, t == 2
        kernels.STFT_ANALYSE.twin(pcm, tail, hop, active, reset, spec)
        speech = np.where(active[:, None, None, None], spec * rng.random(spec.shape, F32), spec)
        kernels.STFT_SYNTHESISE.twin(speech, pcm, tail, overlap, hop, dry, active, reset, out)
        for s, h in enumerate(hop):
            if reset[s]:
                tails[s], overlaps[s] = np.zeros((1, h), F32), np.zeros((1, h), F32)
            if active[s]:
                expected, tails[s] = stft.analyse(tails[s], pcm[s : s + 1, : 2 * h])
                np.testing.assert_allclose(spec[s], expected[0, :, :-1], atol=1e-6)
                samples, overlaps[s] = stft.finish(overlaps[s], expected, speech[s : s + 1], dry[s : s + 1])
                np.testing.assert_allclose(out[s, : 2 * h], samples[0], atol=1e-5)
                assert (out[s, 2 * h :] == 7).all()
            else:
                assert (spec[s] == 7).all() and (out[s] == 7).all()
            np.testing.assert_allclose(tail[s, :h], tails[s][0], atol=1e-6)
            np.testing.assert_allclose(overlap[s, :h], overlaps[s][0], atol=1e-5)


def test_shared_memory_of_the_stft_fits_the_longest_hop() -> None:
    """Two buffers and the twiddles: 480 samples a hop stay under the 48 KiB every GPU gives without asking."""
    assert 3 * 8 * 2 * max(HOPS) == kernels.STFT_ANALYSE.geometry(slots=1).shared_bytes <= 48 * 1024


# -- samples -----------------------------------------------------------------------------------------------------------


def test_mulaw_twins_are_the_relays_mulaw() -> None:
    codes = np.zeros((1, 960), np.uint8)
    codes[0, :256] = np.arange(256)
    pcm = np.full((2, 960), 7, F32)
    kernels.MULAW_TO_SLOTS.twin(codes, np.array([1], np.int32), np.array([256], np.int32), pcm)
    assert np.array_equal(pcm[1, :256] * 32768, mulaw.decode(bytes(range(256)))) and (pcm[0] == 7).all() and (pcm[1, 256:] == 7).all()

    samples = np.arange(-32768, 32768, dtype=np.int16).reshape(-1, 512)
    every = np.zeros((128, 960), F32)
    every[:, :512] = samples / F32(32768)
    encoded = np.zeros((128, 960), np.uint8)
    slot, count = np.arange(128, dtype=np.int32), np.full(128, 512, np.int32)
    kernels.SLOTS_TO_MULAW.twin(every, slot, count, encoded)
    assert encoded[:, :512].tobytes() == mulaw.encode(samples.reshape(-1))

    whole = np.zeros((128, 960), np.int16)
    kernels.SLOTS_TO_S16.twin(every, slot, count, whole)
    back = np.zeros((128, 960), F32)
    kernels.S16_TO_SLOTS.twin(whole, slot, count, back)
    assert np.array_equal(whole[:, :512], samples) and np.array_equal(back, every)


def test_rounding_is_the_lanes() -> None:
    x = np.array([[0.5, 1.5, 2.5, -0.5, -1.5, 32766.5, 32767.5, 40000, -32768.5, -40000, np.inf, -np.inf]], F32) / F32(32768)
    pcm, whole = np.zeros((1, 960), F32), np.zeros((1, 960), np.int16)
    pcm[:, : x.size] = x
    kernels.SLOTS_TO_S16.twin(pcm, np.zeros(1, np.int32), np.array([x.size], np.int32), whole)
    assert np.array_equal(whole[:, : x.size], to_int16(x))


# -- attention rings, quantiser ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, np.float16])
def test_rings_are_written_as_the_trunk_does(dtype: type) -> None:
    rng = np.random.default_rng(3)
    slots, layers, window, heads, dim = 5, 3, 7, 2, 4
    k, v = (rng.standard_normal((slots, layers, window, heads, dim)).astype(dtype) for _ in range(2))
    rows = [rng.standard_normal((slots, layers, heads, dim)).astype(dtype) for _ in range(2)]
    pos = rng.integers(0, 40, slots)
    state = {"k": torch.tensor(k), "v": torch.tensor(v), "pos": torch.tensor(pos)}
    expected = write_rows(state, torch.tensor(rows[0]), torch.tensor(rows[1]))
    at, reset = (pos % window).astype(np.int32), np.zeros(slots, np.uint8)
    at[1], at[2], reset[2], reset[3] = -1, -1, 1, 1
    before = k[1].copy()
    k[2:4] = np.nan
    KV_RING_WRITE.twin(k, v, *rows, at, reset, layers, window, heads * dim * k.itemsize // 4)
    for s in (0, 4):
        assert np.array_equal(k[s], expected["k"][s].numpy()) and np.array_equal(v[s], expected["v"][s].numpy())
    assert np.array_equal(k[1], before), "a slot that is not active changed"
    assert not k[2].any() and not v[2].any(), "a reset slot was not cleared"
    assert np.array_equal(k[3, :, at[3]], rows[0][3]) and np.count_nonzero(k[3]) == layers * heads * dim


def test_codes_are_the_nearest() -> None:
    rng = np.random.default_rng(4)
    z, books = rng.standard_normal((9, 16)).astype(F32), rng.standard_normal((3, 16, 50)).astype(F32)
    index, quantised, active = np.full((9, 3), -1, np.int32), np.full((9, 16), 7, F32), np.ones(9, np.uint8)
    active[4] = 0
    RVQ_NEAREST.twin(z, books, 0.5 * np.square(books).sum(1), active, index, quantised, 9, 3, 50, 16)
    assert (index[4] == -1).all() and (quantised[4] == 7).all()
    for s in np.flatnonzero(active):
        left = z[s].astype(np.float64)
        for layer in range(3):
            distance = np.square(left[:, None] - books[layer]).sum(0)
            assert index[s, layer] == distance.argmin()
            left -= books[layer][:, index[s, layer]]
        np.testing.assert_allclose(quantised[s], z[s] - left, atol=1e-5)


# -- sampling ----------------------------------------------------------------------------------------------------------

# Known answers of Random123 (kat_vectors, philox4x32 10)
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_philox_known_answers(counter: str, key: str, answer: str) -> None:
    values = [np.array([int(word, 16) for word in text.split()], np.uint32) for text in (counter, key, answer)]
    assert np.array_equal(philox(values[0], values[1]), values[2])


def test_noise_is_gumbels() -> None:
    bits = np.append(np.random.default_rng(5).integers(0, 2**32, 200_000, np.uint32), np.array([0, 2**32 - 1], np.uint32))
    u = ((bits >> 9).astype(np.float64) + 0.5) / 2**23
    np.testing.assert_allclose(gumbel(bits), -np.log(-np.log(u)), rtol=1e-6, atol=2e-6)


def draw(logits: np.ndarray, temperature: float, top_k: int, *, seed: np.ndarray | None = None, position: int = 0, layer: int = 0) -> np.ndarray:
    """Tokens of as many slots as logits has rows, each with its own seed."""
    slots, codes = logits.shape
    table, embedded = np.arange(codes * 3, dtype=F32).reshape(codes, 3), np.zeros((slots, 3), F32)
    token = np.full((slots, 4), -1, np.int32)
    DEPTH_SAMPLE.twin(
        logits, table, np.arange(slots, dtype=np.uint64) if seed is None else seed, np.full(slots, position), np.full(slots, temperature, F32),
        np.full(slots, top_k, np.int32), np.ones(slots, np.uint8), token, embedded, layer, 4, codes, 3,
    )  # fmt: skip
    assert np.array_equal(embedded, table[token[:, layer]]) and (np.delete(token, layer, 1) == -1).all()
    return token[:, layer]


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (0.5, 0), (1.0, 3)])
def test_tokens_are_drawn_as_the_softmax_says(temperature: float, top_k: int) -> None:
    logits = np.array([2.0, 0.5, 1.5, 1.5, -1.0, 0.0, np.nan], F32)
    p = np.exp(np.nan_to_num(logits.astype(np.float64), nan=-np.inf) / temperature)
    if top_k:
        p[np.argsort(-p, kind="stable")[top_k:]] = 0
    p /= p.sum()
    n = 20_000
    counts = np.bincount(draw(np.tile(logits, (n, 1)), temperature, top_k, position=2**33 + 5), minlength=len(p))
    assert (counts[p == 0] == 0).all()
    assert (np.abs(counts - n * p) < 5 * np.sqrt(n * p * (1 - p)) + 1e-9).all(), (counts / n, p)


def test_draws_are_reproducible_and_independent() -> None:
    logits, seed = np.zeros((64, 1024), F32), np.full(64, 12345678901234567890, np.uint64)
    first = draw(logits, 1.0, 0, seed=seed)
    assert (first == first[0]).all() and np.array_equal(first, draw(logits, 1.0, 0, seed=seed))
    others = [draw(logits, 1.0, 0, seed=seed, position=1), draw(logits, 1.0, 0, seed=seed, layer=1), draw(logits, 1.0, 0, seed=seed + 1)]
    assert len({int(x[0]) for x in (first, *others)}) == 4


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan, np.inf])
def test_without_heat_the_largest_wins(temperature: float) -> None:
    logits = np.array([[0, 3, 3, -np.inf], [np.nan, -np.inf, -5, -4], [np.nan] * 4, [-0.0, 0.0, -1, -1]], F32)
    assert draw(logits, temperature, 2).tolist() == [1, 3, 0, 0]


# -- interface ---------------------------------------------------------------------------------------------------------


def declared(kernel: Kernel) -> list[tuple[str, bool]]:
    """Type and constness of each parameter in the CUDA source."""
    text = re.search(rf"{kernel.entry}\(([^)]*)\)", (FOLDER / kernel.source).read_text())
    assert text is not None, f"{kernel.entry} is not in {kernel.source}"
    names = {
        "float*": "float32", "int*": "int32", "unsigned*": "word", "unsigned char*": "uint8", "short*": "int16", "long long*": "int64",
        "unsigned long long*": "uint64", "int": "int32",
    }  # fmt: skip
    found = []
    for part in text[1].split(","):
        words = part.replace("__restrict__", "").split()
        found.append((names[" ".join(w for w in words[:-1] if w != "const")], "const" in words))
    return found


@each
def test_parameters_are_those_of_the_source(kernel: Kernel) -> None:
    assert [(p.dtype, p.role == "in") for p in kernel.parameters] == declared(kernel)


@each
def test_geometry_and_cost(kernel: Kernel) -> None:
    for slots in (1, 3, 4096):
        sizes, _ = CASES[kernel.entry](np.random.default_rng(0), 1)
        sizes |= {name: slots for name in ("slots", "entries") if name in sizes}
        launch, cost = kernel.geometry(**sizes), kernel.cost(**sizes)
        assert 1 <= launch.block[0] <= 1024 and launch.block[0] % 32 == 0 and launch.block[1:] == (1, 1)
        assert launch.grid[0] in (slots, -(-slots // 4)) and launch.shared_bytes <= 48 * 1024 and cost.bytes > 0 and cost.launches == 1


@each
def test_twin_refuses_what_the_device_would_misread(kernel: Kernel) -> None:
    _, arguments = CASES[kernel.entry](np.random.default_rng(0), 2)
    with pytest.raises(TypeError, match="arguments"):
        kernel.twin(*arguments[:-1])
    for i, p in enumerate(kernel.parameters):
        if p.role == "scalar":
            wrong: object = np.zeros(3)
        elif p.dtype == "word":
            wrong = np.asfortranarray(arguments[i])
        else:
            wrong = arguments[i].astype(np.complex64)
        with pytest.raises(TypeError, match=f"{kernel.entry}: {p.name} is"):
            kernel.twin(*arguments[:i], wrong, *arguments[i + 1 :])


def test_too_many_codes_are_refused() -> None:
    with pytest.raises(ValueError, match="1 to 1024 codes, not 2048"):
        DEPTH_SAMPLE.geometry(slots=1, codes=2048, row_words=1)


def test_without_cuda_the_kernels_import_and_say_what_is_missing() -> None:
    code = """
import sys
sys.modules["cuda"] = None
from voicewire.kernels import ALL, KernelError
from voicewire.kernels.check import Gpu
for attempt in (lambda: ALL[0].compile("sm_90"), Gpu):
    try: attempt()
    except KernelError as e: print(e)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)})
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all("pip install 'voicewire[gpu]'" in line for line in lines), done.stdout
