"""Pairs with many words: the asked ratio of speech and noise, the same every time, and one line where there is nothing to mix."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from tools import evaluate as ev
from tools import many_words


@pytest.fixture
def sets(tmp_path: Path, noisy: np.ndarray, clean: np.ndarray) -> Path:
    for name, x in (("noisy", noisy), ("clean", clean)):
        (tmp_path / "pairs" / name).mkdir(parents=True)
        for i in range(2):
            sf.write(tmp_path / "pairs" / name / f"p{i}.wav", x[i * 16000 : (i + 2) * 16000], 16000)
    (tmp_path / "pairs" / "manifest.csv").write_text("id,snr_db,reverb\np0,5,0\np1,5,1\n")
    (tmp_path / "speech").mkdir()
    sf.write(tmp_path / "speech" / "long.wav", np.tile(clean, 3)[: 10 * 16000], 16000)
    (tmp_path / "speech" / "manifest.csv").write_text("path,language\nspeech/long.wav,en\nspeech/missing.wav,de\n")
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["many_words", *map(str, arguments)])
    return many_words.main()


def test_pairs_of_the_asked_ratio(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = sets / "out"
    assert run(monkeypatch, sets / "speech", sets / "pairs", out, "--count", 4) == 0
    pairs = ev.find_pairs(out)
    assert [p.snr_db for p in pairs] == [0, 5, 10, 15] and not any(p.reverb for p in pairs)
    measured = []
    for p in pairs:
        x, s = ev.load(p.noisy), ev.load(p.clean)
        assert len(x) == len(s) == 6 * 16000 and np.abs(x).max() <= 0.96
        measured.append(10 * np.log10((s**2).mean() / ((x - s) ** 2).mean()))
    assert np.abs(np.diff(measured) - 5).max() < 2 and -3 < measured[0] < 4
    first = {p.name: p.read_bytes() for p in out.rglob("*.*")}
    assert run(monkeypatch, sets / "speech", sets / "pairs", out, "--count", 4) == 0
    assert {p.name: p.read_bytes() for p in out.rglob("*.*")} == first


def test_nothing_to_mix_is_one_line(sets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (sets / "pairs" / "manifest.csv").write_text("id,snr_db,reverb\np0,5,1\np1,5,1\n")
    assert run(monkeypatch, sets / "speech", sets / "pairs", sets / "out") == 2
    assert run(monkeypatch, sets / "none", sets / "pairs", sets / "out") == 2
    with (sets / "speech" / "manifest.csv").open("w", newline="") as f:
        csv.writer(f).writerows([("path", "language"), ("speech/long.wav", "de")])
    assert run(monkeypatch, sets / "speech", sets / "pairs", sets / "out") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line for line in lines if line.startswith("many_words: ")] == lines[-3:] and not (sets / "out").exists()
