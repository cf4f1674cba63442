"""The scheduler: one thread that steps the frames of many streams through one engine together.

Every stream has a *slot*, a row of the batched state. A batch starts when every open slot has a frame, when `max_batch` have one, or when
the oldest frame has waited `wait_frames`. Frames are taken by the time they are due: when they came, or 19 ms after the one before was
due, so a client that sends faster than real time gets what the live ones leave over.

Only the scheduler's thread touches rows. A slot that is opened on a used row is set to its first state when its first frame is stepped;
a slot that was closed while its frame was being stepped is told by its generation.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from voicewire.engines.config import HOPS_PER_FRAME, HOPS_PER_SECOND
from voicewire.engines.engine import Engine, State
from voicewire.engines.pcm_slots import Luggage, PcmSlots, open_pcm_slots
from voicewire.engines.samples import Samples
from voicewire.engines.stft import hop_samples

from ..realtime import step_back

FRAME_S = HOPS_PER_FRAME / HOPS_PER_SECOND
PACE = 0.95  # a little less than a frame a frame: what one late frame adds to the due time is soon forgotten


class Full(Exception):
    """No slot is free."""


@dataclass(frozen=True)
class Batching:
    """max_batch: slots a step, None for what suits the engine. wait_frames: how long a frame may wait for company."""

    max_batch: int | None = None
    wait_frames: float = 0.3


@dataclass(eq=False)
class Slot:
    """One stream's place. Belongs to the scheduler; others read `index` and `generation`."""

    index: int
    generation: int
    hop: int
    deliver: Callable[[Samples], None]
    whole: bool  # its owner wants int16
    heard: deque[tuple[float, float]] | None = None  # `energies` of each frame that was delivered, if its owner wants them, who takes them out
    frames: deque[tuple[float, float, Samples, State | None]] = field(default_factory=deque)  # (submitted, dry share, [frame], what is asked for from it on)
    due: float = 0.0
    fresh: bool = True  # its row still holds its last user's state
    luggage: Luggage | None = None  # to start from instead
    queued: bool = False
    open: bool = True


@dataclass(frozen=True)
class StepTime:
    """One batch: slots in it, seconds it took, seconds from the oldest frame's submission to the end; live_s the same, of the oldest due time,
    which a client that sends faster than real time does not make longer."""

    slots: int
    step_s: float
    oldest_s: float
    live_s: float


Delivery = tuple[Slot, Samples]
Item = tuple[Slot, float, float, Samples, State | None, float]  # slot, submitted, dry share, [frame], what is asked for from it on, due


class Scheduler:
    """Steps slots of one engine. `open`, `submit`, `close` from any one thread; results go to `deliver` on the scheduler's thread.

    deliver gets [(slot, [frame_samples]), ...] of one batch; the owner passes each on to `slot.deliver` if the slot is still open.
    """

    def __init__(
        self, engine: Engine, capacity: int, deliver: Callable[[Sequence[Delivery]], None], batching: Batching | None = None,
        timed: Callable[[StepTime], None] | None = None,
    ) -> None:  # fmt: skip
        self.engine, self.capacity = engine, capacity
        self._deliver, self._timed = deliver, timed
        self._slots: PcmSlots = open_pcm_slots(engine, capacity)
        self._slots.prepare(capacity)
        self._wait_frames = (batching or Batching()).wait_frames
        self._max_batch = (batching or Batching()).max_batch or self._slots.max_batch
        self._free = list(range(capacity))  # a heap: low rows first, so that the active ones lie together
        self._generation = 0
        self._open = 0
        self._oldest = 0.0  # when the first of the frames in `_ready` was submitted
        self._ready: list[Slot] = []  # slots with a frame
        self._lock = threading.Lock()
        self._wake, self._idle = threading.Condition(self._lock), threading.Condition(self._lock)
        self._stepping: list[Item] = []
        self._ended = False
        self.fault = ""  # why no more steps are made
        self._thread = threading.Thread(target=self._run, name="voicewire-steps", daemon=True)
        self._thread.start()

    # -- from outside --------------------------------------------------------------------------------------------------
    @property
    def used(self) -> int:
        return self._open

    @property
    def can_watch(self) -> bool:
        """Whether `open` may be asked to watch."""
        return self._slots.can_watch

    def open(self, rate: int, deliver: Callable[[Samples], None], whole: bool = False, luggage: Luggage | None = None, watch: bool = False) -> Slot:
        """A slot for a stream of `rate` Hz, from the start or from where another stream left. whole: deliver int16, else float32. watch: fill `Slot.heard`.
        Full if there is none."""
        with self._wake:
            if not self._free:
                raise Full
            self._generation += 1
            slot = Slot(heapq.heappop(self._free), self._generation, hop_samples(rate), deliver, whole, deque() if watch else None, luggage=luggage)
            self._open += 1
        return slot

    def close(self, slot: Slot) -> None:
        """Give the slot back; frames still waiting are dropped. Does nothing the second time."""
        with self._wake:
            if slot.open:
                slot.open = False
                slot.frames.clear()
                self._open -= 1
                heapq.heappush(self._free, slot.index)
                self._wake.notify()

    def restart(self, slot: Slot) -> Slot:
        """The same row for a stream that begins afresh: a new generation, so that what is under way is dropped."""
        with self._wake:
            slot.open = False
            slot.frames.clear()
            self._generation += 1
            return Slot(slot.index, self._generation, slot.hop, slot.deliver, slot.whole, None if slot.heard is None else deque())

    def submit(self, slot: Slot, frame: Samples, dry: float, pinned: State | None = None) -> None:
        """frame: [frame_samples] int16 or float32; dry: share of the input to keep in it. pinned: what is asked for from this frame on (`PcmSlots.pin`),
        None: what was asked for before, to restore at first."""
        now = time.monotonic()
        with self._lock:  # the lock itself: entering a Condition costs five times as much
            slot.frames.append((now, dry, frame, pinned))
            if not slot.queued:
                self._queue(slot, now)
            if len(self._ready) == 1 or self._complete():
                self._wake.notify()

    def export(self, slot: Slot) -> Luggage:
        """A copy of what a slot's stream takes along, once nothing of it is waiting. Blocks; call it off the event loop."""
        with self._wake:
            self._idle.wait_for(lambda: self._ended or (not slot.frames and all(item[0].index != slot.index for item in self._stepping)))
            if slot.fresh:
                silence = np.zeros((1, slot.hop), np.float32)
                return slot.luggage or Luggage(self.engine.init_state(1), silence, silence)
            return self._slots.export(slot.index)

    def end(self) -> None:
        with self._wake:
            self._ended = True
            self._wake.notify_all()
        self._thread.join(5)
        self._slots.close()

    # -- inside --------------------------------------------------------------------------------------------------------
    def _queue(self, slot: Slot, now: float) -> None:
        slot.due = max(slot.due + PACE * FRAME_S, now)
        slot.queued = True
        if not self._ready:
            self._oldest = slot.frames[0][0]
        self._ready.append(slot)

    def _complete(self) -> bool:
        return len(self._ready) >= min(self._open, self._max_batch)

    def _take(self) -> list[Item]:
        """Wait for a batch; → its items, [] at the end."""
        wait_s = self._wait_frames * FRAME_S
        with self._wake:
            self._stepping = []
            self._idle.notify_all()
            while not self._ended:
                now = time.monotonic()
                if not self._ready:
                    self._wake.wait()
                elif self._complete() or (left := self._oldest + wait_s - now) <= 0:
                    ready = [slot for slot in self._ready if slot.frames]
                    if len(ready) > self._max_batch:
                        ready.sort(key=lambda slot: slot.due)
                    self._ready = ready[self._max_batch :]
                    batch: list[Item] = []
                    for slot in ready[: self._max_batch]:
                        batch.append((slot, *slot.frames.popleft(), slot.due))
                        slot.queued = False
                        if slot.frames:
                            self._queue(slot, now)
                    self._oldest = min((slot.frames[0][0] for slot in self._ready), default=now)
                    if batch:
                        self._stepping = batch
                        return batch
                else:
                    self._wake.wait(left)
        return []

    def _run(self) -> None:
        step_back()
        while batch := self._take():
            begin = time.monotonic()
            batch.sort(key=lambda item: item[0].index)
            try:
                done = self._step(batch)
            except Exception as e:  # an engine that fails once has failed: its state is not to be trusted
                self.fault = f"{type(e).__name__}: {e}"
                self._deliver([])
                return
            end = time.monotonic()
            if self._timed:
                due = min((item[5] for item in batch), default=end)
                self._timed(StepTime(len(batch), end - begin, end - min(item[1] for item in batch), end - due))
            self._deliver(done)

    def _step(self, batch: list[Item]) -> list[Delivery]:
        slots = [item[0] for item in batch]
        for slot, _, _, _, pinned, _ in batch:
            if slot.fresh:
                self._slots.attach(slot.index, slot.hop, luggage=slot.luggage, whole=slot.whole)
                slot.fresh, slot.luggage = False, None
                if slot.heard is not None:
                    self._slots.watch(slot.index)
            if pinned is not None:
                self._slots.pin(slot.index, pinned)
        rows, dry = np.array([slot.index for slot in slots]), np.array([item[2] for item in batch], np.float32)
        done = self._slots.step(rows, [item[3] for item in batch], dry)
        for slot in slots:
            if slot.heard is not None:
                slot.heard.append(self._slots.heard(slot.index))
        return list(zip(slots, done, strict=True))
