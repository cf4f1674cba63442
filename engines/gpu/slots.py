"""`slots.Slots` on a device: spectra in, spectra out."""

from __future__ import annotations

import numpy as np

from ..engine import F32, State
from ..slots import Rows, span
from .ends import Views
from .resident import Resident, Ticket
from .stepper import Stage


class DeviceSlots(Resident[F32, F32]):
    """On a stepper with the ends `SPECTRA`. `step` is `collect(submit(...))`."""

    def attach(self, row: int, task: str = "restore", state: State | None = None) -> None:
        with self._lock:
            self._settle()
            self._place(row, task, state)

    def step(self, rows: Rows, x: F32) -> F32:
        return self.collect(self.submit(rows, x))

    def export(self, row: int) -> State:
        with self._lock:
            return self._state(row)

    def _fill(self, stage: Stage, ticket: Ticket[F32, F32]) -> None:
        stage.given["x"][span(ticket.rows)] = ticket.given

    def _fetch(self, out: Views, ticket: Ticket[F32, F32]) -> F32:
        y: F32 = out["y"][span(ticket.rows)]
        return y

    def _on_host(self, ticket: Ticket[F32, F32]) -> F32:
        assert self.host is not None
        n = self.host.max_batch  # more at once keep others waiting on a CPU
        parts = [self.host.step(ticket.rows[i : i + n], np.ascontiguousarray(ticket.given[i : i + n])) for i in range(0, len(ticket.rows), n)]
        return np.concatenate(parts)
