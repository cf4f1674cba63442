"""Talkers for the tasks that know a voice: two separate recordings of one person, and mixtures of several people.

Few people are in the cache with more than one long recording, so a person's recordings are joined and cut in two: one part to enrol, one to hear. Half of
all people drawn are changed in speed, pitch and formants together, and half, by a draw of its own, in formants alone, both parts alike: another talker for
the model's ears. Who was chosen for being like somebody is changed as that one is, or would be so no more.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import soxr

from . import degrade
from .disguise import warp
from .mixer import Example, Mixer, Rng, recording_gain

LEAST_SECONDS = 2.5  # of one person: an enrolment and something to hear
FORMANT_OCTAVES = 0.12  # at most, besides what speed does: a throat longer or shorter by a twelfth
Span = tuple[int, int]
Changed = tuple[float, float]  # speed, and octaves that formants are moved by besides


class Talkers(Mixer):
    """Draws (mixture, target, enrolment) for the task `extract`, and pairs of recordings for the voice encoder."""

    def __init__(self, cache: Path, seed: int, batch: int, seconds: float, enrol_seconds: float = 3.0) -> None:
        super().__init__(cache, seed, batch, seconds)
        self.enrol_samples = int(enrol_seconds * self.rate) // (self.rate // 50) * (self.rate // 50)
        least = int(LEAST_SECONDS * self.rate)
        long = [[p for p in group if sum(n for _, n in p) >= least] for group in self.groups]
        kept = [i for i, people in enumerate(long) if people]
        if sum(len(long[i]) for i in kept) < 2:
            raise ValueError(f"the cache holds fewer than two people with {LEAST_SECONDS} s of speech; pack more with tools.prepare")
        self.people = [long[i] for i in kept]
        # people count here, not hours: a group of one person is one voice, however long it speaks
        weight = np.array([len(p) ** 0.75 * np.mean([min(10 * self.rate, sum(n for _, n in q)) for q in p]) for p in self.people])
        self.people_chance = weight / weight.sum()
        self.voices: list[np.ndarray] = []
        self.hard, self.of = 0.0, 1

    def meet(self, voice: Callable[[np.ndarray], np.ndarray], hard: float = 0.5, of: int = 8) -> None:
        """voice: [n, enrol_samples] → [n, dim] of length one. From now on the share `hard` of those who are put beside somebody are the most alike of `of`."""
        self.hard, self.of = hard, of
        rng = np.random.default_rng(self.seed)
        n = self.enrol_samples

        def heard(clips: list[Span]) -> np.ndarray:
            order = [clips[i] for i in rng.permutation(len(clips))[:8]]
            return self._gather(rng, order, 0, sum(m for _, m in order), n, 1.0)

        self.voices = [np.concatenate([voice(np.stack([heard(p) for p in people[i : i + 16]])) for i in range(0, len(people), 16)]) for people in self.people]

    def another(self, rng: Rng, people: list[tuple[int, int]]) -> tuple[tuple[int, int], bool]:
        """Somebody who is not among `people`, often the one of several whose voice is most like the last one's; and whether it is."""
        drawn: list[tuple[int, int]] = []
        many = self.of if self.voices and rng.random() < self.hard else 1
        for _ in range(1000):
            if (who := self.person(rng)) not in people:
                drawn.append(who)
            if len(drawn) == many:
                break
        if not drawn:
            raise ValueError("the cache holds too few people for a scene of three; pack more with tools.prepare")
        if many == 1:
            return drawn[0], False
        group, member = people[-1]
        return max(drawn, key=lambda who: float(self.voices[who[0]][who[1]] @ self.voices[group][member])), True

    def person(self, rng: Rng) -> tuple[int, int]:
        group = int(rng.choice(len(self.people), p=self.people_chance))
        return group, int(rng.integers(len(self.people[group])))

    def change(self, rng: Rng) -> Changed:
        """What makes of somebody somebody else."""
        speed = 2 ** rng.uniform(-0.25, 0.25) if rng.random() < 0.5 else 1.0
        return speed, rng.uniform(-FORMANT_OCTAVES, FORMANT_OCTAVES) if rng.random() < 0.5 else 0.0

    def two_parts(self, rng: Rng, person: tuple[int, int], first: int, second: int, changed: Changed) -> tuple[np.ndarray, np.ndarray]:
        """Two pieces of one person's speech that share no sample of the cache, [first] and [second] samples, repeated where there is less."""
        clips = self.people[person[0]][person[1]]
        speed, octaves = changed
        order = [clips[i] for i in rng.permutation(len(clips))[:8]]
        total, need_first, need_second = sum(n for _, n in order), int(first * speed), int(second * speed)
        if total < 2 * (need_first + need_second):
            cut = total * first // (first + second)
        else:
            cut = int(rng.integers(need_first, total - need_second))
        parts = self._gather(rng, order, 0, cut, first, speed), self._gather(rng, order, cut, total, second, speed)
        if octaves:
            parts = warp(parts[0], octaves).astype(np.float32), warp(parts[1], octaves).astype(np.float32)
        return parts

    def _gather(self, rng: Rng, clips: list[Span], low: int, high: int, n: int, speed: float) -> np.ndarray:
        """n samples out of [low, high) of the clips laid end to end."""
        need = min(high - low, int(n * speed) + 64)
        low += int(rng.integers(0, high - low - need + 1))
        pieces, at = [], 0
        for start, m in clips:
            a, b = max(low, at), min(low + need, at + m)
            if a < b:
                pieces.append(self._clip(start + a - at, b - a))
            at += m
        x = np.concatenate(pieces)
        if speed != 1.0:
            x = soxr.resample(x, speed, 1.0, "MQ").astype(np.float32)
        gap = np.zeros(int(rng.uniform(0.05, 0.4) * self.rate), np.float32)
        while len(x) < n:
            x = np.concatenate([x, gap, x])
        return x[:n]

    def room(self, rng: Rng) -> np.ndarray:
        if self.pools["rir"] and rng.random() < 0.35:
            start, m = self.pools["rir"][rng.integers(len(self.pools["rir"]))]
            return degrade.recorded_room(self._clip(start, m), rng)
        return degrade.synthetic_room(rng, self.rate)

    def enrolment(self, rng: Rng, x: np.ndarray) -> np.ndarray:
        """What a person records to be known by: another microphone, some room, some noise."""
        x = degrade.equalise(rng, x, self.rate, 4)
        if rng.random() < 0.3:
            x = degrade.convolve(x, self.room(rng))
        noise = self.some_noise(rng, len(x)) if rng.random() < 0.5 else rng.standard_normal(len(x)).astype(np.float32)
        return x + noise * np.float32(_loud(x) / max(1e-5, float(np.sqrt((noise**2).mean()))) * 10 ** (-rng.uniform(8, 35) / 20))

    def some_noise(self, rng: Rng, n: int) -> np.ndarray:
        noise = self.noise(rng, "noise" if rng.random() < 0.6 else "made")
        return np.tile(noise, -(-n // len(noise)))[:n]

    def talker(self, rng: Rng, who: tuple[int, int], reverberant: bool, changed: Changed) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(enrolment [enrol_samples], what is heard of that person [samples], what is wanted of it [samples])"""
        enrol, x = self.two_parts(rng, who, self.enrol_samples, self.n, changed)
        x = degrade.equalise(rng, x, self.rate, 4)
        if not reverberant:
            return enrol, x, x
        h = self.room(rng)
        return enrol, degrade.convolve(x, h), degrade.convolve(x, degrade.early_part(h, self.rate))

    def scene(self, rng: Rng) -> list[Example]:
        """One mixture, one of its talkers, and often another one too: [(mixture [samples], target [samples], enrolment [enrol_samples])], float32.

        Sometimes the talker says nothing, sometimes nobody else does. The same mixture with two enrolments shows what an enrolment is for.
        """
        people = [self.person(rng)]
        reverberant, changed = rng.random() < 0.4, self.change(rng)
        enrol, wet, target = self.talker(rng, people[0], reverberant, changed)
        loud = _loud(target)
        kind = rng.random()
        mix = wet.copy()
        if kind < 0.25:
            mix, target = mix * 0, target * 0
        known = [(target, enrol)]
        for _ in range(0 if kind > 0.9 else 1 if rng.random() < 0.85 else 2):
            other, alike = self.another(rng, people)
            people.append(other)
            changed = changed if alike else self.change(rng)
            enrol, wet, target = self.talker(rng, other, reverberant, changed)
            sir_db = rng.uniform(-5, 5) if rng.random() < 0.85 else rng.uniform(5, 20)
            gain = np.full(self.n, loud / _loud(wet) * 10 ** (-sir_db / 20), np.float32)
            if rng.random() < 0.3:  # begins later or stops earlier
                at = int(rng.integers(self.n))
                gain[slice(at) if rng.random() < 0.5 else slice(at, None)] = 0
            mix += wet * gain
            if sir_db < 5:
                known.append((target * gain, enrol))
        if rng.random() < 0.6:
            y = self.some_noise(rng, self.n)
            mix += y * np.float32(loud / max(1e-5, float(np.sqrt((y**2).mean()))) * 10 ** (-rng.uniform(3, 30) / 20))
        mix += rng.standard_normal(self.n).astype(np.float32) * np.float32(loud * 10 ** (-rng.uniform(35, 70) / 20))
        scale = recording_gain(rng, mix)
        rows = []
        for target, enrol in known[: 2 if rng.random() < 0.7 else 1]:
            enrol = self.enrolment(rng, enrol)
            rows.append((mix * scale, target * scale, (enrol * np.float32(0.3 / max(1e-4, float(np.abs(enrol).max())))).astype(np.float32)))
        return rows

    def extraction_batch(self, i: int) -> Example:
        """Batch i of mixtures, targets, enrolments, one an example in every row."""
        return self.filled(self.scene, np.random.default_rng([self.seed, i, 1]))

    def two(self, rng: Rng) -> Example:
        """(mixture [samples], [2, samples] targets): two talkers about as loud, in any order; one of them may say nothing, begin later or stop earlier."""
        people = [self.person(rng)]
        other, alike = self.another(rng, people)
        people.append(other)
        reverberant, changed = rng.random() < 0.3, self.change(rng)
        targets, mix, loud = np.zeros((2, self.n), np.float32), np.zeros(self.n, np.float32), 0.0
        for i, who in enumerate(people[: 1 if rng.random() < 0.06 else 2]):
            changed = changed if alike else self.change(rng)
            _, wet, target = self.talker(rng, who, reverberant, changed)
            level_db = rng.uniform(-5, 5) if i else 0.0
            gain = np.full(self.n, (loud or _loud(target)) / _loud(target) * 10 ** (level_db / 20), np.float32)
            loud = loud or _loud(target)
            if rng.random() < 0.15:
                at = int(rng.integers(self.n))
                gain[slice(at) if rng.random() < 0.5 else slice(at, None)] = 0
            mix, targets[i] = mix + wet * gain, target * gain
        if rng.random() < 0.35:
            y = self.some_noise(rng, self.n)
            mix = mix + y * np.float32(loud / max(1e-5, float(np.sqrt((y**2).mean()))) * 10 ** (-rng.uniform(8, 30) / 20))
        mix = mix + rng.standard_normal(self.n).astype(np.float32) * np.float32(loud * 10 ** (-rng.uniform(35, 70) / 20))
        scale = recording_gain(rng, mix)
        return mix * scale, rng.permutation(targets) * scale

    def separation_batch(self, i: int) -> Example:
        """Batch i of mixtures [batch, samples] and of both talkers in them [batch, 2, samples]."""
        return self.filled(lambda rng: [self.two(rng)], np.random.default_rng([self.seed, i, 4]))

    def likeness_batch(self, i: int, people: int) -> tuple[np.ndarray, np.ndarray]:
        """[2, people, enrol_samples]: two recordings each of `people` different talkers, and the same before microphone, room and noise."""
        if people > (there := sum(len(group) for group in self.people)):
            raise ValueError(f"the cache holds {there} people, not {people}; take fewer at a time (people), or pack more with tools.prepare")
        rng = np.random.default_rng([self.seed, i, 2])
        chosen: dict[tuple[int, int], np.ndarray] = {}
        clean = []
        while len(chosen) < people:
            who = self.person(rng)
            if who not in chosen:
                a, b = self.two_parts(rng, who, self.enrol_samples, self.enrol_samples, self.change(rng))
                clean.append(np.stack([a, b]))
                chosen[who] = np.stack([self.enrolment(rng, a), self.enrolment(rng, b)])
        return np.stack(list(chosen.values()), 1), np.stack(clean, 1)


def _loud(x: np.ndarray) -> float:
    """Rough active level."""
    a = np.abs(x)
    return float(np.sqrt((x[a > 0.1 * a.max()] ** 2).mean() + 1e-10)) * 0.7 if a.max() > 0 else 1e-5
