"""`pcm_slots.PcmSlots` on a device: samples in, samples out, everything between them one graph (`ends.PCM`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..engine import F32, Engine, EngineError, State
from ..pcm_slots import MAX_HOP, Edges, Luggage, alike, stacked
from ..samples import Samples, to_float
from ..slots import HostSlots, Rows, span
from .ends import PCM, Views
from .resident import Resident, Ticket
from .stepper import Stage, Stepper


class Frames(NamedTuple):
    """frames: [2 hop] each; dry: [n]"""

    frames: Sequence[Samples]
    dry: F32


class DevicePcmSlots(Resident[Frames, list[Samples]]):
    """On a stepper with the ends `PCM`. `step` is `collect(submit(...))`.

    The mirror holds the edges, too. Without one, streams that outlive the device begin afresh, with a hop of fading in. What is speech stays on the device
    until the input's share is in it, so rows cannot be watched.
    """

    can_watch = False

    def __init__(self, stepper: Stepper, cpu: Engine, capacity: int, fallen: Callable[[str], None] = lambda why: None) -> None:
        super().__init__(stepper, cpu, capacity, fallen)
        self._edges = Edges(capacity)

    def attach(self, row: int, hop: int, task: str = "restore", luggage: Luggage | None = None, whole: bool = False) -> None:
        with self._lock:
            self._settle()
            self._edges.attach(row, hop, luggage, whole)
            self._place(row, task, None if luggage is None else {**luggage.state, "tail": _long(luggage.tail), "overlap": _long(luggage.overlap)})

    def watch(self, row: int) -> None:
        raise EngineError("what is speech in a frame stays on the device; step on the CPU to know it")

    def heard(self, row: int) -> tuple[float, float]:
        raise EngineError("what is speech in a frame stays on the device; step on the CPU to know it")

    def step(self, rows: Rows, frames: Sequence[Samples], dry: F32) -> list[Samples]:
        return self.collect(self.submit(rows, Frames(frames, dry)))

    def export(self, row: int) -> Luggage:
        with self._lock:
            state: State = self._state(row)
            carried = [state.pop(name) for name in PCM.carried if name in state]
            hop = self._edges.hop[row]
            tail, overlap = (a[:, :hop].astype(np.float32) for a in carried) if carried else self._edges.export(row)
            return Luggage(state, tail, overlap)

    def _fill(self, stage: Stage, ticket: Ticket[Frames, list[Samples]]) -> None:
        given, rows, (frames, dry) = stage.given, ticket.rows, ticket.given
        hop = self._edges.hop[rows]
        for name, values in (("hop", hop), ("samples", 2 * hop), ("dry", dry)):
            given[name][rows] = values
        given["s16.slot"][...] = given["whole.slot"][...] = -1
        wanted = rows[self._edges.whole[rows]]
        given["whole.slot"][wanted] = wanted
        for group in alike(hop.tolist(), [f.dtype for f in frames]):
            block, at, n = stacked(frames, group), rows[group], 2 * hop[group[0]]
            if block.dtype == np.int16:
                given["s16"][span(at), :n] = block
                given["s16.slot"][at] = at
            else:
                given["heard"][span(at), :n] = to_float(block)[0]

    def _fetch(self, out: Views, ticket: Ticket[Frames, list[Samples]]) -> list[Samples]:
        rows, made = ticket.rows, list(ticket.given.frames)
        for group in alike(self._edges.hop[rows].tolist(), self._edges.whole[rows].tolist()):
            at = rows[group]
            block = out["whole" if self._edges.whole[at[0]] else "pcm"][span(at), : 2 * self._edges.hop[at[0]]].copy()  # the relay keeps frames
            for i, frame in zip(group, block, strict=True):
                made[i] = frame
        return made

    def _reflect(self, rows: Rows, out: Views) -> None:
        super()._reflect(rows, out)
        for name in PCM.carried:
            getattr(self._edges, name)[span(rows)] = out[f"{name}.new"][span(rows)]

    def _afresh(self) -> HostSlots:
        self._edges.tail[...] = self._edges.overlap[...] = 0  # what the streams came with is long past
        return super()._afresh()

    def _on_host(self, ticket: Ticket[Frames, list[Samples]]) -> list[Samples]:
        assert self.host is not None
        (frames, dry), made = ticket.given, []
        for i in range(0, len(frames), self.host.max_batch):  # more at once keep others waiting on a CPU
            part = slice(i, i + self.host.max_batch)
            made += self._edges.step(self.host, ticket.rows[part], frames[part], dry[part])
        return made


def _long(edge: F32) -> F32:
    """[1, hop] → [1, 480]"""
    return np.pad(edge, ((0, 0), (0, MAX_HOP - edge.shape[1])))
