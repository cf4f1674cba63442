"""Pack folders of audio into a training cache: one flat int16 array and an index.

    python -m tools.prepare --out cache/16k --rate 16000 speech=~/speech noise=~/noise music=~/music rir=~/rirs

Each KIND=FOLDER is walked for audio files. A `manifest.csv` in the folder, if there is one, names the files (`path`) and may
give `speaker`, `label`, `noise_id`, `snr_db` and `bandwidth_hz`; without one the speaker is the name of the file's folder
(LibriSpeech, VCTK, DNS and FSD50K trees work as they are).
"""

from __future__ import annotations

import argparse
import csv
import json
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
MAX_SECONDS = {"speech": 30.0, "noise": 60.0, "music": 120.0, "rir": 2.0}


def rows(kind: str, root: Path) -> Iterator[dict[str, Any]]:
    """One dict a file: file, kind, group, speaker, label, snr_db, bandwidth_hz."""
    manifest = root / "manifest.csv"
    if manifest.exists():
        with manifest.open(newline="") as f:
            listed: list[dict[str, str]] = list(csv.DictReader(f))
    else:
        listed = [{"path": str(p.relative_to(root))} for p in sorted(root.rglob("*")) if p.suffix.lower() in AUDIO]
    for r in listed:
        path = Path(r["path"])
        yield {
            "file": str(root / path),
            "kind": kind,
            "group": path.parts[0] if len(path.parts) > 1 else root.name,
            "speaker": r.get("speaker") or str(path.parent),
            "label": r.get("label", ""),
            "snr_db": float(r.get("snr_db") or 99),
            "bandwidth_hz": float(r.get("bandwidth_hz") or r.get("sample_rate") or 48000),  # unknown: taken for full band
        }


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
    np.lib.format.open_memmap(out / "pcm.npy", mode="w+", dtype=np.int16, shape=(max(start, 1),))[:start] = np.memmap(out / "pcm.raw", dtype=np.int16, mode="r")
    (out / "pcm.raw").unlink()
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
