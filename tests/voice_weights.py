"""Small weights that know voices and take queries, made on the fly through the very commands a user would run; what they have learnt does not matter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile as sf
from numpy.typing import NDArray
from test_training import RECIPE as TINY

from tools.prepare import prepare

RECIPE = TINY.replace(
    "[data]", "voice_dim = 6\nvoice_channels = 8\nquery_dim = 256\nseparate = 2\n[data]\nextract = 0.3\nquery = 0.3\nseparate = 0.25\npeople = 2"
).replace("warmup_steps = 2", "warmup_steps = 1\nlr = 0.01")


def talker(pitch_hz: float, seconds: float = 3.0, rate: int = 16000) -> NDArray[np.float32]:
    """Buzzing syllables of one pitch."""
    t = np.arange(round(seconds * rate)) / rate
    x: NDArray[np.float32] = (np.clip(np.sin(2 * np.pi * 3 * t), 0, 1) * np.sign(np.sin(2 * np.pi * pitch_hz * t)) * 0.2).astype(np.float32)
    return x


def pack_talkers(root: Path) -> Path:
    """Three talkers, a fan, and two bells of one label as the training line wants them; → the cache."""
    for name, pitch in (("anna", 210), ("ben", 110), ("cleo", 260)):
        (root / "speech" / name).mkdir(parents=True)
        for i in range(3):
            sf.write(root / "speech" / name / f"{i}.wav", talker(pitch + 3 * i, 2.0), 16000)
    (root / "noise").mkdir()
    sf.write(root / "noise" / "fan.wav", 0.1 * np.random.default_rng(0).standard_normal(32000), 16000)
    t = np.arange(24000) / 16000
    for i, hz in enumerate((900, 1300)):
        sf.write(root / "noise" / f"bell{i}.wav", 0.3 * np.sin(2 * np.pi * hz * t) * np.exp(-4 * t), 16000)
    (root / "noise" / "manifest.csv").write_text("path,label\nfan.wav,Fan 2\nbell0.wav,a bell ringing\nbell1.wav,a bell ringing\n")
    prepare([("speech", root / "speech"), ("noise", root / "noise")], root / "cache", 16000, 0, 1)
    return root / "cache"


def train(cache: Path, root: Path) -> Path:
    """Trained for a few steps; → the folder of weights."""
    (root / "small.toml").write_text(RECIPE.format(cache=cache))
    for args in (
        ("tools.train_voice", root / "voice", "--recipe", root / "small.toml", "--steps", 3),
        ("tools.train", root / "run", "--recipe", root / "small.toml", "--voice", root / "voice" / "last.pt", "--steps", 12),
        ("tools.train_gate", root / "gate", "--cache", cache, "--init", root / "run" / "last.pt", "--minutes", 0.1),
        ("voicewire.engines.export", root / "gate" / "last.pt", "--out", root / "weights"),
    ):
        done = subprocess.run([sys.executable, "-m", *map(str, args)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return root / "weights"
