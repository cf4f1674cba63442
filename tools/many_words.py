"""Pairs with more words than a development set of short clips has: long English clips with the noises of other pairs, for `tools.evaluate`.

    python -m tools.many_words SPEECH PAIRS OUT [--count 100]
    python -m tools.evaluate OUT --systems unprocessed,voicewire

SPEECH holds a manifest.csv with `path` (from its parent folder) and `language`, PAIRS `noisy/`, `clean/` and a manifest.csv. Six seconds each,
signal-to-noise ratios of 0, 5, 10 and 15 dB in turn; a noise is what a pair without a room has in its noisy file and not in its clean one. The same every time.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import soundfile as sf
from tqdm import tqdm

from .ending import plainly
from .evaluate import RATE, find_pairs, load, mixtures

SECONDS, SNRS_DB, SEED = 6, (0, 5, 10, 15), 5


def mixed(rng: np.random.Generator, clip: np.ndarray, noise: np.ndarray, snr_db: float) -> tuple[np.ndarray, np.ndarray]:
    """A piece of the clip with the noise, and without: [samples] float32 each. The speech's level is taken where there is speech."""
    n = SECONDS * RATE
    at = int(rng.integers(0, max(1, len(clip) - n)))
    clean = clip[at : at + n]
    around = np.resize(np.roll(noise, int(rng.integers(len(noise)))), len(clean))
    size = np.abs(clean)
    loud = 0.7 * float(np.sqrt((clean[size > 0.1 * size.max()] ** 2).mean()))
    noisy = clean + around * np.float32(loud / max(1e-5, float(np.sqrt((around**2).mean()))) * 10 ** (-snr_db / 20))
    gain = np.float32(min(1.0, 0.95 / float(np.abs(noisy).max())))
    return noisy * gain, clean * gain


def build(speech: Path, pairs: Path, out: Path, count: int) -> None:
    """Write OUT/noisy, OUT/clean and OUT/manifest.csv. ValueError where there is nothing to mix."""
    clips = [load(speech.parent / r["path"]) for r in mixtures(speech, "path", "language") if r["language"] == "en"]
    noises = [load(p.noisy) - load(p.clean) for p in find_pairs(pairs) if not p.reverb] if (pairs / "noisy").is_dir() else []
    if not clips or not noises:
        raise ValueError(f"{speech if not clips else pairs} holds no {'English clips' if not clips else 'pairs without a room'}")
    for name in ("noisy", "clean"):
        (out / name).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    with (out / "manifest.csv").open("w", newline="") as f:
        rows = csv.writer(f)
        rows.writerow(("id", "snr_db"))
        for i in tqdm(range(count), unit="pair", disable=None):
            snr_db, name = SNRS_DB[i % len(SNRS_DB)], f"words_{i:03}"
            noisy, clean = mixed(rng, clips[i % len(clips)], noises[i % len(noises)], snr_db)
            sf.write(out / "noisy" / f"{name}.flac", noisy, RATE)
            sf.write(out / "clean" / f"{name}.flac", clean, RATE)
            rows.writerow((name, snr_db))


@plainly
def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("speech", type=Path)
    p.add_argument("pairs", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--count", type=int, default=100)
    a = p.parse_args()
    build(a.speech, a.pairs, a.out, a.count)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
