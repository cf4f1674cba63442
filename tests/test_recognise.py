"""Whom the model lets through, compared with whom it was asked for: the encoder run along is the encoder; the gate counts where somebody is asked for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from test_contract import SMALL, random_input, shaken

from tools import train_gate
from tools.recipe import Recipe
from tools.talkers import Talkers
from tools.train import Run
from voicewire import rt
from voicewire.engines import open_engine
from voicewire.engines.config import ModelConfig
from voicewire.engines.engine import TASK_WEIGHTS
from voicewire.engines.export import load_weights
from voicewire.engines.net.model import Model
from voicewire.engines.net.recognise import LOUD, MEMORIES_FRAMES, Recogniser
from voicewire.engines.net.voice import VoiceEncoder
from voicewire.engines.voiceprint import enrol
from voicewire.rt.stream import Stream

DELAY = 14  # frames that the encoder looks ahead


def made() -> tuple[Model, Recogniser, VoiceEncoder]:
    model = shaken(Model(replace(SMALL, voice_dim=6, voice_channels=8, recognise=1))).eval()
    assert isinstance(model, Model) and model.who is not None and model.voice is not None
    return model, model.who, model.voice


def voices(n: int) -> torch.Tensor:
    """[n, 6] as the encoder makes them"""
    return torch.nn.functional.normalize(torch.randn(n, 6, generator=torch.Generator().manual_seed(3)), dim=-1) * 6**0.5


def test_run_along_is_at_once_but_late() -> None:
    """Frame by frame the encoder says of a frame what it says of it in the whole clip, 0.28 s later, from the very first frame on."""
    _, who, encoder = made()
    x = torch.from_numpy(random_input(2, 120, 160, 2))
    level = x.square().sum(-1).mean((1, 2), keepdim=True)[..., 0].div(LOUD).sqrt().expand(-1, 120)
    with torch.no_grad():
        along, late = who.along(who._power(x, level, level)[0], encoder)
        power = x.square().sum(-1)
        power = power / power.mean((1, 2), keepdim=True)
        at_once = encoder.body(encoder.inp(0.2 * (power + 1e-5).log().view(2, 60, -1).transpose(1, 2)))
    assert late == DELAY
    torch.testing.assert_close(along[..., late : 60 - late], at_once[..., : 60 - 2 * late], atol=1e-5, rtol=1e-4)


def test_nobody_asked_for_nothing_closed() -> None:
    """Without a voice the gate is open, and with one until something was heard; then it depends on the voice."""
    _, who, encoder = made()
    y, level, h = torch.from_numpy(random_input(1, 80, 160, 2)).expand(3, -1, -1, -1), torch.full((3, 80), 0.02), torch.zeros(3, 40, 16)
    with torch.no_grad():
        who.open.bias.fill_(-1.0)
        gate = who(y, level, torch.cat([torch.zeros(1, 6), voices(2)]), h, encoder)
    assert torch.equal(gate[0], torch.ones(40, 1)) and torch.equal(gate[:, :DELAY], torch.ones(3, DELAY, 1))
    assert (gate[1, DELAY:] != gate[2, DELAY:]).any() and ((gate[1:, DELAY:] > 0) & (gate[1:, DELAY:] <= 1)).all()


def test_a_closed_gate_is_silence() -> None:
    model, who, _ = made()
    with torch.no_grad():
        who.open.weight.zero_()
        who.open.bias.fill_(-200.0)
        x = torch.from_numpy(random_input(1, 80, 160, 2))
        y, open_ = model(x, "extract", voices(1)), model(x, "query", voices(1))
    assert y[:, : 2 * DELAY].abs().max() > 0 and not y[:, 2 * DELAY :].any()
    assert (open_[:, 2 * DELAY :].abs().amax((2, 3)) > 0).all(), "the gate is about talkers"


def test_another_voice_is_compared_anew() -> None:
    """Who was let through for the one says nothing about the other: with the voice changes what the gate knows, which is next to nothing at first."""
    model, who, _ = made()
    one, two = voices(2)
    with torch.no_grad():
        who.open.weight.zero_()
        who.open.bias.fill_(-200.0)
        state = model.init_state(1, "extract", one[None])
        loud = []
        for t in range(60):
            if t == 40:
                state["who.voice"] = two[None]
            y, state = model.step(torch.from_numpy(random_input(1, 2, 160, 2)), state)
            loud.append(bool(y.any()))
            if t in (39, 40):
                sure = 1 - torch.tensor([1 - 1 / n for n in MEMORIES_FRAMES]) ** (26 if t == 39 else 1)
                torch.testing.assert_close(state["who.sure"][0], sure)
    assert loud == [t < DELAY for t in range(60)]


@pytest.mark.parametrize("silent", [False, True])
def test_the_loss_of_a_gate_is_that_of_what_it_leaves(silent: bool) -> None:
    """From powers a frame, without the model: what the error and the rest would be, frame by frame gated."""
    model, who, _ = made()
    plain = Model(replace(SMALL, voice_dim=6, voice_channels=8)).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("who.")})
    generator = torch.Generator().manual_seed(0)
    mix, target, enrolment = (0.1 * torch.randn(1, 16000, generator=generator) for _ in range(3))
    target = target * (0 if silent else 1)
    heard = train_gate.hear(plain, who, mix, target, enrolment)
    with torch.no_grad():
        gate = train_gate.gates(who, heard)
        _, error_db, left_db = train_gate.loss(gate, heard)
        assert model.voice is not None
        x, wanted, known = (train_gate.stft(z, 160)[:, :, :160] for z in (mix, target, enrolment))
        y = gate.repeat_interleave(2, 1)[..., None, None] * plain(x, "extract", model.voice(known))
    if silent:
        assert abs(left_db - 10 * float((y.square().sum() / x.square().sum()).log10())) < 0.1
    else:
        assert abs(error_db - 10 * float(((y - wanted).square().sum() / wanted.square().sum()).log10())) < 0.1


def test_the_released_gate_closes_and_opens() -> None:
    """Somebody else alone is silenced as far as the strength allows, 40 dB; the talker alone is heard as loud as ever. The same by PyTorch."""
    samples = Path(rt.__file__).parent / "samples"
    (who, rate), (other, _), (own, _) = (sf.read(samples / name, dtype="float32") for name in ("other_enrol.flac", "clean.flac", "other.flac"))
    voice = enrol(who, rate)
    left_db = []
    for x in (other, own):
        whole = Stream(rate, task="extract", voice=voice).process(x)
        reference = Stream(rate, task="extract", voice=voice, engine=open_engine("torch", TASK_WEIGHTS)).process(x[: 3 * rate])
        np.testing.assert_allclose(whole[: 3 * rate], reference, atol=1e-4)
        y = whole[2 * rate :]
        left_db.append(10 * np.log10((y**2).mean() / (x[2 * rate :] ** 2).mean()))
    assert left_db[0] < -37 and abs(left_db[1]) < 1


def test_training_goes_on_without_the_gate(voice_weights: Path, tmp_path: Path) -> None:
    """From weights that have a gate, which is about the model as it was; the next one is trained afterwards."""
    cfg = ModelConfig.from_dict(json.loads((voice_weights / "model.json").read_text())["config"])
    assert cfg.recognise
    run = Run(tmp_path, Recipe(model=replace(cfg, recognise=0)), "cpu", voice_weights, None)
    old = load_weights(voice_weights).core.state_dict()
    assert all(torch.equal(v, old[k]) for k, v in run.model.state_dict().items()) and not any(k.startswith("who.") for k in run.model.state_dict())
    with pytest.raises(ValueError, match=r"tools\.train_gate"):
        Run(tmp_path, Recipe(model=cfg), "cpu", voice_weights, None)


def test_people_who_are_alike_are_put_together(talkers_cache: Path) -> None:
    talkers, rng = Talkers(talkers_cache, 1, 1, 1.0), np.random.default_rng(0)
    everybody = [(g, i) for g, people in enumerate(talkers.people) for i in range(len(people))]
    before = {talkers.another(rng, everybody[:1])[0] for _ in range(40)}
    assert before == set(everybody[1:]), "anybody else"
    angle = {who: a for who, a in zip(everybody, (0.0, 2.0, 0.3), strict=True)}
    talkers.meet(lambda x: np.ones((len(x), 2)) / 2**0.5, hard=1.0, of=30)
    talkers.voices = [np.array([[np.cos(angle[g, i]), np.sin(angle[g, i])] for i in range(len(people))]) for g, people in enumerate(talkers.people)]
    assert {talkers.another(rng, everybody[:1]) for _ in range(40)} == {(everybody[2], True)}
    with pytest.raises(ValueError, match="too few people"):
        talkers.another(rng, everybody)
