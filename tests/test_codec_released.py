"""The codec as it comes: without --weights, speech goes through tokens and stays speech."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from tools.codec_losses import CodecLoss
from voicewire.engines.codec_engine import CODEC_WEIGHTS, CodecEngine
from voicewire.engines.engine import WEIGHTS
from voicewire.rt.cli import main
from voicewire.rt.codec import TokenEncoder, decode


def likeness(y: np.ndarray, x: np.ndarray) -> float:
    """Mean correlation of the envelopes in third octaves, as STOI takes it."""
    unlike = CodecLoss(1.0, 0.0, 1.0)(torch.from_numpy(y)[None], torch.from_numpy(x)[None])[1]["unlike"]
    return 1 - unlike


@pytest.fixture(scope="module")
def engine_and_tokens(clean: np.ndarray) -> tuple[CodecEngine, np.ndarray]:
    engine = CodecEngine()
    encoder = TokenEncoder(16000, engine)
    return engine, np.concatenate([encoder.process(clean)[0], encoder.flush()[0]])


def test_speech_stays_speech(clean: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sf.write(tmp_path / "in.wav", clean, 16000)
    assert main(["codec", "encode", str(tmp_path / "in.wav"), str(tmp_path / "a.tok")]) == 0
    assert main(["codec", "decode", str(tmp_path / "a.tok"), str(tmp_path / "out.wav")]) == 0
    y = sf.read(tmp_path / "out.wav", dtype="float32")[0]
    assert len(y) == len(clean) and 8 * (tmp_path / "a.tok").stat().st_size / (len(clean) / 16000) < 2600
    assert likeness(y, clean) > 0.75
    assert likeness(np.roll(y, 8000), clean) < 0.3, "the measure would take anything"
    loud, was = (20 * np.log10(np.sqrt((z**2).mean())) for z in (y, clean))
    assert abs(loud - was) < 3


def test_every_stream_helps(clean: np.ndarray, engine_and_tokens: tuple[CodecEngine, np.ndarray]) -> None:
    engine, tokens = engine_and_tokens
    alike = [likeness(decode(tokens[:, :n], 16000, len(clean), engine), clean) for n in (1, 2, 3, 5)]
    assert alike == sorted(alike)
    without = tokens.copy()
    without[:, 0] = -1
    assert likeness(decode(without, 16000, len(clean), engine), clean) < alike[-1]


def test_codes_are_in_use(engine_and_tokens: tuple[CodecEngine, np.ndarray]) -> None:
    _, tokens = engine_and_tokens
    assert all(len(np.unique(stream)) > 0.3 * len(stream) for stream in tokens.T)


def test_weights_stay_small() -> None:
    assert sum(f.stat().st_size for f in WEIGHTS.rglob("*")) < 40 * 2**20
    assert {"codec.json", "codec.safetensors", "encode.onnx", "decode.onnx", "MODEL_CARD.md"} == {f.name for f in CODEC_WEIGHTS.iterdir()}
