"""Random launches of every kernel, for the checks on a GPU and the tests on the host: sizes for the geometry, then the arguments.

About a fifth of the slots are inactive, a fifth reset, and outputs start from garbage, so that what must stay untouched shows. Scores of
`rvq_nearest` are small whole numbers and halves: exact in float32 in any order of adding, ties included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .kernel import Kernel
from .pcm import ROW
from .stft import BINS, MAX_HOP

Rng = np.random.Generator
Case = tuple[dict[str, int], tuple[Any, ...]]
HOPS = (80, 110, 120, 160, 220, 221, 240, 320, 331, 441, 480)  # 8 … 48 kHz; 331 is prime


def _mask(rng: Rng, slots: int, share: float) -> Any:
    return (rng.random(slots) < share).astype(np.uint8)


def _normal(rng: Rng, *shape: int) -> Any:
    return rng.standard_normal(shape, np.float32)


def analyse(rng: Rng, slots: int) -> Case:
    hop = rng.choice(HOPS, slots).astype(np.int32)
    arrays = 0.3 * _normal(rng, slots, 2 * MAX_HOP), 0.3 * _normal(rng, slots, MAX_HOP)
    return {"slots": slots}, (*arrays, hop, _mask(rng, slots, 0.8), _mask(rng, slots, 0.2), _normal(rng, slots, 2, BINS, 2))


def synthesise(rng: Rng, slots: int) -> Case:
    hop = rng.choice(HOPS, slots).astype(np.int32)
    carried = [0.3 * _normal(rng, slots, MAX_HOP) for _ in range(2)]
    arrays = 0.02 * _normal(rng, slots, 2, BINS, 2), 0.3 * _normal(rng, slots, 2 * MAX_HOP), *carried
    dry = rng.choice([0, 0.05, 1, -0.1], slots).astype(np.float32)
    return {"slots": slots}, (*arrays, hop, dry, _mask(rng, slots, 0.8), _mask(rng, slots, 0.2), _normal(rng, slots, 2 * MAX_HOP))


def nearest(rng: Rng, slots: int, layers: int = 4, codes: int = 1024, dim: int = 64) -> Case:
    z = rng.integers(-8, 9, (slots, dim)).astype(np.float32)
    books = rng.integers(-4, 5, (layers, dim, codes)).astype(np.float32)
    books[:, :, codes // 2] = books[:, :, codes // 3]  # a tie: the lower index wins
    sizes = {"slots": slots, "layers": layers, "codes": codes, "dim": dim}
    outputs = rng.integers(0, 99, (slots, layers), np.int32), _normal(rng, slots, dim)
    return sizes, (z, books, 0.5 * np.square(books).sum(1), _mask(rng, slots, 0.8), *outputs, slots, layers, codes, dim)


def sample(rng: Rng, slots: int, codes: int = 1024, row_words: int = 192, layers: int = 4) -> Case:
    logits = np.round(3 * _normal(rng, slots, codes), 1)  # many equal ones
    logits[6::7] = np.nan
    logits[rng.random(logits.shape) < 0.01] = np.nan
    table, layer = _normal(rng, codes, row_words), int(rng.integers(layers))
    seed, position = rng.integers(0, 2**64, slots, np.uint64), rng.integers(0, 2**40, slots)
    temperature = rng.choice([0, 0.3, 1, 2, np.inf], slots).astype(np.float32)
    top_k = rng.choice([0, 1, 2, 7, codes // 2, codes], slots).astype(np.int32)
    outputs = rng.integers(0, 99, (slots, layers), np.int32), _normal(rng, slots, row_words)
    sizes = {"slots": slots, "codes": codes, "row_words": row_words}
    return sizes, (logits, table, seed, position, temperature, top_k, _mask(rng, slots, 0.8), *outputs, layer, layers, codes, row_words)


def write(rng: Rng, slots: int, layers: int = 3, window: int = 125, row_words: int = 192) -> Case:
    rings = [_normal(rng, slots, layers, window, row_words) for _ in range(2)]
    rows = [_normal(rng, slots, layers, row_words) for _ in range(2)]
    at = np.where(_mask(rng, slots, 0.8), rng.integers(0, window, slots), -1).astype(np.int32)
    return {"slots": slots, "layers": layers, "row_words": row_words}, (*rings, *rows, at, _mask(rng, slots, 0.2), layers, window, row_words)


def _entries(rng: Rng, slots: int) -> tuple[Any, Any]:
    """Two thirds of the slots in any order, then unused entries; samples of each."""
    slot = rng.permutation(slots).astype(np.int32)
    slot[slots * 2 // 3 :] = -1
    return slot, rng.choice([2 * h for h in HOPS], slots).astype(np.int32)


def s16_in(rng: Rng, slots: int) -> Case:
    return {"entries": slots}, (rng.integers(-32768, 32768, (slots, ROW), np.int16), *_entries(rng, slots), _normal(rng, slots, ROW))


def mulaw_in(rng: Rng, slots: int) -> Case:
    return {"entries": slots}, (rng.integers(0, 256, (slots, ROW), np.uint8), *_entries(rng, slots), _normal(rng, slots, ROW))


def _loud(rng: Rng, slots: int) -> Any:
    pcm = 0.5 * _normal(rng, slots, ROW)
    pcm[:, ::97] = rng.choice([np.nan, np.inf, -np.inf, 1, -1, 0.5 / 32768, 1.5 / 32768], pcm[:, ::97].shape)
    return pcm


def s16_out(rng: Rng, slots: int) -> Case:
    return {"entries": slots}, (_loud(rng, slots), *_entries(rng, slots), rng.integers(-32768, 32768, (slots, ROW), np.int16))


def mulaw_out(rng: Rng, slots: int) -> Case:
    return {"entries": slots}, (_loud(rng, slots), *_entries(rng, slots), rng.integers(0, 256, (slots, ROW), np.uint8))


CASES: dict[str, Callable[..., Case]] = {
    "stft_analyse": analyse, "stft_synthesise": synthesise, "rvq_nearest": nearest, "depth_sample": sample, "kv_ring_write": write,
    "s16_to_slots": s16_in, "mulaw_to_slots": mulaw_in, "slots_to_s16": s16_out, "slots_to_mulaw": mulaw_out,
}  # fmt: skip


def error(kernel: Kernel, expected: tuple[Any, ...], got: tuple[Any, ...]) -> float:
    """The largest difference of any array, relative to its largest value where that is above one; infinite where bits that must agree do not."""
    worst = 0.0
    for p, a, b in zip(kernel.parameters, expected, got, strict=True):
        if p.role == "scalar" or a.tobytes() == b.tobytes():
            continue
        if p.role == "in" or p.dtype != "float32" or not kernel.tolerance:
            return np.inf
        difference = float(np.abs(a - b).max()) / max(1.0, float(np.abs(a).max()))
        worst = max(worst, difference if np.isfinite(difference) else np.inf)
    return worst
