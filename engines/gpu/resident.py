"""Slots on a device, whatever their ends: who is active and who begins is told by masks, and a device that is lost is replaced by the CPU within
the same frame.

Up to `MIRRORED` slots have a mirror in host memory, brought up to date by what every step copies out anyway (33 kB a slot: the small states
and the new attention rows; 37 with the edges of `pcm_slots`). When the device is lost, the frame under way is stepped again on the CPU from the
mirror: nothing is lost but time. Beyond that the copies would cost more than the step, and no CPU could take the streams over at full speed: they
go on from a fresh state, asked for what they were asked for.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from ..engine import Engine, EngineError, State
from ..slots import HostSlots, Rows, span
from .device import DeviceLost
from .ends import Views
from .layout import AT, FIXED, MOVING, POS, RINGS, Layout
from .stepper import BUCKETS, Stage, Stepper, bucket_for

MIRRORED = 256  # slots
IN_FLIGHT = 2

Given = TypeVar("Given")  # what a step of some rows takes
Made = TypeVar("Made")


@dataclass(eq=False)
class Ticket(Generic[Given, Made]):
    """A step under way: kept until its result is fetched, so that it can be done again elsewhere."""

    rows: Rows
    given: Given
    stage: Stage | None = None
    made: Made | None = None


class Resident(ABC, Generic[Given, Made]):
    """Rows on a `Stepper`. Two steps may be under way. fallen(why): called once, when the device is lost. Thread-safe, so that a row may be
    exported from another thread. `host`: the rows in host memory: the mirror, or what steps once the device is lost."""

    max_batch = 4096

    def __init__(self, stepper: Stepper, cpu: Engine, capacity: int, fallen: Callable[[str], None] = lambda why: None) -> None:
        bucket_for(capacity)
        self.capacity = capacity
        self.stepper, self._cpu, self._fallen = stepper, cpu, fallen
        self._layout = Layout(cpu.init_state(1))
        self._task = ["restore"] * capacity
        self._pinned = ["restore"] * capacity  # whose prefix the row holds on the device; "" for luggage
        self._turned: dict[int, State] = {}  # what rows without a mirror were asked for, where that is more than a task
        self._begins = np.ones(capacity, np.bool_)  # rows to reset with their next frame
        self._flight: deque[Ticket[Given, Made]] = deque()
        self.host: HostSlots | None = HostSlots(cpu, capacity) if capacity <= MIRRORED else None
        self.lost = ""  # why the CPU steps now
        self.fallback_s = 0.0  # what taking over cost
        self._lock = threading.RLock()

    # -- what the ends decide ------------------------------------------------------------------------------------------
    @abstractmethod
    def _fill(self, stage: Stage, ticket: Ticket[Given, Made]) -> None:
        """What the rows take, into a pinned block."""

    @abstractmethod
    def _fetch(self, out: Views, ticket: Ticket[Given, Made]) -> Made:
        """What the rows get, from a pinned block."""

    @abstractmethod
    def _on_host(self, ticket: Ticket[Given, Made]) -> Made:
        """The same step in `host`."""

    def _reflect(self, rows: Rows, out: Views) -> None:
        """What is new of the state, into `host`."""
        assert self.host is not None
        mirror, those = self.host.rows, span(rows)
        for name in RINGS:
            mirror[name][rows, :, out[AT][those]] = out[f"{name}.row"][those]
        for name, value in self._layout.unpack({n: out[f"{n}.new"] for n in (MOVING, POS)}).items():
            mirror[name][those] = value[those]

    # -- rows ----------------------------------------------------------------------------------------------------------
    def _settle(self) -> None:
        """Finish what is under way, which belongs to whoever has the rows now."""
        for ticket in self._flight:
            self._finish(ticket)

    def _place(self, row: int, task: str, state: State | None) -> None:
        """The row starts afresh or goes on from `state`, with what the ends carry."""
        self._task[row] = task
        self._begins[row] = state is None  # a bit in the next step's mask, no launch
        self._turned.pop(row, None)
        if self.host:
            self.host.attach(row, task, None if state is None else {n: state[n] for n in self._layout.first})
        elif state is not None:
            self._turned[row] = {n: state[n] for n in self._layout.packs[FIXED]}
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

    def pin(self, row: int, pinned: State) -> None:
        """As `Slots.pin`."""
        with self._lock:
            self._settle()
            self._pinned[row] = ""
            if self.host:
                self.host.pin(row, pinned)
            else:
                self._turned[row] = pinned
            try:
                if not self.lost:
                    self.stepper.write(row, pinned)
            except DeviceLost as e:
                self._fall_back(e)

    def submit(self, rows: Rows, given: Given) -> Ticket[Given, Made]:
        """Start a step; what is given must stay as it is until `collect`. ValueError when two are under way."""
        with self._lock:
            return self._submit(Ticket(rows, given))

    def _submit(self, ticket: Ticket[Given, Made]) -> Ticket[Given, Made]:
        if len(self._flight) == IN_FLIGHT:
            raise ValueError("two steps are under way; collect the first one")
        self._flight.append(ticket)
        if self.lost:
            ticket.made = self._on_host(ticket)
            return ticket
        try:
            rows = span(ticket.rows)
            stage = self.stepper.stage(int(ticket.rows[-1]) + 1)
            stage.active[rows] = True
            stage.reset[rows] = self._begins[rows]
            self._fill(stage, ticket)
            self._begins[rows] = False
            ticket.stage = stage
            self.stepper.launch(stage)
        except DeviceLost as e:
            self._fall_back(e)
        except EngineError:  # no room for a batch of this size, say
            self._flight.remove(ticket)
            raise
        return ticket

    def collect(self, ticket: Ticket[Given, Made]) -> Made:
        """The result of the oldest step under way."""
        with self._lock:
            assert ticket is self._flight[0], "steps are collected in order"
            made = self._finish(ticket)
            self._flight.popleft()
            return made

    def _state(self, row: int) -> State:
        """A copy of the row's state, [1, ...] each; of the model's alone where it is in host memory or has not begun."""
        if self.host:
            return self.host.export(row)
        if self._begins[row]:
            return {**self._cpu.init_state(1, self._task[row]), **self._turned.get(row, {})}
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
    def _finish(self, ticket: Ticket[Given, Made]) -> Made:
        if ticket.made is None:
            try:
                out = self.stepper.wait(ticket.stage)
                ticket.made = self._fetch(out, ticket)
                if self.host:
                    self._reflect(ticket.rows, out)
            except DeviceLost as e:
                self._fall_back(e)
        assert ticket.made is not None
        return ticket.made

    def _fall_back(self, error: DeviceLost) -> HostSlots:
        """From here on the CPU steps; what was under way is done again there, in order."""
        begin = time.perf_counter()
        self.lost = str(error)
        host = self.host or self._afresh()
        for ticket in self._flight:  # the device itself is left alone: who is lost gives nothing back, and may take the process along
            if ticket.made is None:
                ticket.made = self._on_host(ticket)
        self.fallback_s = time.perf_counter() - begin
        self._fallen(self.lost)
        return host

    def _afresh(self) -> HostSlots:
        """Rows that begin again in host memory, there having been no mirror."""
        self.host = HostSlots(self._cpu, self.capacity)
        for row, task in enumerate(self._task):
            if task != "restore":
                self.host.attach(row, task)
        for row, pinned in self._turned.items():
            self.host.pin(row, pinned)
        return self.host
