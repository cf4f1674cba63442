"""State of all slots on the device: start some afresh, take over a step's new state, write a step's attention rows into their rings.

`slot_reset`     state [slots, ...] word, fresh [kinds, ...] word, kind [slots] int32, reset [slots] uint8, row_words
                 reset slots get row `kind` of `fresh` (a row for each task, say; one row of zeros for a ring). Before the engine's step.
`slot_commit`    state [slots, ...] word, new [slots, ...] word, active [slots] uint8, row_words
                 active slots take over `new`. After the engine's step.
`kv_ring_write`  k, v [slots, layers, window, heads, dim] word rings, k_row, v_row [slots, layers, heads, dim] word,
                 pos [slots] int64, active [slots] uint8, layers, window, row_words
                 in active slots the rows go to place pos mod window of each layer, and pos grows by one. After the engine's step.

A word is 32 bits, so the same kernels carry float32, pairs of float16, and int64 counters; row_words counts a slot's words in the first
two and a row's (heads x dim) in the third. A slot whose mask is 0 is neither read nor written. A kind outside the table is not checked.

Sizes: slots, row_words, and for kv_ring_write layers. Cost: 8 bytes a word moved in the worst case, when every slot takes part;
16 layers row_words bytes a slot for the rings (9 kB for 3 layers of 192 float32); no arithmetic; one launch each.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .kernel import Cost, Kernel, Launch, parameters

THREADS = 256
WORDS_PER_THREAD = 32  # a row longer than 8,192 words is shared out to several blocks
MAX_BLOCKS = 65_535


def row_geometry(*, slots: int, row_words: int) -> Launch:
    blocks = min(MAX_BLOCKS, -(-row_words // (THREADS * WORDS_PER_THREAD)))
    return Launch((slots, blocks, 1), (THREADS, 1, 1))


def row_cost(*, slots: int, row_words: int) -> Cost:
    return Cost(slots * (8 * row_words + 1), 0)


def ring_geometry(*, slots: int, layers: int, row_words: int) -> Launch:
    return Launch((slots, 1, 1), (THREADS, 1, 1))  # one block, so that pos is read by all before it is advanced


def ring_cost(*, slots: int, layers: int, row_words: int) -> Cost:
    return Cost(slots * (16 * layers * row_words + 17), 0)


def words(x: Any) -> Any:
    """The same memory as [rows of axis 0, 32-bit words]"""
    return x.reshape(len(x), -1).view(np.uint32)


def reset_rows(state: Any, fresh: Any, kind: Any, reset: Any, row_words: int) -> None:
    on = np.flatnonzero(reset)
    words(state)[on] = words(fresh)[kind[on]]


def commit_rows(state: Any, new: Any, active: Any, row_words: int) -> None:
    on = np.flatnonzero(active)
    words(state)[on] = words(new)[on]


def write_rings(k: Any, v: Any, k_row: Any, v_row: Any, pos: Any, active: Any, layers: int, window: int, row_words: int) -> None:
    on = np.flatnonzero(active)
    at = pos[on] % window
    for ring, row in ((k, k_row), (v, v_row)):
        shaped = words(ring).reshape(len(pos), layers, window, row_words)
        shaped[on, :, at] = words(row).reshape(len(pos), layers, row_words)[on]
    pos[on] += 1


SLOT_RESET = Kernel(
    "slot_reset", "slots.cu",
    parameters("""
        state word inout
        fresh word in
        kind int32 in
        reset uint8 in
        row_words int32
    """),
    row_geometry, row_cost, reset_rows,
)  # fmt: skip

SLOT_COMMIT = Kernel(
    "slot_commit", "slots.cu",
    parameters("""
        state word inout
        new word in
        active uint8 in
        row_words int32
    """),
    row_geometry, row_cost, commit_rows,
)  # fmt: skip

KV_RING_WRITE = Kernel(
    "kv_ring_write", "kv_ring.cu",
    parameters("""
        k word inout
        v word inout
        k_row word in
        v_row word in
        pos int64 inout
        active uint8 in
        layers int32
        window int32
        row_words int32
    """),
    ring_geometry, ring_cost, write_rings,
)  # fmt: skip
