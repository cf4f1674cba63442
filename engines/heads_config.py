"""Sizes and switches of the token heads: one frozen dataclass, saved beside their weights and read back from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from .sizes import Sizes


@dataclass(frozen=True)
class HeadsConfig(Sizes):
    """Heads that speak the codec's tokens from the trunk's output. See DESIGN §3.

    trunk_dim: the trunk's output a frame. heard_dim: numbers a frame that the codec's encoder makes of the restored sound (0: heads read the trunk alone).
    streams, codes, code_dim: of the codec, the semantic token among the streams; code_dim with the pitch.
    dim, kernel, blocks: layers over time. depth_dim, depth_layers, depth_heads: the transformer over the streams of one frame.
    feedback: reads its own tokens of the frame before. delay_pattern: stream k is decided k frames later (MusicGen, Copet et al. 2023; UniTok-Audio)
    and sees as many frames more, which costs 20 ms a stream; without it a frame's tokens are all decided in its step.
    foresight_frames: semantic tokens of so many frames ahead are told, too, for training alone.
    central: takes the code nearest to the mean of what is predicted, not the likeliest; a switch of use, trained weights serve both. Not for drawing.
    """

    WHOSE: ClassVar[str] = "token head"

    trunk_dim: int = 192
    heard_dim: int = 0
    streams: int = 5
    codes: int = 1024
    code_dim: int = 17
    dim: int = 192
    kernel: int = 5
    blocks: int = 1
    depth_dim: int = 128
    depth_layers: int = 1
    depth_heads: int = 4
    feedback: bool = False
    delay_pattern: bool = False
    foresight_frames: int = 0
    central: bool = False

    @property
    def delay_frames(self) -> int:
        """How much later than its frame a whole set of tokens is there."""
        return self.streams - 1 if self.delay_pattern else 0

    def validate(self) -> Self:
        """Return self, or raise ValueError with a line that says which size does not fit."""
        for name in ("trunk_dim", "streams", "codes", "code_dim", "dim", "kernel", "depth_dim", "depth_layers", "depth_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("heard_dim", "blocks", "foresight_frames"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, it is {getattr(self, name)}")
        if self.depth_dim % self.depth_heads:
            raise ValueError(f"depth_heads {self.depth_heads} does not divide depth_dim {self.depth_dim}")
        return self
