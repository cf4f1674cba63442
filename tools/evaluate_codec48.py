"""What the codec makes of 8 to 20 kHz, of which no token tells, beside a decode at 16 kHz that is resampled and has nothing there.

    apt-get download alsa-utils && dpkg -x alsa-utils_*.deb debs
    python -m tools.evaluate_codec48 debs/usr/share/sounds/alsa

The spoken clips of alsa-utils (48 kHz, one talker, in no training set), brought to one loudness. LSD: log-spectral distance to the recording as in
tools.evaluate48, in dB, over frames in which the talker has energy there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr

from voicewire.engines.codec_engine import CODEC_WEIGHTS, CodecEngine
from voicewire.rt import codec

from .ending import plainly
from .evaluate48 import RATE, high_band_lsd_db
from .evaluate_codec import encode

LOUD = 0.1  # rms
NARROW = 16000


def clips(folder: Path) -> list[np.ndarray]:
    """Speech of 48 kHz: [samples] float32 each."""
    found = []
    for path in sorted(p for p in folder.glob("*_*.wav")):
        x, rate = sf.read(path, dtype="float32", always_2d=True)
        if rate != RATE:
            raise ValueError(f"{path} is at {rate} Hz, not at {RATE}")
        found.append(x.mean(1) * np.float32(LOUD / np.sqrt((x**2).mean())))
    if not found:
        raise ValueError(f"no clips in {folder}; the head of this file says where to get some")
    return found


def distances_db(x: np.ndarray, engine: CodecEngine) -> dict[str, float]:
    """x: [samples] at 48 kHz → LSD 8-20 kHz of what each way leaves."""

    def through(z: np.ndarray, rate: int) -> np.ndarray:
        return codec.decode(encode(z, engine, rate)[0], rate, len(z), engine)

    narrow = soxr.resample(x, RATE, NARROW).astype(np.float32)
    up = soxr.resample(through(narrow, NARROW), NARROW, RATE)
    return {
        "codec at 48 kHz": high_band_lsd_db(through(x, RATE), x),
        "codec at 16 kHz, resampled": high_band_lsd_db(np.pad(up, (0, max(0, len(x) - len(up))))[: len(x)], x),
        "silence": high_band_lsd_db(np.zeros_like(x), x),
    }


@plainly
def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path)
    p.add_argument("--weights", type=Path, default=CODEC_WEIGHTS)
    a = p.parse_args()
    engine = CodecEngine(a.weights)
    rows = [distances_db(x, engine) for x in clips(a.folder)]
    print(f"| {len(rows)} clips; weights {engine.weights} | LSD 8-20 kHz, dB |\n|---|--:|")
    for name in rows[0]:
        print(f"| {name} | {np.mean([r[name] for r in rows]):.1f} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
