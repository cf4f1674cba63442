"""The odds of the codec's tokens: fitted ones say more than even ones, whole numbers say what real ones do, and what is of other weights is refused."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from codec_weights import SMALL, tried_codec, write_weights

from tools import evaluate_codec, fit_codec_odds
from tools.codec_spoken import Spoken, tokens_of
from tools.fit_codec_odds import counted, fit, joined, measured, sent, whole_numbers
from voicewire.engines.codec_engine import CodecEngine
from voicewire.engines.codec_odds import TOTAL_BITS, Odds
from voicewire.engines.codec_variable import VariableRate
from voicewire.engines.engine import EngineError
from voicewire.rt.codec import TokenEncoder, decode, encode, read_tokens
from voicewire.rt.codec_payload import pack_frames


def talk(frames: int, seed: int) -> np.ndarray:
    """[frames, streams] of SMALL: the first token mostly stays what it was, the others tell nothing."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, SMALL.codes, (frames, SMALL.streams))
    changes = np.maximum.accumulate(np.where(rng.random(frames) < 0.1, np.arange(frames), 0))
    tokens[:, 0] = tokens[changes, 0]
    return tokens


def frames_of(seed: int, n: int) -> fit_codec_odds.Frames:
    return joined([sent(talk(n, seed), np.arange(n)), sent(talk(n, seed), np.flatnonzero(np.arange(n) % 3 == 0))])


def test_what_is_fitted_is_what_is_counted() -> None:
    codec, learnt, other = tried_codec(), frames_of(0, 20000), frames_of(1, 2000)
    model = fit(codec, learnt, 4)
    odds = Odds("0" * 16, whole_numbers(model))
    real, whole = measured(model, other), counted(odds, other)
    assert real[0] < 4, "of six bits: what there is to learn"
    assert (real[1:] > 5.9).all() and (real[1:] < 6.3).all(), "and what there is not"
    np.testing.assert_allclose(whole, real, atol=0.05)
    blind = measured(fit(codec, learnt, 4, fit_codec_odds.NOTHING), other)
    assert blind[0] > 5.9, "without knowing the past there is nothing to gain"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("codec"))


def test_the_command_binds_its_tables_to_the_weights(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    weights, spoken, elsewhere = tmp_path / "codec", tmp_path / "spoken", tmp_path / "other"
    for folder in (weights, elsewhere):
        shutil.copytree(made, folder)
    even = CodecEngine(weights)
    (elsewhere / "codec.json").write_text((weights / "codec.json").read_text().replace(even.weights, "e" * 16))
    spoken.mkdir()
    tokens = [talk(300, seed) for seed in range(10)]
    vectors = np.random.default_rng(0).standard_normal((3000, SMALL.code_dim))
    what = {"tokens": np.concatenate(tokens), "semantic": vectors, "sizes": np.full(10, 300)}
    np.savez(spoken / "spoken.npz", weights=even.weights, **what)
    monkeypatch.setattr("sys.argv", ["fit_codec_odds", str(spoken), "--weights", str(weights), "--epochs", "2"])
    assert fit_codec_odds.main() == 0
    engine = CodecEngine(weights)
    sf.write(tmp_path / "held-out.wav", np.random.default_rng(1).uniform(-0.1, 0.1, 16000), 16000)
    monkeypatch.setattr("sys.argv", ["fit_codec_odds", str(spoken), "--weights", str(weights), "--epochs", "1", "--test", str(tmp_path), "--compare"])
    assert fit_codec_odds.main() == 0 and capsys.readouterr().out.count("every frame") == len(fit_codec_odds.STAGES)
    assert engine.odds.fingerprint == CodecEngine(weights).odds.fingerprint, "comparing writes nothing"
    assert engine.weights == even.weights and engine.odds.fingerprint != even.odds.fingerprint

    x = (0.1 * np.random.default_rng(2).standard_normal(8000)).astype(np.float32)
    data = b"".join(encode([x], 16000, engine))
    encoder = TokenEncoder(16000, engine)
    np.testing.assert_array_equal(read_tokens(data, engine.odds)[1], np.concatenate([encoder.process(x)[0], encoder.flush()[0]]))
    with pytest.raises(ValueError, match="made with codec weights"):
        read_tokens(data, even.odds)

    shutil.copy(weights / "odds.npz", elsewhere)
    with pytest.raises(EngineError, match="is of other codec weights") as e:
        CodecEngine(elsewhere)
    assert "\n" not in str(e.value)
    (elsewhere / "odds.npz").write_bytes(b"junk")
    with pytest.raises(EngineError, match="cannot be read"):
        CodecEngine(elsewhere)
    np.savez(spoken / "spoken.npz", weights="f" * 16, **what)
    assert fit_codec_odds.main() == 2 and "run tools.codec_spoken again" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["fit_codec_odds", str(tmp_path), "--weights", str(weights)])
    assert fit_codec_odds.main() == 2 and "holds no tokens" in capsys.readouterr().err


def test_spoken_tokens_are_the_streams_own(made: Path) -> None:
    engine, codec = CodecEngine(made), tried_codec()
    for n in (16000, 15999, 15841):
        x = (0.1 * np.random.default_rng(n).standard_normal(n)).astype(np.float32)
        encoder = TokenEncoder(16000, engine)
        stream = np.concatenate([encoder.process(x)[0], encoder.flush()[0]])
        tokens, semantic = tokens_of(x, codec)
        assert tokens.shape == stream.shape and len(semantic) == len(tokens)
        assert (tokens == stream).mean() > 0.98, "but for codes that are nearly as near: the weights of the stream are halves"


def test_what_is_evaluated_is_the_file(made: Path) -> None:
    """Bits and sound of tools.evaluate_codec at variable rate are those of the file that the command writes."""
    engine, x = CodecEngine(made), (0.1 * np.random.default_rng(3).standard_normal(24000)).astype(np.float32)
    variable = VariableRate(1.0, -1.0, 4)
    data = b"".join(encode([x], 16000, engine, variable))
    _, tokens, sent, _ = read_tokens(data, engine.odds)
    assert 0.2 < sent.mean() < 0.9
    for y, bits in (evaluate_codec.through(x, engine, variable)[:2], evaluate_codec.held(evaluate_codec.Clip("", x, [], tokens), sent, engine)):
        assert bits == 8 * len(data)
        np.testing.assert_array_equal(y, decode(tokens, 16000, len(x), engine))


def test_clips_come_apart_again(tmp_path: Path) -> None:
    tokens = talk(50, 0)
    np.savez(tmp_path / "spoken.npz", weights="w", tokens=tokens, semantic=np.zeros((50, 8)), sizes=np.array([20, 30]))
    first, second = Spoken.load(tmp_path).clips()
    np.testing.assert_array_equal(np.concatenate([first[0], second[0]]), tokens)
    assert len(first[0]) == 20


def test_bits_in_real_numbers_are_those_of_the_counts() -> None:
    odds, rng = CodecEngine().odds, np.random.default_rng(0)
    tokens = rng.integers(-1, odds.codes, (3, 50, odds.streams))
    said = odds.past(tokens[0], tokens[1], rng.integers(0, 20, 50))
    for s in range(odds.streams):
        counts = odds.counts(s, said)
        likely = (counts > 1000) & (counts < counts.max(1, keepdims=True))  # the likeliest also gets what rounding leaves over
        assert likely.any()
        np.testing.assert_allclose(odds.bits(s, said)[likely], TOTAL_BITS - np.log2(counts[likely]), atol=0.05)
        assert odds.bits(s, said).max() <= TOTAL_BITS
        said = odds.add(said, s, tokens[2, :, s])


def test_released_odds_are_the_same_everywhere() -> None:
    """Whole numbers alone: what these tokens are packed to is known to the byte."""
    odds, rng = CodecEngine().odds, np.random.default_rng(0)
    tokens = (rng.random((100, 5)) * 1024).astype(np.int64)
    data = pack_frames(tokens, np.arange(100) % 3 != 1, odds, True)
    assert hashlib.sha256(data).hexdigest()[:16] == "87fbfd71c2f849c9"
