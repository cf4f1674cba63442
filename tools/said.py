"""A loss on the words themselves: what Whisper's decoder would say, word piece by word piece, must be as likely from the enhanced signal as from the clean one.

`tools.words` compares what is heard, number by number; a recogniser cares about few of these numbers. Here the clean signal's own transcript is read
back from both (teacher forcing), and the two distributions of every next piece are compared.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding, gelu, kl_div, layer_norm, linear, scaled_dot_product_attention

from .metrics import _whisper
from .words import HEADS, Frozen

# the multilingual vocabulary of Whisper: pieces of words, then what steers the decoder
END, BEGIN, TRANSCRIBE, NO_TIMES = 50257, 50258, 50359, 50363
PROMPT = 4  # pieces: beginning, language, task, no time stamps


class Saying(Frozen):
    """Whisper's decoder, frozen. The gradient goes to what is heard: [B, n, 512] of `words.Hearing`. dtype: of the matrices."""

    def __init__(self, folder: Path | None = None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__("decoder", folder, dtype)

    def _norm(self, name: str, y: Tensor) -> Tensor:
        return layer_norm(y, y.shape[-1:], *self._of(name, "gamma", "beta"))

    def heard_by_layer(self, heard: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of what is heard, [B, heads, n, 64] each, a layer."""
        pairs = []
        for i in range(self.layers):
            k, v = linear(heard, *self._of(f"layer_{i}__attention__linear_1", "weight", "bias")).unflatten(-1, (2, HEADS, -1)).permute(2, 0, 3, 1, 4)
            pairs.append((k, v))
        return pairs

    def forward(self, pieces: Tensor, heard: list[tuple[Tensor, Tensor]]) -> Tensor:
        """pieces: [B, t] int64 → [B, t, 51865] logits of what follows each."""
        y = embedding(pieces, self.embeddings__weight) + self.position_encodings__encodings[: pieces.shape[1]]
        for i in range(self.layers):
            name = f"layer_{i}__self_attention__"
            z = linear(self._norm(name + "layer_norm", y), *self._of(name + "linear_0", "weight", "bias"))
            q, k, v = z.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
            z = scaled_dot_product_attention(q, k, v, is_causal=True)
            y = y + linear(z.transpose(1, 2).flatten(2), *self._of(name + "linear_1", "weight", "bias"))
            name = f"layer_{i}__attention__"
            q = linear(self._norm(name + "layer_norm", y), *self._of(name + "linear_0", "weight", "bias")).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            z = scaled_dot_product_attention(q, *heard[i])
            y = y + linear(z.transpose(1, 2).flatten(2), *self._of(name + "linear_2", "weight", "bias"))
            name = f"layer_{i}__ffn__"
            z = gelu(linear(self._norm(name + "layer_norm", y), *self._of(name + "linear_0", "weight", "bias")))
            y = y + linear(z, *self._of(name + "linear_1", "weight", "bias"))
        return linear(self._norm("layer_norm", y), self.embeddings__weight)


class Transcripts:
    """What Whisper writes when it hears clips alone, in the language it takes them for. Runs in CTranslate2, in the process that makes the batches
    (and is only loaded there: its threads would not survive the fork)."""

    def __init__(self, most: int = 16) -> None:
        self.most = most

    def __call__(self, clips: np.ndarray) -> np.ndarray:
        """clips: [B, samples at 16 kHz] float32 → [B, 4 + pieces] int64: how the decoder is begun, then at most `most` pieces; filled up with END."""
        whisper = _whisper()
        level = np.abs(clips).max(1, keepdims=True) + 1e-9
        heard = [whisper.feature_extractor(clip, padding=0) for clip in (0.5 * clips / level).astype(np.float32)]
        features = whisper.encode(np.stack(heard))
        languages = [whisper.hf_tokenizer.token_to_id(found[0][0]) for found in whisper.model.detect_language(features)]
        begun = [[BEGIN, language, TRANSCRIBE, NO_TIMES] for language in languages]
        told = whisper.model.generate(features, begun, beam_size=1, no_repeat_ngram_size=3, max_length=2 * self.most)  # (it gives half of what it is asked for)
        pieces = np.full((len(clips), PROMPT + self.most), END)
        for row, first, found in zip(pieces, begun, told, strict=True):
            written = [*first, *found.sequences_ids[0]][: len(row)]
            row[: len(written)] = written
        return pieces


def missaid(saying: Saying, y: Tensor, target: Tensor, pieces: Tensor) -> Tensor:
    """y, target: [B, n, 512] heard; pieces: [B, 4 + t] of `Transcripts` → [B]: nats by which the pieces are told otherwise from y, mean over the transcript."""
    with torch.no_grad():
        wanted = saying(pieces[:, :-1], saying.heard_by_layer(target))[:, PROMPT - 1 :].float().log_softmax(-1)
    told = saying(pieces[:, :-1], saying.heard_by_layer(y))[:, PROMPT - 1 :].float().log_softmax(-1)
    spoken = (pieces[:, PROMPT - 1 : -1] != END).float()  # the first end is told, too: a piece counts when the one before it is none
    return (kl_div(told, wanted, reduction="none", log_target=True).sum(-1) * spoken).sum(1) / spoken.sum(1).clamp_min(1)
