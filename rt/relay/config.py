"""What a worker is told, and what it steps its streams with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from voicewire.engines.convert_engine import ConvertEngine
from voicewire.engines.converting import Converting
from voicewire.engines.engine import WEIGHTS, Engine, open_engine

from .gate import Door
from .limits import Limits
from .slots import Batching


@dataclass(frozen=True)
class Config:
    """What `serve` was told. max_streams None: measure. certificate, key: TLS from these files. record: where to keep what is said, None: nowhere.
    handover: folder for streams on their way to another worker. engine: a name of `open_engine`. weights: the folder it opens,
    None: the one that is installed, on whatever machine this gets to. converter: the folder of those that convert voices, None: it converts none.
    onward: address of the bot that telephone platforms' calls go on to; there may be a password in it."""

    host: str = "127.0.0.1"
    port: int = 8765
    door: Door = field(default_factory=Door)
    limits: Limits = field(default_factory=Limits)
    batching: Batching = field(default_factory=Batching)
    max_streams: int | None = None
    certificate: Path | None = None
    key: Path | None = None
    record: Path | None = None
    handover: Path | None = None
    engine: str = "onnx"
    weights: Path | None = None
    converter: Path | None = None
    onward: str | None = field(default=None, repr=False)


def engine_of(config: Config) -> Engine:
    """What it steps streams with. EngineError where that cannot be had here."""
    engine = open_engine(config.engine, config.weights or WEIGHTS)
    return Converting(engine, ConvertEngine(config.converter)) if config.converter else engine
