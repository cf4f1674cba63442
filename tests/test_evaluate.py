"""The scoring bench: pairs are found, delays measured, words counted, scores cached and grouped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from tools import evaluate as ev
from tools import metrics
from tools.peers import System
from voicewire.engines.engine import WEIGHTS
from voicewire.rt.demo import si_sdr_db


@pytest.fixture
def folder(tmp_path: Path, noisy: np.ndarray, clean: np.ndarray) -> Path:
    for name, x in (("noisy", noisy), ("clean", clean)):
        (tmp_path / name).mkdir()
        for i in range(3):
            sf.write(tmp_path / name / f"p{i}.wav", x[i * 32000 : (i + 2) * 32000], 16000)
    (tmp_path / "noisy" / "alone.wav").write_bytes((tmp_path / "noisy" / "p0.wav").read_bytes())
    (tmp_path / "manifest.csv").write_text("id,snr_db,reverb,text\np0,5,0,\np1,15,1,some words\n")
    return tmp_path


def test_pairs(folder: Path) -> None:
    pairs = ev.find_pairs(folder)
    assert [(p.id, p.reverb, p.text) for p in pairs] == [("p0", False, ""), ("p1", True, "some words"), ("p2", False, "")]
    assert pairs[1].snr_db == 15


def test_table_groups_and_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def score(y: np.ndarray, clean: np.ndarray, said: list[str]) -> dict[str, float]:
        calls.append(len(y))
        return dict.fromkeys(("PESQ", "STOI", "SIG", "BAK", "OVRL", "P808", "SPK"), 1.0) | {"SI-SDR": si_sdr_db(y, clean), "errors": 1, "words": 4}

    monkeypatch.setattr(ev, "score", score)
    monkeypatch.setattr(metrics, "transcribe", lambda y: ["a", "b"])
    late = System("late", lambda x: np.append(np.zeros(100, np.float32), x)[: len(x)], 100, "1")
    systems = [System("unprocessed", lambda x: x, 0, "-"), late]
    pairs, cache = ev.find_pairs(folder), ev.Cache(tmp_path / "cache")
    result = ev.evaluate(pairs, systems, cache)
    assert len(calls) == 6
    assert ev.evaluate(pairs, systems, cache) == result and len(calls) == 6, "the second run must come from the cache"
    for a, b in zip(result["unprocessed"]["rows"], result["late"]["rows"], strict=True):
        assert a["SI-SDR"] == pytest.approx(b["SI-SDR"]), "a known delay must be removed before scoring"
    text = ev.table(result)
    assert "| all (3) |" in text and "| reverberant (1) |" in text and "| SNR >= 15 dB (1) |" in text
    assert "| 25.0 |" in text  # word error rate over the set


def test_latency_is_measured_not_declared(noisy: np.ndarray) -> None:
    """A lower bound: the first samples of a window weigh next to nothing."""
    assert 24.0 <= ev.measured_latency_ms(ev.ours(WEIGHTS).run, 0, noisy) <= 30.0
    hold = System("hold", lambda x: np.append(np.zeros(160, np.float32), x)[: len(x)], 160, "1")
    assert ev.measured_latency_ms(hold.run, 160, noisy) == 0.0


def test_word_errors() -> None:
    said = "the cat sat on the mat".split()
    assert metrics.word_errors(said, said) == 0
    assert metrics.word_errors("the cat sat on mat".split(), said) == 1
    assert metrics.word_errors("a cat sat on the the mat".split(), said) == 2
    assert metrics.word_errors([], said) == 6
