"""Residual vector quantiser: the nearest code of every layer in one launch, four slots a block, each layer on what the ones before left.

z [slots, dim] float32
codebooks [layers, dim, codes] float32, dimension before code: neighbouring threads read neighbouring codes (transpose once, at load)
half_norms [layers, codes] float32, 0.5 |c|^2
active [slots] uint8
index [slots, layers] int32 out: argmin over codes of 0.5 |c|^2 - <z, c>, the lowest index of equals (NaN loses)
quantised [slots, dim] float32 out: sum of the chosen codes
A slot that is not active is neither read nor written.

Sizes: slots, layers, codes, dim. Cost: 2 layers codes dim FLOP a slot (0.5 MFLOP for 4 x 1,024 x 64) on codebooks that stay in L2
(1 MB, read once for every four slots); one launch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .kernel import Cost, Kernel, Launch, parameters

SLOTS_PER_BLOCK = 4
MAX_THREADS = 1024


def geometry(*, slots: int, layers: int, codes: int, dim: int) -> Launch:
    threads = min(MAX_THREADS, -(-codes // 32) * 32)
    return Launch((-(-slots // SLOTS_PER_BLOCK), 1, 1), (threads, 1, 1), SLOTS_PER_BLOCK * dim * 4)


def cost(*, slots: int, layers: int, codes: int, dim: int) -> Cost:
    book = layers * codes * (dim + 1) * 4
    return Cost(book + slots * (2 * dim * 4 + layers * 4 + 1), slots * 2 * layers * codes * dim)


def nearest(z: Any, codebooks: Any, half_norms: Any, active: Any, index: Any, quantised: Any, slots: int, layers: int, codes: int, dim: int) -> None:
    on = np.flatnonzero(active[:slots])
    left = z[on].copy()
    for layer in range(layers):
        score = half_norms[layer] - left @ codebooks[layer]
        best = np.where(np.isnan(score), np.inf, score).argmin(1)
        index[on, layer] = best
        left -= codebooks[layer][:, best].T
    quantised[on] = z[on] - left


RVQ_NEAREST = Kernel(
    "rvq_nearest", "rvq.cu",
    parameters("""
        z float32 in
        codebooks float32 in
        half_norms float32 in
        active uint8 in
        index int32 out
        quantised float32 out
        slots int32
        layers int32
        codes int32
        dim int32
    """),
    geometry, cost, nearest, tolerance=1e-4,
)  # fmt: skip
