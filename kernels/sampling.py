"""One depth token for every slot, and its embedding: argmax, or top-k with temperature. One block a slot, one thread a code.

logits [slots, codes] float32 (codes ≤ 1,024; NaN counts as -inf)
table [codes, width] word: embeddings, rows of `row_words` 32-bit words (float32 or pairs of float16)
seed [slots] uint64, position [slots] int64 (frame of the stream): key and counter of the random numbers, with `layer` and the code
temperature [slots] float32: one that is not positive and finite takes the largest logit, the lowest index of equals
top_k [slots] int32: draws among the k largest (of equal logits the lowest indices); outside 1 … codes - 1 among all
active [slots] uint8
token [slots, layers] int32 out: column `layer` is written
embedded [slots, width] word out: the token's row of the table
A slot that is not active is neither read nor written.

The draw is Gumbel's: argmax of logit / temperature + g with g = -log(-log u) (Gumbel 1954), u from Philox at counter (position, layer,
code / 4). It needs no sum over the codes, so nothing depends on the order of additions, and with g in plain IEEE steps (`gumbel.h`)
tokens are the same bit for bit on every device and in NumPy.

Sizes: slots, codes, row_words. Cost a slot: 4 codes + 8 row_words bytes, about 300 operations a code; one launch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .kernel import Cost, Kernel, Launch, parameters
from .philox import philox

F32 = np.float32
LN2 = F32(0.6931472)
ROOT_HALF = F32(0.70710678)
SERIES = tuple(F32(2 / n) for n in (11, 9, 7, 5, 3))  # log m = 2 s + 2/3 s^3 + ... with s = (m - 1) / (m + 1)
MAX_CODES = 1024


def geometry(*, slots: int, codes: int, row_words: int) -> Launch:
    if not 1 <= codes <= MAX_CODES:
        raise ValueError(f"depth_sample takes 1 to {MAX_CODES} codes, not {codes}")
    return Launch((slots, 1, 1), (-(-codes // 32) * 32, 1, 1))


def cost(*, slots: int, codes: int, row_words: int) -> Cost:
    return Cost(slots * (4 * codes + 8 * row_words + 8 + 8 + 4 + 4 + 4 + 1), slots * codes * 300)


def log(x: Any) -> Any:
    """Natural logarithm of float32 x > 0 (normal numbers) to about 2 ulp, in steps that every IEEE machine rounds the same way."""
    mantissa, exponent = np.frexp(x)
    low = mantissa < ROOT_HALF
    m = np.where(low, mantissa * F32(2), mantissa)
    e = np.where(low, exponent - 1, exponent).astype(F32)
    s = (m - F32(1)) / (m + F32(1))
    square = s * s
    series = np.zeros_like(s)
    for c in SERIES:
        series = (series + c) * square
    return e * LN2 + (series * s + F32(2) * s)


def gumbel(bits: Any) -> Any:
    """uint32 → float32 Gumbel noise, from the upper 23 bits: u = (bits + 0.5) / 2^23, exact in float32 and never 0 or 1."""
    u = ((bits >> np.uint32(9)).astype(F32) + F32(0.5)) * F32(2.0**-23)
    return -log(-log(u))


def noise(seed: Any, position: Any, layer: int, codes: int) -> Any:
    """seed: [slots] uint64, position: [slots] int64 → [slots, codes] float32"""
    blocks = -(-codes // 4)
    counter = np.zeros((len(seed), blocks, 4), np.uint32)
    at = position.astype(np.uint64)
    counter[..., 0] = (at & np.uint64(0xFFFFFFFF))[:, None]
    counter[..., 1] = (at >> np.uint64(32))[:, None]
    counter[..., 2] = layer
    counter[..., 3] = np.arange(blocks)
    key = np.stack([seed & np.uint64(0xFFFFFFFF), seed >> np.uint64(32)], -1).astype(np.uint32)
    return gumbel(philox(counter, key[:, None]).reshape(len(seed), 4 * blocks)[:, :codes])


def sample(
    logits: Any, table: Any, seed: Any, position: Any, temperature: Any, top_k: Any, active: Any, token: Any, embedded: Any,
    layer: int, layers: int, codes: int, row_words: int,
) -> None:  # fmt: skip
    on = np.flatnonzero(active)
    score = np.where(np.isnan(logits[on]), F32(-np.inf), logits[on])
    order = np.argsort(-score, axis=1, kind="stable")
    rank = np.argsort(order, axis=1, kind="stable")
    t, k = temperature[on][:, None], top_k[on][:, None]
    k = np.where((k >= 1) & (k < codes), k, codes)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        drawn = np.where(rank < k, score / t + noise(seed[on], position[on], layer, codes), F32(-np.inf))
    hot = (t > 0) & np.isfinite(t)
    allowed = np.where(hot, rank < k, True)
    picked = np.where(hot, drawn, score)
    best = np.where(allowed & (picked == picked.max(1, keepdims=True)), np.arange(codes), codes).min(1)
    token[on, layer] = best
    embedded[on] = table[best]


DEPTH_SAMPLE = Kernel(
    "depth_sample", "sampling.cu",
    parameters("""
        logits float32 in
        table word in
        seed uint64 in
        position int64 in
        temperature float32 in
        top_k int32 in
        active uint8 in
        token int32 inout
        embedded word out
        layer int32
        layers int32
        codes int32
        row_words int32
    """),
    geometry, cost, sample,
)  # fmt: skip
