"""Two devices have two clocks. `DeviceClock` follows one of them; `DriftControl` says how to stretch the audio between two."""

from __future__ import annotations

import math

_GAP_S = 0.1  # a call this late is a stall or a restart, not jitter: start again from there


class DeviceClock:
    """Sample counter of a device in continuous time, from jittery "n more samples at time t" reports.

    Second-order delay-locked loop (F. Adriaensen, "Using a DLL to filter time", LAC 2005), bandwidth falling from 1 Hz at the
    start to `bandwidth_hz`, so it locks within seconds and is quiet afterwards.
    """

    def __init__(self, rate: float, bandwidth_hz: float = 0.02) -> None:
        self.nominal_hz = rate
        self.bandwidth_hz = bandwidth_hz
        self.count = 0  # samples reported so far
        # (count, smoothed time of it, seconds a sample): one tuple, so another thread reads a consistent line
        self._line: tuple[int, float | None, float] = (0, None, 1 / rate)
        self._locked_s = 0.0

    @property
    def rate(self) -> float:
        """Measured samples a second."""
        return 1 / self._line[2]

    def update(self, n: int, now_s: float) -> None:
        """n samples more were delivered (or asked for) at now_s."""
        self.count += n
        _, at_s, period_s = self._line
        step_s = n * period_s
        error = now_s - at_s - step_s if at_s is not None else _GAP_S * 2
        if at_s is None or abs(error) > _GAP_S:
            self._line, self._locked_s = (self.count, now_s, period_s), 0.0
            return
        self._locked_s += step_s
        w = 2 * math.pi * max(self.bandwidth_hz, 1.0 / (1 + self._locked_s)) * step_s
        at_s += step_s + math.sqrt(2) * w * error
        if n:
            low, high = 0.99 / self.nominal_hz, 1.01 / self.nominal_hz  # no crystal is 1 % off
            period_s = min(max(period_s + w * w * error / n, low), high)
        self._line = (self.count, at_s, period_s)

    def at(self, now_s: float) -> float:
        """Continuous sample count at now_s."""
        count, at_s, period_s = self._line
        return count + ((now_s - at_s) / period_s if at_s is not None else 0.0)


class DriftControl:
    """PI controller: samples in flight between two clocks → resampling ratio that keeps them at `target`.

    Natural frequency `speed_hz`, damping 1; the ratio stays within `limit` (500 ppm: less than a cent of pitch).
    """

    def __init__(self, rate_out: float, speed_hz: float = 0.01, limit: float = 5e-4) -> None:
        w = 2 * math.pi * speed_hz
        self._kp, self._ki = 2 * w / rate_out, w * w / rate_out
        self.limit = limit
        self._sum = 0.0
        self.deviation = 0.0  # ratio - 1

    def update(self, in_flight: float, target: float, elapsed_s: float) -> float:
        """→ factor on the nominal resampling ratio (1.0 = clocks agree)."""
        error = target - in_flight
        raw = self._kp * error + self._sum
        if abs(raw) < self.limit or raw * error < 0:  # no wind-up at the limit
            self._sum = min(max(self._sum + self._ki * error * elapsed_s, -self.limit), self.limit)
        self.deviation = min(max(raw, -self.limit), self.limit)
        return 1 + self.deviation
