"""What runs between two devices: the pipeline, its ring and its recorder, without any device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from relay_tools import wait_for

from tools.relay_peer import Wire
from voicewire.rt import Stream
from voicewire.rt.live import watchdog
from voicewire.rt.live.pipeline import Controls, Log, Meter, Pipeline
from voicewire.rt.live.record import Recorder
from voicewire.rt.live.ring import Ring

BLOCK = 320


@pytest.fixture
def pipeline() -> Iterator[Pipeline]:
    """Whose engine changes nothing; no devices, so that its own thread has nothing to do."""
    p = Pipeline(
        Stream(16000, engine=Wire()), 1, 16000, 1, period_s=0.02, cushion_s=0.01, controls=Controls(None), log=Log(), meter=Meter(),
        lost=lambda: None, recorder=None,
    )  # fmt: skip
    yield p
    p.close()


def test_mute_lasts_until_it_is_taken_back(pipeline: Pipeline) -> None:
    block = np.full(BLOCK, 0.5, np.float32)

    def heard(blocks: int, mute: bool) -> np.ndarray:
        pipeline.controls.mute = mute
        return np.concatenate([pipeline._model(block) for _ in range(blocks)])

    assert np.allclose(heard(5, False)[-BLOCK:], 0.5)
    muted = heard(5, True)
    assert muted[0] > 0.4 and (np.diff(muted[: BLOCK // 2]) < 0).all(), "it fades"
    assert not muted[BLOCK:].any(), "somebody who is muted was heard"
    again = heard(3, False)
    assert abs(again[0]) < 0.01 and (np.diff(again[: BLOCK // 2]) > 0).all(), "it fades in"
    assert np.allclose(again[BLOCK:], 0.5)


class Watched(np.ndarray):
    """Tells when samples are copied into it or out of it."""

    copying: Callable[[], None]

    def __array_finalize__(self, whole: Any) -> None:
        self.copying = getattr(whole, "copying", lambda: None)

    def __setitem__(self, at: Any, x: Any) -> None:
        self.copying()
        super().__setitem__(at, x)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        self.copying()
        return super().__array_function__(function, types, args, options)


def test_the_other_side_of_a_ring_is_told_after_the_samples_were_copied() -> None:
    """Whatever the other thread does in between: it never sees a count of samples that are not there yet, or are still being read."""
    ring, seen = Ring(8, 1), list[tuple[int, int]]()
    ring._data = ring._data.view(Watched)
    ring._data.copying = lambda: seen.append((ring.written, ring.taken))
    x = np.arange(6, dtype=np.float32)[:, None]
    assert ring.write(x) == 6 and set(seen) == {(0, 0)}
    seen.clear()
    np.testing.assert_array_equal(ring.read(6), x)
    assert set(seen) == {(6, 0)}
    seen.clear()
    assert ring.write(x) == 6 and set(seen) == {(6, 6)}, "round the end"
    seen.clear()
    np.testing.assert_array_equal(ring.read(6), x)
    assert set(seen) == {(12, 6)}


def test_a_disk_that_stands_still_costs_the_recording_blocks_and_live_audio_nothing(tmp_path: Path) -> None:
    moves, told, written = threading.Event(), list[str](), list[int]()

    class Slow:
        def write(self, x: np.ndarray) -> None:
            moves.wait(60)
            written.append(len(x))

        def close(self) -> None:
            pass

    recorder = Recorder(tmp_path, 16000, 480, told.append)
    for file in recorder._files:
        file.close()
    recorder._files = [Slow(), Slow()]

    def add() -> None:
        for _ in range(600):
            recorder.add(np.zeros(160, np.float32), np.zeros(160, np.float32))

    adding = threading.Thread(daemon=True, target=add)
    adding.start()
    adding.join(30)
    try:
        assert not adding.is_alive(), "live audio waits for the disk"
        assert recorder.lost_blocks in (99, 100)  # 500 wait, and one may be on its way to the disk
    finally:
        moves.set()
    assert wait_for(lambda: recorder._queue.empty())
    recorder.close()
    assert len(told) == 1 and f"{recorder.lost_blocks} blocks are missing" in told[0]
    assert written.count(160) == 2 * (600 - recorder.lost_blocks)


def test_callbacks_that_never_come_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    now, lost = [1000.0], list[bool]()
    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: now[0]))
    asked: list[float] = []

    def broken() -> bool:
        asked.append(now[0])
        return False

    dog = watchdog.Watchdog(lambda: lost.append(True), broken)
    try:
        now[0] += 1.9  # a second to start, and nearly one of silence
        assert wait_for(lambda: asked.count(now[0]) > 2) and not lost
        now[0] += 0.2
        assert wait_for(lambda: bool(lost))
        asked.clear()
        now[0] += 10
        assert not wait_for(lambda: bool(asked), 0.5) and len(lost) == 1, "once is enough"
    finally:
        dog.close()


def test_a_fault_in_every_block_is_counted_and_said_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("voicewire.rt.live.pipeline.time.time", lambda: now[0])
    log = Log()
    for i in range(2500):
        now[0] += 0.01
        log.add("fault", cause="KeyError: 3")
        if i == 100:
            log.add("fault", cause="another")
    assert log.counts["fault"] == 2501
    said = [e.cause for e in log.fresh()]
    assert said.count("another") == 1 and said.count("KeyError: 3") == 3, "25 s of it"
    log.add("late_step", 12.0)
    log.add("late_step", 12.0)
    assert len(log.fresh()) == 2
