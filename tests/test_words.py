"""What a recogniser hears as a loss, with weights made here (the real ones are 145 MB)."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from whisper_file import write_model

from tools.losses import EnhanceLoss
from tools.recipe import load
from tools.words import FFT, HEADS, MELS, RATE, Hearing, mel_bank, misheard, read_part

DIM, LAYERS = 16, 2


class Peer(nn.Module):
    """The same network in PyTorch's own parts (Radford et al. 2022, §2.2)."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv1d(MELS, DIM, 3, padding=1), nn.Conv1d(DIM, DIM, 3, stride=2, padding=1)
        self.place = nn.Parameter(torch.randn(1500, DIM))
        layer = nn.TransformerEncoderLayer(DIM, HEADS, 4 * DIM, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(DIM), enable_nested_tensor=False)
        for p in self.parameters():
            p.data = (p + 0.1 * torch.randn_like(p)).half().float()

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        gelu = nn.functional.gelu
        y = gelu(self.two(gelu(self.one(mel)))).transpose(1, 2)
        return self.layers(y + self.place[: y.shape[1]])

    def variables(self) -> dict[str, torch.Tensor]:
        """By the names that CTranslate2 gives them."""
        found = {"conv1/weight": self.one.weight, "conv1/bias": self.one.bias, "conv2/weight": self.two.weight, "conv2/bias": self.two.bias}
        found |= {"position_encodings/encodings": self.place, "layer_norm/gamma": self.layers.norm.weight, "layer_norm/beta": self.layers.norm.bias}
        for i, layer in enumerate(self.layers.layers):
            attention = layer.self_attn
            for name, (weight, bias) in {
                "self_attention/layer_norm": (layer.norm1.weight, layer.norm1.bias), "ffn/layer_norm": (layer.norm2.weight, layer.norm2.bias),
                "self_attention/linear_0": (attention.in_proj_weight, attention.in_proj_bias),
                "self_attention/linear_1": (attention.out_proj.weight, attention.out_proj.bias),
                "ffn/linear_0": (layer.linear1.weight, layer.linear1.bias), "ffn/linear_1": (layer.linear2.weight, layer.linear2.bias),
            }.items():  # fmt: skip
                kinds = ("gamma", "beta") if name.endswith("norm") else ("weight", "bias")
                found |= {f"layer_{i}/{name}/{kinds[0]}": weight, f"layer_{i}/{name}/{kinds[1]}": bias}
        return found


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Peer, Path]:
    """→ the network and the folder of its file, in CTranslate2's binary layout, with a variable that is not the encoder's."""
    torch.manual_seed(0)
    peer, folder = Peer().eval(), tmp_path_factory.mktemp("whisper")
    write_model(folder, {"decoder/start_from_zero_embedding": torch.zeros(2), **{f"encoder/{k}": v for k, v in peer.variables().items()}})
    return peer, folder


def test_the_encoder_is_read_and_hears_as_pytorchs_parts_do(peer: tuple[Peer, Path]) -> None:
    net, folder = peer
    hearing = Hearing(folder)
    assert hearing.layers == LAYERS and not list(hearing.parameters())
    x = 0.1 * torch.randn(2, RATE)
    with torch.no_grad():
        heard = hearing(x)
        assert heard.shape == (2, 50, DIM)
        torch.testing.assert_close(heard, net(hearing.mel(x)), atol=1e-4, rtol=1e-4)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(struct.pack("<IH", 5, 4) + b"Abc\0")
    with pytest.raises(ValueError, match="no Whisper model"):
        read_part(tmp_path / "model.bin", "encoder")


def test_the_mel_scale_is_slaneys() -> None:
    bank, bins = mel_bank().numpy(), np.linspace(0, RATE / 2, FFT // 2 + 1)
    assert bank.shape == (MELS, len(bins)) and (bank >= 0).all()
    loudest = bins[bank.argmax(1)]
    assert (np.diff(loudest) >= 0).all() and loudest[-1] < RATE / 2
    assert bank[0, 1] == pytest.approx(0.0248626, rel=1e-4)  # as in Whisper's own mel_filters.npz


def test_noise_is_misheard_and_the_gradient_says_so(peer: tuple[Peer, Path], noisy: np.ndarray, clean: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    hearing = Hearing(peer[1])
    n, c = (torch.from_numpy(z[16000:48000])[None] for z in (noisy, clean))
    values = [misheard(hearing(y), hearing(c)).item() for y in (c, c + 0.1 * (n - c), n)]
    assert values[0] == 0 and values == sorted(values) and values[1] < values[2]
    monkeypatch.setattr("tools.losses.Hearing", lambda: hearing)
    y = n.clone().requires_grad_()
    without, with_words = EnhanceLoss(0.5, 0.0)(y, c, n)[0], EnhanceLoss(0.5, 0.0, words=0.4)(y, c, n)
    assert (with_words[0] - without).item() == pytest.approx(0.4 * with_words[1]["misheard"], rel=0.02)
    (with_words[0] - without).backward()
    assert y.grad is not None and torch.isfinite(y.grad).all() and y.grad.abs().max() > 0
    silent = EnhanceLoss(0.5, 0.0, words=0.4)(n, torch.zeros_like(n), n)
    assert torch.isfinite(silent[0]) and silent[1]["misheard"] == 0  # nothing was said


def test_recipe_takes_it(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("[train]\nwords = 0.4\n")
    assert load(tmp_path / "r.toml").train.words == 0.4
