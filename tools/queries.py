"""Sounds that are asked for in words: mixtures of labelled recordings, the one that is asked for, and the sentence as a vector.

What can be asked for, and how, is in wordings.toml; the labels are those of the cache's manifests. Speech and music are sounds like others here.
"""

from __future__ import annotations

import fnmatch
import json
import tomllib
from pathlib import Path

import numpy as np
import soxr

from voicewire.engines.sentence import SENTENCE_DIM, embed

from . import degrade
from .mixer import Example, Mixer, Rng, recording_gain

WORDINGS = Path(__file__).parent / "wordings.toml"
AUDIBLE_DB = 25.0  # below the loudest 20 ms of a recording


def wordings() -> dict[str, dict[str, list[str]]]:
    """Class → labels, captions, unseen, near, as in wordings.toml; `near` holds both ways."""
    table: dict[str, dict[str, list[str]]] = tomllib.loads(WORDINGS.read_text())
    keys = ("labels", "captions", "unseen", "near")
    full = {name: {k: list(of.get(k, [])) for k in keys} for name, of in table.items()}
    for name, of in full.items():
        for other in table[name].get("near", []):
            if name not in full[other]["near"]:
                full[other]["near"].append(name)
        of["near"].append(name)
    return full


def class_of(label: str, table: dict[str, dict[str, list[str]]]) -> str | None:
    plain = " ".join("".join(c for c in label.lower() if not c.isdigit()).split()).strip("- ")
    return next((name for name, of in table.items() if any(fnmatch.fnmatchcase(plain, pattern) for pattern in of["labels"])), None)


class Queries(Mixer):
    """Draws (mixture, target, sentence) for the task `query`."""

    def __init__(self, cache: Path, seed: int, batch: int, seconds: float) -> None:
        super().__init__(cache, seed, batch, seconds)
        table = wordings()
        spans: dict[str, list[tuple[int, int]]] = {}
        for item in json.loads((cache / "index.json").read_text())["items"]:
            name = class_of(item["label"], table) if item["kind"] == "noise" else None
            if name:
                spans.setdefault(name, []).append((item["start"], item["samples"]))
        if self.pools["music"]:
            spans["music"] = self.pools["music"]
        self.spans = spans
        self.names = [*spans, "speech"]
        if len(spans) < 2:
            raise ValueError(f"{cache}: fewer than two kinds of labelled sounds; pack more with tools.prepare (manifest.csv with `label`, wordings.toml)")
        self.near = {name: set(table[name]["near"]) for name in self.names}
        # a kind's share grows with its recordings and their length, up to a point: a kind of which there are two recordings cannot be learnt
        weight = {name: (min(25, len(s)) * min(125.0, sum(min(n, 10 * self.rate) for _, n in s) / self.rate)) ** 0.7 for name, s in spans.items()}
        weight["speech"] = 0.05 * sum(weight.values())
        self.weight = np.array([weight[name] for name in self.names])
        self.captions = {name: embed(table[name]["captions"]) for name in self.names}

    def kind(self, rng: Rng, without: set[str]) -> str | None:
        """A class that is none of `without`."""
        weight = self.weight * [name not in without for name in self.names]
        return self.names[rng.choice(len(weight), p=weight / weight.sum())] if weight.any() else None

    def sound(self, rng: Rng, name: str) -> np.ndarray:
        """[samples] of one recording of the class, at another speed and tone, audible somewhere, level about 1."""
        if name == "speech":
            return _levelled(rng, degrade.equalise(rng, self.speech(rng), self.rate, 4))
        start, m = self.spans[name][rng.integers(len(self.spans[name]))]
        x = self._clip(start, m)
        speed = 2 ** rng.uniform(-0.3, 0.3) if rng.random() < 0.5 else 1.0
        need = int(self.n * speed) + 64
        if m > need:
            frame = self.rate // 50
            power = (x[: m // frame * frame].reshape(-1, frame) ** 2).mean(1)
            loud = np.flatnonzero(power > power.max() * 10 ** (-AUDIBLE_DB / 10))
            at = int(loud[rng.integers(len(loud))]) * frame - int(rng.integers(need))
            at = min(max(0, at), m - need)
            x = x[at : at + need]
        if speed != 1.0:
            x = soxr.resample(x, speed, 1.0, "MQ").astype(np.float32)
        if len(x) < self.n:  # short: once, or again and again
            again = rng.random() < 0.6
            gap = np.zeros(int(rng.exponential(0.4) * self.rate), np.float32)
            while again and len(x) < self.n:
                x = np.concatenate([x, gap, x])
            x = np.concatenate([x, np.zeros(max(0, self.n - len(x)), np.float32)])[: self.n]
            x = np.roll(x, int(rng.integers(self.n)))
        return _levelled(rng, degrade.equalise(rng, x[: self.n], self.rate, 4))

    def sentence(self, rng: Rng, name: str) -> np.ndarray:
        """[256]: a wording or something between two, a little off, as unseen wordings are; unit length."""
        rows = self.captions[name]
        v = rows[rng.integers(len(rows))]
        if rng.random() < 0.3:
            v = v + rng.random() * (rows[rng.integers(len(rows))] - v)
        v = v / np.linalg.norm(v) + rng.normal(0, rng.uniform(0, 0.5) / SENTENCE_DIM**0.5, SENTENCE_DIM)
        unit: np.ndarray = (v / np.linalg.norm(v)).astype(np.float32)
        return unit

    def scene(self, rng: Rng) -> list[Example]:
        """One mixture, asked for one of its sounds, and often for another one too: [(mixture [samples], target [samples], sentence [256])], float32.

        Sometimes what is asked for is not there, sometimes it is alone. The same mixture with two sentences shows what the words are for.
        """
        asked = self.kind(rng, set())
        assert asked
        sounds = {asked: self.sound(rng, asked)}
        case = rng.random()
        if case < 0.12:
            sounds[asked] *= 0
        heard = set(self.near[asked])  # what may hold the asked sound may not disturb it
        for _ in range(0 if case > 0.95 else 1 if rng.random() < 0.8 else 2):
            other = self.kind(rng, heard)
            if other is None:
                break
            heard |= self.near[other]
            sir_db = rng.uniform(-6, 6) if rng.random() < 0.75 else rng.uniform(-12, 15)
            sounds[other] = self.sound(rng, other) * np.float32(10 ** (-sir_db / 20))
        mix = np.sum(list(sounds.values()), 0)
        if rng.random() < 0.3:
            y = self.noise(rng, "made")
            mix += y * np.float32(10 ** (-rng.uniform(10, 40) / 20) / max(1e-5, float(np.sqrt((y**2).mean()))))
        mix += rng.standard_normal(self.n).astype(np.float32) * np.float32(10 ** (-rng.uniform(35, 70) / 20))
        gain = recording_gain(rng, mix)
        names = list(sounds)[: 2 if rng.random() < 0.7 else 1]
        return [(mix * gain, sounds[name] * gain, self.sentence(rng, name)) for name in names]

    def query_batch(self, i: int) -> Example:
        """Batch i of mixtures, targets, sentences, one an example in every row."""
        return self.filled(self.scene, np.random.default_rng([self.seed, i, 4]))


def _levelled(rng: Rng, x: np.ndarray) -> np.ndarray:
    """Level brought to 1, somewhere between that of the whole and that of its loud parts; silence stays silent."""
    a = np.abs(x)
    if a.max() < 1e-5:
        return x * 0
    whole, active = float(np.sqrt((x**2).mean())), 0.7 * float(np.sqrt((x[a > 0.1 * a.max()] ** 2).mean()))
    share = rng.random()
    return x / np.float32(whole**share * active ** (1 - share))
