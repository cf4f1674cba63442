"""What the voice converter is trained on: a talker in disguise, that talker, and another recording of the same person to know the voice by."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from . import degrade
from .disguise import disguise
from .mixer import Rng, recording_gain
from .pitch import pitch
from .talkers import Talkers

UNDISGUISED = 0.15  # share of the examples


class ConvertMixer(Talkers):
    """`conversion_batch(i)` → what is heard [batch, samples], what is to be said [batch, samples], another recording of that talker through some microphone
    and as it was [batch, enrol_samples] each, pitch of what is to be said [batch, hops] Hz (0: no voice), by how many octaves what is heard is higher [batch].
    float32, aligned."""

    def __init__(self, cache: Path, seed: int, batch: int, seconds: float) -> None:
        super().__init__(cache, seed, batch, seconds)

    def conversion(self, rng: Rng) -> tuple[np.ndarray, ...]:
        own, x = self.two_parts(rng, self.person(rng), self.enrol_samples, self.n, self.change(rng))
        heard, octaves = (x, 0.0) if rng.random() < UNDISGUISED else disguise(rng, x)
        heard = degrade.equalise(rng, heard, self.rate, 5)
        if rng.random() < 0.2:
            heard = degrade.convolve(heard, self.room(rng))
        loud = float(np.sqrt((x**2).mean()))
        heard = heard * np.float32(loud / max(1e-5, float(np.sqrt((heard**2).mean()))))
        if rng.random() < 0.4:
            noise = self.some_noise(rng, self.n)
            heard = heard + noise * np.float32(loud / max(1e-5, float(np.sqrt((noise**2).mean()))) * 10 ** (-rng.uniform(8, 35) / 20))
        heard = heard + rng.standard_normal(self.n).astype(np.float32) * np.float32(loud * 10 ** (-rng.uniform(35, 70) / 20))
        gain = recording_gain(rng, heard)
        known = self.enrolment(rng, own) if rng.random() < 0.5 else own
        return (heard * gain).astype(np.float32), (x * gain).astype(np.float32), known.astype(np.float32), own, pitch(x), np.float32(octaves)

    def conversion_batch(self, i: int) -> tuple[np.ndarray, ...]:
        rng = np.random.default_rng([self.seed, i, 3])
        rows = []
        while len(rows) < self.size:
            row = self.conversion(rng)
            if (row[4] > 0).mean() > 0.1:  # somebody speaks
                rows.append(row)
        return tuple(np.stack(column) for column in zip(*rows, strict=True))
