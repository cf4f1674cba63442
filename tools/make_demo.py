"""Make the bundled demo recording (rt/samples/*.flac) from its two freely licensed sources.

    pip download --no-deps --no-binary :all: pocketsphinx && tar xzf pocketsphinx-*.tar.gz      # LibriVox reading, public domain
    apt-get download sonic-pi-samples && dpkg -x sonic-pi-samples_*.deb sonic                    # a 3D printer at work
    python -m tools.make_demo pocketsphinx-*/test/data/librivox sonic/usr/share/sonic-pi/samples/loop_3d_printer.flac

The recording is at 16 kHz, 5 dB SNR, and is in no training set.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr

OUT = Path(__file__).parent.parent / "rt" / "samples"
RATE, SNR_DB = 16000, 5.0


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("librivox", type=Path)
    p.add_argument("printer", type=Path)
    a = p.parse_args()
    gap = np.zeros(RATE // 2)
    parts = [sf.read(a.librivox / f"sense_and_sensibility_01_austen_64kb-{n}.wav")[0] for n in ("0870", "0880")]
    clean = np.concatenate([gap, parts[0], gap / 2, parts[1], gap])
    noise, rate = sf.read(a.printer)
    noise = soxr.resample(noise.mean(1), rate, RATE)
    noise = np.resize(noise, len(clean))
    loud = np.sqrt(np.mean(clean[np.abs(clean) > 0.1 * np.abs(clean).max()] ** 2)) * 0.7
    noise *= loud / np.sqrt(np.mean(noise**2)) * 10 ** (-SNR_DB / 20)
    scale = 0.7 / np.abs(clean + noise).max()
    OUT.mkdir(exist_ok=True)
    sf.write(OUT / "noisy.flac", (clean + noise) * scale, RATE)
    sf.write(OUT / "clean.flac", clean * scale, RATE)
    print(f"{OUT}: {len(clean) / RATE:.1f} s")


if __name__ == "__main__":
    main()
