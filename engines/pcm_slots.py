"""Resident slots with samples at both ends: what the relay's scheduler steps. A frame of each stream goes in, a frame of speech comes out.

`open_pcm_slots(engine, capacity)` asks the engine for its own (on a GPU the STFT, the share of the input that is kept and the inverse are then
part of the step that runs there); for all others `HostPcmSlots` does them in NumPy around `slots.Slots`. Both keep the same *edge* of a
stream beside the model's state, as `rt.Stream` does: the last hop that went in (`tail`) and the half window that waits for the next frame
(`overlap`), so that a stream can leave one and go on in the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from .config import HOPS_PER_FRAME
from .energies import energies_of
from .engine import F32, Engine, State
from .samples import Samples, to_float, to_int16
from .slots import Rows, Slots, open_slots, span
from .stft import BINS, MAX_RATE, analyse, finish, hop_samples

MAX_HOP = hop_samples(MAX_RATE)


class Luggage(NamedTuple):
    """What a stream takes along: the engine's state, tail and overlap [1, hop]."""

    state: State
    tail: F32
    overlap: F32


class PcmSlots(Protocol):
    """`capacity` streams, one a row. One thread attaches, pins and steps; `export` may be called from another for a row that is not stepping."""

    max_batch: int  # rows a step that still make a row cheaper
    can_watch: bool  # what `watch` asks for can be had

    def prepare(self, slots: int) -> None:
        """Get everything ready that up to `slots` rows need, before the first stream comes."""

    def attach(self, row: int, hop: int, task: str = "restore", luggage: Luggage | None = None, whole: bool = False) -> None:
        """The row starts afresh, or goes on from luggage, whoever had it before. hop: samples, the stream's rate; whole: it wants int16."""

    def pin(self, row: int, pinned: State) -> None:
        """The row is asked for something else from its next frame on, and forgets nothing. pinned: the states `engine.PINNED`, [1, ...] each."""

    def watch(self, row: int) -> None:
        """From the row's next frame on, until it is attached again, keep what `energies` says of its newest frame."""

    def heard(self, row: int) -> tuple[float, float]:
        """The same, of a row that is watched and has been stepped."""

    def step(self, rows: Rows, frames: Sequence[Samples], dry: F32) -> list[Samples]:
        """rows: [n] ascending; frames: [2 hop] each, int16 or float32 of full scale 1.0; dry: [n], the share of the input to keep (`stft.finish`) →
        [2 hop] each, int16 or float32 as the row wants it, one hop older than what went in. The other rows keep their state."""

    def export(self, row: int) -> Luggage:
        """A copy of what the row's stream takes along."""

    def close(self) -> None:
        """Give the memory back; no step follows."""


def alike(*kinds: Sequence[object]) -> Iterator[list[int]]:
    """Positions whose kinds are all the same: their frames share a transform."""
    found: dict[tuple[object, ...], list[int]] = {}
    for i, kind in enumerate(zip(*kinds, strict=True)):
        found.setdefault(kind, []).append(i)
    yield from found.values()


def stacked(frames: Sequence[Samples], group: Sequence[int]) -> Samples:
    """Frames of one length and type as one array, [n, samples]."""
    return np.concatenate([frames[i] for i in group]).reshape(len(group), -1)


class Edges:
    """The edges of streams in host memory. hop, whole: [capacity]; tail, overlap: [capacity, 480] float32, of which a row's first hop counts."""

    def __init__(self, capacity: int) -> None:
        self.hop, self.whole = np.zeros(capacity, np.int32), np.zeros(capacity, np.bool_)
        self.tail, self.overlap = np.zeros((capacity, MAX_HOP), np.float32), np.zeros((capacity, MAX_HOP), np.float32)
        self.heard: dict[int, tuple[float, float]] = {}  # of the rows that are watched

    def attach(self, row: int, hop: int, luggage: Luggage | None, whole: bool) -> None:
        self.heard.pop(row, None)
        self.hop[row], self.whole[row] = hop, whole
        self.tail[row, :hop], self.overlap[row, :hop] = (luggage.tail[0], luggage.overlap[0]) if luggage else (0.0, 0.0)

    def export(self, row: int) -> tuple[F32, F32]:
        """Copies of tail and overlap, [1, hop]."""
        i, hop = slice(row, row + 1), self.hop[row]
        return self.tail[i, :hop].copy(), self.overlap[i, :hop].copy()

    def step(self, slots: Slots, rows: Rows, frames: Sequence[Samples], dry: F32) -> list[Samples]:
        """As `PcmSlots.step`, the spectra going through `slots`."""
        # streams of one rate and format share a transform; every rate gives the engine the same bins
        groups = list(alike(self.hop[rows].tolist(), [f.dtype for f in frames], self.whole[rows].tolist()))
        alone = len(groups) == 1
        places = [span(rows)] if alone else [rows[group] for group in groups]  # rows that lie together need no copies
        x: F32 = np.empty((0 if alone else len(rows), HOPS_PER_FRAME, BINS, 2), np.float32)
        for at, group in zip(places, groups, strict=True):
            hop = self.hop[rows[group[0]]]
            spec, self.tail[at, :hop] = analyse(self.tail[at, :hop], to_float(stacked(frames, group))[0])
            if alone:
                x = spec
            else:
                x[group] = spec
        speech = slots.step(rows, np.ascontiguousarray(x[:, :, :-1]))
        out: list[Samples] = list(frames)
        for at, group in zip(places, groups, strict=True):
            hop, of = self.hop[rows[group[0]]], slice(None) if alone else group
            if self.heard:
                self._hear(rows, group, x[of], speech[of])
            y, self.overlap[at, :hop] = finish(self.overlap[at, :hop], x[of], speech[of], dry[of])
            for i, frame in zip(group, to_int16(y) if self.whole[rows[group[0]]] else y, strict=True):
                out[i] = frame
        return out

    def _hear(self, rows: Rows, group: Sequence[int], x: F32, speech: F32) -> None:
        for k, row in enumerate(rows[group].tolist()):
            if row in self.heard:
                self.heard[row] = energies_of(x[k], speech[k])


class HostPcmSlots:
    """The edges in NumPy, around slots that take spectra."""

    can_watch = True

    def __init__(self, slots: Slots, capacity: int) -> None:
        self.slots, self.edges = slots, Edges(capacity)
        self.max_batch = slots.max_batch

    def prepare(self, slots: int) -> None:
        self.slots.prepare(slots)

    def attach(self, row: int, hop: int, task: str = "restore", luggage: Luggage | None = None, whole: bool = False) -> None:
        self.slots.attach(row, task, luggage.state if luggage else None)
        self.edges.attach(row, hop, luggage, whole)

    def pin(self, row: int, pinned: State) -> None:
        self.slots.pin(row, pinned)

    def watch(self, row: int) -> None:
        self.edges.heard[row] = (0.0, 0.0)

    def heard(self, row: int) -> tuple[float, float]:
        return self.edges.heard[row]

    def step(self, rows: Rows, frames: Sequence[Samples], dry: F32) -> list[Samples]:
        return self.edges.step(self.slots, rows, frames, dry)

    def export(self, row: int) -> Luggage:
        return Luggage(self.slots.export(row), *self.edges.export(row))

    def close(self) -> None:
        self.slots.close()


def open_pcm_slots(engine: Engine, capacity: int) -> PcmSlots:
    own = getattr(engine, "pcm_slots", None)
    slots: PcmSlots = own(capacity) if own else HostPcmSlots(open_slots(engine, capacity), capacity)
    return slots
