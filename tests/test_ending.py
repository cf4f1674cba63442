"""How the tools' commands end when they are given what is not there, or are stopped."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tools.ending import plainly

MISSING = "/no/such/folder"
TOOLS = {
    "evaluate": [MISSING],
    "evaluate_convert": [MISSING],
    "evaluate_extract": [MISSING],
    "evaluate_query": [MISSING],
    "evaluate_separate": [MISSING],
    "evaluate_codec": [MISSING],
    "rate": [MISSING],
    "teach": [MISSING],
    "prepare": [f"speech={MISSING}", "--out", MISSING],
    "average": [MISSING, MISSING, "--out", MISSING],
    "train_gate": [MISSING, "--cache", MISSING, "--init", MISSING],
    "train_high": [MISSING, "--core", MISSING],
    "codec_spoken": [MISSING, "--out", MISSING],
    "fit_codec_odds": [MISSING, "--test", MISSING],
    **{name: [MISSING, "--recipe", MISSING] for name in ("train", "train_codec", "train_convert", "train_heads", "train_voice")},
}


@pytest.mark.parametrize("name", TOOLS)
def test_what_is_not_there_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tool = importlib.import_module(f"tools.{name}")
    monkeypatch.setattr("sys.argv", [name, *TOOLS[name]])
    assert tool.main() == 2
    said = capsys.readouterr().err.strip().split("\n")
    assert len(said) == 1 and said[0].startswith(f"{name}: ") and len(said[0]) > len(name) + 10
    assert not Path(MISSING).exists()


def test_stopped_by_hand_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    @plainly
    def main() -> int:
        raise KeyboardInterrupt

    assert main() == 130
    assert capsys.readouterr().err == "test_ending: stopped\n"
