"""Samples as they come and go, float32 of full scale 1.0 or int16, and as the model sees them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Samples = NDArray[np.generic]

LOUDEST = 1e3  # beyond +-1,000 times full scale is no sound: a level that follows it would take half a minute to come back


def to_float(x: Samples) -> tuple[F32, int]:
    """float32 or int16, any shape → (float32 with full scale 1.0, samples that were no sound, not finite or beyond `LOUDEST`, and became 0). ValueError for
    other types."""
    if x.dtype == np.int16:
        return x.astype(np.float32) / np.float32(32768), 0
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"samples of type {x.dtype} are not supported; give float32 or int16")
    bad = ~(np.abs(x) <= LOUDEST)
    if not bad.any():
        return x.astype(np.float32), 0
    return np.where(bad, 0, x).astype(np.float32), int(bad.sum())


def to_int16(y: F32) -> NDArray[np.int16]:
    """float32, full scale 1.0 → int16, rounded and limited."""
    z = np.rint(y * np.float32(32768))
    np.maximum(z, -32768, out=z)
    np.minimum(z, 32767, out=z)
    out: NDArray[np.int16] = z.astype(np.int16)
    return out
