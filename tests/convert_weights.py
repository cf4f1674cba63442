"""A small voice converter, and a voiceprint for it; what it has learnt does not matter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from voicewire.engines.convert_config import ConvertConfig
from voicewire.engines.convert_engine import ConvertEngine
from voicewire.engines.convert_export import export_convert
from voicewire.engines.net.convert import Converter
from voicewire.engines.voiceprint import Voiceprint, taken_by

SMALL = ConvertConfig(channels=4, dim=16, acoustic_blocks=1, semantic_blocks=1, decoder_blocks=2, content_dim=3, voice_dim=8, turn_dim=6)


def small() -> Converter:
    """Turned much by a voice."""
    torch.manual_seed(0)
    converter = Converter(SMALL).eval()
    with torch.no_grad():
        converter.speaker.turn[2].weight.normal_(std=1.0)  # type: ignore[operator]
        converter.speaker.tail.weight.mul_(4)
    return converter


def export_small(out: Path) -> Converter:
    """Write it as it would be released. → what was written"""
    return export_convert({"config": SMALL.to_dict(), "ema": small().state_dict(), "step": 1, "hours": 0.0}, out, "0123456789abcdef")


def somebody(engine: ConvertEngine, seed: int, octave: float | None = 7.5) -> Voiceprint:
    """The voiceprint of nobody in particular."""
    voice = np.random.default_rng(seed).standard_normal(SMALL.voice_dim).astype(np.float32)
    return Voiceprint(taken_by(engine), {}, voice, octave=octave)
