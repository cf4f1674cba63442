"""What runs between two devices: the pipeline, its ring and its recorder, without any device."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tools.relay_peer import Wire
from voicewire.rt import Stream
from voicewire.rt.live.pipeline import Controls, Log, Meter, Pipeline

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
    assert muted[0] > 0.4 and (np.diff(muted[:BLOCK]) < 0).all(), "it fades"
    assert not muted[BLOCK:].any(), "somebody who is muted was heard"
    again = heard(3, False)
    assert abs(again[0]) < 0.01 and (np.diff(again[:BLOCK]) > 0).all(), "it fades in"
    assert np.allclose(again[BLOCK:], 0.5)
