"""A sound asked for in words, made ready: kept in a stream as a voice is, so that a query too can be set, taken away or swapped between any two frames."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from .engine import WEIGHTS, EngineError, weights_for
from .sentence import check, embed
from .voiceprint import Voiceprint, run_graph, turn_parts


@dataclass(frozen=True)
class Query(Voiceprint):
    """text: what was asked for. The rest is as in a voiceprint."""

    TALKER: ClassVar[bool] = False

    text: str


def takes_queries(folder: Path = WEIGHTS) -> bool:
    """Whether these weights were trained for the task `query`."""
    return (folder / "query.onnx").exists()


def ask(text: str, folder: Path | None = None) -> Query:
    """text: a few words for a sound, English, like "a dog barking" → the query. Half a second the first time, then milliseconds.

    ValueError for what are no words; EngineError where the weights take no queries, or without the package that embeds sentences.
    """
    check(text)
    folder = folder or weights_for("query")
    if not takes_queries(folder):
        raise EngineError("these weights take no queries; for the task 'query' install from the repository, which has some: pip install -e .")
    (voice,) = run_graph(folder / "query.onnx", embed([text]))
    weights: str = json.loads((folder / "model.json").read_text())["weights"]
    return Query(weights, turn_parts(voice, folder), voice[0], text)
