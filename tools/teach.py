"""Features of an offline speech teacher for a training cache, made once: what the codec's semantic token is trained to tell.

    python -m tools.teach cache/16k --minutes 30          # goes on where it stopped; any part of the cache will do

The teacher is the encoder of Whisper base (Radford et al. 2022) as packaged on PyPI, run by CTranslate2: 512 numbers every 20 ms, reduced to 64 by
principal components of the first windows. Clips are packed into Whisper's 30 s windows. Writes CACHE/teacher.npy [frames, 64] float16, an index of
clips, and the projection; a clip's frame t covers its samples [320 t, 320 (t + 1)).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .metrics import _whisper

FRAME = 320
GAP = 10  # frames of silence between the clips of a window
WINDOW = 1500  # frames
DIM = 64
FIT_WINDOWS = 8  # the principal components are taken from these


def teacher_features(x: np.ndarray) -> np.ndarray:
    """Whisper's encoder on up to 30 s at 16 kHz → [1500, 512] float32, one row every 20 ms."""
    from ctranslate2 import Device

    model = _whisper()
    mel = model.feature_extractor(np.pad(x, (0, WINDOW * FRAME - len(x))).astype(np.float32))[:, : 2 * WINDOW]
    y: np.ndarray = np.array(model.encode(mel).to_device(Device.cpu))[0].astype(np.float32)
    return y


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
    """Principal components: x: [n, 512] → [n, 64], centred."""

    mean: np.ndarray
    basis: np.ndarray
    explained: float

    @classmethod
    def fit(cls, x: np.ndarray) -> Projection:
        mean = x.mean(0)
        _, s, v = np.linalg.svd(x - mean, full_matrices=False)
        return cls(mean, v[:DIM].T.copy(), float((s[:DIM] ** 2).sum() / (s**2).sum()))

    @classmethod
    def load(cls, folder: Path) -> Projection:
        with np.load(folder / "projection.npz") as f:
            return cls(f["mean"], f["basis"], float(f["explained"]))

    def save(self, folder: Path) -> None:
        np.savez(folder / "projection.npz", mean=self.mean, basis=self.basis, explained=self.explained)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        y: np.ndarray = (x - self.mean) @ self.basis
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


def windows(items: list[dict[str, Any]]) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """Clips packed into windows: (first frame, clip) each. Clips longer than a window are left out."""
    row: list[tuple[int, dict[str, Any]]] = []
    at = 0
    for i in in_turn(items):
        n = i["samples"] // FRAME
        if not 1 <= n <= WINDOW:
            continue
        if at + n > WINDOW:
            yield row
            row, at = [], 0
        row.append((at, i))
        at += n + GAP
    if row:
        yield row


def teach(cache: Path, out: Path, minutes: float) -> int:
    """Cache features until the time is up; returns the number of clips that have them."""
    meta = json.loads((cache / "index.json").read_text())
    if meta["rate"] != 16000:
        raise ValueError(f"{cache} is at {meta['rate']} Hz; the teacher hears 16000 Hz")
    out.mkdir(parents=True, exist_ok=True)
    pcm = np.load(cache / "pcm.npy", mmap_mode="r")
    known: dict[int, tuple[int, int]] = {}
    parts: list[np.ndarray] = []
    if (out / "teacher.json").exists():
        before = Teacher.load(out)
        known, parts = dict(before.clips), [np.array(before.frames)]
    todo = [i for i in meta["items"] if i["kind"] == "speech" and i["start"] not in known]
    total, begin = sum(len(p) for p in parts), time.monotonic()

    def save() -> None:
        np.save(out / "teacher.part.npy", np.concatenate(parts))
        (out / "teacher.part.npy").replace(out / "teacher.npy")
        (out / "teacher.json").write_text(json.dumps({"clips": known}))

    waiting: list[tuple[list[tuple[int, dict[str, Any]]], np.ndarray]] = []
    projection = Projection.load(out) if (out / "projection.npz").exists() else None
    with tqdm(total=round(60 * minutes), unit="s", mininterval=5, disable=None) as bar:
        for number, row in enumerate(windows(todo), 1):
            x = np.zeros(WINDOW * FRAME, np.float32)
            for at, i in row:
                n = i["samples"] // FRAME * FRAME
                x[at * FRAME : at * FRAME + n] = pcm[i["start"] : i["start"] + n].astype(np.float32) / 32768
            waiting.append((row, teacher_features(x)))
            if projection is None and len(waiting) == FIT_WINDOWS:
                spoken = [f[at : at + i["samples"] // FRAME] for w, f in waiting for at, i in w]
                projection = Projection.fit(np.concatenate(spoken))
                projection.save(out)
                tqdm.write(f"{DIM} components keep {projection.explained:.1%} of the variance")
            if projection is not None:
                for w, f in waiting:
                    for at, i in w:
                        n = i["samples"] // FRAME
                        parts.append(projection(f[at : at + n]).astype(np.float16))
                        known[i["start"]] = (total, n)
                        total += n
                waiting.clear()
                if number % 8 == 0:
                    save()
            bar.update(round(time.monotonic() - begin) - bar.n)
            bar.set_postfix_str(f"{total / 50 / 3600:.2f} h of speech")
            if projection is not None and time.monotonic() - begin > 60 * minutes:
                break
    if projection is None:
        raise ValueError(f"too little speech: {len(waiting)} windows of 30 s, {FIT_WINDOWS} are needed to begin")
    save()
    print(f"{len(known)} clips, {total / 50 / 3600:.2f} h of speech")
    return len(known)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("cache", type=Path, help="written by tools.prepare at 16 kHz")
    p.add_argument("--out", type=Path, help="default: the cache's own folder")
    p.add_argument("--minutes", type=float, default=1e9)
    a = p.parse_args()
    try:
        teach(a.cache, a.out or a.cache, a.minutes)
    except (ValueError, OSError, ModuleNotFoundError) as e:
        print(f"teach: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
