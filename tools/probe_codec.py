"""What single tokens of the codec tell: content, voice and scene, by stream, against the majority class.

    python -m tools.probe_codec CACHE SPEECH --weights FOLDER --teacher CACHE [--minutes 10]

CACHE (tools.prepare, 16 kHz) with what tools.teach made of it is learned from, SPEECH (a folder, see tools.evaluate_codec) is tested on: other speakers. A
probe is a table: the class seen most often with a token. So all streams get the same 10 bits and nothing is trained but counts. content: which of 40 clusters
the teacher's features of the frame fall in (as the units of HuBERT, Hsu et al. 2021), where somebody speaks; pitch: of four ranges, where there is a voice;
energy: of four levels below the loudest of the clip; scene: clean or with made noise at 5 dB.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from voicewire.engines.codec_engine import CODEC_WEIGHTS, CodecEngine

from . import sounds
from .codec_primitives import NONE, clusters, describe, nearest
from .ending import plainly
from .evaluate import load
from .evaluate_codec import encode, find
from .teach import FRAME, Projection, Teacher, in_turn, teacher_features

RATE = 16000
UNITS = 40
Clips = Iterator[tuple[np.ndarray, np.ndarray]]  # sound [samples], the teacher's features [frames, 64]


@dataclass
class Frames:
    """tokens [n, streams], and a class or NONE a frame for every question."""

    tokens: list[np.ndarray] = field(default_factory=list)
    answers: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def add(self, tokens: np.ndarray, **answers: np.ndarray) -> None:
        n = min(len(tokens), *(len(a) for a in answers.values()))
        self.tokens.append(tokens[:n])
        for name, a in answers.items():
            self.answers.setdefault(name, []).append(a[:n])


def gather(clips: Clips, engine: CodecEngine, seed: int) -> tuple[Frames, list[np.ndarray], list[np.ndarray]]:
    """Every clip, clean and noisy → what was found, and the teacher's features with where somebody speaks, a clip each."""
    rng, out, told, spoken = np.random.default_rng(seed), Frames(), [], []
    for x, features in clips:
        d = describe(x)
        energy, speaks = d.energy, d.speaks
        told.append(features[: len(speaks)].astype(np.float32))
        spoken.append(speaks)
        noise = sounds.any_sound(rng, len(x), RATE)
        noisy = x + noise * np.float32(np.sqrt((x**2).mean() / (noise**2).mean()) * 10 ** (-5 / 20))
        silent = np.full(len(speaks), NONE)
        out.add(encode(x, engine)[0], pitch=d.pitch, energy=energy, scene=0 * energy, clip=np.full(len(speaks), len(told) - 1), at=np.arange(len(speaks)))
        out.add(encode(noisy.astype(np.float32), engine)[0], pitch=silent, energy=silent, scene=0 * energy + 1, clip=silent, at=silent)
    return out, told, spoken


def score(codes: int, learned: tuple[np.ndarray, np.ndarray], tested: tuple[np.ndarray, np.ndarray]) -> tuple[list[float], float]:
    """(tokens [n, streams], class [n] or NONE) each → accuracy by stream, and of the class that was the most frequent one."""
    (t, a), (u, b) = ((tokens[answer != NONE], answer[answer != NONE]) for tokens, answer in (learned, tested))
    kinds = int(max(a.max(), b.max())) + 1
    prior = np.bincount(a, minlength=kinds)
    accuracy = []
    for stream in range(t.shape[1]):
        table = np.zeros((codes, kinds))
        np.add.at(table, (t[:, stream], a), 1)
        accuracy.append(float(((table + prior / prior.sum()).argmax(1)[u[:, stream]] == b).mean()))
    return accuracy, float((b == prior.argmax()).mean())


def probe(learn: Clips, test: Clips, engine: CodecEngine, lag: int) -> dict[str, tuple[list[float], float]]:
    """→ accuracy by stream and of the majority class, for every question. lag: frames that the semantic token is taught late."""
    sets = [gather(clips, engine, seed) for seed, clips in enumerate((learn, test))]
    centres = clusters(np.concatenate([f[s] for f, s in zip(sets[0][1], sets[0][2], strict=True)]), UNITS)
    ready = []
    for frames, told, spoken in sets:
        answers = {k: np.concatenate(v) for k, v in frames.answers.items()}
        units = [np.where(s, nearest(f, centres), NONE) for f, s in zip(told, spoken, strict=True)]
        clip, at = answers.pop("clip"), answers.pop("at") - lag
        answers["content"] = np.array([units[c][t] if c != NONE and t >= 0 else NONE for c, t in zip(clip, at, strict=True)])
        ready.append((np.concatenate(frames.tokens), answers))
    (t, a), (u, b) = ready
    return {name: score(engine.config.codes, (t, a[name]), (u, b[name])) for name in ("content", "pitch", "energy", "scene")}


def _from_cache(cache: Path, teacher: Teacher, minutes: float) -> Clips:
    meta = json.loads((cache / "index.json").read_text())
    pcm, left = np.load(cache / "pcm.npy", mmap_mode="r"), minutes * 60 * 50
    with tqdm(total=round(minutes * 60), unit="s", disable=None) as bar:
        for item in in_turn([i for i in meta["items"] if i["kind"] == "speech" and i["start"] in teacher.clips]):
            first, n = teacher.clips[item["start"]]
            yield pcm[item["start"] : item["start"] + n * FRAME].astype(np.float32) / 32768, teacher.frames[first : first + n]
            bar.update(round(n / 50))
            left -= n
            if left <= 0:
                return


@plainly
def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("cache", type=Path)
    p.add_argument("speech", type=Path)
    p.add_argument("--weights", type=Path, default=CODEC_WEIGHTS)
    p.add_argument("--teacher", type=Path, required=True, help="folder written by tools.teach")
    p.add_argument("--minutes", type=float, default=10.0, help="of speech to learn from")
    a = p.parse_args()
    engine, lag = CodecEngine(a.weights), json.loads((a.weights / "codec.json").read_text())["teacher_lag"]
    projection = Projection.load(a.teacher)
    heard = (load(path)[: 15 * RATE] for path, _ in find(a.speech))
    test = ((x, projection(teacher_features(x))) for x in heard)
    result = probe(_from_cache(a.cache, Teacher.load(a.teacher), a.minutes), test, engine, lag)
    streams = " | ".join(["semantic", *(f"acoustic {i}" for i in range(1, engine.config.streams))])
    print(f"| right, % | {streams} | majority |\n|---|{'--:|' * (engine.config.streams + 1)}")
    for name, (accuracy, majority) in result.items():
        print(f"| {name} | {' | '.join(f'{100 * v:.0f}' for v in accuracy)} | {100 * majority:.0f} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
