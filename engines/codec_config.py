"""Sizes of the codec: one frozen dataclass, saved beside its weights and read back from them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar, Self

from .sizes import Sizes

FRAMES_PER_SECOND = 50


@dataclass(frozen=True)
class CodecConfig(Sizes):
    """Sizes of the causal two-stream codec. See DESIGN §3.

    channels: convolutions over frequency (160 bins → 40 → 20 bands). dim, kernel: the layers over time at 50 Hz.
    acoustic_blocks, semantic_blocks, decoder_blocks: how many of them in each part.
    codes: entries of every codebook, a power of two. layers: residual acoustic codebooks. code_dim: width of their entries (one more for the pitch).
    teacher_dim: features of the semantic teacher that the semantic token has to tell.
    """

    WHOSE: ClassVar[str] = "codec"

    channels: int = 32
    dim: int = 192
    kernel: int = 5
    acoustic_blocks: int = 2
    semantic_blocks: int = 2
    decoder_blocks: int = 4
    codes: int = 1024
    layers: int = 4
    code_dim: int = 16
    teacher_dim: int = 64

    @property
    def streams(self) -> int:
        """Tokens a frame: the semantic one and the acoustic layers."""
        return 1 + self.layers

    @property
    def bits(self) -> int:
        """Bits a token."""
        return (self.codes - 1).bit_length()

    def validate(self) -> Self:
        """Return self, or raise ValueError with a line that says which size does not fit."""
        for name, value in asdict(self).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.codes < 2 or self.codes & (self.codes - 1) or self.bits > 16:
            raise ValueError(f"codes must be a power of two from 2 to 65536, not {self.codes}")
        return self
