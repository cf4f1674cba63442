"""The one TOML a training run is made of: [model], [data], [train]. Unknown keys are refused."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from voicewire.engines.config import ModelConfig


@dataclass(frozen=True)
class Data:
    cache: str = "cache/16k"
    batch: int = 4
    seconds: float = 2.0
    seed: int = 1
    workers: int = 1
    extract: float = 0.0  # share of the steps on the task `extract`; what is left of 1 is `restore`
    query: float = 0.0  # share of the steps on the task `query`
    separate: float = 0.0  # share of the steps on the task `separate`
    people: int = 24  # talkers a step of tools.train_voice


@dataclass(frozen=True)
class Train:
    lr: float = 2e-3
    warmup_steps: int = 200
    decay_share: float = 0.3  # last share of the time box, in which the rate falls
    weight_decay: float = 1e-2
    clip: float = 1.0
    ema: float = 0.998
    snr: float = 0.5
    perceptual: float = 0.15
    words: float = 0.0  # tools.train: weight of what a recogniser hears otherwise in restored speech; needs the extra [eval], two thirds more time a step
    said: float = 0.0  # tools.train: weight of what a recogniser would write otherwise; needs the extra [eval], another two thirds
    opinion: float = 0.0  # tools.train: weight of how much worse than clean speech DNSMOS finds it; needs the extra [eval], half as much time again
    teacher: float = 0.0  # tools.train_voice: weight of telling what Resemblyzer hears; needs the extra [eval]
    checkpoint_minutes: float = 4.0
    seed: int = 0


@dataclass(frozen=True)
class Recipe:
    model: ModelConfig = field(default_factory=ModelConfig)
    data: Data = field(default_factory=Data)
    train: Train = field(default_factory=Train)


def _section(cls: type[Any], values: dict[str, Any], name: str) -> Any:
    known = {f.name: f for f in fields(cls)}
    for key in values:
        if key not in known:
            raise ValueError(f"[{name}] has no setting '{key}'; it has: {', '.join(known)}")
        default = known[key].default
        wanted = (int, float) if isinstance(default, float) else type(default)
        if isinstance(values[key], bool) != isinstance(default, bool) or not isinstance(values[key], wanted):
            raise ValueError(f"[{name}] {key} must be like {default!r}, not {values[key]!r}")
    return cls(**values)


def sections(path: Path, config: type[Any], data: type[Any], train: type[Any]) -> tuple[Any, Any, Any]:
    """[model], [data] and [train] of a recipe; ValueError with one line when it does not fit the schema."""
    try:
        doc = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as e:
        raise ValueError(f"{path}: {e}") from None
    for key in doc:
        if key not in {"model", "data", "train"}:
            raise ValueError(f"{path}: no section [{key}]; the sections are [model], [data], [train]")
    return config.from_dict(doc.get("model", {})), _section(data, doc.get("data", {}), "data"), _section(train, doc.get("train", {}), "train")


def load(path: Path) -> Recipe:
    """Read a recipe; ValueError as `sections`."""
    return Recipe(*sections(path, ModelConfig, Data, Train))
