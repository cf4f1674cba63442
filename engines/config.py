"""Sizes of the model: one frozen dataclass, saved beside the weights and read back from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from .sizes import Sizes

BIN_HZ = 50  # spacing of the STFT's bins at every sample rate (20 ms window)
HOPS_PER_SECOND = 100  # 10 ms hop
HOPS_PER_FRAME = 2  # 20 ms frame
CORE_BINS = 160  # 0 ... 7,950 Hz, modelled bin by bin
HIGH_BANDS = 16  # 8 ... 24 kHz, modelled as 1 kHz bands of 20 bins
HIGH_BAND_BINS = 20
TASKS = ("restore", "extract", "separate", "convert", "query", "code")


@dataclass(frozen=True)
class ModelConfig(Sizes):
    """Sizes of the causal enhancer. See DESIGN §3.

    channels, stride: analysis/synthesis convolutions over frequency (160 bins → 160/stride bands).
    bands, width: the coarser bands the time layers run on, and their channels.
    blocks: pairs of (gated recurrence over time, mixing over bands); half before, half after the trunk.
    trunk_dim, trunk_layers, trunk_heads, window_frames: the sliding-window transformer at 50 Hz.
    prefix_slots: pinned keys for task, voiceprint and text, never pushed out of the window.
    voice_dim, voice_channels: the vector a talker is enrolled as (0: the model knows no voices), and the layers that make it.
    query_dim: the vector of a sentence that asks for a sound (0: the model takes no queries); it is turned into one like a talker's.
    recognise: 1 where what is let through is compared with the enrolled voice, and closed while it is somebody else's.
    separate: how many unknown talkers the task `separate` tells apart (0: it is not known), each by a learned vector like a talker's.
    """

    WHOSE: ClassVar[str] = "model"

    channels: int = 48
    stride: int = 4
    conv_blocks: int = 2
    bands: int = 32
    width: int = 48
    mix_groups: int = 4
    blocks: int = 4
    trunk_dim: int = 192
    trunk_layers: int = 3
    trunk_heads: int = 6
    window_frames: int = 125
    prefix_slots: int = 8
    high_dim: int = 64
    voice_dim: int = 0
    voice_channels: int = 160
    query_dim: int = 0
    separate: int = 0
    recognise: int = 0

    def validate(self) -> Self:
        """Return self, or raise ValueError with a line that says which size does not fit."""
        if CORE_BINS % self.stride:
            raise ValueError(f"stride {self.stride} does not divide {CORE_BINS} bins")
        if self.trunk_dim % self.trunk_heads:
            raise ValueError(f"trunk_heads {self.trunk_heads} does not divide trunk_dim {self.trunk_dim}")
        if self.width % self.mix_groups:
            raise ValueError(f"mix_groups {self.mix_groups} does not divide width {self.width}")
        if self.blocks % 2:
            raise ValueError(f"blocks must be even, half before and half after the trunk, not {self.blocks}")
        if self.query_dim and not self.voice_dim:
            raise ValueError("query_dim needs voice_dim: a query turns the model as a voice does")
        if self.recognise and not self.voice_dim:
            raise ValueError("recognise needs voice_dim: it compares voices")
        if self.separate and not self.voice_dim:
            raise ValueError("separate needs voice_dim: a place among the talkers turns the model as a voice does")
        return self
