"""When somebody speaks, from what the model lets through: no second network, a few additions a frame.

`engines.energies` says how much of a 20 ms frame the model took for speech, and how much came in. A frame *sounds like speech* when the level of the one is
high beside the loudest of late, and its share of the other is high: two ratios, so that the level of the microphone changes nothing; below -80 dBFS nobody
speaks. Speech begins with three such frames in a row (60 ms) and ends when there was none for ten (200 ms). Both are known late, and dated back: to the
first frame that sounded like it, and to after the last.

Of a stream that restores, it is said that somebody speaks; of one that extracts a talker or separates two, that this talker does. A queried sound is no
speech, and a converted voice is never silent in the same way: of those streams it is said that nobody speaks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .snapshot import DAMAGED

TASKS = ("restore", "extract", "separate")  # in which it means something
SILENCE_DB = -80.0
_FLOOR = 1e-12


@dataclass(frozen=True)
class Rule:
    """A frame sounds like speech within `range_db` of the loudest of late, which is forgotten by fall_db a frame, where the share let through is at least
    `share_db`. So many in a row begin speech, so many without one end it. Chosen by tools.evaluate_speech --sweep."""

    range_db: float = 30.0
    share_db: float = -13.0
    begin_frames: int = 3
    end_frames: int = 10
    fall_db: float = 0.02


USUAL = Rule()


class Heard(NamedTuple):
    """Of one channel. frames: heard so far; loudest_db: of late; run: frames in a row that sounded like speech; since: frames since the last that did;
    began: the frame in which the run began, or the speech that is on."""

    frames: int = 0
    loudest_db: float = SILENCE_DB
    run: int = 0
    since: int = 0
    began: int = 0
    on: bool = False


class Turn(NamedTuple):
    """Somebody began to speak in `channel` of the output, or ended, at its `sample`, counted from the start of the stream."""

    channel: int
    sample: int
    on: bool


def step(energies: tuple[float, float], state: Heard, task: str = "restore", rule: Rule = USUAL) -> Heard:
    """energies: of the speech and of the input in one frame, see `engines.energies`."""
    speech, whole = energies if task in TASKS else (0.0, 0.0)
    level_db = 10 * math.log10(speech + _FLOOR)
    share_db = level_db - 10 * math.log10(whole + _FLOOR)
    frames, loudest_db, run, since, began, on = state
    loudest_db = max(level_db, loudest_db - rule.fall_db, SILENCE_DB)
    if level_db > SILENCE_DB and level_db > loudest_db - rule.range_db and share_db > rule.share_db:
        run, since = run + 1, 0
        if not on and run == rule.begin_frames:
            on, began = True, frames + 1 - run
    else:
        run, since = 0, since + 1
        on = on and since < rule.end_frames
    return Heard(frames + 1, loudest_db, run, since, began, on)


def turn(channel: int, before: Heard, after: Heard, frame_samples: int) -> Turn | None:
    """What a step has found out, if anything. The output of frame k begins at sample (k + 1) frame_samples."""
    if before.on == after.on:
        return None
    return Turn(channel, ((after.began if after.on else after.frames - after.since) + 1) * frame_samples, after.on)


def spans(turns: Sequence[Turn], samples: int, early: int = 0, channel: int | None = None) -> list[tuple[int, int]]:
    """From where to where somebody speaks in `samples` of output whose first `early` were left out; channel: there, None: in any."""
    found: list[tuple[int, int]] = []
    speaking: dict[int, int] = {}
    for who, sample, on in turns:
        if channel in (None, who):
            if on:
                speaking[who] = sample
            else:
                found.append((speaking.pop(who), sample))
    whole: list[tuple[int, int]] = []
    for begin, end in sorted(found + [(begin, samples + early) for begin in speaking.values()]):
        begin, end = max(0, begin - early), min(samples, end - early)
        if whole and begin <= whole[-1][1]:
            whole[-1] = (whole[-1][0], max(end, whole[-1][1]))
        elif begin < end:
            whole.append((begin, end))
    return whole


def packed(states: Sequence[Heard]) -> NDArray[np.float64]:
    """[channels, 6], for a snapshot."""
    return np.array(states, np.float64)


def unpacked(edge: Mapping[str, NDArray[Any]], channels: int, frames: int) -> tuple[Heard, ...]:
    """From a snapshot; afresh, after so many frames, from one of before there was this in it. ValueError for what is none."""
    if "speech" not in edge:
        return (Heard(frames),) * channels
    rows = edge["speech"]
    if rows.shape != (channels, len(Heard._fields)) or rows.dtype != np.float64 or not np.isfinite(rows).all():
        raise ValueError(DAMAGED)
    return tuple(Heard(int(f), loud, int(run), int(since), int(began), bool(on)) for f, loud, run, since, began, on in rows.tolist())
