"""Pack folders of audio into a training cache: one flat int16 array and an index.

    python -m tools.prepare --out cache/16k --rate 16000 speech=~/speech noise=~/noise music=~/music rir=~/rirs

Each KIND=FOLDER is walked for audio files. A `manifest.csv` in the folder, if there is one, names the files (`path`) and may
give `speaker`, `label`, `noise_id`, `snr_db` and `bandwidth_hz` (or `sample_rate`; else half the file's own rate); without one the speaker is the name of
the file's folder, or the first number of a name like LibriSpeech's (LibriSpeech, VCTK, DNS and FSD50K trees work as they are).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import soxr
from tqdm import tqdm

from .ending import plainly

KINDS = ("speech", "noise", "music", "rir")
AUDIO = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif"}
LIBRI = re.compile(r"(\d+)-\d+-\d{4}")  # talker, chapter, sentence: the folder is the chapter
DERIVED = ("ratings.json", "projection.npz", "teacher.*")  # of what the cache held before: tools.rate, tools.teach
MAX_SECONDS = {"speech": 30.0, "noise": 60.0, "music": 120.0, "rir": 2.0}


def rows(kind: str, root: Path) -> Iterator[dict[str, Any]]:
    """One dict a file: file, kind, group, speaker, label, snr_db, bandwidth_hz."""
    manifest = root / "manifest.csv"
    if manifest.exists():
        with manifest.open(newline="") as f:
            listed: list[dict[str, str]] = list(csv.DictReader(f))
        if listed and "path" not in listed[0]:
            raise ValueError(f"{manifest} has no column 'path', which names the files; it has: {', '.join(listed[0])}")
    else:
        listed = [{"path": str(p.relative_to(root))} for p in sorted(root.rglob("*")) if p.suffix.lower() in AUDIO]
    for r in listed:
        path = Path(r["path"])
        of_libri = LIBRI.fullmatch(path.stem)
        talker = f"libri:{of_libri[1]}" if of_libri else str(path.parent)
        yield {
            "file": str(root / path),
            "kind": kind,
            "group": root.name if of_libri or len(path.parts) == 1 else path.parts[0],
            "speaker": r.get("speaker") or talker,
            "label": r.get("label", ""),
            "snr_db": float(r.get("snr_db") or 99),
            "bandwidth_hz": float(r.get("bandwidth_hz") or 0) or float(r.get("sample_rate") or 0) / 2 or _half_rate(root / path),
        }


def _half_rate(path: Path) -> float:
    try:
        return sf.info(path).samplerate / 2
    except (sf.LibsndfileError, OSError):
        return 24000.0  # `decode` will say what is wrong with it


def decode(job: tuple[dict[str, Any], int]) -> tuple[dict[str, Any], np.ndarray | None]:
    row, rate = job
    try:
        x, sr = sf.read(row["file"], dtype="float32", always_2d=True)
    except (sf.LibsndfileError, OSError) as e:
        return {**row, "error": str(e)}, None
    y = soxr.resample(x.mean(1), sr, rate)[: int(MAX_SECONDS[row["kind"]] * rate)]
    peak = float(np.abs(y).max()) if len(y) else 0.0
    if peak < 1e-4 or not np.isfinite(peak):
        return {**row, "error": "silent or broken"}, None
    return row, np.round(y * (30000 / peak)).astype(np.int16)  # levels are drawn at training time


def prepare(sources: list[tuple[str, Path]], out: Path, rate: int, min_bandwidth_hz: float, workers: int) -> dict[str, float]:
    """Write OUT/pcm.npy and OUT/index.json; returns hours by kind."""
    out.mkdir(parents=True, exist_ok=True)
    jobs = [(r, rate) for kind, root in sources for r in rows(kind, root)]
    jobs = [j for j in jobs if j[0]["kind"] == "rir" or j[0]["bandwidth_hz"] >= min_bandwidth_hz]
    if not jobs:
        raise ValueError(f"no audio in {', '.join(str(root) for _, root in sources)}{f' reaches {min_bandwidth_hz:.0f} Hz' if min_bandwidth_hz else ''}")
    index, start, hours, bad = [], 0, dict.fromkeys(KINDS, 0.0), 0
    with (out / "pcm.raw").open("wb") as f, ProcessPoolExecutor(workers) as pool:
        for row, pcm in tqdm(pool.map(decode, jobs, chunksize=16), total=len(jobs), unit="file", desc=f"prepare {out}"):
            if pcm is None:
                bad += 1
                tqdm.write(f"left out: {row['file']}: {row['error']}")
                continue
            pcm.tofile(f)
            index.append({**row, "start": start, "samples": len(pcm)})
            start += len(pcm)
            hours[row["kind"]] += len(pcm) / rate / 3600
    if not start:
        (out / "pcm.raw").unlink()
        raise ValueError(f"none of {len(jobs)} files could be read")
    # aside first: a run that reads the old one goes on with it
    np.lib.format.open_memmap(out / "pcm.part", mode="w+", dtype=np.int16, shape=(start,))[:] = np.memmap(out / "pcm.raw", dtype=np.int16, mode="r")
    (out / "pcm.raw").unlink()
    for pattern in DERIVED:
        for old in out.glob(pattern):
            old.unlink()
    os.replace(out / "pcm.part", out / "pcm.npy")
    (out / "index.json").write_text(json.dumps({"rate": rate, "items": index}))
    print(f"{len(index)} files, {bad} left out: " + ", ".join(f"{k} {h:.2f} h" for k, h in hours.items()))
    return hours


@plainly
def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("sources", nargs="+", metavar="KIND=FOLDER", help=f"KIND is one of {', '.join(KINDS)}")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--rate", type=int, default=16000)
    p.add_argument("--min-bandwidth-hz", type=float, default=0, help="leave out files known to end below this")
    p.add_argument("--workers", type=int, default=2)
    a = p.parse_args()
    sources = []
    for s in a.sources:
        kind, _, folder = s.partition("=")
        root = Path(folder).expanduser()
        if kind not in KINDS or not root.is_dir():
            raise ValueError(f"'{s}' is not KIND=FOLDER with an existing folder and KIND of {', '.join(KINDS)}")
        sources.append((kind, root))
    prepare(sources, a.out, a.rate, a.min_bandwidth_hz, a.workers)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
