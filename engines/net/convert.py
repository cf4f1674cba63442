"""The voice converter: what is said, the melody and the loudness from one talker, the voice from another's voiceprint; in time with the input.

    X ─► the codec's layers before its quantisers ─► content (2 × 16 numbers a frame) ───────────────► decoder, turned by the voice ─► pulses, noise ─► Y
                         ├─► ear ─► pitch, voiced ─► minus this talker's mean, plus the other's ───────►┤  └─────────── at that pitch ────────┘
                         ├─► level ────────────────────────────────────────────────────────────────────►┘
                         └─► own voice, running mean ─► mixed with the other's, by the strength

Content is kept free of the voice by what the converter is trained on (tools.train_convert): speech whose pitch and formants were moved, to be given back as
it was. All layers are causal, there is no look-ahead: the delay is the spine's 30 ms.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..config import HOPS_PER_FRAME
from ..convert_config import ConvertConfig
from .causal import Causal, State, scoped, within
from .codec import PITCH_FINE, Analysis, Shaper
from .codec_blocks import Stack
from .codec_source import LAGS, Salience, lag_octaves
from .scan import linear_scan

TOLD_LEVEL = 0.0143  # every talker is heard, and speaks, at the level of speech at -20 dB; what comes out is brought to the input's level
NEAR_BINS = 4  # around the most likely of the 96 pitches: what the pitch is the mean of
RANGE_OCTAVES = 0.5  # of one talker, about the mean: what is an octave away is less likely
RANGE_HOPS = 100.0  # of voice, until that mean is half believed
START_HOPS = 5.0  # of voice that the mean begins with: at what is heard now
FAR_OCTAVES, FAR_WEIGHT, SETTLED_HOPS = 0.25, 0.1, 20.0  # what is so far from the mean counts less in it, once so much voice was heard
FORGET = 0.999  # a hop of voice: the mean is over some 10 s of it; in a pause nothing is forgotten
SILENT = 0.01  # of the level: a hop that is 40 dB below it, as no pause in a room is, and all quieter ones come out so much quieter, too
TARGET = ("target.voice", "target.octave", "target.amount")  # of the state: what says whom to speak as


class Range(Causal):
    """The pitch of one talker, and where it lies. x: [B, hops, 97], log-probabilities of the pitch and how surely there is a voice, 0 to 1 (hops even) →
    [B, hops, 2]: pitch, and this talker's mean so far; log2 of Hz.

    State `sums`: [B, 2], of voice, and of the pitch weighed by it. No gradient passes.
    """

    step_size = HOPS_PER_FRAME

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("octaves", lag_octaves(), persistent=False)
        self.octaves: Tensor

    def init_state(self, batch: int) -> State:
        return {"sums": torch.zeros(batch, 2)}

    def _next(self, x: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        """x: [B, 97] of one hop → ([B, 2], sums)"""
        guess, voiced = x[:, :LAGS], x[:, LAGS:]
        weight, total = sums[:, :1], sums[:, 1:]
        off = (self.octaves - total / weight.clamp_min(1e-6)) / RANGE_OCTAVES
        guess = guess - 0.5 * off.square() * weight / (weight + RANGE_HOPS)
        best = self.octaves[guess.argmax(-1)][:, None]
        near = guess.softmax(-1) * ((self.octaves - best).abs() < (NEAR_BINS + 0.5) * (self.octaves[1] - self.octaves[0]))
        pitch = (near * self.octaves).sum(-1, keepdim=True) / near.sum(-1, keepdim=True)
        far = ((pitch - total / weight.clamp_min(1e-6)).abs() > FAR_OCTAVES) & (weight > SETTLED_HOPS)
        sure = voiced.square() * torch.where(far, FAR_WEIGHT, 1.0)
        sums = FORGET**sure * sums + torch.cat([sure, sure * pitch], -1)
        mean = (sums[:, 1:] + START_HOPS * pitch) / (sums[:, :1] + START_HOPS)
        return torch.cat([pitch, mean], -1), sums

    def _run(self, x: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        out = []
        for t in range(x.shape[1]):
            y, sums = self._next(x[:, t], sums)
            out.append(y)
        return torch.stack(out, 1), sums

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self._run(x, torch.zeros_like(x[:, 0, :2]))[0]

    @torch.no_grad()
    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, sums = self._run(x, state["sums"])
        return y, {"sums": sums}


class Narrow(nn.Module):
    """[B, T, dim] → [B, T, content_dim], every number with mean 0 and spread 1."""

    def __init__(self, dim: int, content_dim: int) -> None:
        super().__init__()
        self.norm, self.out = nn.LayerNorm(dim), nn.Linear(dim, content_dim)
        self.spread = nn.BatchNorm1d(content_dim, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.spread(self.out(self.norm(x)).float().transpose(1, 2)).transpose(1, 2)
        return y


class Speaker(Shaper):
    """Content, pitch and voicing → spectrum in a voice: the codec's decoder, whose layers the voice turns (FiLM, Perez et al. 2018).

    x: [B, T, 2 content_dim + 4], voice: [B, T or 1, voice_dim], hz: [B, hops] → [B, hops, 160, 2].
    """

    def __init__(self, cfg: ConvertConfig) -> None:
        super().__init__(cfg.codec)
        self.blocks, self.dim = cfg.decoder_blocks, cfg.dim
        self.inp = nn.Linear(2 * cfg.content_dim + 2 * HOPS_PER_FRAME, cfg.dim)
        self.stack = Stack(cfg.dim, cfg.kernel, cfg.decoder_blocks)
        self.turn = nn.Sequential(nn.Linear(cfg.voice_dim, cfg.turn_dim), nn.SiLU(), nn.Linear(cfg.turn_dim, 2 * cfg.decoder_blocks * cfg.dim))
        nn.init.normal_(self.turn[2].weight, std=0.01)  # type: ignore[arg-type]
        nn.init.zeros_(self.turn[2].bias)  # type: ignore[arg-type]

    def init_state(self, batch: int) -> State:
        return self.stack.init_state(batch) | scoped("source", self.source.init_state(batch))

    def _turned(self, voice: Tensor) -> Tensor:
        """→ [B, T, 2 blocks, dim]"""
        y: Tensor = self.turn(voice)
        return y.view(*voice.shape[:2], 2 * self.blocks, self.dim)

    def speak(self, x: Tensor, voice: Tensor, hz: Tensor) -> Tensor:
        turn, h = self._turned(voice), self.inp(x)
        for i, (memory, conv) in enumerate(zip(self.stack.memory, self.stack.conv, strict=True)):
            h = conv(memory(h[:, :, None])[:, :, 0])
            h = h + h * turn[:, :, 2 * i] + turn[:, :, 2 * i + 1]
        return self._shaped(self.source(hz), *self._filters(self.norm(h)))

    def speak_step(self, x: Tensor, voice: Tensor, hz: Tensor, state: State) -> tuple[Tensor, State]:
        turn, h = self._turned(voice), self.inp(x)
        new: State = {}
        for i, (memory, conv) in enumerate(zip(self.stack.memory, self.stack.conv, strict=True)):
            g, m = memory.step(h[:, :, None], within(f"memory{i}", state))  # type: ignore[operator]
            h, c = conv.step(g[:, :, 0], within(f"conv{i}", state))  # type: ignore[operator]
            h = h + h * turn[:, :, 2 * i] + turn[:, :, 2 * i + 1]
            new |= scoped(f"memory{i}", m) | scoped(f"conv{i}", c)
        source, s = self.source.step(hz, within("source", state))
        new |= scoped("source", s)
        return self._shaped(source, *self._filters(self.norm(h))), {k: new[k] for k in state}


class Understood(NamedTuple):
    """Of a sound: content [B, T, 2 content_dim]; log-probabilities of the pitch [B, hops, 96] and of a voice [B, hops] (logit); what every frame tells of
    the own voice [B, T, voice_dim]; level [B, hops]."""

    content: Tensor
    ear: Tensor
    voiced: Tensor
    own: Tensor
    level: Tensor


class Converter(Causal):
    """x: [B, hops, 160, 2] float32 spectrum (hops even) → same shape, in the target's voice.

    State: what the parts remember, and `TARGET`: the target's voice [B, voice_dim], its mean pitch [B, 1] (log2 of Hz), and how far to go there [B, 1] (0: the
    talker's own voice and pitch, as heard so far; 1: the target's). These three no step changes; a fresh state has no target and the amount 0.
    """

    step_size = HOPS_PER_FRAME

    def __init__(self, cfg: ConvertConfig) -> None:
        super().__init__()
        self.cfg = cfg.validate()
        self.hear = Analysis(cfg.codec, TOLD_LEVEL)
        self.said, self.sounded = Narrow(cfg.dim, cfg.content_dim), Narrow(cfg.dim, cfg.content_dim)
        self.voicing = nn.Sequential(nn.Linear(Salience.size, 96), nn.LayerNorm(96), nn.SiLU(), nn.Linear(96, HOPS_PER_FRAME))
        self.range = Range()
        self.own = nn.Linear(cfg.dim, cfg.voice_dim)
        self.speaker = Speaker(cfg)
        octaves = lag_octaves()
        self.lowest, self.highest, self.middle = float(octaves[0]), float(octaves[-1]), float(octaves.mean())

    def init_state(self, batch: int) -> State:
        return {
            **scoped("hear", self.hear.init_state(batch)),
            **scoped("range", self.range.init_state(batch)),
            "own": torch.zeros(batch, self.cfg.voice_dim),
            **scoped("speaker", self.speaker.init_state(batch)),
            "target.voice": torch.zeros(batch, self.cfg.voice_dim),
            "target.octave": torch.zeros(batch, 1),
            "target.amount": torch.zeros(batch, 1),
        }

    def _understood(self, h: tuple[Tensor, ...]) -> Understood:
        acoustic, semantic, _, pitch, salience, level = h
        content = torch.cat([self.said(semantic), self.sounded(acoustic)], -1)
        return Understood(content, pitch.flatten(1, 2), self.voicing(salience).float().flatten(1), self.own(acoustic.detach()).float(), level)

    def understand(self, x: Tensor) -> Understood:
        """What `forward` makes of the input before it speaks."""
        return self._understood(self.hear.heard(x))

    def _aims(self, u: Understood, pitch: Tensor, own: Tensor, target: State) -> tuple[Tensor, Tensor]:
        """pitch: [B, hops, 2] of `Range`, own: [B, T, voice_dim] sums so far → (pitch to speak at [B, hops], voice to speak in [B, T, voice_dim])"""
        amount = target["target.amount"]
        octave = pitch[..., 0] + amount * (target["target.octave"] - pitch[..., 1])
        voice = torch.lerp(normalize(own, dim=-1), normalize(target["target.voice"], dim=-1)[:, None], amount[:, None])
        return octave.clamp(self.lowest, self.highest), normalize(voice, dim=-1) * self.cfg.voice_dim**0.5

    def _told(self, content: Tensor, octave: Tensor, voiced: Tensor) -> Tensor:
        """What the speaker is told of every frame."""
        b, t = content.shape[:2]
        pitch = PITCH_FINE * (octave - self.middle).view(b, t, -1)
        return torch.cat([content, pitch, voiced.view(b, t, -1)], -1)

    @staticmethod
    def _open(x: Tensor, level: Tensor) -> Tensor:
        """Where there is no sound nobody speaks, however loud it was before. → [B, hops], 0 to 1"""
        power = x.detach().square().sum(-1).mean(-1)
        return (power.sqrt() / (SILENT * level.detach())).clamp(max=1.0)

    def speak(self, content: Tensor, octave: Tensor, voiced: Tensor, voice: Tensor, level: Tensor) -> Tensor:
        """content: [B, T, 2 content_dim]; octave [B, hops], log2 of Hz; voiced: [B, hops], 0 to 1; voice: [B, T or 1, voice_dim]; level: [B, hops] →
        [B, hops, 160, 2]."""
        y = self.speaker.speak(self._told(content, octave, voiced), voice, octave.exp2())
        return y * (level / TOLD_LEVEL)[..., None, None]

    @staticmethod
    def _weight(voiced: Tensor, frames: int) -> Tensor:
        """How much a frame says about the own voice: [B, hops] logits → [B, T, 1]."""
        return voiced.sigmoid().view(voiced.shape[0], frames, -1).mean(-1, keepdim=True)

    def forward(self, x: Tensor, target: State | None = None) -> Tensor:
        """target: `TARGET` of a state; None: none."""
        target = target or {k: v.to(x) for k, v in self.init_state(len(x)).items() if k in TARGET}
        u = self.understand(x)
        voiced = u.voiced.sigmoid()
        pitch = self.range(torch.cat([u.ear, voiced[..., None]], -1))
        weight = self._weight(u.voiced, u.own.shape[1])
        heard = weight * u.own
        sums = linear_scan((FORGET ** (HOPS_PER_FRAME * weight)).expand_as(heard).contiguous(), heard, torch.zeros_like(heard[:, 0]))
        octave, voice = self._aims(u, pitch, sums, target)
        return self.speak(u.content, octave, voiced, voice, u.level * self._open(x, u.level))

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        h, hear = self.hear.heard_step(x, within("hear", state))
        u = self._understood(h)
        voiced = u.voiced.sigmoid()
        pitch, rng = self.range.step(torch.cat([u.ear, voiced[..., None]], -1), within("range", state))
        weight = self._weight(u.voiced, 1)
        own = FORGET ** (HOPS_PER_FRAME * weight[:, 0]) * state["own"] + (weight * u.own)[:, 0]
        octave, voice = self._aims(u, pitch, own[:, None], state)
        y, speaker = self.speaker.speak_step(self._told(u.content, octave, voiced), voice, octave.exp2(), within("speaker", state))
        new = scoped("hear", hear) | scoped("range", rng) | {"own": own} | scoped("speaker", speaker)
        return y * (u.level * self._open(x, u.level) / TOLD_LEVEL)[..., None, None], {k: new.get(k, v) for k, v in state.items()}
