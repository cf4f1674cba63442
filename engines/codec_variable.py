"""Variable rate without look-ahead (QuarkAudio's dynamic frame rate, made causal): tokens are held instead of sent where that saves more than it spoils.

A frame is held while its semantic vector agrees with that of the frame whose tokens were sent last, and what these are further off its acoustic numbers
than new ones would be is not worth the bits saved. Errors count the less the quieter a frame is beside what was heard before. After `cap_frames`
frames a new one is sent anyway, so what is heard is never older. Nothing from the future is needed, so there is no more delay.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .codec_hold import agreement
from .codec_search import Chosen, TokenSearch
from .engine import F32

I64 = NDArray[np.int64]
SAVED_BITS = 25  # that holding is taken to save: less than new tokens take, some 35, as an error that stays is heard more than one that changes
LOUDNESS = 0.6  # power of the energy that errors are weighed by
FORGETTING = 0.998  # a frame: the loudest so far counts half after 7 s, so that a door that slams is not the measure for minutes
QUIETEST = 1e-6  # of the loudest: what is below counts the same


@dataclass(frozen=True)
class VariableRate:
    """price: squared error that a bit is worth, lambda; 0: every frame is sent, with the nearest tokens. threshold: cosine of semantic vectors below which
    nothing is held. cap_frames: how long tokens stand at most."""

    price: float = 0.009
    threshold: float = 0.8
    cap_frames: int = 32

    def __post_init__(self) -> None:
        if self.cap_frames < 1:
            raise ValueError(f"the cap must be at least one frame, not {self.cap_frames}")
        if not self.price >= 0:
            raise ValueError(f"the price of a bit must not be below 0, it is {self.price}")


class VariableStream:
    """Decides frame by frame for one stream. streams: tokens a frame; packet_frames: so many are read without those before, so all is forgotten after them."""

    def __init__(self, rate: VariableRate, search: TokenSearch, streams: int, packet_frames: int) -> None:
        self._rate, self._search, self._streams, self._packet = rate, search, streams, packet_frames
        self._nothing = np.full((1, streams), -1, np.int64)
        self._before = self._earlier = self._nothing
        self._at = self._sent = 0  # frames so far; when tokens were last sent
        self._semantic: F32 | None = None
        self._last: Chosen | None = None
        self._loudest = 0.0

    def _held(self, acoustic: F32, semantic: F32, weight: float) -> bool:
        if self._last is None or self._semantic is None or self._at - self._sent >= self._rate.cap_frames:
            return False
        if not agreement(semantic, self._semantic) >= self._rate.threshold:
            return False
        error = float(np.square(acoustic - self._last.heard).sum())
        # what new tokens would leave of the error is what those sent last did
        return weight * max(error - self._last.error, 0.0) < self._rate.price * SAVED_BITS

    def next(self, acoustic: F32, semantic: F32, energy: float) -> I64 | None:
        """acoustic: [code_dim + 1], semantic: [code_dim] of this frame before the search, energy: of its spectrum → tokens [streams], None: those sent last."""
        self._loudest = max(self._loudest * FORGETTING, energy)
        weight = max(energy / self._loudest, QUIETEST) ** LOUDNESS if self._loudest > 0 else 1.0
        if self._at % self._packet == 0:
            self._last, self._before, self._earlier, self._sent = None, self._nothing, self._nothing, self._at
        held = self._held(acoustic, semantic, weight)
        if not held:
            past = self._search.odds.past(self._before, self._earlier, np.array([self._at - self._sent]))
            self._last = self._search.choose(acoustic, semantic, past, self._rate.price, self._streams)
            self._before, self._earlier, self._sent = self._last.tokens[None], self._before, self._at
            self._semantic = np.array(semantic)
        self._at += 1
        return None if held or self._last is None else self._last.tokens
