"""The probes find what is in a token, and nothing where nothing is."""

from __future__ import annotations

import numpy as np
import pytest

from tools import probe_codec
from tools.codec_primitives import NONE, clusters, describe, nearest
from tools.probe_codec import score


def test_a_token_that_tells_is_found_out() -> None:
    rng = np.random.default_rng(0)
    answer = rng.integers(0, 4, 4000)
    tokens = np.stack([answer * 16 + rng.integers(0, 16, 4000), rng.integers(0, 64, 4000)], 1)
    answer[::10] = NONE  # asked nothing there
    (tells, says_nothing), majority = score(64, (tokens[:3000], answer[:3000]), (tokens[3000:], answer[3000:]))
    assert tells == 1.0 and says_nothing < 0.35 and 0.2 < majority < 0.32
    rare = np.where(rng.random(4000) < 0.9, 0, 1)
    (guess, _), majority = score(64, (tokens[:3000, 1:].repeat(2, 1), rare[:3000]), (tokens[3000:, 1:].repeat(2, 1), rare[3000:]))
    assert guess == pytest.approx(majority, abs=0.03) and majority > 0.85


def test_clusters_are_the_heaps() -> None:
    rng = np.random.default_rng(1)
    heaps = 10 * rng.standard_normal((5, 8))
    own = rng.integers(0, 5, 500)
    x = heaps[own] + 0.1 * rng.standard_normal((500, 8))
    found = nearest(x, clusters(x, 12))
    assert all(len(np.unique(own[found == i])) <= 1 for i in range(12))


def test_speech_is_described(clean: np.ndarray) -> None:
    d = describe(clean)
    voice, energy, speaks = d.pitch, d.energy, d.speaks
    assert len(voice) == len(energy) == len(speaks) == len(clean) // 320
    assert speaks.mean() > 0.3 and energy[speaks].min() >= 1 and (voice[~speaks] == NONE).mean() > 0.8
    assert set(np.unique(energy)) <= {0, 1, 2, 3} and set(np.unique(voice)) <= {NONE, 0, 1, 2, 3}


def test_whole_line(clean: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens made of the features' own clusters tell the content; those a frame late with `lag` do, too."""
    rng = np.random.default_rng(2)
    centres = 10 * rng.standard_normal((6, 64))
    x = clean[: 4 * 16000]
    kinds = rng.integers(0, 6, len(x) // 320)
    features = centres[kinds] + 0.1 * rng.standard_normal((len(kinds), 64))

    class Engine:
        class config:
            codes, streams = 8, 2

    for lag in (0, 1):
        late = np.concatenate([np.zeros(lag, np.int64), kinds])
        monkeypatch.setattr(probe_codec, "encode", lambda y, e, late=late: (np.stack([late, 0 * late], 1), None))
        monkeypatch.setattr(probe_codec, "UNITS", 6)
        result = probe_codec.probe(iter([(x, features)]), iter([(x, features)]), Engine(), lag)  # type: ignore[arg-type]
        (tells, says_nothing), majority = result["content"]
        assert tells > 0.95 and says_nothing == majority < 0.5
        assert set(result) == {"content", "pitch", "energy", "scene"}
