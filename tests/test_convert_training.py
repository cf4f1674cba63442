"""The converter's training line on audio made here, with a listener made here: disguise, mix, begin with a codec, train, stop, resume."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from codec_weights import SMALL as CODEC
from codec_weights import tried_codec, write_weights

from tools import train_convert
from tools.convert_mixer import ConvertMixer
from tools.disguise import disguise, shift, stretch, warp
from tools.evaluate_convert import lag_ms
from tools.pitch import pitch
from tools.train_convert import begin_with, load
from voicewire.engines.convert_config import ConvertConfig
from voicewire.engines.net.codec_source import lag_octaves
from voicewire.engines.net.convert import Converter
from voicewire.engines.net.spectrum import stft

CONFIG = ConvertConfig(**{k: v for k, v in CODEC.to_dict().items() if k in ConvertConfig().to_dict()}, content_dim=CODEC.code_dim, voice_dim=8, turn_dim=6)
RECIPE = """
[model]
{model}
[data]
cache = "{cache}"
batch = 2
seconds = 1.0
workers = 0
[train]
converted = 1
warmup_steps = 2
checkpoint_minutes = 0.0
"""


def vowel(pitch_hz: float, seconds: float = 1.0) -> np.ndarray:
    """A buzz through formants at 700 and 1,800 Hz, twice a second louder and softer."""
    t = np.arange(round(16000 * seconds)) / 16000
    parts = [np.sin(2 * np.pi * h * pitch_hz * t) / (1 + ((h * pitch_hz - 700) / 150) ** 2) for h in range(1, int(4000 / pitch_hz))]
    parts += [0.5 * np.sin(2 * np.pi * h * pitch_hz * t) / (1 + ((h * pitch_hz - 1800) / 150) ** 2) for h in range(1, int(4000 / pitch_hz))]
    x: np.ndarray = (0.1 * sum(parts) * (0.6 + 0.4 * np.sin(4 * np.pi * t))).astype(np.float32)
    return x


def centre_hz(x: np.ndarray) -> float:
    """Where the power lies."""
    power = np.abs(np.fft.rfft(x)) ** 2
    return float((power * np.arange(len(power))).sum() / power.sum() * 16000 / len(x))


@pytest.mark.parametrize("octaves", [-0.5, 0.3, -1.6])
def test_a_shifted_voice_keeps_its_time(octaves: float) -> None:
    x = vowel(220)
    y = shift(x, octaves)
    hz = pitch(y)
    assert len(y) == len(x) and abs(float(np.median(np.log2(hz[hz > 0] / 220))) - octaves) < 0.05
    assert abs(lag_ms(y, x)) <= 10


def test_a_warped_voice_keeps_its_pitch() -> None:
    x = vowel(150)
    up, down, same = warp(x, 0.25), warp(x, -0.25), warp(x, 0.0)
    np.testing.assert_allclose(same, x, atol=1e-4)
    for y in (up, down):
        hz = pitch(y)
        assert abs(float(np.median(hz[hz > 0])) - 150) < 2
    assert centre_hz(down) < 0.9 * centre_hz(x) < 0.9 * centre_hz(up) / 1.1


def test_a_disguise_says_how_high_it_is() -> None:
    rng, x = np.random.default_rng(0), vowel(180)
    for _ in range(5):
        y, octaves = disguise(rng, x)
        hz = pitch(y)
        assert y.dtype == np.float32 and len(y) == len(x) and np.isfinite(y).all()
        assert abs(float(np.median(np.log2(hz[hz > 0] / 180))) - octaves) < 0.05
    assert len(stretch(np.zeros(1000, np.float32), 700)) == 700


def test_batches_are_aligned_and_the_same_again(talkers_cache: Path) -> None:
    a, b = ConvertMixer(talkers_cache, 1, 2, 1.0), ConvertMixer(talkers_cache, 1, 2, 1.0)
    for i in range(4):
        heard, target, known, own, hz, octaves = batch = a.conversion_batch(i)
        assert heard.shape == target.shape == (2, 16000) and known.shape == own.shape == (2, 48000) and hz.shape == (2, 100) and octaves.shape == (2,)
        assert all(z.dtype == np.float32 and np.isfinite(z).all() for z in batch)
        for again, first in zip(b.conversion_batch(i), batch, strict=True):
            assert np.array_equal(again, first)


def test_it_begins_as_a_codec_without_quantisers() -> None:
    """Told the same, the speaker's first layer gives what the decoder's gives for vectors that were not quantised."""
    codec, converter = tried_codec(), Converter(CONFIG).eval()
    with torch.no_grad():
        codec.encoder.acoustic_vq.metric[:4, :4] += 0.1
    begin_with(codec, converter)
    x = stft(0.05 * torch.randn(2, 8000), 160)[:, :, :160]
    with torch.no_grad():
        h = converter.hear.heard(x)
        acoustic, semantic, _, _ = codec.encoder.features(x)
        u = converter.understand(x)
        assert not torch.allclose(h.level, torch.full_like(h.level, converter.hear.told_level or 0))
        # the converter is told of one level, the codec of the sound's own: give both the converter's
        octave = torch.rand(2, x.shape[1]) + 7
        pair = 6.0 * (octave.view(2, -1, 2).mean(-1, keepdim=True) - lag_octaves().mean())
        e = codec.encoder
        z = e.acoustic_vq.spread(e.acoustic_vq.narrow(e.acoustic_vq.norm(h.acoustic)).transpose(1, 2)).transpose(1, 2)
        a = e.acoustic_vq.widen(torch.cat([z, pair], -1) @ e.acoustic_vq.metric)
        s = e.semantic_vq.widen(e.semantic_vq.project(h.semantic))
        wanted = codec.decoder.inp(torch.cat([s, a], -1))
        found = converter.speaker.inp(converter._told(u.content, octave, torch.zeros(2, x.shape[1])))
    assert acoustic.shape[1] == semantic.shape[1] == found.shape[1]
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


class Listener(torch.nn.Module):
    """A stand-in for the released voice encoder and Resemblyzer: what it hears is the long-term spectrum."""

    def __init__(self, weights: Path) -> None:
        super().__init__()

    def judge(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(stft(x, 160).square().sum(-1).mean(1), dim=-1)

    def voice(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(self.judge(x)[:, :8] + 1e-3, dim=-1)


def test_train_stop_resume(talkers_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(train_convert, "Likeness", Listener)
    write_weights(tmp_path / "codec")
    recipe = tmp_path / "small.toml"
    recipe.write_text(RECIPE.format(model="\n".join(f"{k} = {v}" for k, v in CONFIG.to_dict().items()), cache=talkers_cache))

    def run(*more: str) -> int:
        monkeypatch.setattr(sys, "argv", ["train_convert", str(tmp_path / "run"), *more])
        return train_convert.main()

    assert run("--recipe", str(recipe), "--steps", "1") == 2 and "--codec" in capsys.readouterr().err
    assert run("--recipe", str(recipe), "--codec", str(tmp_path / "codec"), "--steps", "3") == 0
    assert run("--steps", "2") == 0 and "resumed" in capsys.readouterr().out
    saved = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert saved["step"] == 5 and saved["config"] == CONFIG.to_dict()
    assert all(torch.isfinite(v).all() for v in saved["ema"].values())


def test_recipes_are_checked(tmp_path: Path) -> None:
    assert load(Path("tools/recipes/convert/cpu.toml")).train.converted == 2
    (tmp_path / "r.toml").write_text("[train]\ncolour = 1\n")
    with pytest.raises(ValueError, match="no setting 'colour'"):
        load(tmp_path / "r.toml")
