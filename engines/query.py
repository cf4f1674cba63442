"""A sound asked for in words, made ready: kept in a stream as a voice is, so that a query too can be set, taken away or swapped between any two frames."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from .engine import WEIGHTS, EngineError, weights_for
from .sentence import check, embed
from .voiceprint import VOICE_PARTS, Voiceprint

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


@dataclass(frozen=True)
class Query(Voiceprint):
    """text: what was asked for. The rest is as in a voiceprint."""

    text: str


def takes_queries(folder: Path = WEIGHTS) -> bool:
    """Whether these weights were trained for the task `query`."""
    return (folder / "query.onnx").exists()


@lru_cache(maxsize=1)
def _encoder(path: Path, changed_ns: int) -> InferenceSession:
    """changed_ns: so that a file that has been replaced is read again."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def ask(text: str, folder: Path | None = None) -> Query:
    """text: a few words for a sound, English, like "a dog barking" → the query. Half a second the first time, then milliseconds.

    ValueError for what are no words; EngineError where the weights take no queries, or without the package that embeds sentences.
    """
    check(text)
    folder = folder or weights_for("query")
    if not takes_queries(folder):
        raise EngineError("these weights take no queries; for the task 'query' install from the repository, which has some: pip install -e .")
    path = folder / "query.onnx"
    voice, *parts = _encoder(path, path.stat().st_mtime_ns).run(None, {"x": embed([text])})
    weights: str = json.loads((folder / "model.json").read_text())["weights"]
    return Query(weights, dict(zip(VOICE_PARTS, parts, strict=True)), voice[0], text)
