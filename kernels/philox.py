"""Philox 4x32-10: random numbers as a function of a counter and a key (Salmon et al., SC 2011). The same bits as `philox.h`."""

from __future__ import annotations

from typing import Any

import numpy as np

ROUNDS = 10
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (0x9E3779B9, 0xBB67AE85)
LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox(counter: Any, key: Any) -> Any:
    """counter: [..., 4] uint32, key: [..., 2] uint32 → [..., 4] uint32"""
    c0, c1, c2, c3 = (np.asarray(counter[..., i], np.uint64) for i in range(4))
    k0, k1 = (np.asarray(key[..., i], np.uint64) for i in range(2))
    for _ in range(ROUNDS):
        p0, p1 = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = p1 >> HALF ^ c1 ^ k0, p1 & LOW, p0 >> HALF ^ c3 ^ k1, p0 & LOW
        k0, k1 = k0 + np.uint64(WEYL[0]) & LOW, k1 + np.uint64(WEYL[1]) & LOW
    return np.stack(np.broadcast_arrays(c0, c1, c2, c3), -1).astype(np.uint32)
