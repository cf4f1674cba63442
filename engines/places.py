"""Who is who among talkers that nobody enrolled: the vectors that the task `separate` learned, kept beside the weights and given to a stream as a voice is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from .engine import F32, WEIGHTS, EngineError, weights_for
from .voiceprint import Voiceprint, turn_parts

FILE = "places.npz"


@dataclass(frozen=True)
class Place(Voiceprint):
    """number: of the talker, from 1. The rest is as in a voiceprint."""

    TALKER: ClassVar[bool] = False

    number: int


def separates(folder: Path = WEIGHTS) -> int:
    """How many talkers these weights tell apart; 0 where they were not trained for the task `separate`."""
    if not (folder / FILE).exists():
        return 0
    with np.load(folder / FILE) as f:
        return len(f["voice"])


def places(folder: Path | None = None) -> tuple[Place, ...]:
    """The talkers' places in order, for `Stream(task="separate", voice=…)`. EngineError where the weights do not know the task."""
    folder = folder or weights_for("separate")
    if not (folder / FILE).exists():
        raise EngineError("these weights separate nobody; for the task 'separate' install from the repository, which has some: pip install -e .")
    weights: str = json.loads((folder / "model.json").read_text())["weights"]
    with np.load(folder / FILE) as f:
        voice = f["voice"]
    return tuple(Place(weights, turn_parts(v[None], folder), v, i) for i, v in enumerate(voice, 1))


def share_out(spec: F32, speech: F32) -> F32:
    """What both talkers' places left to each other goes to either, half and half: spec [places, 2, 481, 2] of the mixture, the same in every row, speech
    [places, 2, 480, 2] → the same shape as speech.

    Mixture consistency (Wisdom et al. 2019), but only as far as a bin was taken for speech at all, so that noise stays away.
    """
    whole = spec[:1, :, : speech.shape[2]]
    claimed = speech.sum(0, keepdims=True)
    share = np.sqrt(np.minimum(1, (claimed**2).sum(-1, keepdims=True) / ((whole**2).sum(-1, keepdims=True) + 1e-12)))
    y: F32 = speech + (whole - claimed) * share / len(speech)
    return y


def place(number: int, folder: Path | None = None) -> Place:
    """The place of talker `number`, from 1. ValueError for one that is not there, EngineError as `places`."""
    known = places(folder)
    if not 1 <= number <= len(known):
        raise ValueError(f"talker {number} is not there; the task 'separate' tells {len(known)} talkers apart: 1 to {len(known)}")
    return known[number - 1]
