"""Fit what the codec puts above 8 kHz: levels of the bands there from those below, over clean speech that has both.

    python -m tools.fit_codec_high CACHE          # written by tools.prepare; reads the recordings that its index names, those that reach 17 kHz

Prints the table of `engines/codec_high.py`: least squares in dB, over hops within 35 dB of the loudest.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr

from voicewire.engines.codec_high import HIGH_BINS, band_levels_db, low_levels_db
from voicewire.engines.config import HOPS_PER_FRAME
from voicewire.engines.stft import analyse

RATE, HOP = 48000, 480
REACHES_HZ = 17000
BELOW_LOUDEST_DB = 35.0


def fit(clips: Iterable[np.ndarray]) -> np.ndarray:
    """[samples] at 48 kHz each → [bands, 2]: level above that of 6 to 8 kHz in dB, and per dB that 4 to 6 kHz lies above it."""
    tilt, high = [], []
    for x in clips:
        size = HOPS_PER_FRAME * HOP
        tail, spec = np.zeros((1, HOP), np.float32), []
        for t in range(0, len(x) - size + 1, size):
            s, tail = analyse(tail, x[None, t : t + size].astype(np.float32))
            spec.append(s[0])
        whole = np.concatenate(spec)[:, :HIGH_BINS]
        low, top = low_levels_db(whole), band_levels_db(whole)
        loud = 10 * np.log10((whole**2).sum((1, 2)) + 1e-12)
        speaks = loud > loud.max() - BELOW_LOUDEST_DB
        tilt.append((low[:, 0] - low[:, 1])[speaks])
        high.append((top - low[:, 1:])[speaks])
    a = np.stack([np.ones(sum(map(len, tilt))), np.concatenate(tilt)], 1)
    table: np.ndarray = np.linalg.lstsq(a, np.concatenate(high), rcond=None)[0].T
    return table


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("cache", type=Path)
    items = json.loads((p.parse_args().cache / "index.json").read_text())["items"]

    def clips() -> Iterable[np.ndarray]:
        for i in items:
            if i["kind"] == "speech" and i["bandwidth_hz"] > REACHES_HZ:
                x, rate = sf.read(i["file"], dtype="float32", always_2d=True)
                yield soxr.resample(x.mean(1), rate, RATE)

    for offset, slope in fit(clips()):
        print(f"({offset:.1f}, {slope:.2f}),")


if __name__ == "__main__":
    main()
