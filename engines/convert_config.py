"""Sizes of the voice converter: one frozen dataclass, saved beside its weights and read back from them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import ClassVar, Self

from .codec_config import CodecConfig
from .sizes import Sizes


@dataclass(frozen=True)
class ConvertConfig(Sizes):
    """Sizes of the converter. What hears and what speaks are the codec's layers (`CodecConfig`); see there for the first six.

    content_dim: numbers a frame, from each of the two streams, that tell what is said. voice_dim: of the voiceprint's vector. turn_dim: between it and
    the decoder's gains and offsets.
    """

    WHOSE: ClassVar[str] = "converter"

    channels: int = 32
    dim: int = 192
    kernel: int = 5
    acoustic_blocks: int = 2
    semantic_blocks: int = 2
    decoder_blocks: int = 4
    content_dim: int = 16
    voice_dim: int = 128
    turn_dim: int = 96

    def validate(self) -> Self:
        """Return self, or raise ValueError with a line that says which size does not fit."""
        for name, value in asdict(self).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        return self

    @property
    def codec(self) -> CodecConfig:
        """The sizes that the codec's layers go by."""
        shared = {f.name for f in fields(CodecConfig)} & {f.name for f in fields(ConvertConfig)}
        return CodecConfig(**{name: getattr(self, name) for name in shared})
