"""The voice converter: its model, its engine, its voiceprints, and the streams and files people use it by. On a small model made here."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from convert_weights import SMALL, export_small, small, somebody

from voicewire.engines import Engine, open_engine
from voicewire.engines.contract import Array, EngineSteps, TorchSteps, verify_contract
from voicewire.engines.convert_config import ConvertConfig
from voicewire.engines.convert_engine import GRAPH, ConvertEngine
from voicewire.engines.convert_export import load_converter
from voicewire.engines.engine import CONVERT_WEIGHTS, EngineError, State
from voicewire.engines.export import fingerprint
from voicewire.engines.net.convert import TARGET, Converter, Range
from voicewire.engines.net.spectrum import istft, stft
from voicewire.engines.voiceprint import VOICE_PARTS, Voiceprint
from voicewire.rt import bench, cli
from voicewire.rt.live import process
from voicewire.rt.live.controller import LiveSettings
from voicewire.rt.stream import Stream

PHASES = 1e-3  # the pitch is heard, not sent: its last bits differ, and with them the phases after some hops
F32 = np.ndarray


def noise(*shape: int, seed: int = 0) -> F32:
    return (0.03 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("convert")
    export_small(out)
    return out


@pytest.fixture(scope="module")
def converter(weights: Path) -> ConvertEngine:
    return ConvertEngine(weights)


# -- the model -------------------------------------------------------------------------------------------------------------


def test_range_keeps_the_contract() -> None:
    x = np.random.default_rng(1).standard_normal((3, 20, 97)).astype(np.float32)
    x[..., 96] = np.random.default_rng(2).random((3, 20))
    verify_contract(TorchSteps(Range()), x)


def test_range_finds_where_a_talker_lies() -> None:
    """A clear voice that goes up and down about 150 Hz, with gaps that sound like 400 Hz: the pitch to a quarter of a semitone, the mean to half of one."""
    r = Range()
    true = np.log2(150) + 0.2 * np.sin(np.arange(600) * np.pi / 50)
    guess = -0.5 * ((r.octaves.numpy() - true[:, None]) / 0.02) ** 2
    guess[::3] = -0.5 * ((r.octaves.numpy() - np.log2(400)) / 0.02) ** 2
    voiced = np.ones(600)
    voiced[::3] = 0
    y = r(torch.from_numpy(np.concatenate([guess, voiced[:, None]], 1).astype(np.float32))[None])[0].numpy()
    there = voiced > 0
    assert np.abs(y[there, 0] - true[there]).max() < 1 / 48
    assert abs(y[-1, 1] - true[there].mean()) < 1 / 24


def test_converter_keeps_the_contract() -> None:
    verify_contract(TorchSteps(small()), noise(3, 24, 160, 2), tolerance=PHASES)


class Targeted(TorchSteps):
    """Fresh states that have a target already."""

    def __init__(self, converter: Converter, amount: float) -> None:
        super().__init__(converter)
        voice = 30 * noise(1, SMALL.voice_dim, seed=3)
        self.target = dict(zip(TARGET, (voice, np.full((1, 1), 7.5, np.float32), np.full((1, 1), amount, np.float32)), strict=True))

    def init_state(self, batch: int) -> dict[str, Array]:
        return super().init_state(batch) | {k: np.repeat(v, batch, 0) for k, v in self.target.items()}

    def _forward(self, x: Array) -> Array:
        with torch.no_grad():
            y: Array = self._module(torch.from_numpy(x), {k: torch.from_numpy(np.repeat(v, len(x), 0)) for k, v in self.target.items()}).numpy()
        return y


@pytest.mark.parametrize("amount", [0.4, 1.0])
def test_converter_with_a_target_keeps_the_contract(amount: float) -> None:
    verify_contract(Targeted(small(), amount), noise(3, 24, 160, 2), tolerance=PHASES)


def test_what_comes_out_follows_the_level_of_what_goes_in() -> None:
    """Forty dB louder in, forty dB louder out, and otherwise the same: what is said does not hang on the level."""
    converter, x = small(), torch.from_numpy(noise(1, 24, 160, 2))
    with torch.no_grad():
        quiet, loud = converter(x), converter(100 * x)
    assert torch.allclose(loud, 100 * quiet, atol=0.02 * float(loud.abs().max()))


def test_settings_are_checked() -> None:
    assert ConvertConfig.from_dict(SMALL.to_dict()) == SMALL
    with pytest.raises(ValueError, match="unknown converter setting colour"):
        ConvertConfig.from_dict({"colour": 1})
    with pytest.raises(ValueError, match="dim must be at least 1"):
        ConvertConfig.from_dict({"dim": 0})


# -- weights and engine ------------------------------------------------------------------------------------------------------


def test_weights_are_read_back_as_they_are_computed_with(weights: Path, converter: ConvertEngine) -> None:
    """The graph is the only copy. Matrices kept as bytes are a little off what was trained, and the same for PyTorch and ONNX Runtime."""
    read = load_converter(weights)
    assert fingerprint(read) == converter.weights == json.loads((weights / "convert.json").read_text())["weights"]
    trained = small().state_dict()
    for name, value in read.state_dict().items():
        assert torch.allclose(value.float(), trained[name].float(), atol=float(trained[name].abs().max()) / 120 + 1e-6), name
    x = noise(2, 40, 480, 2)
    x[:, :, 160:] = 0
    state = converter.init_state(2)
    somebody(converter, 1).turn(state)
    reference = {k: torch.from_numpy(np.array(v)) for k, v in state.items()}
    for t in range(0, 40, 2):
        y, state = converter.step(x[:, t : t + 2], state)
        with torch.no_grad():
            z, reference = read.step(torch.from_numpy(x[:, t : t + 2, :160]), reference)
        np.testing.assert_allclose(y[:, :, :160], z.numpy(), atol=PHASES)
        assert not y[:, :, 160:].any(), "nothing came in above 8 kHz"


def test_engine_keeps_the_contract(converter: ConvertEngine) -> None:
    class Turned:
        def init_state(self, batch: int) -> State:
            state = converter.init_state(batch)
            somebody(converter, 1).turn(state)
            return state

        step = staticmethod(converter.step)

    x = noise(3, 24, 480, 2)
    x[:, :, 160:] = 0
    verify_contract(EngineSteps(Turned()), x, tolerance=PHASES)


@pytest.mark.parametrize("released", [False, True])
def test_a_row_is_the_same_whoever_is_beside_it(converter: ConvertEngine, released: bool) -> None:
    """Bit for bit, alone or among up to sixteen others, at 16 kHz or 48."""
    if released and not (CONVERT_WEIGHTS / GRAPH).exists():
        pytest.skip("no converter weights here")
    engine = ConvertEngine(CONVERT_WEIGHTS) if released else converter
    x = noise(20, 5, 2, 480, 2)
    x[:, ::2, :, 160:] = 0
    first = engine.init_state(5)
    for row in range(5):
        first["target.voice"][row] = noise(first["target.voice"].shape[1], seed=row)
        first["target.octave"][row], first["target.amount"][row] = 6.5 + 0.4 * row, 0.25 * row

    def through(rows: list[int]) -> F32:
        state, heard = {k: v[rows] for k, v in first.items()}, []
        for t in range(len(x)):
            y, state = engine.step(x[t, rows], state)
            heard.append(y)
        return np.stack(heard, 1)

    alone = [through([row])[0] for row in range(5)]
    for rows in ([0, 1], [4, 2, 0], [3] * 16, [0, 1, 2, 3, 4, 4, 3]):
        for y, row in zip(through(rows), rows, strict=True):
            assert np.array_equal(y, alone[row]), (rows, row)


def test_engine_is_opened_by_its_weights(weights: Path, tmp_path: Path) -> None:
    assert isinstance(open_engine("onnx", weights), ConvertEngine) and isinstance(open_engine("auto", weights), ConvertEngine)
    with pytest.raises(EngineError, match="on the CPU only"):
        open_engine("tensorrt", weights)
    for name in ("convert.onnx", "convert.json"):
        (tmp_path / name).write_bytes(b"nonsense")
    with pytest.raises(EngineError, match="export the weights again"):
        open_engine("onnx", tmp_path)
    (tmp_path / "convert.json").write_text('{"weights": "0"}')
    with pytest.raises(EngineError, match="cannot be loaded"):
        open_engine("onnx", tmp_path)


def test_what_is_above_8_khz_is_made_of_what_is_below(converter: ConvertEngine) -> None:
    x, state = noise(1, 2, 480, 2), converter.init_state(1)
    y, _ = converter.step(x, state)
    assert y[:, :, 160:].any() and np.isfinite(y).all()


# -- voiceprints -------------------------------------------------------------------------------------------------------------


def test_voiceprints_know_the_pitch_from_version_2_on(converter: ConvertEngine) -> None:
    parts = {k: np.zeros((1, 2), np.float32) for k in VOICE_PARTS}
    state = converter.init_state(1)
    for octave in (None, 7.25):
        kept = Voiceprint.from_bytes(Voiceprint("w", parts, np.ones(8, np.float32), octave=octave).to_bytes(), "w")
        assert kept.octave == octave
        if octave is None:
            with pytest.raises(ValueError, match=r"does not know how high that voice is.*enroll again"):
                kept.turn(state)
            assert not state["target.amount"].any()
        else:
            kept.turn(state)
            assert state["target.octave"] == octave and state["target.amount"] == 1 and state["target.voice"].all()
    with pytest.raises(ValueError, match="damaged"):
        Voiceprint.from_bytes(Voiceprint("w", parts, np.ones(8, np.float32), octave=70.0).to_bytes(), "w")
    with pytest.raises(ValueError, match="damaged"):
        Voiceprint("w", parts, np.ones(9, np.float32), octave=7.0).turn(state)


# -- streams -----------------------------------------------------------------------------------------------------------------


def through(stream: Stream, x: F32, block: int = 333) -> F32:
    return np.concatenate([*(stream.process(x[i : i + block]) for i in range(0, len(x), block)), stream.flush()])


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 48000])
def test_stream_converts_at_every_rate(rate: int, converter: ConvertEngine) -> None:
    """As many samples out as in, 30 ms later, whatever the blocks; another voice is another sound."""
    x = noise(rate)
    streams = [Stream(rate, task="convert", voice=somebody(converter, i), engine=converter) for i in (1, 1, 2)]
    assert streams[0].latency_samples == 3 * round(rate / 100)
    a, b, c = through(streams[0], x), through(streams[1], x, 1000), through(streams[2], x)
    assert len(a) == len(x) + streams[0].latency_samples and np.isfinite(a).all()
    np.testing.assert_allclose(a, b, atol=1e-5)
    assert np.abs(a - c).max() > 0.02 * np.abs(a).max()


def test_stream_is_the_model(weights: Path, converter: ConvertEngine) -> None:
    """The stream's output, its delay removed, is the whole-sequence converter's."""
    voice, x = somebody(converter, 1), noise(16000)
    stream = Stream(16000, task="convert", voice=voice, engine=converter)
    y = through(stream, x)[stream.latency_samples :]
    target = {k: torch.from_numpy(v[None]) for k, v in zip(TARGET, (voice.voice, np.float32([voice.octave]), np.float32([1])), strict=True)}
    with torch.no_grad():
        spec = load_converter(weights)(stft(torch.from_numpy(x)[None], 160)[:, :, :160], target)
    z = istft(torch.nn.functional.pad(spec, (0, 0, 0, 1)), 160, 16000)[0].numpy()
    assert np.square(y - z).mean() < 1e-4 * np.square(z).mean()  # (see PHASES; it depends on the version of ONNX Runtime)


def test_strength_goes_from_the_own_voice_to_the_other(converter: ConvertEngine) -> None:
    x = noise(16000)
    outputs = {}
    for strength in (0.0, 0.5, 1.0):
        for who in (1, 2):
            outputs[strength, who] = through(Stream(16000, task="convert", voice=somebody(converter, who), voice_strength=strength, engine=converter), x)
    assert np.array_equal(outputs[0.0, 1], outputs[0.0, 2]), "at strength 0 it does not matter whose voiceprint it is"
    for who in (1, 2):
        own, half, other = (outputs[s, who] for s in (0.0, 0.5, 1.0))
        assert 0 < np.square(half - other).mean() < np.square(own - other).mean()
    stream = Stream(16000, task="convert", voice=somebody(converter, 1), engine=converter)
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="voice_strength must be from 0"):
            stream.voice_strength = bad
    stream.process(x)
    stream.voice_strength = 0.0
    assert not stream._state["target.amount"].any()
    stream.reset()
    assert stream.voice_strength == 0.0 and not stream._state["target.amount"].any()


def test_another_voice_between_two_frames(converter: ConvertEngine) -> None:
    """What was heard is not forgotten: from there on it is the stream that had heard the same, turned otherwise. Nothing before changes."""
    x, n = noise(16000), 8000
    kept, swapped = (Stream(16000, task="convert", voice=somebody(converter, 1), engine=converter) for _ in range(2))
    first = [s.process(x[:n]) for s in (kept, swapped)]
    swapped.ask("convert", somebody(converter, 2))
    second = [s.process(x[n:]) for s in (kept, swapped)]
    assert np.array_equal(*first) and not np.allclose(*second, atol=1e-4)
    assert np.array_equal(kept._state["hear.past"], swapped._state["hear.past"]), "the same was heard"
    step = np.abs(np.diff(np.concatenate([first[1], second[1]])))
    assert step[n - 200 : n + 200].max() < 2 * step.max(initial=0, where=np.abs(np.arange(len(step)) - n) > 200), "no click"
    data, other = swapped.snapshot(), Stream(16000, task="convert", voice=somebody(converter, 2), engine=converter)
    other.restore(data)
    assert np.array_equal(other.process(x), swapped.process(x))
    swapped.bypass = True
    through_it = through(swapped, x)
    np.testing.assert_allclose(through_it[-len(x) :], x, atol=1e-5)


def test_what_a_conversion_needs_is_said(engine: Engine, converter: ConvertEngine) -> None:
    with pytest.raises(ValueError, match="needs to know whose voice"):
        Stream(16000, task="convert", engine=converter)
    with pytest.raises(ValueError, match="weights of its own"):
        Stream(16000, task="convert", voice=somebody(converter, 1), engine=engine)
    with pytest.raises(ValueError, match="only convert voices"):
        Stream(16000, engine=converter)
    with pytest.raises(ValueError, match="another model"):
        Stream(16000, task="convert", voice=Voiceprint("other", {}, np.ones(8, np.float32), octave=7.0), engine=converter)
    with pytest.raises(ValueError, match="does not know how high"):
        Stream(16000, task="convert", voice=somebody(converter, 1, None), engine=converter)


def test_files_are_converted(
    weights: Path, converter: ConvertEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("voicewire.engines.engine.weights_for", lambda task: weights)
    monkeypatch.setattr("voicewire.rt.enroll.load", lambda path, fingerprint: somebody(converter, 1))
    sf.write(tmp_path / "in.wav", noise(8000, 2), 8000)
    args = ["file", str(tmp_path / "in.wav"), str(tmp_path / "out.wav"), "--task", "convert", "--enroll", "their.voice"]
    assert cli.main([*args, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["task"] == "convert" and report["latency_ms"] == 30
    assert sf.read(tmp_path / "out.wav")[0].shape == (8000, 2)
    assert cli.main([*args, "--voice-strength", "2"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert cli.main(args[:-2]) == 2 and "needs to know whose voice" in capsys.readouterr().err


def test_live_converts(weights: Path, converter: ConvertEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The audio process opens the converter's weights, and its stream begins with the voice; how far to go can be changed, the task cannot."""
    monkeypatch.setattr(process, "weights_for", lambda task: weights)
    monkeypatch.setattr("voicewire.rt.enroll.load", lambda path, fingerprint: somebody(converter, 1))
    audio = process.AudioProcess(asdict(LiveSettings(task="convert", enroll="their.voice", voice_strength=0.25)))
    calls = audio._ready(16000, 1, 16000, 1)
    try:
        assert audio.stream is not None and audio.stream.task == "convert" and audio._pipeline is not None
        audio._pipeline._model(noise(320))
        assert audio.stream._state["target.amount"] == np.float32(0.25) and audio.stream.frames == 1
        monkeypatch.setattr("sys.stdin", io.StringIO('{"set": {"voice_strength": 0.75, "task": "restore"}}\n'))
        audio._commands()
        audio._pipeline._model(noise(320))
        assert audio.stream._state["target.amount"] == np.float32(0.75) and audio.stream.task == "convert"
    finally:
        assert calls is audio._pipeline
        audio._close()
    with pytest.raises(ValueError, match="voice_strength must be from 0"):
        LiveSettings(voice_strength=2.0)


def test_bench_has_a_row(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "weights_for", lambda task: weights)
    assert bench.tasks() == ("restore", "convert")
    assert bench.measure("onnx", 16000, 1, 5, False, task="convert")["p50_ms"] > 0
