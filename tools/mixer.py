"""Degradations on the fly: pairs of (what a microphone hears, what we want to hear) from a packed cache.

`Mixer.batch(i)` is a pure function of (seed, i), so a run can stop and resume anywhere and two runs see the same data.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from . import degrade, sounds

Rng = np.random.Generator
Example = tuple[np.ndarray, ...]  # mixture, target or targets, what is known of the target
NOISE_KINDS = ("noise", "made", "music", "babble", "noise+made", "noise+noise", "babble+noise")
NOISE_CHANCE = (0.44, 0.22, 0.08, 0.08, 0.09, 0.06, 0.03)
MIN_SPEECH_SNR_DB = 20.0  # a target that is itself noisy teaches the wrong thing
MIN_RATING = 2.9  # so does one that sounds bad: OVRL of tools.rate; no clip is left out where nothing was rated
RATINGS = "ratings.json"
Groups = list[list[list[tuple[int, int]]]]  # of people of clips: (start, samples)


class Mixer:
    """Draws training pairs from the cache written by `tools.prepare`."""

    def __init__(self, cache: Path, seed: int, batch: int, seconds: float) -> None:
        meta = json.loads((cache / "index.json").read_text())
        self.rate: int = meta["rate"]
        self.pcm = np.load(cache / "pcm.npy", mmap_mode="r")
        self.seed, self.size, self.n = seed, batch, int(seconds * self.rate) // (self.rate // 50) * (self.rate // 50)
        pools: dict[str, list[tuple[int, int]]] = {"noise": [], "music": [], "rir": []}
        speech: dict[str, dict[str, list[tuple[int, int]]]] = {}
        for i in meta["items"]:
            span = (i["start"], i["samples"])
            if i["kind"] != "speech":
                pools[i["kind"]].append(span)
            elif i["snr_db"] >= MIN_SPEECH_SNR_DB and i["bandwidth_hz"] >= 6000:
                speech.setdefault(i["group"], {}).setdefault(i["speaker"], []).append(span)
        if not speech:
            raise ValueError(f"{cache}: no usable speech; pack some with: python -m tools.prepare speech=FOLDER …")
        self.pools = pools
        self.groups: Groups = [list(speakers.values()) for speakers in speech.values()]
        self.group_chance = _chance(self.groups)
        self.good, self.good_chance = self.groups, self.group_chance
        if (cache / RATINGS).exists():
            rated = json.loads((cache / RATINGS).read_text())
            kept = [[[clip for clip in person if rated.get(str(clip[0]), 0.0) >= MIN_RATING] for person in group] for group in self.groups]
            self.good = [people for group in kept if (people := [person for person in group if person])]
            if not self.good:
                raise ValueError(f"{cache}: no speech is rated {MIN_RATING} or better; pack better recordings, or remove {RATINGS}")
            self.good_chance = _chance(self.good)

    def _clip(self, start: int, n: int) -> np.ndarray:
        return self.pcm[start : start + n].astype(np.float32) / 32768

    def speech(self, rng: Rng, good: bool = False) -> np.ndarray:
        """One talker, sentences joined with natural gaps. good: of recordings that are rated well, as far as there are ratings."""
        groups, chance = (self.good, self.good_chance) if good else (self.groups, self.group_chance)
        x = np.zeros(self.n, np.float32)
        for _ in range(5):
            group = groups[rng.choice(len(groups), p=chance)]
            clips = group[rng.integers(len(group))]
            at = 0 if rng.random() < 0.8 else int(rng.integers(self.n // 3))
            x[:] = 0
            while at < self.n:
                start, m = clips[rng.integers(len(clips))]
                skip = int(rng.integers(0, max(1, m - self.n // 2)))
                part = self._clip(start + skip, min(m - skip, self.n - at))
                x[at : at + len(part)] = part * 10 ** (rng.normal(0, 1.5) / 20)
                at += len(part) + (int(rng.uniform(0.05, 0.6) * self.rate) if rng.random() < 0.4 else 0)
            if (x**2).mean() > 1e-5:
                break
        return x

    def recorded(self, rng: Rng, pool: list[tuple[int, int]]) -> np.ndarray:
        """A recording, looped or repeated to length, at a random place."""
        out = np.zeros(self.n, np.float32)
        at, start, m = 0, *pool[rng.integers(len(pool))]
        while at < self.n:
            skip = int(rng.integers(0, max(1, m - self.n))) if m > self.n else 0
            part = self._clip(start + skip, min(m - skip, self.n - at))
            out[at : at + len(part)] = part
            at += len(part)
            if m < self.rate and rng.random() < 0.6:  # short events: leave gaps, sometimes change
                at += int(rng.exponential(0.3) * self.rate)
                if rng.random() < 0.5:
                    start, m = pool[rng.integers(len(pool))]
        return np.roll(out, int(rng.integers(self.n)))

    def noise(self, rng: Rng, kind: str) -> np.ndarray:
        if kind == "made" or (kind in self.pools and not self.pools[kind]):
            return sounds.any_sound(rng, self.n, self.rate)
        if kind == "babble":
            return sum((self.speech(rng) * 10 ** (rng.uniform(-6, 0) / 20) for _ in range(int(rng.integers(2, 7)))), np.zeros(self.n, np.float32))
        x = self.recorded(rng, self.pools[kind])
        if rng.random() < 0.3:  # another speed is another noise
            speed = 2 ** rng.uniform(-0.5, 0.5)
            x = np.interp(np.arange(self.n) * speed % self.n, np.arange(self.n), x).astype(np.float32)
        return degrade.equalise(rng, x, self.rate, 4)

    def room(self, rng: Rng) -> np.ndarray:
        """An impulse response."""
        if self.pools["rir"] and rng.random() < 0.35:
            start, m = self.pools["rir"][rng.integers(len(self.pools["rir"]))]
            return degrade.recorded_room(self._clip(start, m), rng)
        return degrade.synthetic_room(rng, self.rate)

    def pair(self, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
        """(mixture, target): [samples] float32 each, time-aligned."""
        x = degrade.equalise(rng, self.speech(rng, good=True), self.rate, 4)
        wet, target = x, x
        if rng.random() < 0.4:
            h = self.room(rng)
            wet, target = degrade.convolve(x, h), degrade.convolve(x, degrade.early_part(h, self.rate))
        a = np.abs(target)
        loud = float(np.sqrt((target[a >= 0.1 * a.max()] ** 2).mean() + 1e-10)) * 0.7  # rough active level
        if rng.random() < 0.03:  # nobody speaks
            wet, target = wet * 0, target * 0
        mix = wet.copy()
        if rng.random() < 0.97:
            nearly_clean = rng.random() < 0.2  # good recordings must come out no worse
            for kind in str(rng.choice(NOISE_KINDS, p=NOISE_CHANCE)).split("+"):
                y = self.noise(rng, kind)
                low, high = (3, 20) if kind == "babble" else (-5, 20)
                snr_db = rng.uniform(15, 40) if nearly_clean else rng.uniform(low, high)
                mix += y * np.float32(loud / max(1e-5, float(np.sqrt((y**2).mean()))) * 10 ** (-snr_db / 20))
        mix += rng.standard_normal(self.n).astype(np.float32) * np.float32(loud * 10 ** (-rng.uniform(35, 70) / 20))
        if rng.random() < 0.05:
            mix = degrade.clip(rng, mix)
        if rng.random() < 0.06:
            mix = degrade.band_limit(rng, mix, self.rate)
        if rng.random() < 0.05:
            mix = degrade.code_badly(rng, mix)
        if rng.random() < 0.06:
            mix = degrade.lose_packets(rng, mix, self.rate)
        gain = recording_gain(rng, mix)
        return (mix * gain).astype(np.float32), (target * gain).astype(np.float32)

    def batch(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Batch i: two [batch, samples] arrays."""
        rng = np.random.default_rng([self.seed, i])
        pairs = [self.pair(rng) for _ in range(self.size)]
        return np.stack([m for m, _ in pairs]), np.stack([t for _, t in pairs])

    def filled(self, scene: Callable[[Rng], list[Example]], rng: Rng) -> Example:
        """`size` examples of scenes that give one or more each, every kind of array stacked."""
        rows: list[Example] = []
        while len(rows) < self.size:
            rows += scene(rng)
        return tuple(np.stack(column[: self.size]) for column in zip(*rows, strict=True))

    def describe(self) -> dict[str, Any]:
        seconds = {k: sum(n for _, n in v) / self.rate for k, v in self.pools.items()}
        for name, groups in ({"speech": self.groups} | ({} if self.good is self.groups else {"good speech": self.good})).items():
            seconds[name] = sum(n for g in groups for s in g for _, n in s) / self.rate
        return {k: round(v / 3600, 2) for k, v in seconds.items()} | {"speakers": sum(len(g) for g in self.groups)}


def _chance(groups: Groups) -> np.ndarray:
    """A group's share grows with its hours and with its speakers, slower than either."""
    weight = np.array([(sum(n for s in g for _, n in s) ** 0.5) * len(g) ** 0.25 for g in groups])
    chance: np.ndarray = weight / weight.sum()
    return chance


def recording_gain(rng: Rng, mix: np.ndarray) -> np.float32:
    """What brings a mixture to the level of some recording, -42 to -14 dB, without clipping."""
    gain = 10 ** (rng.uniform(-42, -14) / 20) / max(1e-4, float(np.sqrt((mix**2).mean())))
    return np.float32(min(gain, 0.98 / max(1e-4, float(np.abs(mix).max()))))
