"""Depth autoregression: a small transformer over the tokens of one frame, semantic first, then each acoustic layer given the ones before it.

Its positions are the streams of a frame; it remembers nothing between frames (RQ-Transformer, Lee et al. 2022; Moshi, Défossez et al. 2024).
Tokens are read as the codec's code vectors, so codes that sound alike look alike from the start.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ..heads_config import HeadsConfig
from .causal import parts
from .trunk import Layer


class Codes(nn.Module):
    """What is known of every code: its vector; and for reading, vector and squared length, each of unit variance over the stream's codes. Not trained."""

    def __init__(self, streams: int, codes: int, code_dim: int) -> None:
        super().__init__()
        self.size = code_dim + 1
        self.register_buffer("vectors", torch.randn(streams, codes, code_dim))
        self.register_buffer("table", torch.randn(streams, codes, self.size))
        self.vectors: Tensor
        self.table: Tensor

    @torch.no_grad()
    def fill(self, books: list[Tensor]) -> None:
        """books: the codec's codes of every stream, [codes, code_dim] or narrower (padded with zeros)"""
        for vectors, row, book in zip(self.vectors, self.table, books, strict=True):
            vectors.zero_()
            vectors[:, : book.shape[1]] = book
            known = torch.cat([book, book.square().sum(-1, keepdim=True)], -1)
            known = (known - known.mean(0)) / known.std(0).clamp_min(1e-6)
            row.zero_()
            row[:, : book.shape[1]], row[:, -1] = known[:, :-1], known[:, -1]

    def forward(self, token: Tensor, stream: int) -> Tensor:
        """[...] int64 → [..., size]; zeros for a token below 0, which stands for none"""
        return self.table[stream][token.clamp_min(0)] * (token >= 0)[..., None]

    def nearest_to_mean(self, logits: Tensor, stream: int) -> Tensor:
        """[..., codes] → of the codes that nearest to their mean: [...] int64"""
        vectors = self.vectors[stream]
        mean = torch.softmax(logits, -1) @ vectors
        return (2 * mean @ vectors.t() - vectors.square().sum(-1)).argmax(-1)

    def every(self, tokens: Tensor) -> Tensor:
        """[..., streams] → [..., streams, size]"""
        return torch.stack([self(t, k) for k, t in enumerate(tokens.unbind(-1))], -2)


class Depth(nn.Module):
    """views: [N, streams, depth_dim] (what each stream is told of the frame), tokens: [N, streams] int64 → logits [N, streams, codes].

    Position k reads its view and the token of stream k - 1; it attends to the positions before it.
    """

    def __init__(self, cfg: HeadsConfig) -> None:
        super().__init__()
        d = cfg.depth_dim
        self.streams, self.heads, self.dim, self.central = cfg.streams, cfg.depth_heads, d, cfg.central
        self.codes = Codes(cfg.streams, cfg.codes, cfg.code_dim)
        self.read = nn.ModuleList(nn.Linear(self.codes.size, d, bias=False) for _ in range(cfg.streams - 1))
        self.place = nn.Parameter(0.1 * torch.randn(cfg.streams, d))
        self.layers = nn.ModuleList(Layer(d) for _ in range(cfg.depth_layers))
        self.norm = nn.RMSNorm(d, eps=1e-6)
        # a logit is a code's own vector of weights and, shared by all codes of the stream, a function of where the code lies
        self.free, self.tied = nn.Parameter(torch.zeros(cfg.streams, d, cfg.codes)), nn.Parameter(0.02 * torch.randn(cfg.streams, d, self.codes.size))
        self.bias = nn.Parameter(torch.zeros(cfg.streams, cfg.codes))

    def _layers(self) -> list[Layer]:
        return [cast(Layer, layer) for layer in self.layers]

    def _input(self, view: Tensor, before: Tensor | None, k: int) -> Tensor:
        """view: [..., depth_dim] of stream k, before: [...] tokens of stream k - 1"""
        x = view + self.place[k]
        return x if before is None else x + self.read[k - 1](self.codes(before, k - 1))

    def logits_of(self, x: Tensor, k: int) -> Tensor:
        """x: [..., depth_dim] of `states` → [..., codes] of stream k"""
        y: Tensor = self.norm(x) @ (self.free[k] + self.tied[k] @ self.codes.table[k].t()) + self.bias[k]
        return y

    def pick(self, logits: Tensor, k: int, noise: Tensor | None = None) -> Tensor:
        """logits of stream k and noise that makes a draw of their argmax: [..., codes] → tokens [...]"""
        logits = logits if noise is None else logits + noise
        return self.codes.nearest_to_mean(logits, k) if self.central else logits.argmax(-1)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, self.dim // self.heads)

    def states(self, views: Tensor, tokens: Tensor) -> Tensor:
        """All streams at once, tokens known: [N, streams, depth_dim]."""
        x = torch.stack([self._input(views[:, k], tokens[:, k - 1] if k else None, k) for k in range(self.streams)], 1)
        for layer in self._layers():
            q, k, v = (self._split(r).transpose(1, 2) for r in parts(layer.qkv(layer.norm1(x)), 3))
            x = layer.mlp(x + layer.proj(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)))
        return x

    def forward(self, views: Tensor, tokens: Tensor) -> Tensor:
        x = self.norm(self.states(views, tokens))
        weights = self.free + self.tied @ self.codes.table.transpose(1, 2)
        return (torch.bmm(x.transpose(0, 1), weights) + self.bias[:, None]).transpose(0, 1)

    def decide(self, views: Tensor, noise: Tensor | None) -> Tensor:
        """Stream by stream, each given what was decided before: [N, streams] int64. noise: [N, streams, codes] is added to the logits."""
        scale, found, token = (self.dim // self.heads) ** -0.5, list[Tensor](), None
        seen: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in self.layers]
        for k in range(self.streams):
            x = self._input(views[:, k], token, k)
            for layer, (keys, values) in zip(self._layers(), seen, strict=True):
                q, key, value = (self._split(r) for r in parts(layer.qkv(layer.norm1(x)), 3))  # [N, heads, dim/heads]
                keys.append(key)
                values.append(value)
                w = torch.softmax((q[:, None] * torch.stack(keys, 1)).sum(-1) * scale, 1)  # [N, k + 1, heads]
                x = layer.mlp(x + layer.proj((w[..., None] * torch.stack(values, 1)).sum(1).flatten(-2)))
            token = self.pick(self.logits_of(x, k), k, None if noise is None else noise[:, k])
            found.append(token)
        return torch.stack(found, -1)
