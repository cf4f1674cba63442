"""The codec as it comes: without --weights, speech goes through tokens and stays speech, in fewer bits than the tokens have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from tools.codec_losses import CodecLoss
from tools.evaluate_codec import with_pauses
from tools.teach import speaks
from voicewire.engines.codec_engine import CODEC_WEIGHTS, CodecEngine
from voicewire.engines.codec_export import load_codec
from voicewire.engines.codec_variable import VariableRate
from voicewire.engines.engine import WEIGHTS
from voicewire.rt.cli import main
from voicewire.rt.codec import TokenEncoder, decode, encode, read_tokens


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
    assert len(y) == len(clean) and 8 * (tmp_path / "a.tok").stat().st_size / (len(clean) / 16000) < 2300
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


def test_pauses_cost_little(clean: np.ndarray, engine_and_tokens: tuple[CodecEngine, np.ndarray]) -> None:
    """At variable rate, as the command has it."""
    engine, x = engine_and_tokens[0], with_pauses(clean[:96000])
    constant, variable = (b"".join(encode([x], 16000, engine, how)) for how in (None, VariableRate()))
    assert len(variable) < 0.75 * len(constant)
    alike = []
    for data in (constant, variable):
        _, tokens, _, samples = read_tokens(data, engine.odds)
        alike.append(likeness(decode(tokens, 16000, samples, engine), x))
    assert alike[1] > alike[0] - 0.05


def test_a_dearer_bit_saves_bits(clean: np.ndarray, engine_and_tokens: tuple[CodecEngine, np.ndarray]) -> None:
    """Free bits give the tokens of constant rate; the dearer they are, the fewer are taken, by frames that are sent and by holding."""
    engine, tokens = engine_and_tokens
    x = clean[:64000]
    constant = len(b"".join(encode([x], 16000, engine)))
    sizes, sent_frames, off = [], [], []
    for price in (0.0, 0.01, 0.03, 0.1, 0.5):
        data = b"".join(encode([x], 16000, engine, VariableRate(price)))
        _, found, sent, samples = read_tokens(data, engine.odds)
        assert samples == len(x)
        sizes.append(len(data))
        sent_frames.append(sent.mean())
        off.append((found[:200] != tokens[:200]).mean())
    assert sent_frames[0] == 1 and off[0] < 0.01 and abs(sizes[0] - constant) < 0.01 * constant
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 0.7 * sizes[0] and sent_frames == sorted(sent_frames, reverse=True)
    cheaper = b"".join(encode([x], 16000, engine, VariableRate(0.1, threshold=2.0)))
    assert read_tokens(cheaper, engine.odds)[2].all() and len(cheaper) < 0.95 * constant, "nothing is held above a cosine of 1"


def test_semantic_tokens_are_as_sure_in_noise(clean: np.ndarray, noisy: np.ndarray, engine_and_tokens: tuple[CodecEngine, np.ndarray]) -> None:
    """What they tell of the teacher's features changes less with the noise than from one frame of speech to the next."""
    engine, tokens = engine_and_tokens
    encoder, codec = TokenEncoder(16000, engine), load_codec(CODEC_WEIGHTS)
    other = np.concatenate([encoder.process(noisy)[0], encoder.flush()[0]])
    with torch.no_grad():
        a, b = (codec.taught(torch.from_numpy(t)[None])[0] for t in (tokens, other))
    lag = json.loads((CODEC_WEIGHTS / "codec.json").read_text())["teacher_lag"]
    loud = torch.from_numpy(speaks(clean))[: len(a) - lag]
    same, later = (torch.cosine_similarity(a[lag:][: len(loud)], z[lag:][: len(loud)], -1)[loud].mean().item() for z in (b, a.roll(-5, 0)))
    assert same > 0.5 > 0.3 > later


def test_codes_are_in_use(engine_and_tokens: tuple[CodecEngine, np.ndarray]) -> None:
    _, tokens = engine_and_tokens
    assert all(len(np.unique(stream)) > 0.3 * len(stream) for stream in tokens.T)


def test_weights_stay_small() -> None:
    assert sum(f.stat().st_size for f in WEIGHTS.rglob("*")) < 40 * 2**20
    assert {"codec.json", "codec.safetensors", "encode.onnx", "decode.onnx", "MODEL_CARD.md", "odds.npz"} == {f.name for f in CODEC_WEIGHTS.iterdir()}
