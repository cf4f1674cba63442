"""Which frames would be held by what is said alone: while semantic vectors agree. What training and the odds of tokens learn holding from.

What is held in use also depends on how it sounds, and on bits (`codec_variable.py`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


def agreement(a: F32, b: F32) -> F32:
    """Cosine along the last axis; 0 where one of the two has no length (or is not finite)."""
    with np.errstate(all="ignore"):
        c = (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    out: F32 = np.nan_to_num(c, nan=0.0, posinf=0.0, neginf=0.0).astype(np.float32)
    return out


def source_frames(semantic: F32, threshold: float, cap_frames: int) -> NDArray[np.int64]:
    """semantic: [frames, code_dim] → for every frame the index of the frame whose tokens are heard. threshold: cosine from which on two frames agree, above 1
    nothing is held; cap_frames: how many frames tokens stand at most."""
    out, last = np.zeros(len(semantic), np.int64), 0
    for t, vector in enumerate(semantic):
        last = last if 0 < t < last + cap_frames and agreement(vector, semantic[last]) >= threshold else t
        out[t] = last
    return out
