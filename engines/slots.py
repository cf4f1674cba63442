"""Resident slots: the rows of a batched state kept by the engine instead of handed back and forth, for whoever steps many streams together.
With samples at both ends instead of spectra: `pcm_slots`.

`open_slots(engine, capacity)` asks the engine for its own (on a GPU the state never leaves the device) and keeps the rows in host arrays for
engines that have none. Both behave the same. One thread attaches, pins and steps; `export` may be called from another for a row that is not stepping.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .engine import F32, Engine, State

Rows = NDArray[np.intp]


def span(rows: Rows) -> slice | Rows:
    """rows: ascending → the same as a slice if they lie together: no copies."""
    return slice(int(rows[0]), int(rows[-1]) + 1) if rows[-1] - rows[0] == len(rows) - 1 else rows


class Slots(Protocol):
    """`capacity` streams, one a row."""

    max_batch: int  # rows a step that still make a row cheaper

    def prepare(self, slots: int) -> None:
        """Get everything ready that up to `slots` rows need, before the first stream comes."""

    def attach(self, row: int, task: str = "restore", state: State | None = None) -> None:
        """The row starts afresh in `task`, or goes on from `state` ([1, ...] each), whoever had it before."""

    def pin(self, row: int, pinned: State) -> None:
        """The row is asked for something else from its next frame on, and forgets nothing. pinned: the states `engine.PINNED`, [1, ...] each."""

    def step(self, rows: Rows, x: F32) -> F32:
        """rows: [n] ascending; x: [n, 2, 480, 2] → the same shape, good until the step after next. The other rows keep their state."""

    def export(self, row: int) -> State:
        """A copy of the row's state, [1, ...] each."""

    def close(self) -> None:
        """Give the memory back; no step follows."""


class HostSlots:
    """Rows in host arrays, for engines whose `advance` takes any state."""

    max_batch = 16  # more give nothing on a CPU and keep others waiting

    def __init__(self, engine: Engine, capacity: int) -> None:
        self._engine = engine
        self._first: dict[str, State] = {}
        self.rows: State = {k: np.repeat(v, capacity, 0) for k, v in self._fresh("restore").items()}

    def _fresh(self, task: str) -> State:
        if task not in self._first:
            self._first[task] = self._engine.init_state(1, task)
        return self._first[task]

    def prepare(self, slots: int) -> None:
        return

    def attach(self, row: int, task: str = "restore", state: State | None = None) -> None:
        for name, value in (state or self._fresh(task)).items():
            self.rows[name][row] = value[0]

    def pin(self, row: int, pinned: State) -> None:
        for name, value in pinned.items():
            self.rows[name][row] = value[0]

    def step(self, rows: Rows, x: F32) -> F32:
        at = span(rows)
        state = {k: v[at] for k, v in self.rows.items()}
        y, new = self._engine.advance(x, state)
        for name, value in new.items():
            if at is rows or value is not state[name]:
                self.rows[name][at] = value
        return y

    def export(self, row: int) -> State:
        return {k: v[row : row + 1].copy() for k, v in self.rows.items()}

    def close(self) -> None:
        return


def open_slots(engine: Engine, capacity: int) -> Slots:
    own = getattr(engine, "slots", None)
    slots: Slots = own(capacity) if own else HostSlots(engine, capacity)
    return slots
