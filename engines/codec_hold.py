"""When a frame's tokens may be held instead of sent: variable rate without look-ahead (QuarkAudio's dynamic frame rate, made causal).

A frame is held while its semantic vector agrees with that of the frame whose tokens were sent last; after `cap_frames` frames a new one is sent anyway,
so what is heard is never older than the cap. The decision needs nothing from the future, so holding adds no delay.
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


class Holder:
    """Decides frame by frame for one stream. threshold: cosine from which on two frames agree; above 1 nothing is held."""

    def __init__(self, threshold: float, cap_frames: int) -> None:
        if cap_frames < 1:
            raise ValueError(f"the cap must be at least one frame, not {cap_frames}")
        self.threshold, self.cap = threshold, cap_frames
        self._sent: F32 | None = None
        self._run = 0

    def next(self, semantic: F32) -> bool:
        """semantic: [code_dim] of this frame → True if the tokens sent last also stand for it."""
        held = self._sent is not None and self._run < self.cap and bool(agreement(semantic, self._sent) >= self.threshold)
        if not held:
            self._sent, self._run = np.array(semantic), 0
        self._run += 1
        return held


def source_frames(semantic: F32, threshold: float, cap_frames: int) -> NDArray[np.int64]:
    """[frames, code_dim] → for every frame the index of the frame whose tokens are heard."""
    holder, out, last = Holder(threshold, cap_frames), np.zeros(len(semantic), np.int64), 0
    for t, vector in enumerate(semantic):
        last = last if holder.next(vector) else t
        out[t] = last
    return out
