"""The mean of two sets of weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tools.average import main
from voicewire.engines.config import ModelConfig
from voicewire.engines.net.model import Model


def checkpoint(path: Path, seed: int, width: int = 8) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    cfg = ModelConfig(channels=8, width=width, bands=8, mix_groups=2, blocks=2, trunk_dim=16, trunk_layers=1, trunk_heads=2)
    weights = Model(cfg).state_dict()
    torch.save({"config": cfg.to_dict(), "step": seed, "minutes": 1.0, "hours": 2.0, "ema": weights}, path)
    return weights


def test_mean_of_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = checkpoint(tmp_path / "a.pt", 1), checkpoint(tmp_path / "b.pt", 2)
    args = [str(tmp_path / "a.pt"), str(tmp_path / "b.pt"), "--out", str(tmp_path / "mean.pt")]
    assert main(args) == 0
    saved = torch.load(tmp_path / "mean.pt", weights_only=True)
    assert saved["step"] == 2
    for k, v in saved["ema"].items():
        expected = (a[k] + b[k]) / 2 if v.is_floating_point() else b[k]
        torch.testing.assert_close(v, expected)
    Model(ModelConfig.from_dict(saved["config"])).load_state_dict(saved["ema"])
    assert main([*args, "--share", "0.75"]) == 0
    mostly = torch.load(tmp_path / "mean.pt", weights_only=True)["ema"]
    name = next(k for k, v in mostly.items() if v.is_floating_point() and not torch.equal(a[k], b[k]))
    torch.testing.assert_close(mostly[name], a[name] + 0.75 * (b[name] - a[name]))
    assert main([*args, "--share", "1.5"]) == 2
    assert "--share is from 0 to 1" in capsys.readouterr().err
    checkpoint(tmp_path / "b.pt", 3, width=16)
    assert main(args) == 2
    assert "not the same model" in capsys.readouterr().err
