"""An engine and the voice converter beside it, for whoever steps streams of both kinds together. What a stream is asked for says which of them steps it, so a
stream can go from one to the other between two frames: the samples at its edge go along, and the other begins with a fresh state.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .convert_engine import ConvertEngine
from .engine import F32, Engine, State
from .pcm_slots import HostPcmSlots, Luggage, PcmSlots, open_pcm_slots
from .samples import Samples
from .slots import Rows, open_slots

MAIN, CONVERTER = 0, 1


class Converting:
    """An engine for all tasks but `convert`, and one for that. By itself it is the former; `stepper` tells the other, `pcm_slots` step both."""

    def __init__(self, main: Engine, converter: ConvertEngine) -> None:
        self.main, self.converter = main, converter
        self.weights = main.weights

    @property
    def name(self) -> str:
        return self.main.name

    @property
    def how(self) -> str:
        """A GPU that is lost changes it."""
        return str(getattr(self.main, "how", self.main.name))

    @property
    def why(self) -> list[str]:
        return list(getattr(self.main, "why", ()))

    def init_state(self, batch: int, task: str = "restore") -> State:
        return stepper(self, task).init_state(batch, task)

    def step(self, x: F32, state: State) -> tuple[F32, State]:
        return (self.converter if is_converters(state) else self.main).step(x, state)

    def advance(self, x: F32, state: State) -> tuple[F32, State]:
        return (self.converter if is_converters(state) else self.main).advance(x, state)

    def pcm_slots(self, capacity: int) -> PcmSlots:
        return ConvertingSlots(self, capacity)


def is_converters(state: State) -> bool:
    """Whether a state, or the pinned part of one, is the converter's."""
    return "target.voice" in state


def stepper(engine: Engine, task: str) -> Engine:
    """What steps streams with that task."""
    if isinstance(engine, Converting):
        return engine.converter if task == "convert" else engine.main
    return engine


def turned(engine: Engine, state: State, pinned: State) -> State:
    """state: [1, ...] of a stream that is asked for something else from now on. Fresh where the other engine goes on."""
    if is_converters(pinned) == is_converters(state):
        return state | pinned
    return engine.init_state(1, "convert" if is_converters(pinned) else "restore") | pinned


class ConvertingSlots:
    """`PcmSlots` of both. A row is one stream's, whichever engine steps it, so both keep memory for all of them (the converter 36 kB a row)."""

    def __init__(self, engine: Converting, capacity: int) -> None:
        self._engine = engine
        converters: PcmSlots = HostPcmSlots(open_slots(engine.converter, capacity), capacity)
        self._slots = (open_pcm_slots(engine.main, capacity), converters)
        self._at = np.zeros(capacity, np.intp)  # MAIN or CONVERTER
        self._shape = [(0, False)] * capacity  # hop, whole
        self._watched: set[int] = set()
        self.max_batch, self.can_watch = self._slots[MAIN].max_batch, self._slots[MAIN].can_watch

    def prepare(self, slots: int) -> None:
        for each in self._slots:
            each.prepare(slots)

    def attach(self, row: int, hop: int, task: str = "restore", luggage: Luggage | None = None, whole: bool = False) -> None:
        self._shape[row] = (hop, whole)
        self._watched.discard(row)
        self._at[row] = CONVERTER if (luggage and is_converters(luggage.state)) or task == "convert" else MAIN
        self._slots[self._at[row]].attach(row, hop, task, luggage, whole)

    def pin(self, row: int, pinned: State) -> None:
        if is_converters(pinned) == (self._at[row] == CONVERTER):
            self._slots[self._at[row]].pin(row, pinned)
            return
        state, tail, overlap = self.export(row)
        (hop, whole), watched = self._shape[row], row in self._watched
        self.attach(row, hop, luggage=Luggage(turned(self._engine, state, pinned), tail, overlap), whole=whole)
        if watched:
            self.watch(row)

    def watch(self, row: int) -> None:
        self._slots[self._at[row]].watch(row)
        self._watched.add(row)

    def heard(self, row: int) -> tuple[float, float]:
        return self._slots[self._at[row]].heard(row)

    def step(self, rows: Rows, frames: Sequence[Samples], dry: F32) -> list[Samples]:
        at = self._at[rows]
        if (at == at[0]).all():
            return self._slots[at[0]].step(rows, frames, dry)
        out = list(frames)
        for which in (MAIN, CONVERTER):
            (mine,) = np.nonzero(at == which)
            for i, y in zip(mine.tolist(), self._slots[which].step(rows[mine], [frames[i] for i in mine.tolist()], dry[mine]), strict=True):
                out[i] = y
        return out

    def export(self, row: int) -> Luggage:
        return self._slots[self._at[row]].export(row)

    def close(self) -> None:
        for each in self._slots:
            each.close()
