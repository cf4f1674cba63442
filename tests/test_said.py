"""What a recogniser would write as a loss, with weights made here (the real ones are 145 MB)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from whisper_file import write_model

from tools import said
from tools.losses import EnhanceLoss
from tools.recipe import load
from tools.said import BEGIN, END, NO_TIMES, PROMPT, TRANSCRIBE, Saying, Transcripts, missaid
from tools.words import HEADS

DIM, LAYERS, PIECES, PLACES = 16, 2, 51865, 448


class Peer(nn.Module):
    """The same network in PyTorch's own parts (Radford et al. 2022, §2.2)."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces, self.place = nn.Embedding(PIECES, DIM), nn.Parameter(torch.randn(PLACES, DIM))
        layer = nn.TransformerDecoderLayer(DIM, HEADS, 4 * DIM, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerDecoder(layer, LAYERS, nn.LayerNorm(DIM))
        for p in self.parameters():
            p.data = (p + 0.1 * torch.randn_like(p)).half().float()

    def forward(self, pieces: torch.Tensor, heard: torch.Tensor) -> torch.Tensor:
        n = pieces.shape[1]
        y = self.layers(self.pieces(pieces) + self.place[:n], heard, nn.Transformer.generate_square_subsequent_mask(n))
        return y @ self.pieces.weight.T

    def variables(self) -> dict[str, torch.Tensor]:
        """By the names that CTranslate2 gives them."""
        found = {"embeddings/weight": self.pieces.weight, "position_encodings/encodings": self.place}
        found |= {"layer_norm/gamma": self.layers.norm.weight, "layer_norm/beta": self.layers.norm.bias}
        for i, layer in enumerate(self.layers.layers):
            own, other = layer.self_attn, layer.multihead_attn
            for name, (weight, bias) in {
                "self_attention/layer_norm": (layer.norm1.weight, layer.norm1.bias), "attention/layer_norm": (layer.norm2.weight, layer.norm2.bias),
                "ffn/layer_norm": (layer.norm3.weight, layer.norm3.bias), "self_attention/linear_0": (own.in_proj_weight, own.in_proj_bias),
                "self_attention/linear_1": (own.out_proj.weight, own.out_proj.bias),
                "attention/linear_0": (other.in_proj_weight[:DIM], other.in_proj_bias[:DIM]),
                "attention/linear_1": (other.in_proj_weight[DIM:], other.in_proj_bias[DIM:]),
                "attention/linear_2": (other.out_proj.weight, other.out_proj.bias),
                "ffn/linear_0": (layer.linear1.weight, layer.linear1.bias), "ffn/linear_1": (layer.linear2.weight, layer.linear2.bias),
            }.items():  # fmt: skip
                kinds = ("gamma", "beta") if name.endswith("norm") else ("weight", "bias")
                found |= {f"layer_{i}/{name}/{kinds[0]}": weight, f"layer_{i}/{name}/{kinds[1]}": bias}
        return found


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Peer, Path]:
    """→ the network and the folder of its file, in CTranslate2's binary layout, with a variable that is not the decoder's."""
    torch.manual_seed(0)
    peer, folder = Peer().eval(), tmp_path_factory.mktemp("whisper")
    write_model(folder, {"encoder/layer_9/ffn/linear_0/bias": torch.zeros(2), **{f"decoder/{k}": v for k, v in peer.variables().items()}})
    return peer, folder


def transcript(*pieces: int) -> list[int]:
    return [BEGIN, 50259, TRANSCRIBE, NO_TIMES, *pieces]


def test_the_decoder_is_read_and_tells_as_pytorchs_parts_do(peer: tuple[Peer, Path]) -> None:
    net, folder = peer
    saying = Saying(folder)
    assert saying.layers == LAYERS and not list(saying.parameters())
    pieces, heard = torch.tensor([transcript(5, 6, 7), transcript(8, 9, END)]), torch.randn(2, 50, DIM)
    with torch.no_grad():
        torch.testing.assert_close(saying(pieces, saying.heard_by_layer(heard)), net(pieces, heard), atol=1e-3, rtol=1e-4)


def test_what_is_told_otherwise_counts_up_to_the_end_of_the_transcript(peer: tuple[Peer, Path]) -> None:
    saying = Saying(peer[1])
    pieces = torch.tensor([transcript(5, 6, END, END), transcript(8, END, END, END)])
    clean, other = torch.randn(2, 50, DIM), torch.randn(2, 50, DIM)
    values = [missaid(saying, clean + share * (other - clean), clean, pieces) for share in (0.0, 0.1, 1.0)]
    assert values[0].abs().max() < 1e-5 and (values[0] < values[1]).all() and (values[1] < values[2]).all()
    # what would be written after the end is nobody's business
    torch.testing.assert_close(missaid(saying, other, clean, torch.cat([pieces, torch.full((2, 3), END)], 1)), values[2])
    longer = missaid(saying, other, clean, torch.tensor([transcript(5, 6, 7, END), transcript(8, 9, 7, END)]))
    assert (longer - values[2]).abs().min() > 1e-4
    y = other.clone().requires_grad_()
    missaid(saying, y, clean, pieces).sum().backward()
    assert y.grad is not None and torch.isfinite(y.grad).all() and y.grad.abs().max() > 0


def test_transcripts_are_begun_in_the_heard_language_and_filled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def generate(features: np.ndarray, prompts: list[list[int]], **options: int) -> list[SimpleNamespace]:
        asked.update(prompts=prompts, **options)
        return [SimpleNamespace(sequences_ids=[[7, 8]]), SimpleNamespace(sequences_ids=[list(range(1, 9))])]

    model = SimpleNamespace(detect_language=lambda f: [[("<|de|>", 0.9), ("<|en|>", 0.1)], [("<|en|>", 0.6)]], generate=generate)
    numbers = SimpleNamespace(token_to_id={"<|de|>": 50261, "<|en|>": 50259}.get)
    whisper = SimpleNamespace(model=model, feature_extractor=lambda x, padding: x[None, ::160], encode=lambda f: f, hf_tokenizer=numbers)
    monkeypatch.setattr(said, "_whisper", lambda: whisper)
    pieces = Transcripts(most=4)(0.01 * np.ones((2, 16000), np.float32))
    assert pieces.tolist() == [[BEGIN, 50261, TRANSCRIBE, NO_TIMES, 7, 8, END, END], transcript(1, 2, 3, 4)]
    assert asked["prompts"] == pieces[:, :PROMPT].tolist()


class Heard(nn.Module):
    """x: [B, n] → [B, n // 320, 16]"""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, : x.shape[1] // 320 * 320].unflatten(1, (-1, 320))[:, :, :DIM] * 30


def test_the_loss_weighs_it(peer: tuple[Peer, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    saying = Saying(peer[1])
    monkeypatch.setattr("tools.losses.Hearing", Heard)
    monkeypatch.setattr("tools.losses.Saying", lambda dtype: saying)
    c, pieces = 0.05 * torch.randn(2, 16000), torch.tensor([transcript(5, 6, END), transcript(8, 9, 10)])
    y = c + 0.05 * torch.randn(2, 16000)
    without, (total, parts) = EnhanceLoss(0.5, 0.0)(y, c, y)[0], EnhanceLoss(0.5, 0.0, said=0.3)(y, c, y, pieces)
    assert parts["missaid"] > 0 and (total - without).item() == pytest.approx(0.3 * parts["missaid"], rel=0.02)


def test_recipe_takes_it(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("[train]\nsaid = 0.3\n")
    assert load(tmp_path / "r.toml").train.said == 0.3
