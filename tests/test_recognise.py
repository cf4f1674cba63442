"""Whom the model hears, compared with whom it was asked for: the encoder run along is the encoder, and what it says counts only where somebody is asked for."""

from __future__ import annotations

from dataclasses import replace

import torch
from test_contract import SMALL, random_input, shaken

from voicewire.engines.net.model import Model
from voicewire.engines.net.recognise import LOUD, Recogniser
from voicewire.engines.net.voice import VoiceEncoder


def made() -> tuple[Model, Recogniser, VoiceEncoder]:
    model = shaken(Model(replace(SMALL, voice_dim=6, voice_channels=8, recognise=1))).eval()
    assert isinstance(model, Model) and model.who is not None and model.voice is not None
    return model, model.who, model.voice


def test_run_along_is_at_once_but_late() -> None:
    """Frame by frame the encoder says of a frame what it says of it in the whole clip, 0.28 s later, from the very first frame on."""
    _, who, encoder = made()
    x = torch.from_numpy(random_input(2, 120, 160, 2))
    level = x.square().sum(-1).mean((1, 2), keepdim=True)[..., 0].div(LOUD).sqrt().expand(-1, 120)
    with torch.no_grad():
        along, late = who.along(x, level, encoder)
        power = x.square().sum(-1)
        power = power / power.mean((1, 2), keepdim=True)
        at_once = encoder.body(encoder.inp(0.2 * (power + 1e-5).log().view(2, 60, -1).transpose(1, 2)))
    assert late == 14
    torch.testing.assert_close(along[..., late : 60 - late], at_once[..., : 60 - 2 * late], atol=1e-5, rtol=1e-4)


def test_nobody_asked_for_nothing_told() -> None:
    """Without a voice nothing is told and nothing closed; nor before the encoder has heard anything. With one, another voice is told otherwise."""
    _, who, encoder = made()
    x, level, h = torch.from_numpy(random_input(1, 80, 160, 2)), torch.full((1, 80), 0.02), torch.zeros(3, 40, 16)
    voices = torch.cat([torch.zeros(1, 6), torch.nn.functional.normalize(torch.randn(2, 6), dim=-1) * 6**0.5])
    with torch.no_grad():
        compared = who(x, level, voices, encoder)
        told, gate = who.told(compared), who.gate(compared, h)
    assert not told[0].any() and torch.equal(gate[0], torch.ones(40, 1))
    assert not told[:, :14].any() and torch.equal(gate[:, :14], torch.ones(3, 14, 1))
    assert (told[1, 14:] != told[2, 14:]).any() and ((gate[1:, 14:] > 0) & (gate[1:, 14:] < 1)).all()


def test_a_closed_gate_is_silence() -> None:
    model, who, _ = made()
    with torch.no_grad():
        who.open.weight.zero_()
        who.open.bias.fill_(-200.0)
        y = model(torch.from_numpy(random_input(1, 80, 160, 2)), "extract", torch.ones(1, 6))
    assert y[:, :28].abs().max() > 0 and not y[:, 28:].any()
