"""The causal codec: spectrum → five tokens a 20 ms frame → spectrum. Two streams, as H-Codec; the semantic token as UniAudio-Token.

    X ─level, ^0.3─► conv over frequency ─┬─► acoustic blocks ──────────────► RVQ 4 × 1,024 ──► a1..a4 ┐
                                          │        └ shallow detail                                    ├─► decoder blocks ─► conv ─► |S|, phase
                                          └─► semantic blocks ─► + gate ⊙ detail ─► VQ 1,024 ─► s ─────┘
                                                                                    └─► teacher's features (training)

The acoustic tokens say what the semantic one does not tell: the mean of what goes with it is taken off before their search. The decoder sees tokens
and nothing else. All layers are causal, there is no look-ahead: the delay is the spine's 30 ms.
Phases are kept relative to the middle of the window, where they change slowly from bin to bin.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..codec_config import CodecConfig
from ..config import CORE_BINS, HOPS_PER_FRAME
from .bands import FreqConv
from .causal import Causal, State, scoped, within
from .codec_blocks import Stack
from .codec_quantise import Quantiser, Told
from .codec_source import HIGHEST_HZ, LAGS, LOWEST_HZ, PitchEar, Source, most_likely
from .level import Level
from .model import POWER, complex_mul, compress

BANDS = CORE_BINS // 8
TELLING_DIM, TELLING_BLOCKS = 112, 2
PITCH_FINE = 6.0  # an octave in the code, where other numbers vary by one: pitch is coded to about a third of a semitone
LEVEL_FLOOR = 1e-5  # about -78 dB re full scale: what is below is not brought up


def centred(x: Tensor) -> Tensor:
    """Phase reference from the start of the window to its middle and back (its own inverse). x: [..., 160, 2]."""
    sign = 1.0 - 2.0 * (torch.arange(x.shape[-2], device=x.device) % 2)
    return x * sign[:, None].to(x.dtype)


class Gate(nn.Module):
    """Shallow acoustic detail, gated into the deep semantic stream before its quantiser (SAE of UniAudio-Token)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.adapter = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))
        self.gate = nn.Sequential(nn.Linear(2 * dim, dim), nn.Tanh(), nn.Linear(dim, dim), nn.Sigmoid())
        self.norm = nn.LayerNorm(dim)

    def forward(self, deep: Tensor, shallow: Tensor) -> tuple[Tensor, Tensor]:
        """Both [B, T, dim] → (fused [B, T, dim], openness of the gate [B, T, dim])."""
        g = self.gate(torch.cat([deep, shallow], -1))
        return self.norm(deep + g * self.adapter(shallow)), g


class Heard(NamedTuple):
    """What the layers before the quantisers make of a sound: acoustic and semantic vectors [B, frames, dim], openness of the gate [B, frames, dim],
    log-probabilities of the pitch [B, frames, 2, 96] and what they are made of, [B, frames, 6 · 96]; loudness of every hop [B, hops] (amplitude)."""

    acoustic: Tensor
    semantic: Tensor
    gate: Tensor
    pitch: Tensor
    salience: Tensor
    level: Tensor


class Analysis(Causal):
    """x: [B, hops, 160, 2] float32 spectrum (hops even) → `Heard`. told_level: the loudness that the layers are told of, None: that of the sound."""

    step_size = HOPS_PER_FRAME

    def __init__(self, cfg: CodecConfig, told_level: float | None = None) -> None:
        super().__init__()
        self.told_level = told_level
        c, d = cfg.channels, cfg.dim
        self.level = Level(HOPS_PER_FRAME)
        self.head = nn.Sequential(FreqConv(2 * HOPS_PER_FRAME * 3, c, 8, 4), FreqConv(c, 2 * c, 4, 2))
        self.to_dim, self.from_level = nn.Linear(2 * c * BANDS, d), nn.Linear(HOPS_PER_FRAME, d)
        self.ear, self.from_pitch = PitchEar(), nn.Linear(HOPS_PER_FRAME * LAGS, d)
        self.acoustic = Stack(d, cfg.kernel, cfg.acoustic_blocks)
        self.semantic = Stack(d, cfg.kernel, cfg.semantic_blocks)
        self.gate = Gate(d)

    def init_state(self, batch: int) -> State:
        return {
            **scoped("level", self.level.init_state(batch)),
            "past": torch.zeros(batch, HOPS_PER_FRAME * 3, CORE_BINS),
            **scoped("acoustic", self.acoustic.init_state(batch)),
            **scoped("semantic", self.semantic.init_state(batch)),
        }

    def _features(self, x: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """→ [B, frames, 6, 160] at one loudness, and what is told of that loudness [B, frames, 2]."""
        b, hops = level.shape
        xc = centred(compress(x / level[..., None, None]))
        size = (xc.square().sum(-1, keepdim=True) + 1e-8).sqrt()
        f = torch.cat([xc, size], -1).view(b, hops // HOPS_PER_FRAME, HOPS_PER_FRAME, CORE_BINS, 3)
        f = f.permute(0, 1, 2, 4, 3).reshape(b, hops // HOPS_PER_FRAME, -1, CORE_BINS)
        told = level if self.told_level is None else torch.full_like(level, self.told_level)
        return f, (told.log() / 2 + 3).view(b, -1, HOPS_PER_FRAME)

    def _analyse(self, f: Tensor, loud: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[B, frames, 12, 160] → what is common [B, frames, dim], the same knowing loudness and pitch, log-probabilities of the pitch, its salience."""
        b, t = f.shape[:2]
        c: Tensor = self.to_dim(self.head(f.flatten(0, 1)).flatten(1)).view(b, t, -1)
        hops = f.view(b, t, 2 * HOPS_PER_FRAME, 3, CORE_BINS)[:, :, :, :2].transpose(-1, -2)
        salience = self.ear.salience(hops)
        pitch = self.ear.judge(salience)
        return c, c + self.from_level(loud) + self.from_pitch(pitch.exp().flatten(2)), pitch, salience

    def heard(self, x: Tensor) -> Heard:
        with torch.no_grad():
            level = self.level(x.square().sum(-1).mean(-1)) + LEVEL_FLOOR
        f, loud = self._features(x, level)
        past = torch.cat([torch.zeros_like(f[:, :1]), f[:, :-1]], 1)
        common, shallow, pitch, salience = self._analyse(torch.cat([past, f], 2), loud)
        fused, gate = self.gate(self.semantic(common), shallow)
        return Heard(self.acoustic(shallow), fused, gate, pitch, salience, level)

    def heard_step(self, x: Tensor, state: State) -> tuple[Heard, State]:
        level, level_state = self.level.step(x.square().sum(-1).mean(-1), within("level", state))
        level = level + LEVEL_FLOOR
        f, loud = self._features(x, level)
        common, shallow, pitch, salience = self._analyse(torch.cat([state["past"][:, None], f], 2), loud)
        acoustic, a = self.acoustic.step(shallow, within("acoustic", state))
        deep, s = self.semantic.step(common, within("semantic", state))
        new = {**scoped("level", level_state), "past": f[:, 0], **scoped("acoustic", a), **scoped("semantic", s)}
        fused, gate = self.gate(deep, shallow)
        return Heard(acoustic, fused, gate, pitch, salience, level), {k: new[k] for k in state}


class Encoder(Analysis):
    """x: [B, hops, 160, 2] float32 spectrum (hops even) → tokens [B, frames, 1 + layers] int64, semantic first.

    `features` gives what the quantisers see, acoustic vectors with the pitch at the end [B, frames, dim + 1] and semantic ones [B, frames, dim]; the
    gate; and log-probabilities of the pitch [B, frames, 2, 96].
    """

    def __init__(self, cfg: CodecConfig) -> None:
        super().__init__(cfg)
        self.semantic_vq = Quantiser(cfg.dim, cfg.code_dim, cfg.codes, 1)
        self.acoustic_vq = Quantiser(cfg.dim, cfg.code_dim, cfg.codes, cfg.layers, told=1)
        self.guess = Told(cfg.codes, cfg.code_dim + 1)

    def _with_pitch(self, acoustic: Tensor, pitch: Tensor) -> Tensor:
        return torch.cat([acoustic.float(), PITCH_FINE * most_likely(pitch.detach())], -1)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        h = self.heard(x)
        return self._with_pitch(h.acoustic, h.pitch), h.semantic, h.gate, h.pitch

    def features_step(self, x: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        h, new = self.heard_step(x, state)
        return self._with_pitch(h.acoustic, h.pitch), h.semantic, new

    def tokens(self, acoustic: Tensor, semantic: Tensor) -> tuple[Tensor, Tensor]:
        """→ (tokens [B, frames, 1 + layers], what the semantic search was given [B, frames, code_dim])."""
        z = self.semantic_vq.project(semantic)
        s = self.semantic_vq.encode(z)
        a = self.acoustic_vq.encode(self.acoustic_vq.project(acoustic) - self.guessed(s))
        return torch.cat([s, a], -1), z

    @torch.no_grad()
    def weigh(self, sensitivity: Tensor) -> None:
        """See `Quantiser.weigh`, of the acoustic layers."""
        self.guess.means.copy_(self.guess.means @ self.acoustic_vq.weigh(sensitivity))

    def guessed(self, s: Tensor) -> Tensor:
        """What the semantic tokens [B, T, 1] tell of the acoustic numbers [B, T, code_dim + 1]: only the rest is coded. -1: a token that was not sent."""
        y: Tensor = self.guess(s)
        return y

    def forward(self, x: Tensor) -> Tensor:
        acoustic, semantic, _, _ = self.features(x)
        return self.tokens(acoustic, semantic)[0]

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        acoustic, semantic, new = self.features_step(x, state)
        return self.tokens(acoustic, semantic)[0], new


class Shaper(Causal):
    """The end of a decoder: two filters a hop, one for pulses at a pitch (size and phase) and one for noise (size), and the sources they shape."""

    def __init__(self, cfg: CodecConfig) -> None:
        super().__init__()
        c = cfg.channels
        self.channels = c
        self.norm = nn.LayerNorm(cfg.dim)
        self.source = Source()
        self.from_dim = nn.Linear(cfg.dim, 2 * c * BANDS)
        self.up = nn.Sequential(nn.SiLU(), nn.ConvTranspose1d(2 * c, c, 4, 2, 1), FreqConv(c, c))
        self.tail = nn.ConvTranspose1d(c, HOPS_PER_FRAME * 4, 8, 4, 2)
        with torch.no_grad():
            assert self.tail.bias is not None
            self.tail.bias.zero_()
            self.tail.bias[0::4] = self.tail.bias[3::4] = -1.5  # log of a quiet compressed magnitude

    def _filters(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, dim] behind the norm → filters of pulses [B, hops, 160, 2], of noise [B, hops, 160, 1]."""
        b, t, _ = h.shape
        u = self.from_dim(h).view(b * t, 2 * self.channels, BANDS)
        o = self.tail(self.up(u)).float().view(b, t, HOPS_PER_FRAME, 4, CORE_BINS).permute(0, 1, 2, 4, 3)
        o = o.reshape(b, t * HOPS_PER_FRAME, CORE_BINS, 4)
        size = (o[..., 0::3].clamp(-4.0, 1.5) / POWER).exp()
        turn = torch.stack([1 + o[..., 1], o[..., 2]], -1)
        turn = turn * (turn.square().sum(-1, keepdim=True) + 1e-6).rsqrt()
        return size[..., :1] * turn, size[..., 1:]

    def _shaped(self, source: Tensor, voice: Tensor, noise: Tensor) -> Tensor:
        return centred(complex_mul(voice, source[:, :, 0]) + noise * source[:, :, 1])


class Decoder(Shaper):
    """Two vectors a frame, as the quantisers give them out, [B, frames, 2 dim] → [B, hops, 160, 2] spectrum, by way of the pitch and the filters."""

    def __init__(self, cfg: CodecConfig) -> None:
        super().__init__(cfg)
        self.inp = nn.Linear(2 * cfg.dim, cfg.dim)
        self.stack = Stack(cfg.dim, cfg.kernel, cfg.decoder_blocks)
        self.pitch, self.pitch_now = nn.Linear(cfg.dim, HOPS_PER_FRAME), nn.Linear(2 * cfg.dim, HOPS_PER_FRAME)

    def init_state(self, batch: int) -> State:
        return self.stack.init_state(batch) | scoped("source", self.source.init_state(batch))

    def _told(self, h: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, dim] behind the stack, [B, T, 2 dim] before it → pitch [B, hops] Hz, filters of pulses [B, hops, 160, 2], of noise [B, hops, 160, 1]."""
        h = self.norm(h)
        hz = LOWEST_HZ * (math.log(HIGHEST_HZ / LOWEST_HZ) * torch.sigmoid((self.pitch(h) + self.pitch_now(x)).float())).exp()
        return hz.view(h.shape[0], -1), *self._filters(h)

    def spectrum_and_pitch(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`forward`, and the pitch [B, hops] in Hz, with a gradient."""
        hz, voice, noise = self._told(self.stack(self.inp(x)), x)
        return self._shaped(self.source(hz), voice, noise), hz

    def forward(self, x: Tensor) -> Tensor:
        return self.spectrum_and_pitch(x)[0]

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        h, new = self.stack.step(self.inp(x), {k: v for k, v in state.items() if not k.startswith("source.")})
        hz, voice, noise = self._told(h, x)
        source, s = self.source.step(hz, within("source", state))
        new |= scoped("source", s)
        return self._shaped(source, voice, noise), {k: new[k] for k in state}


class Codec(Causal):
    """x: [B, hops, 160, 2] float32 spectrum (hops even) → same shape, through tokens.

    State: `encoder.*` and `decoder.*`; the two halves run without each other, on two machines.
    """

    step_size = HOPS_PER_FRAME

    def __init__(self, cfg: CodecConfig) -> None:
        super().__init__()
        self.cfg = cfg.validate()
        self.encoder, self.decoder = Encoder(cfg), Decoder(cfg)
        # no part of the codec: what the semantic tokens up to now tell of the teacher's features
        self.teach = nn.Sequential(nn.Linear(cfg.dim, TELLING_DIM), Stack(TELLING_DIM, cfg.kernel, TELLING_BLOCKS), nn.Linear(TELLING_DIM, cfg.teacher_dim))

    def init_state(self, batch: int) -> State:
        return {**scoped("encoder", self.encoder.init_state(batch)), **scoped("decoder", self.decoder.init_state(batch))}

    def vectors(self, tokens: Tensor) -> Tensor:
        """[B, frames, 1 + layers] int64 → [B, frames, 2 dim]; -1: a token that was not sent."""
        s, e = tokens[..., :1], self.encoder
        return torch.cat([e.semantic_vq.decode(s), e.acoustic_vq.decode(tokens[..., 1:], e.guessed(s))], -1)

    def taught(self, tokens: Tensor) -> Tensor:
        """What the semantic tokens tell of the teacher's features: [B, frames, 1 + layers] → [B, frames, teacher_dim]."""
        y: Tensor = self.teach(self.encoder.semantic_vq.decode(tokens[..., :1]))
        return y

    def encode_step(self, x: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """One frame: (tokens [B, 1, 1 + layers], semantic vector [B, 1, code_dim], new encoder state)."""
        acoustic, semantic, new = self.encoder.features_step(x, state)
        return *self.encoder.tokens(acoustic, semantic), new

    def decode_step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """One frame: [B, 1, 1 + layers] → ([B, 2, 160, 2] spectrum, new decoder state)."""
        return self.decoder.step(self.vectors(tokens), state)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.decoder(self.vectors(self.encoder(x)))
        return y

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        tokens, _, e = self.encode_step(x, within("encoder", state))
        y, d = self.decode_step(tokens, within("decoder", state))
        return y, {**scoped("encoder", e), **scoped("decoder", d)}
