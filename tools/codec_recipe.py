"""The one TOML a training run of the codec is made of: [model], [data], [train]. Unknown keys are refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from voicewire.engines.codec_config import CodecConfig

from .recipe import Data, Train, sections


@dataclass(frozen=True)
class CodecData(Data):
    teacher: str = ""  # folder written by tools.teach; none: no semantic supervision
    taught_share: float = 0.7  # share of the talkers drawn from clips that have the teacher's features


@dataclass(frozen=True)
class CodecTrain(Train):
    lr: float = 1e-3
    degraded: float = 0.5  # share of the examples that are also encoded degraded
    degraded_decoded: float = 0.0  # share of those that are decoded too, to what was heard
    mel: float = 1.0
    perceptual: float = 0.3
    envelopes: float = 0.5
    pitch: float = 2.0
    hearing: float = 0.2  # the encoder's own guess of the pitch
    correlation: float = 0.1
    semantic: float = 0.5
    primitives: float = 0.1  # what else the semantic token is to tell (codec_primitives), 0: not trained
    commitment: float = 0.02
    weigh_step: int = 0  # from when on errors of the acoustic code are measured by their effect, as it was in the 200 steps before; 0: never
    teacher_lag_frames: int = 1
    full_layers: float = 0.5  # share of examples that use all acoustic layers; the others use fewer
    told: float = 0.0  # weight of what the semantic token does not tell of the acoustic numbers, so that it tells as much as it can
    alone: float = 0.0  # share of examples that are made from the semantic token alone, so that words are in it
    semantic_dropout: float = 0.1
    words: float = 0.0  # weight of what a recogniser hears otherwise; needs the extra [eval]
    hold: float = 0.2  # share of steps in which tokens are held, as at variable rate
    adversarial: float = 0.0  # weight of the discriminators; 0: none
    adversarial_from_step: int = 10000
    feature_matching: float = 2.0
    judge_channels: int = 32


@dataclass(frozen=True)
class CodecRecipe:
    model: CodecConfig = field(default_factory=CodecConfig)
    data: CodecData = field(default_factory=CodecData)
    train: CodecTrain = field(default_factory=CodecTrain)


def load(path: Path) -> CodecRecipe:
    """Read a recipe; ValueError with one line when it does not fit the schema."""
    return CodecRecipe(*sections(path, CodecConfig, CodecData, CodecTrain))
