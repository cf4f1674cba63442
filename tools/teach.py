"""Features of an offline speech teacher for a training cache, made once: what the codec's semantic token is trained to tell.

    python -m tools.teach cache/16k --minutes 30          # goes on where it stopped; any part of the cache will do

The teacher is the encoder of Whisper base (Radford et al. 2022) as packaged on PyPI, run by CTranslate2: 512 numbers every 20 ms, of each clip alone, from the
beginning of a window that is only as long as the clip. They also tell how far from the beginning they stand, which nobody else can know, so the mean of every
place is taken off; then 64 principal components are left. Both are fitted on the first clips. Writes CACHE/teacher.npy [frames, 64] float16, an index of
clips, and the projection; a clip's frame t covers its samples [320 t, 320 (t + 1)).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .ending import plainly
from .metrics import _whisper

FRAME = 320
AFTER = 25  # frames of silence that are heard after a clip
LONGEST = 1500 - AFTER  # frames
DIM = 64
FIT_FRAMES = 180_000  # an hour of speech, for the means and the principal components
NARROW, WIDE = 8, 100  # frames about a place that its mean is taken over, and where they are few
FEW = 20  # frames; as many count as those of the wider mean
LOUD_DB = -30.0  # below the loudest frame of a clip nobody speaks
SAVE_EVERY = 400  # clips


def teacher_features(x: np.ndarray) -> np.ndarray:
    """Whisper's encoder on [n] samples at 16 kHz, at most 29.5 s of them → [n // 320, 512] float32, one row every 20 ms."""
    from ctranslate2 import Device

    model, frames = _whisper(), min(len(x) // FRAME, LONGEST)
    heard = np.pad(x[: frames * FRAME], (0, AFTER * FRAME)).astype(np.float32)
    mel = model.feature_extractor(heard)[:, : 2 * (frames + AFTER)]
    y: np.ndarray = np.array(model.encode(mel).to_device(Device.cpu))[0, :frames].astype(np.float32)
    return y


def speaks(x: np.ndarray) -> np.ndarray:
    """[n] samples → [n // 320] bool: where somebody speaks."""
    power = (x[: len(x) // FRAME * FRAME].reshape(-1, FRAME) ** 2).mean(1) + 1e-10
    loud: np.ndarray = 10 * np.log10(power / power.max()) > LOUD_DB
    return loud


@dataclass
class Teacher:
    """What was cached: `frames` [n, 64] float16 and, a clip's start sample in the cache → (first frame, frames)."""

    frames: np.ndarray
    clips: dict[int, tuple[int, int]]

    @classmethod
    def load(cls, folder: Path) -> Teacher:
        if not (folder / "teacher.json").exists():
            raise ValueError(f"{folder} holds no teacher features; make some: python -m tools.teach CACHE")
        doc = json.loads((folder / "teacher.json").read_text())
        return cls(np.load(folder / "teacher.npy", mmap_mode="r"), {int(k): (v[0], v[1]) for k, v in doc["clips"].items()})


@dataclass
class Projection:
    """Principal components of what the place does not say: features of a clip from its beginning [n, 512] → [n, 64].

    mean: [1475, 512], of every place. basis: [512, 64].
    """

    mean: np.ndarray
    basis: np.ndarray
    explained: float

    @classmethod
    def fit(cls, clips: list[np.ndarray], spoken: list[np.ndarray]) -> Projection:
        """From features of clips [n, 512] each, where somebody speaks [n] bool."""
        dim = clips[0].shape[1]
        total, count = np.zeros((LONGEST, dim)), np.zeros(LONGEST)
        for f, loud in zip(clips, spoken, strict=True):
            total[: len(f)] += f * loud[:, None]
            count[: len(f)] += loud
        wide = _near(total, count, WIDE, total.sum(0) / count.sum())
        mean = _near(total, count, NARROW, wide).astype(np.float32)
        scatter, n = np.zeros((dim, dim)), 0
        for f, loud in zip(clips, spoken, strict=True):
            off = (f - mean[: len(f)])[loud].astype(np.float64)
            scatter, n = scatter + off.T @ off, n + len(off)
        size, axes = np.linalg.eigh(scatter / n)
        return cls(mean, axes[:, ::-1][:, :DIM].astype(np.float32), float(size[-DIM:].sum() / size.sum()))

    @classmethod
    def load(cls, folder: Path) -> Projection:
        with np.load(folder / "projection.npz") as f:
            if f["mean"].ndim != 2:
                raise ValueError(f"{folder / 'projection.npz'} is of an older tools.teach; make the features again: python -m tools.teach CACHE")
            return cls(f["mean"], f["basis"], float(f["explained"]))

    def save(self, folder: Path) -> None:
        np.savez(folder / "projection.npz", mean=self.mean, basis=self.basis, explained=self.explained)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        y: np.ndarray = (x - self.mean[: len(x)]) @ self.basis
        return y


def _near(total: np.ndarray, count: np.ndarray, frames: int, otherwise: np.ndarray) -> np.ndarray:
    """Sums [places, dim] and how many they are of [places] → means of what is within `frames` of each place, leaning on `otherwise` where that is little."""
    window = np.hanning(2 * frames + 1)[1:-1]
    total = np.apply_along_axis(np.convolve, 0, total, window, "same")
    count = np.convolve(count, window, "same")
    y: np.ndarray = (total + FEW * otherwise) / (count + FEW)[:, None]
    return y


def in_turn(items: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Clips of all groups and speakers in turn, so that any beginning of the list is a cross-section."""
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for i in items:
        groups.setdefault(i["group"], {}).setdefault(i["speaker"], []).append(i)
    queues = [[clips for clips in speakers.values()] for speakers in groups.values()]
    while queues:
        for speakers in list(queues):
            clips = speakers.pop(0)
            yield clips.pop(0)
            if clips:
                speakers.append(clips)
            if not speakers:
                queues.remove(speakers)


def teach(cache: Path, out: Path, minutes: float) -> int:
    """Cache features until the time is up; returns the number of clips that have them."""
    meta = json.loads((cache / "index.json").read_text())
    if meta["rate"] != 16000:
        raise ValueError(f"{cache} is at {meta['rate']} Hz; the teacher hears 16000 Hz")
    out.mkdir(parents=True, exist_ok=True)
    pcm = np.load(cache / "pcm.npy", mmap_mode="r")
    known: dict[int, tuple[int, int]] = {}
    parts: list[np.ndarray] = []
    projection = Projection.load(out) if (out / "projection.npz").exists() else None
    if projection and (out / "teacher.json").exists():
        before = Teacher.load(out)
        known, parts = dict(before.clips), [np.array(before.frames)]
    todo = [i for i in meta["items"] if i["kind"] == "speech" and i["start"] not in known and 1 <= i["samples"] // FRAME <= LONGEST]
    total, begin, saved = sum(len(p) for p in parts), time.monotonic(), len(known)

    def save() -> None:
        np.save(out / "teacher.part.npy", np.concatenate(parts))
        (out / "teacher.part.npy").replace(out / "teacher.npy")
        (out / "teacher.part.json").write_text(json.dumps({"clips": known}))
        (out / "teacher.part.json").replace(out / "teacher.json")

    waiting: list[tuple[int, np.ndarray, np.ndarray]] = []
    heard = 0
    with tqdm(total=len(todo), unit="clip", mininterval=5, disable=None) as bar:
        for i in in_turn(todo):
            x = pcm[i["start"] : i["start"] + i["samples"]].astype(np.float32) / 32768
            waiting.append((i["start"], teacher_features(x), speaks(x)))
            heard += len(waiting[-1][1])
            late = time.monotonic() - begin > 60 * minutes
            if projection is None and heard >= FIT_FRAMES:
                projection = Projection.fit([f for _, f, _ in waiting], [s for _, _, s in waiting])
                projection.save(out)
                tqdm.write(f"{DIM} components keep {projection.explained:.1%} of the variance that places leave")
            if projection is not None:
                for start, f, _ in waiting:
                    parts.append(projection(f).astype(np.float16))
                    known[start] = (total, len(f))
                    total += len(f)
                waiting.clear()
                if len(known) - saved >= SAVE_EVERY:
                    saved = len(known)
                    save()
            bar.update()
            bar.set_postfix_str(f"{total / 50 / 3600:.2f} h of speech")
            if late and projection is not None:
                break
    if projection is None:
        raise ValueError(f"too little speech: {heard / 50 / 60:.1f} minutes, {FIT_FRAMES / 50 / 60:.0f} are needed to begin")
    if parts:
        save()
    print(f"{len(known)} clips, {total / 50 / 3600:.2f} h of speech")
    return len(known)


@plainly
def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("cache", type=Path, help="written by tools.prepare at 16 kHz")
    p.add_argument("--out", type=Path, help="default: the cache's own folder")
    p.add_argument("--minutes", type=float, default=1e9)
    a = p.parse_args()
    teach(a.cache, a.out or a.cache, a.minutes)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
