"""A voice: trained, exported, enrolled, saved, asked for. On a small model made here; what it has learnt does not matter, what it is bound to does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from voice_weights import talker

from tools.talkers import Talkers
from voicewire.engines import Engine, open_engine
from voicewire.engines.contract import EngineSteps, verify_contract
from voicewire.engines.engine import TASK_WEIGHTS, WEIGHTS, weights_for
from voicewire.engines.gpu.ends import Ends
from voicewire.engines.gpu.engine import GpuEngine
from voicewire.engines.gpu.fake import FakeDevice
from voicewire.engines.gpu.layout import Layout
from voicewire.engines.gpu.lower import lower
from voicewire.engines.gpu.pcm_slots import DevicePcmSlots
from voicewire.engines.gpu.stepper import CapturedStepper, Stepper
from voicewire.engines.gpu.torch_stepper import TorchStepper
from voicewire.engines.pcm_slots import HostPcmSlots, Luggage
from voicewire.engines.slots import HostSlots
from voicewire.engines.voiceprint import Voiceprint, enrol, spoken
from voicewire.rt import enroll
from voicewire.rt.cli import main
from voicewire.rt.stream import Stream


def test_mixtures_with_an_enrolment(talkers_cache: Path) -> None:
    """The same batch for the same number, of the right shapes and levels; sometimes the talker says nothing."""
    a, b = Talkers(talkers_cache, 1, 2, 1.0), Talkers(talkers_cache, 1, 2, 1.0)
    silent = 0
    for i in range(30):
        mix, target, heard = a.extraction_batch(i)
        assert mix.shape == target.shape == (2, 16000) and heard.shape == (2, 48000)
        assert all(z.dtype == np.float32 and np.isfinite(z).all() and np.abs(z).max() <= 1 for z in (mix, target, heard))
        silent += int((np.abs(target).max(1) == 0).sum())
        for again, first in zip(b.extraction_batch(i), (mix, target, heard), strict=True):
            assert np.array_equal(again, first)
    assert 2 <= silent <= 20, "sometimes the talker says nothing"
    pairs, clean = a.likeness_batch(0, 3)
    assert pairs.shape == clean.shape == (2, 3, 48000) and not np.array_equal(pairs, clean)


def test_two_parts_of_a_person_share_nothing(talkers_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talkers, rng, plain = Talkers(talkers_cache, 1, 1, 1.0), np.random.default_rng(0), 0
    monkeypatch.setattr(talkers, "_clip", lambda start, n: np.arange(start, start + n, dtype=np.float64))  # every sample tells where it is from
    for _ in range(80):
        a, b = talkers.two_parts(rng, talkers.person(rng), 16000, 8000, talkers.change(rng))
        assert (len(a), len(b)) == (16000, 8000)
        if np.array_equal(a, np.rint(a)):  # (the others were changed in speed or formants)
            plain += 1
            assert not set(a[a > 0]) & set(b[b > 0])
    assert plain > 10


def test_engines_agree_on_a_voice(voice_weights: Path, voice_engine: Engine, voices: tuple[Voiceprint, Voiceprint]) -> None:
    """ONNX, enrolled by ONNX, against PyTorch; and the contract with a voice in the state."""
    x = (0.02 * np.random.default_rng(0).standard_normal((3, 40, 480, 2))).astype(np.float32)
    reference = open_engine("torch", voice_weights)
    states = [e.init_state(3, "extract") for e in (voice_engine, reference)]
    for s in states:
        voices[0].turn(s)
    for t in range(0, 40, 2):
        outputs = []
        for i, e in enumerate((voice_engine, reference)):
            y, states[i] = e.step(x[:, t : t + 2], states[i])
            outputs.append(y)
        np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-5)

    class Turned:
        name, weights = "turned", voice_engine.weights

        def init_state(self, batch: int) -> dict[str, np.ndarray]:
            state = voice_engine.init_state(batch, "extract")
            voices[0].turn(state)
            return state

        step = staticmethod(voice_engine.step)

    verify_contract(EngineSteps(Turned()), x)


@pytest.mark.parametrize("kind", ["graph", "torch"])
def test_a_voice_on_a_device(voice_weights: Path, voice_engine: Engine, voices: tuple[Voiceprint, Voiceprint], kind: str) -> None:
    """What a voice pins stays with the slot: through `Stream`, which asks for something else in mid-stream, and as the luggage of a slot of samples."""
    layout, plans = Layout(voice_engine.init_state(1)), {b: lower(voice_weights / "model.onnx", Layout(voice_engine.init_state(1)), b, "fp32") for b in (1, 2)}

    def make(capacity: int, mirror: bool, ends: Ends) -> Stepper:
        if kind == "torch":
            return TorchStepper(voice_weights, layout, capacity, mirror=mirror, ends=ends, device="cpu")
        return CapturedStepper(FakeDevice(), plans.__getitem__, layout, capacity, mirror=mirror, ends=ends)

    gpu, x = GpuEngine("tensorrt", voice_engine, make), talker(210, 2.0) + talker(110, 2.0)
    streams = [Stream(16000, task="extract", voice=voices[0], engine=e) for e in (gpu, voice_engine)]
    for i, block in enumerate(x.reshape(-1, 320)):
        if i in (30, 60):
            for s in streams:
                s.ask(*(("extract", voices[1]) if i == 30 else ("restore",)))
        np.testing.assert_allclose(streams[0].process(block), streams[1].process(block), atol=1e-4)
    slots, host, silence = gpu.pcm_slots(2), HostPcmSlots(HostSlots(voice_engine, 2), 2), np.zeros((1, 160), np.float32)
    for each in (slots, host):
        state = voice_engine.init_state(1, "extract")
        voices[0].turn(state)
        each.attach(0, 160, "extract", Luggage(state, silence, silence))
        each.attach(1, 160)
    for t, block in enumerate(x.reshape(-1, 320)):
        if t == 50:  # and nothing of it is left for whoever comes next
            for each in (slots, host):
                each.attach(0, 160)
        given = np.arange(2), [block, block], np.full(2, 0.01, np.float32)
        np.testing.assert_allclose(slots.step(*given), host.step(*given), atol=1e-4)
    assert isinstance(slots, DevicePcmSlots) and not gpu.lost


def test_enrolment_is_the_models_own(voice_weights: Path, voices: tuple[Voiceprint, Voiceprint]) -> None:
    """voice.onnx against PyTorch's encoder and trunk, on other lengths than it was traced with; level and rate do not matter much."""
    import torch

    from voicewire.engines.export import load_weights
    from voicewire.engines.net.spectrum import stft

    model = load_weights(voice_weights).core
    assert model.voice is not None
    x = talker(210, 5.0)
    x = x[: len(x) // 320 * 320]
    made = enrol(x, 16000, voice_weights)
    from voicewire.engines.voiceprint import spoken

    said = torch.from_numpy(spoken(x, 16000).reshape(1, -1))
    with torch.no_grad():
        spec = stft(said, 160)[:, : said.shape[1] // 160, :160]
        voice = model.voice(spec)
        state = model.init_state(1, "extract", voice)
    np.testing.assert_allclose(made.voice, voice[0], atol=1e-4)
    np.testing.assert_allclose(made.parts["gain"], state["gain"], atol=1e-5)
    np.testing.assert_allclose(made.parts["k"], state["trunk.prefix_k"][:, :, 1], atol=1e-5)
    quiet = enrol(0.01 * x, 16000, voice_weights)
    np.testing.assert_allclose(quiet.voice, made.voice, atol=0.02)
    assert np.abs(voices[0].voice - voices[1].voice).max() > 0.04  # more than the level may do


def test_swapping_the_voice_midstream(voice_engine: Engine, voices: tuple[Voiceprint, Voiceprint]) -> None:
    """The other talker from the next frame on, nothing before it; back to restore; a snapshot carries the voice."""
    x = talker(210, 2.0) + talker(110, 2.0)
    one, two = (Stream(16000, task="extract", voice=v, engine=voice_engine).process(x) for v in voices)
    stream = Stream(16000, task="extract", voice=voices[0], engine=voice_engine)
    head = stream.process(x[:16000])
    assert np.array_equal(head, one[:16000]) and not np.array_equal(one, two)
    moved = Stream(16000, task="extract", voice=voices[1], engine=voice_engine)
    moved.restore(stream.snapshot())
    stream.ask("extract", voices[1])
    tail = stream.process(x[16000:])
    np.testing.assert_array_equal(tail[:320], one[16000:16320])  # what was done already
    assert not np.array_equal(tail[320:], one[16320:])
    np.testing.assert_array_equal(moved.process(x[16000:]), one[16000:])  # the snapshot's talker, not the new stream's
    assert np.abs(np.diff(tail)).max() <= 2 * np.abs(np.diff(x)).max(), "a click"
    stream.ask("restore")
    assert stream.task == "restore" and stream.voice is None
    stream.reset()
    np.testing.assert_array_equal(stream.process(x), Stream(16000, engine=voice_engine).process(x))


def test_a_voiceprint_file(tmp_path: Path, voice_engine: Engine, voices: tuple[Voiceprint, Voiceprint]) -> None:
    path = tmp_path / "me.voice"
    path.write_bytes(voices[0].to_bytes())
    again = enroll.load(path, voice_engine.weights)
    assert all(np.array_equal(again.parts[k], voices[0].parts[k]) for k in again.parts)
    data = path.read_bytes()
    for bad in (b"", b"RIFF", data[:-30], data[:100], b"\0" * len(data)):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="voiceprint") as e:
            enroll.load(path, voice_engine.weights)
        assert "\n" not in str(e.value)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="another model"):
        enroll.load(path, "0123456789abcdef")
    with pytest.raises(ValueError, match="no file"):
        enroll.load(tmp_path / "nobody.voice", voice_engine.weights)


def test_what_cannot_be_enrolled(voice_weights: Path) -> None:
    for x in (np.zeros(0, np.float32), np.zeros(160000, np.float32), talker(200, 1.0)):
        with pytest.raises(ValueError, match="of speech to enroll"):
            enrol(x, 16000, voice_weights)


def test_tasks_and_voices_that_do_not_fit(voice_engine: Engine, engine: Engine, voices: tuple[Voiceprint, Voiceprint]) -> None:
    with pytest.raises(ValueError, match="needs to know the talker"):
        Stream(16000, task="extract", engine=voice_engine)
    with pytest.raises(ValueError, match="takes no voiceprint"):
        Stream(16000, voice=voices[0], engine=voice_engine)
    with pytest.raises(ValueError, match="another model"):
        Stream(16000, task="extract", voice=voices[0], engine=engine)


def test_the_command_line_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sf.write(tmp_path / "in.wav", talker(200, 0.5), 16000)
    (tmp_path / "text.wav").write_text("no audio")
    (tmp_path / "foreign.voice").write_text("no voice")
    one, out = str(tmp_path / "in.wav"), str(tmp_path / "out.wav")
    for args in (
        ["enroll", str(tmp_path / "nobody.wav"), "-o", str(tmp_path / "me.voice")],
        ["enroll", str(tmp_path / "text.wav"), "-o", str(tmp_path / "me.voice")],
        ["enroll", one, "-o", str(tmp_path / "nowhere" / "me.voice")],
        ["enroll", one, "-o", str(tmp_path / "me.voice")],
        ["file", one, out, "--task", "extract"],
        ["file", one, out, "--task", "extract", "--enroll", str(tmp_path / "foreign.voice")],
        ["file", one, out, "--task", "extract", "--enroll", str(tmp_path / "nobody.voice")],
        ["file", one, out, "--task", "dance"],
    ):
        assert main(args) == 2, args
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.startswith("voicewire: "), error
    assert not (tmp_path / "out.wav").exists() and not (tmp_path / "me.voice").exists()


def test_released_weights(tmp_path: Path, noisy: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    """What the commands take when nobody names weights: restoration has its own; a voice or a query brings those that know all tasks."""
    pytest.importorskip("wordllama")
    assert weights_for("restore") == WEIGHTS and all(weights_for(task) == TASK_WEIGHTS for task in ("extract", "separate", "query"))
    voice = enrol(noisy, 16000)
    sf.write(tmp_path / "in.wav", noisy[:32000], 16000)
    (tmp_path / "me.voice").write_bytes(voice.to_bytes())
    made = []
    for options in ([], ["--enroll", str(tmp_path / "me.voice")], ["--query", "a printer"]):
        assert main(["file", str(tmp_path / "in.wav"), str(tmp_path / "out.wav"), *options]) == 0, capsys.readouterr().err
        made.append(sf.read(tmp_path / "out.wav")[0])
        assert len(made[-1]) == 32000 and np.isfinite(made[-1]).all()
    assert np.abs(made[0] - made[1]).max() > 1e-3 and np.abs(made[1] - made[2]).max() > 1e-3
    stream = Stream(16000)
    with pytest.raises(ValueError, match="begin it with one"):
        stream.ask("extract", voice)
    started = Stream(16000, task="extract", voice=voice)
    started.process(noisy[:16000])
    started.ask("restore")
    assert np.abs(started.process(noisy[16000:32000])).max() > 1e-3


def test_pauses_are_left_out_of_what_is_enrolled() -> None:
    rng = np.random.default_rng(0)
    speech = (0.1 * rng.standard_normal(2 * 16000)).astype(np.float32)
    pause, breath = np.zeros(31 * 16000, np.float32), np.zeros(int(0.3 * 16000), np.float32)
    click = np.full(800, 0.5, np.float32)
    kept = spoken(np.concatenate([speech, pause, speech]), 16000)
    assert 4.0 <= len(kept) / 50 <= 4.5  # whole, though 31 s lie between
    assert len(spoken(np.concatenate([speech, breath, speech]), 16000)) == 215  # a short pause belongs to what is said
    assert len(spoken(np.concatenate([click, pause, speech]), 16000)) / 50 >= 2
    with pytest.raises(ValueError, match="of speech"):
        spoken(np.full(5 * 16000, 0.01, np.float32), 16000)  # direct current


def test_samples_that_are_none_do_not_reach_a_voiceprint(voice_weights: Path) -> None:
    rng = np.random.default_rng(1)
    x = (0.1 * rng.standard_normal(3 * 16000)).astype(np.float32)
    whole = enrol(x, 16000, voice_weights).voice
    for wrong in (np.nan, np.inf, -np.inf):
        x[20000] = wrong
        voice = enrol(x, 16000, voice_weights)
        np.testing.assert_allclose(voice.voice, whole, atol=0.05 * np.abs(whole).max())


def test_a_strangers_voiceprint_is_bounded(voice_weights: Path) -> None:
    x = (0.1 * np.random.default_rng(1).standard_normal(3 * 16000)).astype(np.float32)
    voice = enrol(x, 16000, voice_weights)
    Voiceprint.from_bytes(voice.to_bytes(), voice.weights)
    voice.parts["gain"][...] = 1e3
    with pytest.raises(ValueError, match="damaged"):
        Voiceprint.from_bytes(voice.to_bytes(), voice.weights)
