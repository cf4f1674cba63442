"""Two talkers whom nobody enrolled: how the training shares them out, and every way to use it. On small weights made here, and on the released ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from voice_weights import talker

from tools.evaluate_separate import steady
from tools.talkers import Talkers
from tools.train import in_order
from voicewire.engines import Engine
from voicewire.engines.config import ModelConfig
from voicewire.engines.contract import EngineSteps, verify_contract
from voicewire.engines.engine import TASK_WEIGHTS, WEIGHTS, State
from voicewire.engines.export import load_weights
from voicewire.engines.net.model import Model
from voicewire.engines.places import place, places, separates, share_out
from voicewire.engines.voiceprint import Voiceprint
from voicewire.rt.cli import main
from voicewire.rt.stream import Stream, first_state


def test_mixtures_of_two(talkers_cache: Path) -> None:
    """The same batch for the same number; what is in the mixture is what is wanted of it, but for noise."""
    a, b = Talkers(talkers_cache, 1, 2, 1.0), Talkers(talkers_cache, 1, 2, 1.0)
    fitting = 0
    for i in range(20):
        mix, targets = a.separation_batch(i)
        assert mix.shape == (2, 16000) and targets.shape == (2, 2, 16000) and mix.dtype == targets.dtype == np.float32
        assert np.isfinite(mix).all() and np.abs(mix).max() <= 1
        fitting += int((((mix - targets.sum(1)) ** 2).mean(1) < 0.3 * (mix**2).mean(1)).sum())
        for again, first in zip(b.separation_batch(i), (mix, targets), strict=True):
            assert np.array_equal(again, first)
    assert fitting >= 25


def test_targets_come_in_the_order_that_fits() -> None:
    torch.manual_seed(0)
    targets = torch.randn(3, 2, 100)
    made = torch.stack([targets[0, 0], targets[1, 1], targets[2, 0], targets[0, 1], targets[1, 0], targets[2, 1]]) + 0.1 * torch.randn(6, 100)
    ordered = in_order(made, targets)
    assert ((ordered - made) ** 2).mean() < 0.02
    silent = torch.stack([torch.randn(100), torch.zeros(100)])[None]
    assert torch.equal(in_order(torch.stack([torch.full((100,), 0.01), silent[0, 0]]), silent)[0], torch.zeros(100))


def test_every_place_at_once_is_each_by_itself() -> None:
    """What is shared between the places of one mixture (training) is what a stream of one place computes."""
    torch.manual_seed(0)
    model = Model(
        ModelConfig(channels=8, width=8, bands=8, blocks=2, trunk_dim=16, trunk_layers=1, trunk_heads=2, voice_dim=6, voice_channels=8, separate=2)
    ).eval()
    assert model.places is not None and model.turn is not None
    x = 0.05 * torch.randn(3, 20, 160, 2)
    with torch.no_grad():
        model.turn.channel.weight.normal_()  # a fresh model is a wire that no voice turns
        model.tail.weight.normal_()
        both = model(x, "separate", model.places(torch.tensor([0, 0, 0, 1, 1, 1])))
        for i in (0, 1):
            voice = model.places(torch.full((3,), i))
            torch.testing.assert_close(both[3 * i : 3 * i + 3], model(x, "separate", voice), atol=1e-5, rtol=1e-4)
        assert (both[:3] - both[3:]).abs().max() > 1e-4
    with pytest.raises(ValueError, match="voice_dim"):
        ModelConfig(separate=2).validate()


def test_contract_of_a_place(voice_weights: Path, voice_engine: Engine) -> None:
    model = load_weights(voice_weights)
    first, second = places(voice_weights)
    assert model.core.places is not None and separates(voice_weights) == 2
    with torch.no_grad():
        state = model.core.init_state(1, "separate", model.core.places(torch.tensor([1])))
    np.testing.assert_allclose(second.parts["gain"], state["gain"], atol=1e-5)
    np.testing.assert_allclose(second.parts["v"], state["trunk.prefix_v"][:, :, 1], atol=1e-5)
    assert not np.array_equal(first.voice, second.voice) and (first.number, second.number) == (1, 2)

    class Turned:
        @staticmethod
        def init_state(batch: int) -> State:
            return first_state(voice_engine, batch, "separate", first)

        step = staticmethod(voice_engine.step)

    x = np.random.default_rng(0).standard_normal((3, 12, 480, 2)).astype(np.float32) * 0.1
    verify_contract(EngineSteps(Turned()), x)


def test_a_channel_for_every_talker(voice_weights: Path, voice_engine: Engine, voices: tuple[Voiceprint, Voiceprint]) -> None:
    x = talker(210) + talker(110)
    both = places(voice_weights)
    stream = Stream(16000, 2, task="separate", voice=both, engine=voice_engine)
    block = np.stack([x, x], 1)
    y = np.concatenate([stream.process(block[:1000]), stream.process(block[1000:])])
    assert stream.outputs == 2 and y.shape == (len(x), 2) and stream.flush().shape == (480, 2)
    alone = np.stack([Stream(16000, task="separate", voice=p, engine=voice_engine).process(x) for p in both], 1)
    late = np.concatenate([np.zeros(480, np.float32), x[:-480]])
    assert np.abs(late - y.sum(1)).mean() < np.abs(late - alone.sum(1)).mean(), "what neither place claims is shared out"
    assert np.corrcoef(y[:, 0] - y[:, 1], alone[:, 0] - alone[:, 1])[0, 1] > 0.9999  # to both alike
    whole = Stream(16000, task="separate", voice=both, engine=voice_engine).process((x * 32767).astype(np.int16))
    assert whole.dtype == np.int16 and whole.shape == (len(x), 2)
    moved, here = (Stream(16000, task="separate", voice=both, engine=voice_engine) for _ in range(2))
    here.process(x[:5000])
    moved.restore(here.snapshot())
    np.testing.assert_array_equal(moved.process(x[5000:]), here.process(x[5000:]))
    with pytest.raises(ValueError, match="begin another stream"):
        here.ask("restore")
    one = Stream(16000, task="separate", voice=both[0], engine=voice_engine)
    one.process(x[:5000])
    one.ask("separate", both[1])
    one.ask("extract", voices[0])
    for task, voice, said in (("separate", voices[0], "no voiceprint"), ("extract", both[0], "separate"), ("restore", both[0], "separate")):
        with pytest.raises(ValueError, match=said):
            Stream(16000, task=task, voice=voice, engine=voice_engine)
    with pytest.raises(ValueError, match="--channels mix"):
        Stream(16000, 2, task="separate", voice=both, mode="each", engine=voice_engine)


def test_what_is_shared_out() -> None:
    rng = np.random.default_rng(0)
    spec = np.repeat(rng.standard_normal((1, 2, 481, 2)).astype(np.float32), 2, 0)
    speech = np.stack([0.7 * spec[0, :, :480], 0.1 * spec[0, :, :480]])
    speech[:, 1] = 0  # noise alone
    y = share_out(spec, speech)
    np.testing.assert_allclose(y[:, 0], np.stack([0.78 * spec[0, 0, :480], 0.18 * spec[0, 0, :480]]), atol=1e-5)
    assert not y[:, 1].any()
    whole = np.stack([0.7 * spec[0, :, :480], 0.3 * spec[0, :, :480]])
    np.testing.assert_allclose(share_out(spec, whole), whole, atol=1e-6)


def test_how_steady_the_order_is() -> None:
    """The measure itself: outputs that keep the order, that change it half way, and what is silent counts for nothing."""
    rng = np.random.default_rng(0)
    talkers = rng.standard_normal((2, 30 * 16000)).astype(np.float32)
    noise = 0.3 * rng.standard_normal(talkers.shape).astype(np.float32)
    assert steady(talkers + noise, talkers) == steady(talkers[::-1] + noise, talkers) == 1
    changing = talkers.copy()
    changing[:, 20 * 16000 :] = changing[::-1, 20 * 16000 :]
    assert 0.5 < steady(changing + noise, talkers) < 0.8
    talkers[1, 20 * 16000 :] = 0
    assert steady(talkers + noise, talkers) == 1


def test_released_weights_separate() -> None:
    """The file command: two channels, or one talker; what does not fit is one line. And the bundled talkers come apart."""
    assert separates(TASK_WEIGHTS) == 2 and not separates(WEIGHTS)
    with pytest.raises(ValueError, match="1 to 2"):
        place(3)


def test_the_file_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = talker(210) + talker(110)
    sf.write(tmp_path / "two.wav", np.stack([x, x], 1), 16000)
    assert main(["file", str(tmp_path / "two.wav"), str(tmp_path / "apart.wav"), "--task", "separate", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    y, _ = sf.read(tmp_path / "apart.wav")
    assert report["task"] == "separate" and report["latency_ms"] == 30 and y.shape == (len(x), 2) and not np.array_equal(y[:, 0], y[:, 1])
    assert main(["file", str(tmp_path / "two.wav"), str(tmp_path / "one.wav"), "--talker", "2", "--channels", "mix"]) == 0
    one, _ = sf.read(tmp_path / "one.wav")
    assert one.shape == y.shape and np.corrcoef(one[:, 0], y[:, 1])[0, 1] > np.corrcoef(one[:, 0], y[:, 0])[0, 1]
    capsys.readouterr()
    for args, said in (
        (["--talker", "3"], "1 to 2"),
        (["--talker", "1", "--query", "rain"], "several tasks"),
        (["--task", "separate", "--channels", "each"], "mix"),
    ):
        assert main(["file", str(tmp_path / "two.wav"), str(tmp_path / "no.wav"), *args]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
