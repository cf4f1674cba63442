"""One client's stream: what it sent, what it is owed, and its slot. Lives on the event loop; never waits, never reads a socket."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from voicewire.engines.converting import stepper, turned
from voicewire.engines.engine import State, pinned_part
from voicewire.engines.pcm_slots import Luggage

from ..lane import Lane, Samples, check_task, dry_share, to_float, to_int16
from ..snapshot import head_of, pack, unpack
from ..snapshot import kind as kind_of
from ..speech import Heard, packed, step, turn, unpacked
from ..stream import aimed
from .events import Clear, Enroll, Mark, Move, ProtocolError, Reply, Set, Sound, Start, Stop
from .order import InOrder, Order
from .playout import Playout
from .slots import Scheduler, Slot
from .voices import Hearing, Voices


class Line(Protocol):
    """The way to the client, as a session sees it."""

    @property
    def clogged(self) -> bool:
        """The client does not take what is sent."""

    def send_reply(self, reply: Reply | Sound) -> None:
        """Through the adapter, at once."""

    def hold(self, still: bool) -> None:
        """Stop reading from the client, or go on."""

    def close_soon(self, code: int, reason: str) -> None:
        """Say goodbye."""

    def enroll(self, session: Session, heard: Samples) -> None:
        """Make a voiceprint of heard, [samples], and send it; the session may hear another when `enrolling` is false again."""

    def admit(self, session: Session, task: str) -> None:
        """ProtocolError `no_room` where the session may not go on with that task, for what it takes."""

    def leave(self, session: Session) -> None:
        """Keep the session's memory for another worker, then say `moved` and goodbye."""


class _Owed(NamedTuple):
    """The answer to one Sound. samples: of each channel."""

    samples: int
    sequence: int | None
    capture_us: int
    flags: int


@dataclass
class Tally:
    """Counted since the session began, samples of one channel."""

    samples_in: int = 0
    samples_out: int = 0
    skipped_samples: int = 0
    repaired_samples: int = 0
    errors: int = 0


class Session:
    """See the module. Raises `slots.Full`, and ProtocolError for a `resume` or a voice that does not fit. Queries come as `Query` (`Voices.query`), in `start`
    and in `Set`."""

    def __init__(
        self, name: str, start: Start, line: Line, scheduler: Scheduler, voices: Voices, *, inside_s: float = 1.0, luggage: bytes | None = None,
        record: Callable[[Samples, Samples], None] | None = None,
    ) -> None:  # fmt: skip
        self.name, self.start = name, start
        self.task, self.strength_db, self.query_gain_db, self.bypass = "restore", start.strength_db, start.query_gain_db, start.bypass
        self.voice_strength = start.voice_strength
        self.tally = Tally()
        self.began = self.heard = time.monotonic()
        self._line, self._scheduler, self._voices, self._record = line, scheduler, voices, record
        self._direct = start.whole and start.channels == 1  # int16 goes to the scheduler as it came
        self._lane = Lane(1, start.rate, np.int16 if start.whole else np.float32)
        self._asked: State | None = None  # of the model, where that is not to restore: the pinned part of a state
        self._turn: State | None = None  # the same, to go with the next frame
        self._hearing: Hearing | None = None
        self.enrolling = False  # from the event until its answer
        self._owed: deque[_Owed | Mark | Stop | Move] = deque()
        self._inside = 0  # frames with the scheduler
        self._most_inside = max(1, int(inside_s * start.rate / self._lane.frame_samples))
        self._held = self._ending = False
        self.order: Order = Playout(start.rate) if start.header and start.live else InOrder()  # of Sounds with sequence numbers
        self._sequence: int | None = None  # of the last Sound processed
        self._next_us = 0  # when the one after it was recorded
        self._skipped = 0  # samples since the last `lag`
        self._heard_frames: deque[Samples] = deque()  # what was sent in, for the record
        self._speech: Heard | None = Heard() if start.speech else None
        self._tasks: deque[str] = deque()  # of the frames with the scheduler, where it is told when somebody speaks
        taken = None if luggage is None else self._unpack(luggage)
        if taken is None:
            self._ask(start)
            self._aim()
        self._dry = self._share()
        if start.speech and not scheduler.can_watch:
            raise ProtocolError("unsupported", "this server's engine does not tell when somebody speaks; start without speech", fatal=True)
        self._slot = scheduler.open(start.rate, self.done, start.whole, taken, start.speech)

    @property
    def latency_ms(self) -> float:
        return 1e3 * self._lane.latency_samples / self.start.rate

    @property
    def latency_samples(self) -> int:
        return self._lane.latency_samples

    @property
    def held(self) -> bool:
        """The server does not read from this client for now."""
        return self._held

    @property
    def owed_ms(self) -> float:
        """Audio that came in and has not been answered."""
        return 1e3 * sum(o.samples for o in self._owed if isinstance(o, _Owed)) / self.start.rate

    # -- from the client -----------------------------------------------------------------------------------------------
    def sound(self, sound: Sound) -> None:
        if self._ending:
            raise ProtocolError("bad_order", "audio after stop")
        self.heard = time.monotonic()
        if sound.sequence is None:
            self._process(sound)
        else:
            for each in self.order.put(sound, self.heard):
                self._process(each)

    def tick(self) -> None:
        """Called every `order.tick_s`."""
        if not self._ending:
            for each in self.order.tick(time.monotonic()):
                self._process(each)

    def _process(self, sound: Sound) -> None:
        x, sequence, capture_us, flags = sound
        n = len(x)
        if not self._direct:
            y, repaired = to_float(x)
            self.tally.repaired_samples += repaired
            x = y.T.mean(0, keepdims=True)
        self._sequence, self._next_us = sequence, capture_us and capture_us + n * 1_000_000 // self.start.rate
        self.tally.samples_in += n
        if self._hearing and (heard := self._hearing.take(x.reshape(n))) is not None:
            self._hearing = None
            self._line.enroll(self, heard)
        self._push(x.reshape(1, n))
        if not self._owed and n <= self._lane.available and not self._line.clogged:  # as it nearly always is
            self._play(n, sequence, capture_us, flags)
        else:
            self._owed.append(_Owed(n, sequence, capture_us, flags))
            self._answer()
        if self._inside > self._most_inside and not self._held:
            self._hold(True)

    def control(self, event: Set | Enroll | Clear | Mark | Stop | Move) -> None:
        if self._ending:
            raise ProtocolError("bad_order", "this stream is ending")
        if isinstance(event, Set):
            self._set(event)
        elif isinstance(event, Enroll):
            self._enroll(event)
        elif isinstance(event, Clear):
            self._clear()
        else:
            if not isinstance(event, Mark):
                for each in self.order.clear():
                    self._process(each)
            if isinstance(event, Stop):
                self._push(np.zeros((1, self._lane.latency_samples), np.int16 if self._direct else np.float32))
                self._owed.append(_Owed(self._lane.latency_samples, None if self._sequence is None else self._sequence + 1, self._next_us, 0))
            self._ending = not isinstance(event, Mark)
            self._owed.append(event)
            self._answer()

    def _set(self, event: Set) -> None:
        if "task" in event.given:
            self._ask(event)  # first: where it is refused, nothing changes
        if "strength_db" in event.given:
            self.strength_db = event.strength_db
        if "bypass" in event.given:
            self.bypass = event.bypass
        if "query_gain_db" in event.given:
            self.query_gain_db = event.query_gain_db
        if "voice_strength" in event.given:
            self.voice_strength = event.voice_strength
        if {"task", "voice_strength"} & event.given:
            self._aim()
        self._dry = self._share()

    def _share(self) -> float:
        return dry_share(self.strength_db, self.bypass, self.task, self.query_gain_db)

    def _ask(self, event: Start | Set) -> None:
        """Another task, talker or sound, from the next frame on; as it is where none is new."""
        task, voice, query, talker = event.task, event.voice, event.query, event.talker
        assert not isinstance(query, str)
        if task != self.task or voice is not None or query is not None or talker is not None:
            asked = self._voices.asked(task, voice, query, talker)
            if isinstance(event, Set) and (task == "convert") != (self.task == "convert"):
                self._line.admit(self, task)
            self._turn = asked
            self.task, self._asked = task, None if task == "restore" else self._turn

    def _aim(self) -> None:
        """How far to go to the other voice, from the next frame on."""
        if self.task == "convert" and self._asked is not None:
            self._asked = self._turn = aimed(self._asked, self.voice_strength)

    def _enroll(self, event: Enroll) -> None:
        self._voices.check()
        if self.enrolling:
            raise ProtocolError("bad_order", "a voice is being enrolled already; wait for enrolled")
        self._hearing, self.enrolling = Hearing(round(event.seconds * self.start.rate)), True

    def _clear(self) -> None:
        dropped = sum(o.samples for o in self._owed if isinstance(o, _Owed))
        marks = [o for o in self._owed if isinstance(o, Mark)]
        self._slot, self._turn = self._scheduler.restart(self._slot), self._asked
        if self._hearing:
            self._hearing, self.enrolling = None, False
        self._lane.reset()
        self.order.clear()
        self._owed.clear()
        self._heard_frames.clear()
        self._tasks.clear()
        if self._speech:
            self._speech = Heard()
        self._inside = 0
        self._hold(False)
        for mark in marks:
            self._line.send_reply(Reply("mark", {"name": mark.name}))
        self._line.send_reply(Reply("cleared", {"samples": dropped}))

    # -- through the model ---------------------------------------------------------------------------------------------
    def _push(self, x: Samples) -> None:
        for frame in self._lane.push(x):
            self._inside += 1
            if self._record:
                self._heard_frames.append(frame[0])
            if self._speech:
                self._tasks.append(self.task)
            self._scheduler.submit(self._slot, frame[0], self._dry, self._turn)
            self._turn = None

    def done(self, frame: Samples) -> None:
        """A processed frame, [frame_samples], in the order they were submitted."""
        self._inside -= 1
        if self._speech:
            self._listen(self._speech)
        if self._record:
            self._record(self._heard_frames.popleft(), frame)
        self._lane.give(frame[None])
        if self._owed:
            self._answer()
        if self._held and self._inside <= self._most_inside // 2 and not (self._line.clogged and not self.start.live):
            self._hold(False)

    def _listen(self, before: Heard) -> None:
        """Tell the client when somebody begins to speak, or ends."""
        assert self._slot.heard is not None
        self._speech = step(self._slot.heard.popleft(), before, self._tasks.popleft())
        if found := turn(0, before, self._speech, self._lane.frame_samples):
            self._line.send_reply(Reply("speech", {"on": found.on, "sample": found.sample}))

    # -- to the client -------------------------------------------------------------------------------------------------
    def _answer(self) -> None:
        """Send all that is due and ready, in order."""
        while self._owed:
            first = self._owed[0]
            if isinstance(first, _Owed):
                if first.samples > self._lane.available:
                    return
                if self._line.clogged and not self.start.live:
                    self._hold(True)
                    return
                self._owed.popleft()
                self._play(*first)
            elif isinstance(first, Mark):
                self._owed.popleft()
                self._line.send_reply(Reply("mark", {"name": first.name}))
            elif self._inside:
                return  # stop and move wait for all that is inside
            else:
                self._owed.popleft()
                self._end(first)

    def _play(self, samples: int, sequence: int | None, capture_us: int, flags: int) -> None:
        y = self._lane.pull(samples)
        if self._line.clogged:
            self._skipped += samples
            self.tally.skipped_samples += samples
            return
        if self._skipped:
            self.say_lag()
        self.tally.samples_out += samples
        channels = self.start.channels
        z = y.reshape(-1, 1) if channels == 1 else np.repeat(y, channels, 0).T
        self._line.send_reply(Sound(z, sequence, capture_us, flags))

    def say_lag(self) -> None:
        """Tell the client how much it missed, once it can hear that."""
        if self._skipped and not self._line.clogged:
            self._line.send_reply(Reply("lag", {"dropped_ms": round(1e3 * self._skipped / self.start.rate, 1), "samples": self._skipped}))
            self._skipped = 0

    def unclogged(self) -> None:
        """The client takes again what is sent."""
        self._answer()
        if self._inside <= self._most_inside // 2 and not self._line.clogged:
            self._hold(False)

    def _hold(self, still: bool) -> None:
        if still != self._held:
            self._held = still
            self._line.hold(still)

    def _end(self, event: Stop | Move) -> None:
        if isinstance(event, Move):
            self._line.leave(self)
            return
        self.say_lag()
        self._line.send_reply(Reply("stopped", {"samples": self.tally.samples_out}))
        self._line.close_soon(1000, "stopped")

    def has(self, slot: Slot) -> bool:
        return self._slot is slot

    def stats(self) -> Reply:
        t = self.tally
        fields: dict[str, Any] = {
            "samples_in": t.samples_in, "samples_out": t.samples_out, "owed_ms": round(self.owed_ms, 1), "inside_frames": self._inside,
            "skipped_ms": round(1e3 * t.skipped_samples / self.start.rate, 1), "lost": self.order.lost, "late": self.order.late,
            "hold_ms": round(self.order.hold_ms, 1),
            "repaired_samples": t.repaired_samples, "errors": t.errors,
        }  # fmt: skip
        return Reply("stats", fields)

    def close(self) -> None:
        """Give the slot back; may be called twice."""
        self._scheduler.close(self._slot)
        self._owed.clear()

    # -- moving --------------------------------------------------------------------------------------------------------
    def _kind(self) -> dict[str, Any]:
        return kind_of(stepper(self._scheduler.engine, self.task).weights, self.start.rate, self.start.channels, self.task, "mix")

    def pack(self) -> bytes:
        """The stream's snapshot (`Stream.restore` takes it too). Blocks until its frames are done: call it off the event loop."""
        state, tail, overlap = self._scheduler.export(self._slot)
        if self._turn:
            state = turned(self._scheduler.engine, state, self._turn)
        edge = {"tail": tail, "overlap": overlap, "in": to_float(self._lane.incoming)[0], "out": to_float(self._lane.outgoing)[0]}
        spoken = {"speech": packed([self._speech])} if self._speech else {}
        head = self._kind() | {
            "frames": self.tally.samples_in // self._lane.frame_samples, "repaired_samples": self.tally.repaired_samples,
            "relay": {"strength_db": self.strength_db, "query_gain_db": self.query_gain_db, "voice_strength": self.voice_strength, "bypass": self.bypass,
                      "samples_in": self.tally.samples_in, "samples_out": self.tally.samples_out, "sequence": self._sequence},
        }  # fmt: skip
        return pack(head, state, edge | spoken)

    def _unpack(self, data: bytes) -> Luggage:
        try:
            self.task = check_task(head_of(data).get("task", ""))  # may have changed since the client said `start`
            head, state, edge = unpack(data, self._kind(), self._scheduler.engine.init_state(1, self.task))
            if self._speech:
                (self._speech,) = unpacked(edge, 1, head["frames"])
        except ValueError as e:
            raise ProtocolError("bad_resume", str(e), fatal=True) from None
        self._lane.incoming = to_int16(edge["in"]) if self._direct else edge["in"]
        self._lane.outgoing = to_int16(edge["out"]) if self.start.whole else edge["out"]
        mine = head["relay"]
        self.strength_db, self.bypass, self._sequence = mine["strength_db"], mine["bypass"], mine["sequence"]
        self.query_gain_db = mine.get("query_gain_db")  # not from a worker of before there were queries
        self.voice_strength = mine.get("voice_strength", 1.0)
        if self._sequence is not None:
            following = self._sequence + 1
            self.order = Playout(self.start.rate, following) if self.start.live else InOrder(following)
        self.tally.samples_in, self.tally.samples_out = mine["samples_in"], mine["samples_out"]
        self._asked = None if self.task == "restore" else pinned_part(state)
        return Luggage(state, edge["tail"], edge["overlap"])
