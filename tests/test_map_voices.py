"""Another encoder of voices in a model that knows its own: its voices come to lie where the model's do, and nothing else changes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize
from voice_weights import RECIPE, talker

from tools import map_voices, train_voice
from voicewire.engines.config import CORE_BINS
from voicewire.engines.export import load_weights
from voicewire.engines.net.spectrum import stft


def run(monkeypatch: pytest.MonkeyPatch, voice: Path, weights: Path, cache: Path, out: Path, people: int = 2) -> int:
    argv = ["map_voices", voice, "--init", weights, "--cache", cache, "--out", out, "--batches", 12, "--people", people]
    monkeypatch.setattr(sys, "argv", [str(a) for a in argv])
    return map_voices.main()


def test_voices_come_to_lie_where_the_old_ones_do(voice_weights: Path, talkers_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_weights(voice_weights).core
    assert model.voice is not None
    torch.manual_seed(0)
    other = {k: torch.randn_like(v) if k.startswith("out.") else v for k, v in model.voice.state_dict().items()}  # hears the same, says it in another tongue
    torch.save({"ema": {f"encoder.{k}": v for k, v in other.items()}}, tmp_path / "voice.pt")
    assert run(monkeypatch, tmp_path / "voice.pt", voice_weights, talkers_cache, tmp_path / "mapped") == 0
    saved = torch.load(tmp_path / "mapped" / "last.pt", weights_only=True)
    before = model.state_dict()
    assert saved["ema"].keys() == before.keys()
    assert {k for k in before if not torch.equal(before[k], saved["ema"][k])} == {"voice.out.weight", "voice.out.bias"}
    x = stft(torch.stack([torch.from_numpy(talker(hz)) for hz in (120.0, 180.0, 250.0)]), 160)[:, :, :CORE_BINS]
    with torch.no_grad():
        old = normalize(model.voice(x), dim=-1)
        model.voice.load_state_dict(other)
        strange = normalize(model.voice(x), dim=-1)
        model.load_state_dict(saved["ema"])
        new = normalize(model.voice(x), dim=-1)
    assert (new * old).sum(-1).min() > 0.95 > 0.9 > (strange * old).sum(-1).max()


def test_encoders_of_other_sizes_are_refused(
    voice_weights: Path, talkers_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"ema": {"encoder.out.weight": torch.zeros(3, 3)}}, tmp_path / "voice.pt")
    assert run(monkeypatch, tmp_path / "voice.pt", voice_weights, talkers_cache, tmp_path / "mapped") == 2
    assert "no encoder of the sizes" in capsys.readouterr().err


def test_more_people_than_there_are(
    voice_weights: Path, talkers_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_weights(voice_weights).core
    assert model.voice is not None
    torch.save({"ema": {f"encoder.{k}": v for k, v in model.voice.state_dict().items()}}, tmp_path / "voice.pt")
    assert run(monkeypatch, tmp_path / "voice.pt", voice_weights, talkers_cache, tmp_path / "mapped", people=4) == 2
    assert "the cache holds 3 people, not 4" in capsys.readouterr().err


def test_an_encoder_is_trained_on_from_released_weights(voice_weights: Path, talkers_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r.toml").write_text(RECIPE.format(cache=talkers_cache).replace("lr = 0.01", "lr = 1e-9"))
    monkeypatch.setattr(sys, "argv", ["train_voice", str(tmp_path / "run"), "--recipe", str(tmp_path / "r.toml"), "--init", str(voice_weights), "--steps", "1"])
    assert train_voice.main() == 0
    model = load_weights(voice_weights).core
    assert model.voice is not None
    now = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["ema"]
    for k, v in model.voice.state_dict().items():
        if k.startswith(("inp.", "out.")):
            torch.testing.assert_close(now[f"encoder.{k}"], v, atol=1e-6, rtol=1e-5)
