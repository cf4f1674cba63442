"""Make the bundled demo recordings (rt/samples/*.flac) from their freely licensed sources.

    pip download --no-deps --no-binary :all: pocketsphinx && tar xzf pocketsphinx-*.tar.gz      # LibriVox reading, public domain
    apt-get download sonic-pi-samples && dpkg -x sonic-pi-samples_*.deb sonic                    # a 3D printer at work
    apt-get install flite                                                                        # another talker: speech synthesis
    python -m tools.make_demo pocketsphinx-*/test/data/librivox sonic/usr/share/sonic-pi/samples/loop_3d_printer.flac

16 kHz; the printer is at 5 dB SNR. Nothing of it is in a training set.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr

OUT = Path(__file__).parent.parent / "rt" / "samples"
RATE, SNR_DB = 16000, 5.0
SAID = {  # by the other talker
    "other": "The committee will meet again on Thursday morning. Please bring the printed report, two copies of the contract, "
    "and a list of everything that has to be settled before the end of the month.",
    "other_enrol": "In the evening we walked along the river and talked about the years that had gone by, and nobody wanted to be the first to turn back.",
}


def spoken(text: str) -> np.ndarray:
    """[samples] by flite's voice slt."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as f:
        subprocess.run(["flite", "-voice", "slt", "-t", text, "-o", f.name], check=True)
        x, rate = sf.read(f.name)
    assert rate == RATE
    return x


def loudness(x: np.ndarray) -> float:
    """RMS where somebody speaks."""
    return float(np.sqrt(np.mean(x[np.abs(x) > 0.1 * np.abs(x).max()] ** 2)))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("librivox", type=Path)
    p.add_argument("printer", type=Path)
    a = p.parse_args()
    gap = np.zeros(RATE // 2)
    parts = [sf.read(a.librivox / f"sense_and_sensibility_01_austen_64kb-{n}.wav")[0] for n in ("0870", "0880", "0920")]
    clean = np.concatenate([gap, parts[0], gap / 2, parts[1], gap])
    noise, rate = sf.read(a.printer)
    noise = soxr.resample(noise.mean(1), rate, RATE)
    noise = np.resize(noise, len(clean))
    loud = loudness(clean) * 0.7
    noise *= loud / np.sqrt(np.mean(noise**2)) * 10 ** (-SNR_DB / 20)
    scale = 0.7 / np.abs(clean + noise).max()
    OUT.mkdir(exist_ok=True)
    sf.write(OUT / "noisy.flac", (clean + noise) * scale, RATE)
    sf.write(OUT / "clean.flac", clean * scale, RATE)
    sf.write(OUT / "enrol.flac", parts[2] * scale, RATE)
    for name, text in SAID.items():
        x = spoken(text)
        x = np.resize(np.append(x, gap), len(clean)) if name == "other" else x
        sf.write(OUT / f"{name}.flac", x * scale * loudness(clean) / loudness(x), RATE)
    print(f"{OUT}: {len(clean) / RATE:.1f} s")


if __name__ == "__main__":
    main()
