"""Files that are no checkpoints, or others': one line, wherever one is asked for."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tools import train, train_codec, train_gate, train_high
from tools.run import TimedRun
from voicewire.engines import codec_export, convert_export, export, heads_export
from voicewire.engines.checkpoint import fill, read_checkpoint


@pytest.mark.parametrize("content", [b"", b"rubbish\n", b"PK\x03\x04 and no more", b"\x80\x02."])
def test_rubbish_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "last.pt").write_bytes(content)
    with pytest.raises(ValueError, match="is no checkpoint"):
        read_checkpoint(tmp_path / "last.pt")


def test_what_is_asked_for_must_be_there(tmp_path: Path) -> None:
    torch.save({"ema": {"w": torch.ones(2)}, "step": 3}, tmp_path / "last.pt")
    assert read_checkpoint(tmp_path / "last.pt", "ema", "step")["step"] == 3
    with pytest.raises(ValueError, match="another kind of run: it has no hours, config"):
        read_checkpoint(tmp_path / "last.pt", "ema", "hours", "config")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="is no checkpoint"):
        read_checkpoint(tmp_path / "list.pt")
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "none.pt")


def test_weights_of_another_model_are_refused_in_a_line(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 3)
    fill(layer, torch.nn.Linear(2, 3).state_dict(), tmp_path)
    for other in (torch.nn.Linear(2, 4), torch.nn.Linear(2, 3, bias=False), torch.nn.Bilinear(2, 2, 3)):
        with pytest.raises(ValueError, match=f"^{tmp_path} holds the weights of another model [^\n]*$"):
            fill(layer, other.state_dict(), tmp_path)


def test_a_run_of_another_size_is_not_gone_on_with(tmp_path: Path) -> None:
    TimedRun(tmp_path, "cpu", {}, {name: torch.nn.Linear(2, 3) for name in ("model", "ema")}).save()
    assert TimedRun(tmp_path, "cpu", {}, {name: torch.nn.Linear(2, 3) for name in ("model", "ema")}).resumed
    with pytest.raises(ValueError, match="holds the weights of another model"):
        TimedRun(tmp_path, "cpu", {}, {name: torch.nn.Linear(2, 4) for name in ("model", "ema")})


def test_ctrl_c_in_training_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    Path("r.toml").write_text("")
    monkeypatch.setattr(sys, "argv", ["train", "run", "--recipe", "r.toml"])
    monkeypatch.setattr(train.Run, "train", stop)
    assert train.main() == 130
    assert capsys.readouterr().err.strip() == "train: stopped; nothing was saved yet"
    Path("run/last.pt").write_bytes(b"")
    monkeypatch.setattr(train, "Run", stop)
    assert train.main() == 130
    assert capsys.readouterr().err.strip() == "train: stopped; the same command goes on from run/last.pt"


@pytest.mark.parametrize(
    ("tool", "args"),
    [
        (export, ["FILE", "--out", "out"]),
        (codec_export, ["FILE", "--out", "out"]),
        (convert_export, ["FILE", "--out", "out"]),
        (heads_export, ["FILE", "--out", "out"]),
        (train, ["run", "--recipe", "r.toml", "--init", "FILE", "--minutes", "1"]),
        (train_codec, ["run", "--recipe", "r.toml", "--init", "FILE", "--minutes", "1"]),
        (train_gate, ["run", "--cache", "none", "--init", "FILE", "--minutes", "1"]),
        (train_high, ["run", "--core", "FILE", "--minutes", "1"]),
    ],
)
def test_tools_say_so_in_a_line(tool: ModuleType, args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("last.pt").write_bytes(b"rubbish")
    Path("r.toml").write_text("")
    monkeypatch.setattr(sys, "argv", ["tool", *("last.pt" if a == "FILE" else a for a in args)])
    assert tool.main() == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].endswith("last.pt is no checkpoint; give the last.pt of a training run") and len(lines) == 1
