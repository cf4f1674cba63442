"""Training pairs for the codec: the mixer's, beside each frame of speech what the teacher heard there, and what else is known of the pair."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .codec_primitives import SCENES, describe
from .mixer import Mixer, Rng
from .teach import DIM, FRAME, Teacher

CLEAN_DB = 15.0  # how far below the talker other sounds must be to go unnoticed
Spans = list[list[list[tuple[int, int]]]]  # [group][speaker][clip] → (start, samples)


class CodecMixer(Mixer):
    """`taught_batch(i)` → mixtures and targets [batch, samples] float32, features [batch, frames, 64] float16, known [batch, frames] bool,
    pitch [batch, hops] float32 Hz, 0 where there is no voice, and of the primitives (`codec_primitives`): classes of pitch and energy and whether somebody
    speaks [batch, frames, 3] int64, the scene of the mixture [batch] int64.

    Speech begins on frames here, so that the teacher's features fit exactly.
    """

    def __init__(self, cache: Path, seed: int, batch: int, seconds: float, teacher: Teacher | None, taught_share: float) -> None:
        super().__init__(cache, seed, batch, seconds)
        self.teacher, self.taught_share = teacher, taught_share
        known = teacher.clips if teacher else {}
        taught = [[[c for c in clips if c[0] in known] for clips in speakers] for speakers in self.groups]
        self.taught: Spans = [[clips for clips in speakers if clips] for speakers in taught]
        self.taught_chance = self.group_chance * np.array([len(g) > 0 for g in self.taught])
        if self.taught_chance.sum() > 0:
            self.taught_chance = self.taught_chance / self.taught_chance.sum()
        self._heard: list[tuple[np.ndarray, np.ndarray]] = []
        self._scene: set[str] = set()

    def speech(self, rng: Rng, good: bool = False) -> np.ndarray:
        """As `Mixer.speech`, but of all recordings: the codec has to say what is rated badly, too."""
        frames = self.n // FRAME
        x, features, known = np.zeros(self.n, np.float32), np.zeros((frames, DIM), np.float16), np.zeros(frames, bool)
        if self.taught_chance.sum() > 0 and rng.random() < self.taught_share:
            groups, chance = self.taught, self.taught_chance
        else:
            groups, chance = self.groups, self.group_chance
        for _ in range(5):
            group = groups[rng.choice(len(groups), p=chance)]
            clips = group[rng.integers(len(group))]
            at = 0 if rng.random() < 0.8 else int(rng.integers(frames // 3))
            x[:], known[:] = 0, False
            while at < frames:
                start, m = clips[rng.integers(len(clips))]
                skip = int(rng.integers(0, max(1, m // FRAME - frames // 2)))
                n = min(m // FRAME - skip, frames - at)
                if n <= 0:
                    break
                x[at * FRAME : (at + n) * FRAME] = self._clip(start + skip * FRAME, n * FRAME) * 10 ** (rng.normal(0, 1.5) / 20)
                if self.teacher and start in self.teacher.clips:
                    first, _ = self.teacher.clips[start]
                    features[at : at + n], known[at : at + n] = self.teacher.frames[first + skip : first + skip + n], True
                at += n + (int(rng.uniform(0.05, 0.6) * self.rate / FRAME) if rng.random() < 0.4 else 0)
            if (x**2).mean() > 1e-5:
                break
        self._heard.append((features, known))
        return x

    def noise(self, rng: Rng, kind: str) -> np.ndarray:
        self._scene.add("music" if kind == "music" else "noise")
        return super().noise(rng, kind)

    def room(self, rng: Rng) -> np.ndarray:
        self._scene.add("reverberation")
        return super().room(rng)

    def scene(self, mix: np.ndarray, target: np.ndarray) -> int:
        """What is heard most beside the talker, of the pair made last; a room where nothing else is."""
        left = float(((mix - target) ** 2).sum() / ((target**2).sum() + 1e-10))
        if left < 10 ** (-CLEAN_DB / 10):
            return SCENES.index("clean")
        kinds = [kind for kind in ("music", "noise", "reverberation") if kind in self._scene]
        return SCENES.index(kinds[0] if kinds else "noise")

    def taught_batch(self, i: int) -> tuple[np.ndarray, ...]:
        rng = np.random.default_rng([self.seed, i])
        rows = []
        for _ in range(self.size):
            self._heard.clear()
            self._scene.clear()
            mix, target = self.pair(rng)
            features, known = self._heard[0]  # the first talker drawn is the one to be understood; others are babble
            told = describe(target)
            primitives = np.stack([told.pitch, told.energy, told.speaks], 1)
            rows.append((mix, target, features, known & bool(np.any(target)), told.hz, primitives, np.int64(self.scene(mix, target))))
        return tuple(np.stack(column) for column in zip(*rows, strict=True))
