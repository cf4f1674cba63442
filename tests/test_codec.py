"""The codec as its user meets it: engine, stream, files, command. Weights are random and made here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from codec_weights import write_weights

from voicewire.engines.codec_engine import CodecEngine
from voicewire.engines.codec_export import load_codec
from voicewire.engines.codec_variable import VariableRate, VariableStream
from voicewire.engines.config import CORE_BINS
from voicewire.engines.contract import verify_contract
from voicewire.engines.engine import EngineError
from voicewire.engines.net.spectrum import istft, stft
from voicewire.rt.cli import main
from voicewire.rt.codec import TokenDecoder, TokenEncoder, decode, encode, read_tokens


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("codec"))


@pytest.fixture(scope="module")
def codec_engine(weights: Path) -> CodecEngine:
    return CodecEngine(weights)


def sound(seconds: float, rate: int = 16000, seed: int = 0) -> np.ndarray:
    n = round(seconds * rate)
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(n) * np.repeat(rng.random(n // 100 + 1), 100)[:n]).astype(np.float32)


class Both:
    """Encoder and decoder one after the other, for the contract."""

    step_size, latency, forward = 2, 0, None

    def __init__(self, engine: CodecEngine) -> None:
        self.engine = engine

    def init_state(self, batch: int) -> dict[str, np.ndarray]:
        e, d = self.engine.init_encoder(batch), self.engine.init_decoder(batch)
        return {**{f"e.{k}": v for k, v in e.items()}, **{f"d.{k}": v for k, v in d.items()}}

    def step(self, x: np.ndarray, state: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        part = lambda head: {k[2:]: v for k, v in state.items() if k.startswith(head)}  # noqa: E731
        tokens, _, e = self.engine.encode(x, part("e."))
        y, d = self.engine.decode(tokens, part("d."))
        return y, {**{f"e.{k}": v for k, v in e.items()}, **{f"d.{k}": v for k, v in d.items()}}


def test_engine_keeps_the_contract(codec_engine: CodecEngine) -> None:
    verify_contract(Both(codec_engine), (0.02 * np.random.default_rng(1).standard_normal((3, 40, CORE_BINS, 2))).astype(np.float32))


def test_onnx_is_pytorch(weights: Path, codec_engine: CodecEngine) -> None:
    """Same tokens, same sound, offline in PyTorch and stepped in ONNX Runtime."""
    x, codec = sound(2.0), load_codec(weights)
    tokens, _ = (np.concatenate(z) for z in zip(*_stream(x, 16000, codec_engine, [len(x)]), strict=True))
    with torch.no_grad():
        spec = stft(torch.from_numpy(x)[None], 160)[:, :, :CORE_BINS]
        reference = codec.encoder(spec)
        out = codec.decoder(codec.vectors(reference))
        y = istft(torch.nn.functional.pad(out, (0, 0, 0, 1)), 160, len(x))[0].numpy()
    np.testing.assert_array_equal(tokens, reference[0].numpy())
    assert len(np.unique(tokens)) > 20
    heard = decode(tokens, 16000, len(x), codec_engine)
    # the phases of harmonics are sums of pitches, in which the roundings of the two add up
    assert np.abs(heard - y).max() < 1e-2 * np.abs(y).max() and np.sqrt(((heard - y) ** 2).mean()) < 3e-3 * np.sqrt((y**2).mean())


def _stream(x: np.ndarray, rate: int, engine: CodecEngine, blocks: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    encoder, at, out = TokenEncoder(rate, engine), 0, []
    for n in blocks:
        out.append(encoder.process(x[at : at + n]))
        at += n
    assert at >= len(x)
    return [*out, encoder.flush()]


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_blocks_change_nothing(codec_engine: CodecEngine, rate: int) -> None:
    x = sound(0.7, rate)
    rng = np.random.default_rng(1)
    pieces = [[len(x)], [160] * (len(x) // 160 + 1), [*rng.integers(1, 2000, len(x) // 900).tolist(), len(x)]]
    streams = [[np.concatenate(z) for z in zip(*_stream(x, rate, codec_engine, p), strict=True)] for p in pieces]
    for tokens, semantic in streams[1:]:
        np.testing.assert_array_equal(tokens, streams[0][0])
        np.testing.assert_array_equal(semantic, streams[0][1])
    tokens = streams[0][0]
    whole = decode(tokens, rate, len(x), codec_engine)
    assert len(whole) == len(x)
    decoder = TokenDecoder(rate, codec_engine)
    cut = np.concatenate([decoder.process(tokens[a : a + 3]) for a in range(0, len(tokens), 3)])
    np.testing.assert_array_equal(cut[decoder.hop :][: len(x)], whole)


def test_the_future_changes_no_token(codec_engine: CodecEngine) -> None:
    x = sound(1.0)
    for at in (5000, 6400, 6401):
        other = x.copy()
        other[at:] = sound(1.0, seed=9)[at:]
        a, b = (np.concatenate([t for t, _ in _stream(z, 16000, codec_engine, [len(z)])]) for z in (x, other))
        whole = at // 320  # frames that are over before the change
        np.testing.assert_array_equal(a[:whole], b[:whole])
        assert (a != b).any()


def test_garbage_in_is_survived(codec_engine: CodecEngine) -> None:
    x = sound(0.5)
    bad = x.copy()
    bad[2000:2100] = np.nan
    bad[3000] = np.inf
    mended = np.where(np.isfinite(bad), bad, 0).astype(np.float32)
    a, b = (_stream(z, 16000, codec_engine, [len(z)])[0][0] for z in (bad, mended))
    np.testing.assert_array_equal(a, b)
    pcm = np.round(x * 32768).astype(np.int16)
    assert _stream(pcm, 16000, codec_engine, [len(pcm)])[0][0].shape == a.shape


def test_the_search_has_what_the_encoder_has(weights: Path, codec_engine: CodecEngine) -> None:
    """What `hear` gives out is what PyTorch's quantisers search for, beside the same states; where bits are free the search finds the encoder's tokens."""
    x, codec, state = sound(1.0), load_codec(weights), codec_engine.init_encoder(1)
    spec = stft(torch.from_numpy(x)[None], 160)[:, :100, :CORE_BINS].contiguous()
    with torch.no_grad():
        acoustic, semantic, _, _ = codec.encoder.features(spec)
        projected, z = codec.encoder.acoustic_vq.project(acoustic)[0].numpy(), codec.encoder.semantic_vq.project(semantic)[0].numpy()
    stream = VariableStream(VariableRate(0.0), codec_engine.search, 4, 50)
    for t in range(50):
        frame = spec[:, 2 * t : 2 * t + 2].numpy()
        tokens, _, other = codec_engine.encode(frame, state)
        a, s, state = codec_engine.hear(frame, state)
        assert all(np.array_equal(state[k], other[k]) for k in other)
        np.testing.assert_allclose(a[0], projected[t], atol=1e-3 * np.abs(projected).max())
        np.testing.assert_allclose(s[0], z[t], atol=1e-3 * np.abs(z).max())
        found = stream.next(a[0], s[0], float((frame**2).sum()))
        np.testing.assert_array_equal(found, tokens[0])


def test_variable_rate_is_as_causal_as_constant(codec_engine: CodecEngine) -> None:
    """The same bytes for any blocks; what comes later changes no packet that is over; silence and garbage pass."""
    x, variable = sound(1.3), VariableRate(1.0, -1.0, 5)
    whole = list(encode([x], 16000, codec_engine, variable, packet_frames=10))
    rng = np.random.default_rng(1)
    for cuts in (np.arange(160, len(x), 160), np.sort(rng.integers(1, len(x), 20))):
        assert list(encode(np.split(x, cuts), 16000, codec_engine, variable, packet_frames=10)) == whole
    other = np.concatenate([x[:9700], sound(1.3, seed=9)[9700:]])
    changed = list(encode([other], 16000, codec_engine, variable, packet_frames=10))
    assert changed[:4] == whole[:4] and changed != whole, "head and 30 frames of 320 samples"
    quiet = np.where(np.arange(len(x)) % 5000 < 2500, np.float32(0), x)
    quiet[100] = np.nan
    for few in (1, 3):
        data = b"".join(encode([quiet], 16000, codec_engine, variable, streams=few))
        assert read_tokens(data, codec_engine.odds)[3] == len(x)


def test_what_variable_rate_refuses(weights: Path, tmp_path: Path) -> None:
    for bad in ({"cap_frames": 0}, {"price": -0.1}, {"price": float("nan")}):
        with pytest.raises(ValueError, match="must"):
            VariableRate(**bad)
    for junk in (None, b"junk", b"\2\0\0\0\0\0\0\0{}"):
        shutil.copytree(weights, tmp_path, dirs_exist_ok=True)
        (tmp_path / "codec.safetensors").unlink()
        if junk:
            (tmp_path / "codec.safetensors").write_bytes(junk)
        engine = CodecEngine(tmp_path)
        with pytest.raises(EngineError, match=r"codec\.safetensors") as e:
            b"".join(encode([sound(0.1)], 16000, engine, VariableRate()))
        assert "\n" not in str(e.value)
        assert b"".join(encode([sound(0.1)], 16000, engine)), "constant rate needs it not"


@pytest.mark.parametrize("packet_frames", [1, 7, 100])
def test_constant_and_variable_rate(codec_engine: CodecEngine, packet_frames: int) -> None:
    x = sound(1.5)
    blocks = [x[:7000], x[7000:]]
    constant = b"".join(encode(blocks, 16000, codec_engine, packet_frames=packet_frames))
    _, tokens, sent, samples = read_tokens(constant, codec_engine.odds)
    assert sent.all() and samples == len(x)
    all_agree = VariableRate(100.0, -1.0, 4)
    variable = b"".join(encode(blocks, 16000, codec_engine, all_agree, packet_frames=packet_frames))
    _, held, sent, samples = read_tokens(variable, codec_engine.odds)
    assert samples == len(x) and len(held) == len(tokens) and (packet_frames == 1 or sent.mean() < 0.6)
    assert sent[::packet_frames].all()
    np.testing.assert_array_equal(held[sent, 0], tokens[sent, 0])  # the semantic token is the nearest whatever it takes
    source = np.maximum.accumulate(np.where(sent, np.arange(len(sent)), 0))
    np.testing.assert_array_equal(held, tokens[source])
    assert (np.arange(len(sent)) - source).max() < 4
    if packet_frames == 100:
        assert len(variable) < 0.7 * len(constant)


def test_commands(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = sound(1.23, 48000)
    wav, tok, out = tmp_path / "in.wav", tmp_path / "a.tok", tmp_path / "out.wav"
    sf.write(wav, np.stack([x, x], 1), 48000, subtype="FLOAT")
    assert main(["codec", "encode", str(wav), str(tok), "--weights", str(weights)]) == 0
    assert "kbit/s" in capsys.readouterr().out
    assert main(["codec", "decode", str(tok), str(out), "--weights", str(weights)]) == 0
    y, rate = sf.read(out, dtype="float32")
    assert rate == 48000 and len(y) == len(x)
    engine = CodecEngine(weights)
    _, tokens, _, _ = read_tokens(tok.read_bytes(), engine.odds)
    np.testing.assert_allclose(y, np.clip(decode(tokens, 48000, len(x), engine), -1, 1), atol=1e-4)
    assert main(["codec", "encode", str(wav), str(tok), "--variable", "--price", "1", "--threshold", "0.5", "--cap-ms", "100", "--weights", str(weights)]) == 0
    assert read_tokens(tok.read_bytes(), engine.odds)[0].variable
    assert main(["codec", "decode", str(tok), str(out), "--weights", str(weights)]) == 0
    assert "of the frames sent" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tok", "in.wav", "out.wav"]


def test_fewer_layers(weights: Path, codec_engine: CodecEngine, tmp_path: Path) -> None:
    """--bitrate leaves out the last acoustic layers; what comes out is what the decoder makes of the others alone. Small weights: 6 bits a token."""
    x = sound(0.4)
    sf.write(tmp_path / "in.wav", x, 16000, subtype="FLOAT")
    _, tokens, _, _ = read_tokens(b"".join(encode([x], 16000, codec_engine)), codec_engine.odds)
    for kbit_s, streams in ((0.3, 1), (0.89, 2), (0.9, 3), (50, 4)):
        assert main(["codec", "encode", str(tmp_path / "in.wav"), str(tmp_path / "a.tok"), "--bitrate", str(kbit_s), "--weights", str(weights)]) == 0
        header, fewer, _, samples = read_tokens((tmp_path / "a.tok").read_bytes(), codec_engine.odds)
        assert header.streams == streams
        np.testing.assert_array_equal(fewer, tokens[:, :streams])
        cut = np.where(np.arange(tokens.shape[1]) < streams, tokens, -1)
        np.testing.assert_array_equal(decode(fewer, 16000, samples, codec_engine), decode(cut, 16000, samples, codec_engine))


def test_refusals(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, exit 2, nothing half-written."""
    wav, tok = tmp_path / "in.wav", tmp_path / "a.tok"
    sf.write(wav, sound(0.5), 16000)
    assert main(["codec", "encode", str(wav), str(tok), "--weights", str(weights)]) == 0
    good = tok.read_bytes()
    other = tmp_path / "other"
    shutil.copytree(weights, other)
    (other / "codec.json").write_text((weights / "codec.json").read_text().replace(CodecEngine(weights).weights, "f" * 16))
    (tmp_path / "cut.tok").write_bytes(good[:-30])
    (tmp_path / "bad.tok").write_bytes(good[:60] + bytes([good[60] ^ 1]) + good[61:])
    capsys.readouterr()
    out = tmp_path / "out.wav"
    for args, complaint in (
        (["decode", tmp_path / "cut.tok", out], "cut off"),
        (["decode", tmp_path / "bad.tok", out], "damaged"),
        (["decode", wav, out], "not a voicewire token file"),
        (["decode", tmp_path / "none.tok", out], "no file"),
        (["decode", tmp_path, out], "no file"),
        (["decode", tok, tmp_path / "nowhere" / "out.wav"], "no folder"),
        (["decode", tok, tmp_path / "out.xyz"], "cannot tell the format"),
        (["decode", tok, out, "--weights", other], "was made with codec weights"),
        (["decode", tok, out, "--weights", tmp_path], "no codec weights in"),
        (["encode", tok, tmp_path / "b.tok"], "is not audio"),
        (["encode", wav, wav], "same file"),
        (["encode", wav, tmp_path / "nowhere" / "b.tok"], "no folder"),
        (["encode", wav, tmp_path], "may not be written"),
        (["encode", wav, tmp_path / "b.tok", "--variable", "--cap-ms", "-3"], "above 0"),
        (["encode", wav, tmp_path / "b.tok", "--cap-ms", "80"], "go with --variable"),
        (["encode", wav, tmp_path / "b.tok", "--bitrate", "0.1"], "too little"),
    ):
        if "--weights" not in args:
            args = [*args, "--weights", weights]
        try:
            code = main(["codec", *map(str, args)])
        except SystemExit as e:
            code = int(e.code or 0)
        err = capsys.readouterr().err
        assert code == 2 and err.count("\n") == 1 and complaint in err, (args, err)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tok", "bad.tok", "cut.tok", "in.wav", "other"]
    assert tok.read_bytes() == good


def test_broken_weights_are_named(weights: Path, tmp_path: Path) -> None:
    for name in ("codec.json", "encode.onnx", "decode.onnx"):
        (tmp_path / name).write_bytes((weights / name).read_bytes())
    (tmp_path / "decode.onnx").write_bytes(b"junk")
    with pytest.raises(EngineError, match="cannot be loaded"):
        CodecEngine(tmp_path)
    (tmp_path / "codec.json").write_text(json.dumps({"config": {"dims": 3}, "weights": "x"}))
    with pytest.raises(EngineError, match="not what codec_export writes"):
        CodecEngine(tmp_path)


def test_the_runtime_needs_no_torch(weights: Path, tmp_path: Path) -> None:
    sf.write(tmp_path / "in.wav", sound(0.2), 16000)
    text = (
        "import sys; from voicewire.rt.cli import main\n"
        f"code = main(['codec', 'encode', {str(tmp_path / 'in.wav')!r}, {str(tmp_path / 'a.tok')!r}, '--weights', {str(weights)!r}])\n"
        "assert not {'torch', 'onnx', 'scipy'} & set(sys.modules), 'torch was imported'; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, env={"PYTHONPATH": ".links"})
    assert done.returncode == 0, done.stderr


def test_without_weights_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for advice in ("write some there", "pip install -e ."):
        with pytest.raises(EngineError, match="no codec weights in") as e:
            CodecEngine(tmp_path / "none")
        assert "\n" not in str(e.value) and advice in str(e.value)
        monkeypatch.setattr("voicewire.engines.codec_engine.CODEC_WEIGHTS", tmp_path / "none")  # as if installed from a wheel


def test_example_runs(weights: Path, tmp_path: Path) -> None:
    """The example's bytes, sent in small packets at variable rate, come out as long as they went in."""
    sf.write(tmp_path / "in.wav", sound(1.0), 16000)
    args = ["examples/codec.py", tmp_path / "in.wav", tmp_path / "out.wav", weights]
    done = subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, env={"PYTHONPATH": ".links"})
    assert done.returncode == 0 and "kbit/s" in done.stdout, done.stderr
    assert sf.info(tmp_path / "out.wav").frames == 16000


def test_exported_files_tell_nothing_of_where_they_were_made(weights: Path) -> None:
    for name in ("encode.onnx", "decode.onnx"):
        assert str(Path.cwd()).encode() not in (weights / name).read_bytes()
