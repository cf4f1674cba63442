"""A step's attention rows into the rings of all slots, keys and values in one launch, one block a slot and layer. After the engine's step.

k, v [slots, layers, window, heads, dim] word: rings, written in place
k_row, v_row [slots, layers, heads, dim] word: what the ONNX step returns as `trunk.k.row`, `trunk.v.row`
at [slots] int32: the place in the ring, 0 … window - 1 (frames seen modulo window); anything else writes no row (a slot that is not active)
reset [slots] uint8: the slot's rings become zeros but for the row written now: nothing of the stream before, NaN included, is left
A slot with neither is not touched.

A word is 32 bits: rows of float32 or of pairs of float16, `row_words` words a row (heads x dim).

Sizes: slots, layers, row_words. Cost: 16 layers row_words bytes a slot (9 kB for 3 layers of 192 float32), 8 layers window row_words more
for each reset; no arithmetic; one launch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .kernel import Cost, Kernel, Launch, parameters

THREADS = 256


def geometry(*, slots: int, layers: int, row_words: int) -> Launch:
    return Launch((slots, layers, 1), (THREADS, 1, 1))


def cost(*, slots: int, layers: int, row_words: int) -> Cost:
    return Cost(slots * (16 * layers * row_words + 5), 0)


def write(k: Any, v: Any, k_row: Any, v_row: Any, at: Any, reset: Any, layers: int, window: int, row_words: int) -> None:
    slots = len(at)
    on = np.flatnonzero((at >= 0) & (at < window))
    for ring, row in ((k, k_row), (v, v_row)):
        places = ring.reshape(slots, -1).view(np.uint32).reshape(slots, layers, window, row_words)
        places[reset != 0] = 0
        places[on, :, at[on]] = row.reshape(slots, -1).view(np.uint32).reshape(slots, layers, row_words)[on]


KV_RING_WRITE = Kernel(
    "kv_ring_write", "kv_ring.cu",
    parameters("""
        k word inout
        v word inout
        k_row word in
        v_row word in
        at int32 in
        reset uint8 in
        layers int32
        window int32
        row_words int32
    """),
    geometry, cost, write,
)  # fmt: skip
