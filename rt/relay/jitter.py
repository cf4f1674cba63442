"""Adaptive jitter buffer: packets come in as the network likes, 20 ms frames go out on a steady clock.

It waits as long as 99 of 100 packets need (over the last 10 s or so) and one frame more. Where a packet is missing when it is due, the gap is concealed
(`conceal.bridge`) and flagged; where nothing at all is there, the last sound is drawn out for up to 200 ms and then the clock stops until packets
return, so a stall adds delay and loses nothing. The delay is brought back by taking periods out: in speech at most 5 %, in pauses as many as it
takes (WSOLA); only what lies beyond the bound is dropped, with a cross-fade, and counted. Deeper and shallower use the same means.

Sequence numbers follow RFC 3550, appendix A.1: 32 bits, wrapping; a jump is believed when two packets in a row agree on it.
No clock of its own: every call is given the time, so an hour can be simulated in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .conceal import PAST_S, bridge, extrapolate
from .lateness import Lateness
from .timescale import crossfade, lengthen, period, shorten

F32 = NDArray[np.float32]
Mask = NDArray[np.bool_]

FRAME_S = 0.020
HOLD_S = 0.200  # as long is the last sound drawn out (it is silent after 60 ms) before the clock stops
MAX_AHEAD, MAX_BEHIND = 3000, 100  # packets; RFC 3550's MAX_DROPOUT and MAX_MISORDER
_MOST_AHEAD = 512  # packets held after a gap
_SPEED = 0.05  # of the speech may be taken out or put in
_ALIKE = 0.6  # … where two periods agree as well as this
_FADE_S = 0.005
_PAUSE_FRAMES = 150  # the quietest of as many frames is the level of a pause


@dataclass(frozen=True)
class Frame:
    """samples: [20 ms] float32 (the last one of `flush` may be shorter). lost: True where nothing was received.
    capture_us: when its first sample was recorded, by the sender's clock."""

    samples: F32
    lost: Mask
    capture_us: int


@dataclass
class Counts:
    """Since the start. Packets, except where the name says samples."""

    received: int = 0
    lost: int = 0  # never came, or came too late
    late: int = 0  # came after their place had been filled
    duplicate: int = 0
    reordered: int = 0
    jumps: int = 0  # the sender began to count anew
    stalls: int = 0  # the clock stopped for want of packets
    concealed_samples: int = 0
    removed_samples: int = 0  # by playing faster
    inserted_samples: int = 0  # by playing slower, or drawing out
    dropped_samples: int = 0  # beyond the bound


class JitterBuffer:
    """One sender's packets → one steady stream.

        buffer.push(sequence, capture_us, samples, now_s)  # as packets arrive, in any order; float32 [n], any n
        for frame in buffer.pull(now_s): ...               # as often as you like; gives every frame that is due by now

    rate: samples a second. max_depth_ms: more is never held; at most twice as much where packets are missing. Not thread-safe.
    """

    def __init__(self, rate: int, *, max_depth_ms: float = 500.0) -> None:
        self.rate = rate
        self.frame_samples = round(FRAME_S * rate)
        self._bound = max(3 * self.frame_samples, round(max_depth_ms * rate / 1000))
        self._past = round(PAST_S * rate)
        self.counts = Counts()
        self._reset()

    def _reset(self) -> None:
        self._heard: F32 = np.zeros(0, np.float32)  # the newest samples given out
        self._ready: F32 = np.zeros(0, np.float32)  # what comes next without a gap
        self._gone: Mask = np.zeros(0, np.bool_)  # … and which of it was lost
        self._ahead: dict[int, tuple[int, F32]] = {}  # unwrapped sequence → (capture_us, samples), after a gap
        self._next: int | None = None  # unwrapped sequence that follows `_ready`
        self._length = self.frame_samples  # of the newest packet
        self._tail_us = 0  # capture time of the end of `_ready`
        self._tail = 0  # position of that end in the sender's samples
        self._suspect: int | None = None  # sequence that would confirm a jump
        self._playing = False
        self._due_s = self._asked_s = 0.0
        self._powers = np.full(_PAUSE_FRAMES, np.inf)
        self._whole = 0  # frames that were received whole
        self._allowance = 0.0
        self._lateness = Lateness(self.frame_samples, self._bound - self.frame_samples)
        self._stalled = self._catching_up = False
        self._arrived_s = 0.0
        self._run = 0  # samples drawn out since `_ready` ran empty

    # -- in ------------------------------------------------------------------------------------------------------------
    def push(self, sequence: int, capture_us: int, samples: F32, now_s: float) -> None:
        """sequence: counts packets, modulo 2^32. capture_us: when the first sample was recorded (only differences matter)."""
        self.counts.received += 1
        if self._next is None:
            self._next = sequence
        step = (sequence - self._next + (1 << 31)) % (1 << 32) - (1 << 31)
        if not -MAX_BEHIND <= step <= MAX_AHEAD:
            if sequence != self._suspect:
                self._suspect = (sequence + 1) % (1 << 32)
                return
            self.counts.jumps += 1
            self._close_gaps()
            self._next, step = sequence, 0
            self._lateness.forget()
        self._suspect = None
        at = self._next + step
        self._learn(now_s, step, capture_us, len(samples))
        if step < 0:
            self.counts.late += 1
            return
        if at in self._ahead:
            self.counts.duplicate += 1
            return
        if self._ahead and at < max(self._ahead):
            self.counts.reordered += 1
        # a copy: nothing of the caller's buffer is kept alive
        self._ahead[at] = (capture_us, np.array(samples[-self._bound :], np.float32))
        self._join()
        while sum(len(x) for _, x in self._ahead.values()) > self._bound or len(self._ahead) > _MOST_AHEAD:
            self._close_gap()
        if len(self._ready) > self._bound:
            self._drop(len(self._ready) - max(self.frame_samples, round(self._lateness.wait)))

    def _join(self) -> None:
        """Move what has become contiguous."""
        assert self._next is not None
        while self._next in self._ahead:
            capture_us, x = self._ahead.pop(self._next)
            self._append(x, np.zeros(len(x), np.bool_))
            self._next += 1
            self._length = len(x)
            self._tail += len(x)
            self._tail_us = capture_us + len(x) * 1_000_000 // self.rate

    def _append(self, x: F32, gone: Mask) -> None:
        self._ready, self._gone = np.concatenate([self._ready, x]), np.concatenate([self._gone, gone])

    def _close_gap(self) -> None:
        """What is missing before the earliest packet ahead will not be waited for any longer."""
        assert self._next is not None
        first = min(self._ahead)
        missing = first - self._next
        n = missing * self._length
        by_clock = (self._ahead[first][0] - self._tail_us) * self.rate // 1_000_000
        if n / 2 <= by_clock <= n * 3 / 2:  # the sender's clock knows better how long packets of changing length were
            n = by_clock
        self.counts.lost += missing
        self._next, self._tail = first, self._tail + n
        fill = min(n, self._bound)
        if not len(self._ready):  # time drawn out since then has filled a part of the gap
            fill = max(0, fill - self._run)
        before, held = len(self._ready), self._next
        self._join()
        if fill:
            past = np.concatenate([self._heard, self._ready[:before]])[-self._past :]
            filled = bridge(past, fill, self._ready[before:], self.rate)
            self._ready = np.concatenate([self._ready[:before], filled, self._ready[before:]])
            self._gone = np.concatenate([self._gone[:before], np.ones(fill, np.bool_), self._gone[before:]])
            self.counts.concealed_samples += fill
        assert self._next > held

    def _close_gaps(self) -> None:
        while self._ahead:
            self._close_gap()

    def _drop(self, n: int) -> None:
        """Leave out the n oldest samples, with a cross-fade."""
        fade = min(round(_FADE_S * self.rate), n, len(self._ready) - n)
        head = crossfade(self._ready[:fade], self._ready[n : n + fade])
        self._ready, self._gone = np.concatenate([head, self._ready[n + fade :]]), self._gone[n:]
        self.counts.dropped_samples += n

    # -- how long to wait ----------------------------------------------------------------------------------------------
    def _learn(self, now_s: float, step: int, capture_us: int, n: int) -> None:
        """What the arrival of a packet of n samples, `step` after the next one, tells about the network."""
        waited_s, self._arrived_s = now_s - self._arrived_s, now_s
        if self._stalled:  # the first packet after it: was the network late, or did the sender say nothing?
            self._stalled, self._catching_up = False, True
            if capture_us - self._tail_us > 1e6 * HOLD_S:
                self._lateness.forget()
        elif self._catching_up and waited_s < n / self.rate / 2:
            return  # a stall is one event, however many packets it held back: one in five seconds is not waited for
        else:
            self._catching_up = False
        self._lateness.note(now_s * self.rate - self._tail - step * n)

    def _delay(self, now_s: float) -> float:
        """How far the next sample out is behind the fastest packet, in samples."""
        return now_s * self.rate - self._lateness.earliest - (self._tail - len(self._ready))

    @property
    def target_ms(self) -> float:
        """The delay it aims at."""
        return 1e3 * self._lateness.wait / self.rate

    @property
    def held_ms(self) -> float:
        """Audio held, gaps not counted."""
        return 1e3 * (len(self._ready) + sum(len(x) for _, x in self._ahead.values())) / self.rate

    # -- out -----------------------------------------------------------------------------------------------------------
    def pull(self, now_s: float) -> list[Frame]:
        """Every frame that is due by now, oldest first; [] while waiting."""
        asked_s, self._asked_s = self._asked_s, now_s
        if not self._playing:
            waited = self._delay(now_s) - self._lateness.wait
            if self._next is None or not (len(self._ready) or self._ahead) or waited < 0:
                return []
            self._playing, self._due_s = True, max(asked_s, now_s - waited / self.rate)
        # whoever has not asked for long is not given all that time
        self._due_s = max(self._due_s, now_s - self._bound / self.rate)
        frames: list[Frame] = []
        while self._playing and self._due_s <= now_s + 1e-9:
            frame = self._frame(self._due_s)
            self._due_s += FRAME_S
            if frame is not None:
                frames.append(frame)
        return frames

    def flush(self) -> list[Frame]:
        """All that is held, at once; the buffer then begins anew."""
        frames: list[Frame] = []
        self._close_gaps()
        while len(self._ready):
            frames.append(self._take(min(self.frame_samples, len(self._ready))))
        self._reset()
        return frames

    def _frame(self, now_s: float) -> Frame | None:
        n = self.frame_samples
        while len(self._ready) < n and self._ahead:
            self._close_gap()
        if len(self._ready) and self._run:
            self._return()
        self._steer(now_s)
        short = n - len(self._ready)
        if short > 0:
            if self._run + short > HOLD_S * self.rate and not len(self._ready):
                self._playing = False
                self.counts.stalls += 1
                self._stalled = True
                return None
            self._draw_out(short)
        return self._take(n)

    def _take(self, n: int) -> Frame:
        capture_us = max(0, self._tail_us - len(self._ready) * 1_000_000 // self.rate)
        x, gone = self._ready[:n], self._gone[:n]
        self._ready, self._gone = self._ready[n:].copy(), self._gone[n:].copy()
        self._heard = np.concatenate([self._heard, x])[-self._past :]
        if not gone.any():
            self._powers[self._whole % _PAUSE_FRAMES] = float(x @ x) / max(1, len(x))
            self._whole += 1
        return Frame(x, gone, capture_us)

    def _draw_out(self, n: int) -> None:
        """Nothing is there: go on with the last sound."""
        if not self._run:
            self._origin = np.concatenate([self._heard, self._ready])[-self._past :]
        self._append(extrapolate(self._origin, n, self.rate, self._run), np.ones(n, np.bool_))
        self._run += n
        self.counts.inserted_samples += n

    def _return(self) -> None:
        """Blend from the drawn-out sound into what has come."""
        n = min(len(self._ready), round(2 * _FADE_S * self.rate))
        self._ready[:n] = crossfade(extrapolate(self._origin, n, self.rate, self._run), self._ready[:n])
        self._run = 0

    def _steer(self, now_s: float) -> None:
        """Bring the delay towards the target, at most one period a frame."""
        n, excess = self.frame_samples, self._delay(now_s) - self._lateness.wait
        if -_SPEED * n < excess < 1.25 * n or len(self._ready) < n or self._run:
            self._allowance = 0.0
            return
        self._allowance = min(self._allowance + _SPEED * n, float(n))
        head = self._ready[:n]
        pause = float(head @ head) / n <= 2 * self._powers.min() + 1e-9
        room = len(self._ready) - n if excess > 0 else n
        lag, likeness = period(self._ready, self.rate, min(int(abs(excess)), room))
        # in speech a little too much delay is better than a touch of the sound; too little is not
        worth_it = excess < 0 or excess > 2 * n
        if not lag or not (pause or (worth_it and likeness >= _ALIKE and lag <= self._allowance)):
            return
        if not pause:
            self._allowance -= lag
        if excess > 0:
            self._ready = shorten(self._ready, lag)
            self._gone = np.concatenate([self._gone[:lag] | self._gone[lag : 2 * lag], self._gone[2 * lag :]])
            self.counts.removed_samples += lag
        else:
            self._ready = lengthen(self._ready, lag)
            self._gone = np.concatenate([self._gone[: 2 * lag], self._gone[lag:]])
            self.counts.inserted_samples += lag
