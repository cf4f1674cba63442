"""Slots on a device: who is active and who begins is told by masks, and a device that is lost is replaced by the CPU within the same frame.

Up to `MIRRORED` slots have a mirror in host memory, brought up to date by what every step copies out anyway (33 kB a slot: the small states
and the new attention rows). When the device is lost, the frame under way is stepped again on the CPU from the mirror: nothing is lost but time.
Beyond that the copies would cost more than the step, and no CPU could take the streams over at full speed: they go on from a fresh state.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..engine import F32, Engine, EngineError, State
from ..slots import HostSlots, Rows, span
from .device import DeviceLost
from .layout import AT, FIXED, MOVING, POS, RINGS, Layout
from .stepper import BUCKETS, Outputs, Stage, Stepper, bucket_for

MIRRORED = 256  # slots
IN_FLIGHT = 2


@dataclass(eq=False)
class Ticket:
    """A step under way: kept until its result is fetched, so that it can be done again elsewhere."""

    rows: Rows
    x: F32
    stage: Stage | None
    y: F32 | None = None


class DeviceSlots:
    """`Slots` on a `Stepper`. `step` is `collect(submit(...))`; two steps may be under way. fallen(why): called once, when the device is lost.

    Thread-safe, so that `export` may come from another thread.
    """

    max_batch = 4096

    def __init__(self, stepper: Stepper, cpu: Engine, capacity: int, fallen: Callable[[str], None] = lambda why: None) -> None:
        bucket_for(capacity)
        self.capacity = capacity
        self.stepper, self._cpu, self._fallen = stepper, cpu, fallen
        self._layout = Layout(cpu.init_state(1))
        self._task = ["restore"] * capacity
        self._pinned = ["restore"] * capacity  # whose prefix the row holds on the device; "" for luggage
        self._begins = np.ones(capacity, np.bool_)  # rows to reset with their next frame
        self._flight: deque[Ticket] = deque()
        self.host = HostSlots(cpu, capacity) if capacity <= MIRRORED else None
        self.lost = ""  # why the CPU steps now
        self.fallback_s = 0.0  # what taking over cost
        self._lock = threading.RLock()

    def attach(self, row: int, task: str = "restore", state: State | None = None) -> None:
        with self._lock:
            self._attach(row, task, state)

    def _attach(self, row: int, task: str, state: State | None) -> None:
        for ticket in self._flight:  # what is under way belongs to who was there before
            self._finish(ticket)
        self._task[row] = task
        self._begins[row] = state is None  # a bit in the next step's mask, no launch
        if self.host:
            self.host.attach(row, task, state)
        if self.lost or (state is None and self._pinned[row] == task):
            return
        self._pinned[row] = task if state is None else ""
        if state is None:
            first = self._cpu.init_state(1, task)
            state = {n: first[n] for n in self._layout.packs[FIXED]}
        try:
            self.stepper.write(row, state)
        except DeviceLost as e:
            self._fall_back(e)

    def step(self, rows: Rows, x: F32) -> F32:
        return self.collect(self.submit(rows, x))

    def submit(self, rows: Rows, x: F32) -> Ticket:
        """Start a step; x must stay as it is until `collect`. ValueError when two are under way."""
        with self._lock:
            return self._submit(Ticket(rows, x, None))

    def _submit(self, ticket: Ticket) -> Ticket:
        if len(self._flight) == IN_FLIGHT:
            raise ValueError("two steps are under way; collect the first one")
        self._flight.append(ticket)
        if self.lost:
            self._on_host(ticket)
            return ticket
        try:
            rows = span(ticket.rows)
            stage = self.stepper.stage(int(ticket.rows[-1]) + 1)
            stage.active[rows] = True
            stage.reset[rows] = self._begins[rows]
            stage.x[rows] = ticket.x
            self._begins[rows] = False
            ticket.stage = stage
            self.stepper.launch(stage)
        except DeviceLost as e:
            self._fall_back(e)
        except EngineError:  # no room for a batch of this size, say
            self._flight.remove(ticket)
            raise
        return ticket

    def collect(self, ticket: Ticket) -> F32:
        """The result of the oldest step under way. [n, 2, 480, 2]"""
        with self._lock:
            assert ticket is self._flight[0], "steps are collected in order"
            y = self._finish(ticket)
            self._flight.popleft()
            return y

    def export(self, row: int) -> State:
        with self._lock:
            return self._export(row)

    def _export(self, row: int) -> State:
        if self.host:
            return self.host.export(row)
        if self._begins[row]:
            return self._cpu.init_state(1, self._task[row])
        try:
            return self.stepper.read(row)
        except DeviceLost as e:
            return self._fall_back(e).export(row)

    def prepare(self, slots: int) -> None:
        """Everything that up to `slots` rows need, before the first of them comes."""
        for bucket in BUCKETS:
            if not self.lost:
                self.stepper.prepare(bucket)
            if bucket >= slots:
                return

    def close(self) -> None:
        if not self.lost:
            self.stepper.close()

    @property
    def how(self) -> str:
        return self.stepper.how

    # -- inside --------------------------------------------------------------------------------------------------------
    def _finish(self, ticket: Ticket) -> F32:
        if ticket.y is None:
            try:
                out = self.stepper.wait(ticket.stage)
                ticket.y = out["y"][span(ticket.rows)]
                if self.host:
                    self._reflect(ticket.rows, out)
            except DeviceLost as e:
                self._fall_back(e)
        assert ticket.y is not None
        return ticket.y

    def _reflect(self, rows: Rows, out: Outputs) -> None:
        assert self.host is not None
        mirror = self.host.rows
        at = out[AT][rows]
        for name in RINGS:
            mirror[name][rows, :, at] = out[f"{name}.row"][rows]
        for name, value in self._layout.unpack({n: out[f"{n}.new"] for n in (MOVING, POS)}).items():
            mirror[name][rows] = value[rows]

    def _fall_back(self, error: DeviceLost) -> HostSlots:
        """From here on the CPU steps; what was under way is done again there, in order."""
        begin = time.perf_counter()
        self.lost = str(error)
        if self.host is None:
            self.host = HostSlots(self._cpu, self.capacity)
            for row, task in enumerate(self._task):
                if task != "restore":
                    self.host.attach(row, task)
        for ticket in self._flight:  # the device itself is left alone: who is lost gives nothing back, and may take the process along
            if ticket.y is None:
                self._on_host(ticket)
        self.fallback_s = time.perf_counter() - begin
        self._fallen(self.lost)
        return self.host

    def _on_host(self, ticket: Ticket) -> None:
        assert self.host is not None
        n = self.host.max_batch  # more at once keep others waiting on a CPU
        parts = [self.host.step(ticket.rows[i : i + n], np.ascontiguousarray(ticket.x[i : i + n])) for i in range(0, len(ticket.rows), n)]
        ticket.y = np.concatenate(parts)
