"""What the codec's semantic token is also trained to tell, by a linear layer each (supervision by primitives, SAP, of UniAudio-Token), in training alone.

content: which cluster the teacher's features of the frame fall in (as the units of HuBERT, Hsu et al. 2021), where somebody speaks; pitch: of four ranges,
where there is a voice; energy: of four levels below the loudest of the clip; scene: what is heard beside the talker. `probe_codec` asks for the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .pitch import pitch
from .teach import FRAME, speaks

NONE = -1  # this frame says nothing about this question
PITCH_EDGES_HZ = (120.0, 170.0, 220.0)
ENERGY_EDGES_DB = (-40.0, -20.0, -10.0)
SCENES = ("clean", "noise", "music", "reverberation")
UNITS = 100
ROUNDS = 25  # of k-means
FIT_FRAMES = 20_000
QUESTIONS = {"content": UNITS, "pitch": len(PITCH_EDGES_HZ) + 1, "energy": len(ENERGY_EDGES_DB) + 1, "scene": len(SCENES)}


@dataclass
class Described:
    """Of clean speech, a frame of 20 ms each: hz [hops] float32, pitch and energy classes [frames] int64 (NONE: no voice), speaks [frames] bool."""

    hz: np.ndarray
    pitch: np.ndarray
    energy: np.ndarray
    speaks: np.ndarray


def describe(x: np.ndarray) -> Described:
    """x: [samples] at 16 kHz"""
    n, hz = len(x) // FRAME, pitch(x)
    middle = hz[1 : 2 * n : 2]  # the hop in the middle of the frame
    power = (x[: n * FRAME].reshape(n, FRAME) ** 2).mean(1) + 1e-10
    energy = np.searchsorted(ENERGY_EDGES_DB, 10 * np.log10(power / power.max()))
    return Described(hz, np.where(middle > 0, np.searchsorted(PITCH_EDGES_HZ, middle), NONE), energy, speaks(x))


def nearest(x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """[n, dim], [clusters, dim] → index [n]"""
    found: np.ndarray = ((centres**2).sum(1) - 2 * x @ centres.T).argmin(1)
    return found


def clusters(x: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """Lloyd's k-means: [frames, dim] → centres [n, dim]."""
    rng = np.random.default_rng(seed)
    centres = x[rng.choice(len(x), n, replace=False)].copy()
    for _ in range(ROUNDS):
        own = nearest(x, centres)
        for i in range(n):
            centres[i] = x[own == i].mean(0) if (own == i).any() else x[rng.integers(len(x))]
    return centres


class Primitives(nn.Module):
    """A linear layer for every question. s: [B, frames, dim] out of the semantic token alone → loss and, for the log, the share of right answers."""

    def __init__(self, dim: int, teacher_dim: int) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(dim, classes) for name, classes in QUESTIONS.items()})
        self.register_buffer("centres", torch.zeros(UNITS, teacher_dim))
        self.centres: Tensor

    def begin(self, frames: np.ndarray) -> None:
        """Find the clusters among the teacher's features [n, teacher_dim]."""
        rng = np.random.default_rng(0)
        some = frames[np.sort(rng.choice(len(frames), min(FIT_FRAMES, len(frames)), replace=False))].astype(np.float32)
        self.centres.copy_(torch.from_numpy(clusters(some, min(UNITS, len(some)))))

    def content(self, features: Tensor, known: Tensor, lag: int) -> Tensor:
        """The teacher's features [B, T, teacher_dim] and where they are to be told [B, T] → cluster or NONE, `lag` frames later [B, T]."""
        unit = (self.centres.square().sum(1) - 2 * features @ self.centres.t()).argmin(-1)
        unit = torch.where(known, unit, NONE)
        return nn.functional.pad(unit[:, : unit.shape[1] - lag], (lag, 0), value=NONE)

    def forward(self, s: Tensor, answers: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """answers: [B, frames] int64, NONE where nothing is asked. → (sum of the cross-entropies, each against that of a guess; parts)"""
        loss, parts = s.new_zeros(()), {}
        for name, head in self.heads.items():
            answer = answers[name]
            asked = answer != NONE
            if asked.any():
                told = head(s[asked])
                loss = loss + cross_entropy(told, answer[asked]) / float(np.log(QUESTIONS[name]))
                parts[f"right_{name}"] = (told.argmax(-1) == answer[asked]).float().mean().item()
        return loss, parts
