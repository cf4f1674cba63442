"""The jitter buffer and what it is made of: nothing lost that came in time, nothing grows, whatever the network does. Simulated time only."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from voicewire.rt.relay.conceal import best_lag, bridge, extrapolate
from voicewire.rt.relay.jitter import FRAME_S, HOLD_S, Frame, JitterBuffer
from voicewire.rt.relay.timescale import lengthen, period, shorten

F32 = NDArray[np.float32]
RATE = 16000
N = RATE // 50


def voice(seconds: float, hz: float = 120.0) -> F32:
    t = np.arange(round(seconds * RATE)) / RATE
    y: F32 = (0.2 * sum(np.sin(2 * np.pi * hz * k * t) / k for k in range(1, 6))).astype(np.float32)
    return y


def packet(i: int, value: float | None = None) -> F32:
    """Recognisable samples: packet i holds i+1 everywhere (times 1/1000)."""
    return np.full(N, (i + 1) / 1000 if value is None else value, np.float32)


def run(buffer: JitterBuffer, arrivals: list[tuple[float, int]], until_s: float, tick_s: float = 0.005, first: int = 0) -> list[Frame]:
    """arrivals: (time, packet number)."""
    frames, queue, now = [], sorted(arrivals), 0.0
    while now < until_s:
        while queue and queue[0][0] <= now:
            t, i = queue.pop(0)
            buffer.push((first + i) % (1 << 32), i * 20_000, packet(i), t)
        frames += buffer.pull(now)
        now += tick_s
    return frames


def test_a_good_network_passes_everything_through_unchanged() -> None:
    x = voice(6)
    buffer, out = JitterBuffer(RATE), []
    for i in range(len(x) // N):
        buffer.push(i, i * 20_000, x[i * N : (i + 1) * N], 0.02 * i)
        out += buffer.pull(0.02 * i)
    out += buffer.flush()
    assert np.array_equal(np.concatenate([f.samples for f in out]), x)
    assert not any(f.lost.any() for f in out)
    assert [f.capture_us for f in out] == [20_000 * i for i in range(len(out))]


@pytest.mark.parametrize("size", [37, 160, 480, 1000])
def test_packets_of_any_length(size: int) -> None:
    x = voice(4)
    buffer, out = JitterBuffer(RATE), []
    for k, at in enumerate(range(0, len(x), size)):
        now = (at + size) / RATE
        buffer.push(k, at * 1_000_000 // RATE, x[at : at + size], now)
        out += buffer.pull(now)
    out += buffer.flush()
    assert np.array_equal(np.concatenate([f.samples for f in out]), x)


@given(st.integers(0, 1000), st.integers(0, (1 << 32) - 1) | st.integers((1 << 32) - 200, (1 << 32) - 1), st.floats(0, 0.05))
@settings(max_examples=25, deadline=None)
def test_reordered_doubled_and_wrapping_packets_come_out_once_and_in_order(seed: int, first: int, jitter_s: float) -> None:
    rng = np.random.default_rng(seed)
    arrivals = [(0.02 * i + rng.uniform(0, jitter_s) * (i > 0), i) for i in range(200)]
    arrivals += [(t + rng.uniform(0, 0.1), i) for t, i in arrivals if rng.random() < 0.1]
    # with the depth learned beforehand, so that no packet is too late
    buffer = JitterBuffer(RATE)
    buffer._lateness.wait = buffer._bound - N
    buffer._lateness.note = lambda samples: None  # type: ignore[method-assign]
    frames = run(buffer, arrivals, 4.6, first=first)
    heard = [f.samples[0] for f in frames if not f.lost.any() and np.ptp(f.samples) == 0]
    assert len(heard) > 150 and heard == sorted(set(heard))
    assert buffer.counts.lost == 0 and buffer.counts.duplicate + buffer.counts.late == len(arrivals) - 200


@given(st.lists(st.booleans(), min_size=60, max_size=200))
@settings(max_examples=25, deadline=None)
def test_what_came_is_given_and_what_did_not_is_flagged_in_its_place(kept: list[bool]) -> None:
    kept = [True, *kept, True]
    buffer = JitterBuffer(RATE)
    buffer._powers[:] = 0  # nothing counts as a pause, nothing is changed there
    gap = longest = 0
    for k in kept:
        gap = 0 if k else gap + 1
        longest = max(longest, gap)
    frames = run(buffer, [(0.02 * i, i) for i, k in enumerate(kept) if k], 0.02 * len(kept)) + buffer.flush()
    given_ = np.concatenate([f.samples for f in frames])
    for i, k in enumerate(kept):
        if k and longest * FRAME_S < HOLD_S:  # the end of a packet is touched by no blend
            assert (np.abs(given_ - (i + 1) / 1000) < 1e-6).sum() >= N // 4, i
    assert buffer.counts.lost == kept.count(False)
    # drawn-out time counts against the gap: the stream is not longer than what was sent (but for what a stall adds)
    if longest * FRAME_S < HOLD_S:
        assert abs(len(given_) - N * len(kept)) <= 2 * N


def test_loss_and_jitter_for_long_do_not_make_it_grow() -> None:
    rng = np.random.default_rng(1)
    buffer, x = JitterBuffer(RATE), voice(0.02)
    arrivals = sorted((0.02 * i + rng.uniform(0, 0.04), i) for i in range(4000) if rng.random() > 0.1)
    seen, delays, given_, k = np.zeros(60), np.zeros(6100), 0, 0
    tracemalloc.start()
    for tick in range(4000):
        while k < len(arrivals) and arrivals[k][0] <= tick * 0.02:
            t, i = arrivals[k]
            buffer.push(i, i * 20_000, x, t)
            k += 1
        for f in buffer.pull(tick * 0.02):
            delays[given_] = tick * 20 - f.capture_us / 1000
            given_ += 1
        if tick % 100 == 0:
            seen[tick // 100] = tracemalloc.get_traced_memory()[0]
        assert buffer.held_ms <= 500
    tracemalloc.stop()
    assert seen[25:40].max() - seen[15:25].max() < 10_000
    assert given_ >= 3950 and delays.max() <= 140 and 20 <= np.median(delays[100:given_]) <= 100


def test_what_is_never_asked_for_is_bounded() -> None:
    buffer = JitterBuffer(RATE, max_depth_ms=300)
    for i in range(2000):
        buffer.push(3 * i, i * 20_000, packet(i), 0.02 * i)
        assert buffer.held_ms <= 620
    assert buffer.counts.dropped_samples > 0
    buffer.push(6000, 0, np.zeros(10 * RATE, np.float32), 40.0)
    assert buffer.held_ms <= 620


def test_a_stall_loses_nothing_and_the_delay_comes_back() -> None:
    x = np.concatenate([np.concatenate([voice(0.5, hz), np.zeros(RATE // 4, np.float32)]) for hz in range(90, 130, 2)])
    buffer, out, delays, k = JitterBuffer(RATE), [], [], 0
    for tick in range(round(len(x) / RATE / 0.005)):
        now = tick * 0.005
        while k < len(x) // N and (0.02 * k if not 3.0 < 0.02 * k < 3.35 else 3.35) <= now:
            buffer.push(k, k * 20_000, x[k * N : (k + 1) * N], now)
            k += 1
        for f in buffer.pull(now):
            out.append(f.samples)
            delays.append((now, 1e3 * now - f.capture_us / 1e3))
    before, right_after = (np.mean([d for t, d in delays if a < t < a + 0.3]) for a in (2.5, 3.4))
    after = np.mean([d for t, d in delays if t > 8])
    assert buffer.counts.stalls == 1 and buffer.counts.dropped_samples == 0 and buffer.counts.lost == 0
    assert right_after > before + 200 and after < before + 45
    assert buffer.counts.removed_samples > 0.2 * RATE


def test_a_sender_that_says_nothing_for_a_while_is_not_late() -> None:
    buffer = JitterBuffer(RATE)
    for i in range(300):  # nothing recorded for 3 s after the 150th packet
        now = 0.02 * i + 3.0 * (i >= 150)
        buffer.push(i, round(1e6 * now), packet(i), now)
        buffer.pull(now)
        buffer.pull(now + 0.015)
        if i == 149:
            for k in range(150):
                buffer.pull(now + 0.02 * k)
    assert buffer.counts.stalls == 1 and buffer.target_ms <= 41 and buffer.held_ms <= 61


def test_stalls_that_come_again_and_again_are_waited_for() -> None:
    buffer, stalls, k = JitterBuffer(RATE), [], 0
    arrivals = [0.02 * i if i % 50 > 15 or i < 150 else 0.02 * (i // 50 * 50 + 16) for i in range(1500)]  # from the third second on, every second 320 ms late
    for tick in range(6000):
        while k < len(arrivals) and arrivals[k] <= tick * 0.005:
            buffer.push(k, k * 20_000, packet(k), tick * 0.005)
            k += 1
        buffer.pull(tick * 0.005)
        stalls.append(buffer.counts.inserted_samples)
    assert buffer.target_ms > 300 and stalls[-1] - stalls[3000] < RATE // 10 < stalls[3000]


@pytest.mark.parametrize("ppm", [-300, 300])
def test_two_clocks_do_not_drift_apart(ppm: int) -> None:
    buffer, x, delays = JitterBuffer(RATE), voice(0.02), []
    for i in range(9000):
        now = 0.02 * i * (1 + ppm * 1e-6)
        buffer.push(i, i * 20_000, x, now)
        if ppm > 0:
            now = 0.02 * i
        delays += [1e3 * now - f.capture_us / 1e3 for f in buffer.pull(now)]
    # by the sender's clock the delay moves with the drift itself: 54 ms in three minutes
    assert abs(np.mean(delays[-200:]) - np.mean(delays[200:400]) + (0 if ppm > 0 else 54)) < 60
    assert buffer.counts.dropped_samples == 0 and buffer.held_ms < 100


def test_a_sender_that_counts_anew_is_followed() -> None:
    buffer = JitterBuffer(RATE)
    frames = run(buffer, [(0.02 * i, i) for i in range(50)], 1.0)
    for i in range(50):
        buffer.push(1_000_000 + i, i * 20_000, packet(i, 0.7), 1.0 + 0.02 * i)
        frames += buffer.pull(1.0 + 0.02 * i)
    buffer.push(5, 0, packet(0, 0.9), 2.0)  # one stray packet changes nothing
    frames += buffer.flush()
    assert buffer.counts.jumps == 1 and not any((f.samples == np.float32(0.9)).any() for f in frames)
    assert sum(bool((f.samples == np.float32(0.7)).all()) for f in frames) >= 40


def test_what_was_learned_is_forgotten_where_the_sender_begins_anew() -> None:
    buffer = JitterBuffer(RATE)
    for i in range(200):
        buffer.push(i, i * 20_000, packet(i), 0.02 * i + (0.15 if i % 10 == 5 else 0.0))
    assert buffer.target_ms > 100
    for i in range(2):
        buffer.push(1_000_000 + i, i * 20_000, packet(i), 4.2 + 0.02 * i)
    assert buffer.counts.jumps == 1 and buffer.target_ms == 40


def test_speech_is_played_at_most_a_twentieth_faster() -> None:
    """Half a second comes late and at once; there is no pause in which to catch up."""
    x, buffer, at, now = voice(6), JitterBuffer(RATE), 0, 0.0
    while now < 5.5:
        while at < 299 and (0.02 * at if not 50 <= at < 73 else 1.46) <= now:
            buffer.push(at, at * 20_000, x[at * N : (at + 1) * N], now)
            at += 1
        buffer._powers[:] = 1e-9  # a pause would be quieter
        buffer.pull(now)
        now += 0.01
    assert 0.5 * 0.05 * 4 * RATE < buffer.counts.removed_samples <= 0.05 * 4.1 * RATE + N


@pytest.mark.parametrize("second_period", [False, True])
def test_what_was_lost_is_still_flagged_after_a_period_was_taken_out(second_period: bool) -> None:
    x = voice(0.2)
    lag, _ = period(x, RATE, N)
    buffer, at = JitterBuffer(RATE), 10 + lag * second_period
    buffer._ready, buffer._gone = x, np.zeros(len(x), np.bool_)
    buffer._gone[at : at + 30] = True
    buffer._steer(1.0)
    assert buffer.counts.removed_samples == lag and len(buffer._gone) == len(buffer._ready)
    assert np.flatnonzero(buffer._gone).tolist() == list(range(10, 40))


_push = st.tuples(
    st.integers(0, (1 << 32) - 1) | st.integers(0, 40), st.integers(0, (1 << 64) - 1) | st.integers(0, 1_000_000), st.integers(0, 3000), st.floats(0, 0.3)
)


@given(st.lists(_push, max_size=60), st.sampled_from([8000, 16000, 44100, 48000]))
@settings(max_examples=50, deadline=None)
def test_any_packets_give_finite_frames_of_20_ms(pushes: list[tuple[int, int, int, float]], rate: int) -> None:
    buffer, now = JitterBuffer(rate), 0.0
    n = round(rate * FRAME_S)
    for sequence, capture_us, size, dt in pushes:
        now += dt
        buffer.push(sequence, capture_us, np.random.default_rng(size).uniform(-1, 1, size).astype(np.float32), now)
        for f in buffer.pull(now):
            assert f.samples.shape == f.lost.shape == (n,) and np.isfinite(f.samples).all() and np.abs(f.samples).max(initial=0) < 4
        assert buffer.held_ms <= 1020
    for f in buffer.flush():
        assert len(f.samples) <= n
    assert buffer.flush() == [] and buffer.held_ms == 0


def test_nothing_in_nothing_out_and_the_clock_stops() -> None:
    buffer = JitterBuffer(RATE)
    assert buffer.pull(5.0) == [] and buffer.flush() == []
    frames = run(buffer, [(0.02 * i, i) for i in range(10)], 30.0)
    assert 10 <= len(frames) <= 10 + HOLD_S / FRAME_S + 1 and buffer.counts.stalls == 1
    assert frames[-1].lost.all() and not frames[-1].samples.any()


# -- concealment -------------------------------------------------------------------------------------------------------


@given(st.floats(80, 300), st.integers(100, 480))
@settings(max_examples=30, deadline=None)
def test_a_steady_voice_goes_on_through_a_gap(hz: float, gap: int) -> None:
    x = voice(0.2, hz)
    a = 1600
    y = bridge(x[:a], gap, x[a + gap :], RATE)
    z = np.concatenate([x[:a], y, x[a + gap :]])
    error = np.sum((z - x)[a : a + gap] ** 2) / np.sum(x[a : a + gap] ** 2)
    assert error < 0.5  # silence: 1.0; a repetition out of phase: up to 4
    steps = np.abs(np.diff(z))
    assert steps[a - 2 : a + gap + 2].max() < 2 * np.abs(np.diff(x)).max()


@given(st.integers(0, 700), st.integers(1, 3000), st.integers(0, 700), st.sampled_from([8000, 16000, 48000]))
@settings(max_examples=60, deadline=None)
def test_a_bridge_of_any_length_between_anything(before: int, gap: int, after: int, rate: int) -> None:
    rng = np.random.default_rng(before)
    y = bridge(rng.uniform(-1, 1, before).astype(np.float32), gap, rng.uniform(-1, 1, after).astype(np.float32), rate)
    assert y.shape == (gap,) and np.isfinite(y).all() and np.abs(y).max() < 4


def test_a_long_gap_falls_silent_and_parts_join() -> None:
    x = voice(0.1)
    whole = extrapolate(x, 1600, RATE)
    assert np.abs(whole[:160]).max() > 0.1 and not whole[960:].any()
    assert np.array_equal(whole, np.concatenate([extrapolate(x, 333, RATE), extrapolate(x, 1267, RATE, 333)]))


@given(st.integers(70, 390))
@settings(max_examples=30, deadline=None)
def test_the_period_is_found(hz: int) -> None:
    x = voice(0.1, hz)
    lag, likeness = best_lag(x, 96, 40, 240)
    multiple = lag * hz / RATE
    assert abs(multiple - round(multiple)) < 0.04 and likeness > 0.95


@given(st.integers(80, 390))
@settings(max_examples=30, deadline=None)
def test_faster_and_slower_keep_ends_and_pitch(hz: int) -> None:
    x = voice(0.1, hz)
    lag, likeness = period(x, RATE, 10_000)
    assert likeness > 0.95
    for y, n in ((shorten(x, lag), len(x) - lag), (lengthen(x, lag), len(x) + lag)):
        assert len(y) == n and y[0] == pytest.approx(x[0], abs=0.02) and np.array_equal(y[-100:], x[-100:])
        assert np.abs(np.diff(y)).max() < 1.3 * np.abs(np.diff(x)).max()
    assert period(x[:50], RATE, 1000) == (0, 0.0)
