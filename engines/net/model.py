"""The causal time-frequency model: mixture spectrum in, speech spectrum out, one 20 ms frame (two hops) a step.

    X ─level, ^0.3─► conv over frequency ─► bands ─► time/band blocks ─► c_t ─► trunk ─► h_t ─► time/band blocks ─► conv ─► M, G
                            └──────────────────────── skips ───────────────────────────────────────────────────────┘
    S = M ⊙ X + G

Two hops stacked as channels: one pass a frame, and the first hop sees the second for free (prototype §4 d; FastEnhancer, ICASSP
2026, for the shape of the convolution part).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ..config import CORE_BINS, HOPS_PER_FRAME, ModelConfig
from .bands import BandMix, FreqConv
from .causal import Causal, State, scoped, within
from .level import Level
from .recognise import Recogniser
from .scan import GatedRecurrence
from .trunk import Trunk, write_rows
from .voice import Asked, Places, Turn, VoiceEncoder

POWER = 0.3  # compression of magnitudes


def compress(x: Tensor) -> Tensor:
    """[..., 2] complex pairs: magnitude to the power 0.3, phase kept."""
    return x * (x.square().sum(-1, keepdim=True) + 1e-10) ** ((POWER - 1) / 2)


def expand(x: Tensor) -> Tensor:
    """Inverse of `compress` up to its epsilon."""
    return x * (x.square().sum(-1, keepdim=True) + 1e-10) ** ((1 / POWER - 1) / 2)


def complex_mul(a: Tensor, b: Tensor) -> Tensor:
    ar, ai, br, bi = a[..., 0], a[..., 1], b[..., 0], b[..., 1]
    return torch.stack([ar * br - ai * bi, ar * bi + ai * br], -1)


class Model(Causal):
    """x: [B, hops, 160, 2] float32 spectrum of the mixture (hops even) → same shape, spectrum of the speech.

    `forward_features` also gives h: [B, frames, trunk_dim], what later heads (high bands, tokens) read, and the level [B, hops].
    """

    step_size = HOPS_PER_FRAME

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg.validate()
        c, w, half = cfg.channels, cfg.width, cfg.blocks // 2
        fine = CORE_BINS // cfg.stride
        self.level = Level(HOPS_PER_FRAME)
        self.head = FreqConv(2 * HOPS_PER_FRAME * 3, c, 2 * cfg.stride, cfg.stride)  # this frame and the one before; re, im, size
        self.enc = nn.ModuleList(FreqConv(c, c) for _ in range(cfg.conv_blocks))
        self.down, self.widen = nn.Linear(fine, cfg.bands, bias=False), nn.Linear(c, w)
        self.time = nn.ModuleList(GatedRecurrence(cfg.bands, w) for _ in range(cfg.blocks))
        self.mix = nn.ModuleList(BandMix(cfg.bands, w, cfg.mix_groups) for _ in range(cfg.blocks))
        self.first_blocks = half
        self.to_trunk, self.from_trunk = nn.Linear(cfg.bands * w, cfg.trunk_dim), nn.Linear(cfg.trunk_dim, cfg.bands * w)
        self.to_norm = nn.LayerNorm(w)
        nn.init.normal_(self.from_trunk.weight, std=0.01)
        nn.init.zeros_(self.from_trunk.bias)
        self.trunk = Trunk(cfg)
        self.voice = VoiceEncoder(cfg) if cfg.voice_dim else None
        self.asked = Asked(cfg.query_dim, cfg.voice_dim) if cfg.query_dim else None
        self.places = Places(cfg.separate, cfg.voice_dim) if cfg.separate else None
        self.turn = Turn(cfg.voice_dim, cfg.blocks, cfg.bands, w) if cfg.voice_dim else None
        self.who = Recogniser(self.voice, cfg.trunk_dim) if cfg.recognise and self.voice is not None else None
        self.narrow, self.up = nn.Linear(w, c), nn.Linear(cfg.bands, fine, bias=False)
        self.merge = nn.ModuleList(FreqConv(2 * c, c, 1) for _ in range(cfg.conv_blocks + 1))
        self.dec = nn.ModuleList(FreqConv(c, c) for _ in range(cfg.conv_blocks))
        self.tail = nn.ConvTranspose1d(c, 4 * HOPS_PER_FRAME, 2 * cfg.stride, cfg.stride, cfg.stride // 2)
        with torch.no_grad():  # start as a wire: M = 1, G = 0
            self.tail.weight.mul_(0.1)
            assert self.tail.bias is not None
            self.tail.bias.zero_()
            self.tail.bias[0::4] = 1.0

    def init_state(self, batch: int, task: str = "restore", voice: Tensor | None = None) -> State:
        """voice: [B, voice_dim] of the talker that the task is about, or of the sound that is asked for"""
        state = {
            **scoped("level", self.level.init_state(batch)),
            "past": torch.zeros(batch, HOPS_PER_FRAME * 3, CORE_BINS),
            **scoped("trunk", self.trunk.init_state(batch, task, voice)),
        }
        if self.turn is not None:
            with torch.no_grad():
                state["gain"], state["offset"] = self.turn.none(batch) if voice is None else self.turn(voice)
        if self.who is not None:
            state.update(scoped("who", self.who.init_state(batch, voice if task == "extract" else None)))
        for i in range(len(self.time)):
            state.update(scoped(f"time{i}", self._time(i).init_state(batch)))
        return state

    def _time(self, i: int) -> Causal:
        return cast(Causal, self.time[i])

    # -- parts shared by step and forward; b = slots, t = frames -------------------------------------------------------
    def _features(self, x: Tensor, level: Tensor) -> Tensor:
        """[B, hops, 160, 2], [B, hops] → [B, frames, 6, 160]"""
        xc = compress(x / level[..., None, None])
        size = (xc.square().sum(-1, keepdim=True) + 1e-8).sqrt()
        b, t, k, _ = x.shape
        f = torch.cat([xc, size], -1).view(b, t // HOPS_PER_FRAME, HOPS_PER_FRAME, k, 3)
        return f.permute(0, 1, 2, 4, 3).reshape(b, t // HOPS_PER_FRAME, -1, k)

    def _analyse(self, f: Tensor) -> tuple[Tensor, list[Tensor]]:
        """[B, frames, 12, 160] → bands [B, frames, bands, width] and skips"""
        b, t = f.shape[:2]
        e = self.head(f.flatten(0, 1))
        skips = [e]
        for conv in self.enc:
            e = e + conv(e)
            skips.append(e)
        z: Tensor = self.widen(self.down(e).transpose(1, 2))
        return z.view(b, t, *z.shape[1:]), skips

    def _condition(self, z: Tensor) -> Tensor:
        c: Tensor = self.to_trunk(self.to_norm(z).flatten(-2))
        return c

    def _inject(self, z: Tensor, h: Tensor) -> Tensor:
        y: Tensor = z + self.from_trunk(h).view(z.shape)
        return y

    def _block(self, i: int, z: Tensor, turn: tuple[Tensor, Tensor] | None) -> Tensor:
        """What follows the i-th recurrence: the turn towards a voice, and the mixing of bands."""
        if turn is not None:
            z = z * (1 + turn[0][:, None, i]) + turn[1][:, None, i, None]
        y: Tensor = self.mix[i](z)
        return y

    def _synthesise(self, z: Tensor, skips: list[Tensor], x: Tensor, level: Tensor) -> Tensor:
        b, t = z.shape[:2]
        d = self.up(self.narrow(z.flatten(0, 1)).transpose(1, 2))
        d = self.merge[0](torch.cat([d, skips[-1]], 1))
        for i, conv in enumerate(self.dec):
            d = d + conv(d)
            d = self.merge[i + 1](torch.cat([d, skips[-2 - i]], 1))
        o = self.tail(d).float().view(b, t, HOPS_PER_FRAME, 2, 2, CORE_BINS).permute(0, 1, 2, 5, 3, 4)
        o = o.reshape(b, t * HOPS_PER_FRAME, CORE_BINS, 2, 2)
        return complex_mul(o[..., 0, :], x) + expand(o[..., 1, :]) * level[..., None, None]

    def forward_features(self, x: Tensor, task: str = "restore", voice: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """voice: [B, voice_dim], or [n B, voice_dim] to turn every mixture towards n voices: n results of each, those of one voice together.
        What does not depend on the voice is then made once."""
        with torch.no_grad():
            level = self.level(x.square().sum(-1).mean(-1))
        f = self._features(x, level)
        past = torch.cat([torch.zeros_like(f[:, :1]), f[:, :-1]], 1)
        z, skips = self._analyse(torch.cat([past, f], 2))
        turn = None if voice is None or self.turn is None else self.turn(voice)
        z = self.time[0](z)
        if voice is not None and len(voice) > len(x):
            n = len(voice) // len(x)
            z, x, level, *skips = (y.repeat(n, *[1] * (y.dim() - 1)) for y in (z, x, level, *skips))
        z = self._block(0, z, turn)
        for i in range(1, self.first_blocks):
            z = self._block(i, self.time[i](z), turn)
        h = self.trunk(self._condition(z), task, voice)
        z = self._inject(z, h)
        for i in range(self.first_blocks, len(self.time)):
            z = self._block(i, self.time[i](z), turn)
        y = self._synthesise(z, skips, x, level)
        if self.who is not None and self.voice is not None and voice is not None and task == "extract":
            y = y * self.who(y, level, voice, h, self.voice).repeat_interleave(HOPS_PER_FRAME, 1)[..., None]
        return y, h, level

    def forward(self, x: Tensor, task: str = "restore", voice: Tensor | None = None) -> Tensor:
        return self.forward_features(x, task, voice)[0]

    def step_rows(self, x: Tensor, state: State) -> tuple[Tensor, Tensor, Tensor, State, Tensor, Tensor]:
        """One frame with the attention rings read only: (y, h, level, new small states, new k rows, new v rows)."""
        level, level_state = self.level.step(x.square().sum(-1).mean(-1), within("level", state))
        f = self._features(x, level)
        new = {**scoped("level", level_state), "past": f[:, 0]}
        z, skips = self._analyse(torch.cat([state["past"][:, None], f], 2))

        turn = None if self.turn is None else (state["gain"], state["offset"])

        def block(i: int, z: Tensor) -> Tensor:
            z, s = self._time(i).step(z, within(f"time{i}", state))
            new.update(scoped(f"time{i}", s))
            return self._block(i, z, turn)

        for i in range(self.first_blocks):
            z = block(i, z)
        h, k, v = self.trunk.step_rows(self._condition(z), within("trunk", state))
        z = self._inject(z, h)
        for i in range(self.first_blocks, len(self.time)):
            z = block(i, z)
        y = self._synthesise(z, skips, x, level)
        if self.who is not None and self.voice is not None:
            gate, s = self.who.step(y, level, state["trunk.pos"], h, self.voice, within("who", state))
            new.update(scoped("who", s))
            y = y * gate[..., None]
        return y, h, level, new, k, v

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, _, _, new, k, v = self.step_rows(x, state)
        trunk = scoped("trunk", write_rows(within("trunk", state), k, v))
        return y, {key: {**state, **trunk, **new}[key] for key in state}
