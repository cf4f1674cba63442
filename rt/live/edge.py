"""The output edge: takes cleaned audio on the microphone's clock, gives it out on the loudspeaker's (or virtual microphone's).

The one place where live audio may be stretched (by parts in a million, all the time), dropped (with a cross-fade, after a
stall) or replaced by silence (with a fade, when nothing has come). All three are counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import samplerate
from numpy.typing import NDArray

from .clock import DeviceClock, DriftControl
from .ring import Ring

F32 = NDArray[np.float32]

_FADE_S = 0.002
_CROSSFADE_S = 0.005
_CONTROL_S = 0.1  # the ratio is set ten times a second
_STEP_S = 0.005  # the cushion grows by this after each gap …
_MOST_S = 0.060  # … up to this …
_SETTLE_S = 2.0
_SLACK_S = 0.01
_CALM_S = 60.0  # … and shrinks by a millisecond after this long without one


class OutputEdge:
    """`push` from the worker, `pull` from the playback callback, `captured` from the capture callback.

    rate_in, rate_out: Hz. channels: of the output; `push` takes mono or that many. cushion_s: audio kept waiting at the
    least favourable moment, against late steps. event(kind, milliseconds) is told of gaps ("starved") and cuts ("dropped").
    """

    def __init__(
        self,
        rate_in: int,
        rate_out: int,
        channels: int,
        *,
        period_s: float,
        cushion_s: float,
        event: Callable[[str, float], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rate_in, self.rate_out, self.channels = rate_in, rate_out, channels
        self.ratio = rate_out / rate_in
        self._now, self._event = now, event
        self._period_s, self._base_s = period_s, cushion_s
        self.cushion_s = cushion_s
        self.ring = Ring(rate_out, channels)  # one second: beyond that something else is broken
        self.clock_in, self.clock_out = DeviceClock(rate_in), DeviceClock(rate_out)
        self.control = DriftControl(rate_out)
        self._resampler = samplerate.Resampler("sinc_fastest", channels=1)
        self._taken_in = 0  # input samples pushed
        self._lost_in = 0  # input samples that never will be
        self._padding = 0  # output samples of silence played
        self._skipped = 0  # output samples passed over before the first was played
        self._set_at = now()
        self._calm_since = now()
        self._primed = False
        self._expected = False  # input is running, so a gap is a fault
        self._factor = 1.0
        self._last = np.zeros((1, channels), np.float32)
        self._drop = self._dropping = 0  # still to be left out; of it, to be reported
        self._settled, self._primed_at = False, 0.0

    # -- worker --------------------------------------------------------------------------------------------------------
    @property
    def target(self) -> float:
        """Samples that should be in flight, at the output rate: one period at each end, and the cushion."""
        return (self._period_s + self.cushion_s) * self.rate_out

    def in_flight(self) -> float:
        """Output samples between the microphone's clock and the output's, in continuous time (no saw-tooth of blocks)."""
        now = self._now()
        waiting = (self.clock_in.at(now) - self._taken_in - self._lost_in) * self.ratio
        return waiting + self.ring.written - self._skipped + self._padding - self.clock_out.at(now)

    @property
    def delay_ms(self) -> float:
        """What this edge adds to the delay now; 0 before anything is played."""
        return 1e3 * self.in_flight() / self.rate_out if self._primed else 0.0

    def push(self, y: F32) -> None:
        """y: [n] or [n, channels] float32 at rate_in, n input samples' worth of output."""
        mono = y if y.ndim == 1 else y.mean(1)
        now = self._now()
        if now - self._set_at >= _CONTROL_S:
            self._steer(now)
        out = np.asarray(self._resampler.process(np.ascontiguousarray(mono, np.float32), self.ratio * self._factor), np.float32).reshape(-1, 1)
        self._taken_in += len(mono)
        if self._drop:
            out = self._cut(out)
        took = self.ring.write(np.repeat(out, self.channels, 1))
        if took < len(out):
            if self._primed:
                self._event("dropped", 1e3 * (len(out) - took) / self.rate_out)
        self._expected = True

    def _steer(self, now: float) -> None:
        elapsed, self._set_at = now - self._set_at, now
        if not self._primed:
            return
        in_flight, played_s = self.in_flight(), now - self._primed_at
        if not self._settled and played_s > _SETTLE_S:
            # devices start at odd times; once both clocks are known, begin at the delay that was meant
            self._settled = True
            self._drop = max(0, int(in_flight - self.target))
            return
        if in_flight > self.target + (2 * self._period_s + _SLACK_S) * self.rate_out:
            self._drop = self._dropping = int(in_flight - self.target)
            return
        self._factor = self.control.update(in_flight, self.target, min(elapsed, 1.0))
        if now - self._calm_since > _CALM_S and self.cushion_s > self._base_s:
            self._calm_since = now
            self.cushion_s = max(self._base_s, self.cushion_s - 0.001)

    def _cut(self, out: F32) -> F32:
        """Leave out up to `_drop` samples, cross-fading over the cut."""
        fade = min(int(_CROSSFADE_S * self.rate_out), len(out) // 2)
        room = len(out) - fade
        if room <= 0:
            return out
        n = min(self._drop, room)
        w = np.linspace(0, 1, fade, dtype=np.float32)[:, None]
        joined = out[:fade] * (1 - w) + out[n : n + fade] * w
        self._drop -= n
        if not self._drop and self._dropping:
            self._event("dropped", 1e3 * self._dropping / self.rate_out)
            self._dropping = 0
        return np.concatenate([joined, out[n + fade :]])

    # -- callbacks -----------------------------------------------------------------------------------------------------
    def captured(self, n: int, now_s: float, lost: int = 0) -> None:
        """The capture device delivered n samples; so many of them had no room and will not be pushed."""
        self._lost_in += lost
        self.clock_in.update(n, now_s)

    def pull(self, n: int) -> F32:
        """→ [n, channels] for the output device; silence, faded, where there is nothing."""
        self.clock_out.update(n, self._now())
        if not self._primed:
            more = int(self.in_flight() - self.target)
            if more < 0 or self.ring.fill < n:
                self._padding += n
                return np.zeros((n, self.channels), np.float32)
            self._skipped += len(self.ring.read(min(more, self.ring.fill - n)))
            self._primed, self._primed_at = True, self._now()
            out = self.ring.read(n)
            fade = min(n, int(_FADE_S * self.rate_out))
            out[:fade] *= np.linspace(0, 1, fade, dtype=np.float32)[:, None]
            return out
        out = self.ring.read(n)
        if len(out) == n:
            self._last = out[-1:]
            return out
        return self._gap(out, n)

    def _gap(self, out: F32, n: int) -> F32:
        missing = n - len(out)
        self._padding += missing
        fade = min(n, int(_FADE_S * self.rate_out))
        last = out[-1:] if len(out) else self._last
        y = np.concatenate([out, np.repeat(last, missing, 0)])
        at = max(0, min(len(out), n - fade))
        y[at : at + fade] *= np.linspace(1, 0, fade, dtype=np.float32)[:, None]
        y[at + fade :] = 0
        self._last = np.zeros((1, self.channels), np.float32)
        self._primed = False
        if self._expected:
            self._event("starved", 1e3 * missing / self.rate_out)
            self.cushion_s = min(_MOST_S, self.cushion_s + _STEP_S)
            self._calm_since = self._now()
        return y

    def input_lost(self) -> None:
        """The input is gone or paused: the silence that follows is nobody's fault."""
        self._expected = False
