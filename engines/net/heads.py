"""Token heads: what the trunk knows of a frame → the codec's tokens of the clean speech, all of them decided inside the step (DESIGN §3).

    h_t (and what the codec's encoder makes of the restored frame) ─► layers over time ─► one view a stream ─► depth transformer ─► s_t, a1..a4_t

Two switches change what is seen when. `feedback`: the tokens of the frame before are read, too (the known trap: see DESIGN). `delay_pattern`: stream k
of a frame is decided k frames later, so it sees k frames more and nothing has to be unrolled, but the frame is whole only `delay_frames` later.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ..heads_config import HeadsConfig
from .causal import Causal, State, scoped, within
from .codec import Codec
from .codec_blocks import Stack
from .codec_quantise import Codebook
from .depth import Depth


def delay(x: Tensor, fill: float) -> Tensor:
    """Frames to steps, stream k moved k steps back: [B, T, streams, ...] → [B, T + streams - 1, streams, ...], empty places filled."""
    streams = x.shape[2]
    out = x.new_full((x.shape[0], x.shape[1] + streams - 1, *x.shape[2:]), fill)
    for k in range(streams):
        out[:, k : k + x.shape[1], k] = x[:, :, k]
    return out


def undelay(x: Tensor) -> Tensor:
    """Steps to the frames that are whole, the inverse of `delay`: [B, T + streams - 1, streams, ...] → [B, T, streams, ...]."""
    streams = x.shape[2]
    frames = x.shape[1] - streams + 1
    return torch.stack([x[:, k : k + frames, k] for k in range(streams)], 2)


class TokenHeads(Causal):
    """x: [B, T, trunk_dim + heard_dim] float32 → tokens [B, T, streams] int64, semantic first; with the delay pattern those of `delay_frames` earlier,
    -1 before the first.

    State: `stack.*` of the layers over time; with feedback or the delay pattern `before`: [B, delay_frames + 1, streams] int64 tokens of the last frames, plus
    one (0: none); with the delay pattern `views`: [B, delay_frames, streams, depth_dim] of the frames under way.
    """

    def __init__(self, cfg: HeadsConfig) -> None:
        super().__init__()
        self.cfg = cfg.validate()
        self.latency = cfg.delay_frames
        self.register_buffer("mean", torch.zeros(cfg.trunk_dim + cfg.heard_dim))
        self.register_buffer("spread", torch.ones(cfg.trunk_dim + cfg.heard_dim))
        self.mean: Tensor
        self.spread: Tensor
        self.inp = nn.Linear(cfg.trunk_dim + cfg.heard_dim, cfg.dim)
        self.stack = Stack(cfg.dim, cfg.kernel, cfg.blocks)
        self.norm = nn.LayerNorm(cfg.dim)
        self.view = nn.Linear(cfg.dim, cfg.streams * cfg.depth_dim)
        self.depth = Depth(cfg)
        self.back = nn.Parameter(0.02 * torch.randn(cfg.streams, self.depth.codes.size, cfg.depth_dim)) if cfg.feedback else None
        self.ahead = nn.Linear(cfg.dim, cfg.foresight_frames * cfg.depth_dim) if cfg.foresight_frames else None

    def take_codes(self, codec: Codec) -> None:
        """Know the codec's codes."""
        books = [*codec.encoder.semantic_vq.books, *codec.encoder.acoustic_vq.books]
        self.depth.codes.fill([cast(Codebook, book).codes for book in books])

    @torch.no_grad()
    def take_statistics(self, x: Tensor) -> None:
        """Bring what is read to one scale. x: [..., trunk_dim + heard_dim] as it usually is"""
        self.mean.copy_(x.flatten(0, -2).mean(0))
        self.spread.copy_(x.flatten(0, -2).std(0).clamp_min(1e-6))

    def init_state(self, batch: int) -> State:
        cfg, state = self.cfg, scoped("stack", self.stack.init_state(batch))
        if cfg.feedback or cfg.delay_pattern:
            state["before"] = torch.zeros(batch, cfg.delay_frames + 1, cfg.streams, dtype=torch.int64)
        if cfg.delay_pattern:
            state["views"] = torch.zeros(batch, cfg.delay_frames, cfg.streams, cfg.depth_dim)
        return state

    def _read(self, x: Tensor) -> Tensor:
        y: Tensor = self.inp((x - self.mean) / self.spread)
        return y

    def body(self, x: Tensor) -> Tensor:
        """The layers over time: → [B, T, dim]"""
        y: Tensor = self.norm(self.stack(self._read(x)))
        return y

    def _views(self, u: Tensor) -> Tensor:
        v: Tensor = self.view(u)
        return v.view(*v.shape[:-1], self.cfg.streams, self.cfg.depth_dim)

    def _fed_back(self, tokens: Tensor) -> Tensor:
        """tokens of the frame before [..., streams] → what they add to the views [..., streams, depth_dim]; delayed, stream k sees those up to its own."""
        assert self.back is not None
        told = torch.einsum("...sf,sfd->...sd", self.depth.codes.every(tokens), self.back)
        return told.cumsum(-2) if self.cfg.delay_pattern else told.sum(-2, keepdim=True)

    def teach(self, x: Tensor, tokens: Tensor, fed_back: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """All frames at once, tokens known [B, T, streams] → (logits [B, T - delay_frames, streams, codes], body's output). fed_back: what feedback is to read
        in their place, -1 for nothing (dropout)."""
        u = self.body(x)
        views = self._views(u)
        if self.cfg.delay_pattern:
            views, tokens = undelay(views), tokens[:, : tokens.shape[1] - self.cfg.delay_frames]
        if self.cfg.feedback:
            known = tokens if fed_back is None else fed_back[:, : tokens.shape[1]]
            views = views + self._fed_back(torch.cat([torch.full_like(known[:, :1], -1), known[:, :-1]], 1))
        logits: Tensor = self.depth(views.flatten(0, 1), tokens.flatten(0, 1))
        return logits.view(*views.shape[:3], -1), u

    def foresee(self, u: Tensor) -> Tensor:
        """body's output → logits of the semantic tokens of the next frames [B, T, foresight_frames, codes]"""
        assert self.ahead is not None
        x = self.ahead(u)
        return self.depth.logits_of(x.view(*x.shape[:-1], self.cfg.foresight_frames, self.cfg.depth_dim), 0)

    def _decide(self, views: Tensor, before: Tensor | None, noise: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """One frame's views [B, streams, depth_dim] → (tokens [B, streams], new `before`)."""
        if before is None:
            return self.depth.decide(views, noise), None
        tokens = self.depth.decide(views + self._fed_back(before[:, 0] - 1), noise)
        return tokens, tokens[:, None] + 1

    def _decide_delayed(self, views: Tensor, state: State, noise: Tensor | None) -> tuple[Tensor, State]:
        """One step's views → tokens of the frame that is whole now [B, streams], and the new part of the state. Row i of what is under way is the frame of
        delay_frames - i steps ago: its next token is that of stream delay_frames - i."""
        n = self.cfg.delay_frames
        b, before = views.shape[0], state["before"] - 1
        under_way = torch.cat([state["views"], torch.zeros_like(views)[:, None]], 1)
        now = torch.eye(n + 1, dtype=torch.bool, device=views.device).flip(0)  # [row, stream]
        under_way = torch.where(now[..., None], views[:, None], under_way)
        tokens = torch.cat([before[:, 1:], torch.full_like(before[:, :1], -1)], 1)
        told = under_way + self._fed_back(before) if self.cfg.feedback else under_way
        x = self.depth.states(told.flatten(0, 1), tokens.flatten(0, 1)).view(b, n + 1, n + 1, -1)
        found = []
        for k in range(n + 1):
            found.append(self.depth.pick(self.depth.logits_of(x[:, n - k, k], k), k, None if noise is None else noise[:, k]))
        tokens = torch.where(now, torch.stack(found, -1)[:, None], tokens)
        # the first frames of a stream would be older than it: there are none of them, and nothing may be read from them
        real = torch.cat([before[:, 1:, :1] >= 0, torch.ones_like(before[:, :1, :1], dtype=torch.bool)], 1)
        tokens = torch.where(real, tokens, -1)
        return tokens[:, 0], {"before": tokens + 1, "views": under_way[:, 1:]}

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """noise: [B, T, streams, codes] at the steps where it is used (of `engines.heads_engine.drawn`). With feedback, frames cannot but follow each other."""
        cfg = self.cfg
        views = self._views(self.body(x))
        b, t = views.shape[:2]
        if not cfg.feedback:
            n = cfg.delay_frames
            frames = undelay(views) if n else views
            drawn = None if noise is None else (undelay(noise) if n else noise).flatten(0, 1)
            tokens = self.depth.decide(frames.flatten(0, 1), drawn).view(b, t - n, cfg.streams)
            return torch.cat([tokens.new_full((b, n, cfg.streams), -1), tokens], 1)
        state, rows = self.init_state(b), []
        for i in range(t):
            tokens, new = self._next(views[:, i], state, None if noise is None else noise[:, i])
            state |= new
            rows.append(tokens)
        return torch.stack(rows, 1)

    def _next(self, views: Tensor, state: State, noise: Tensor | None) -> tuple[Tensor, State]:
        if self.cfg.delay_pattern:
            return self._decide_delayed(views, state, noise)
        tokens, before = self._decide(views, state.get("before"), noise)
        return tokens, {} if before is None else {"before": before}

    def step(self, x: Tensor, state: State, noise: Tensor | None = None) -> tuple[Tensor, State]:
        """One frame: x [B, 1, trunk_dim + heard_dim] → (tokens [B, 1, streams], new state). noise: [B, streams, codes] is added to the logits."""
        y, stack = self.stack.step(self._read(x), within("stack", state))
        tokens, new = self._next(self._views(self.norm(y))[:, 0], state, noise)
        new = {**scoped("stack", stack), **new}
        return tokens[:, None], {k: new[k] for k in state}
