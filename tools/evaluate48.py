"""48 kHz: is there real content above 8 kHz, and is it the right one?

    apt-get download alsa-utils sonic-pi-samples && for f in *.deb; do dpkg -x $f debs; done
    python -m tools.evaluate48 debs/usr/share/sounds/alsa debs/usr/share/sonic-pi/samples/loop_3d_printer.flac

Makes 16 pairs: the eight spoken clips of alsa-utils (48 kHz, one talker, in no training set) two by two, with a recorded 3D printer and with made
noises, at 0 ... 15 dB. Systems run at 48 kHz; the last row is voicewire at 16 kHz, resampled up, which has nothing above 8 kHz. LSD: log-spectral
distance 8-20 kHz to the clean clip in dB, over frames in which the talker has energy there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr

from voicewire.rt import Stream, files
from voicewire.rt.demo import si_sdr_db

from . import metrics, peers, sounds
from .ending import plainly

RATE = 48000


def pairs(voices: Path, printer: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    clips = []
    for path in sorted(p for p in voices.glob("*_*.wav")):
        x, rate = sf.read(path, always_2d=True)
        clips.append(soxr.resample(x.mean(1), rate, RATE))
    noise, rate = sf.read(printer)
    machine = soxr.resample(noise.mean(1), rate, RATE)
    out = []
    for i in range(0, len(clips) - 1, 2):
        clean = np.concatenate([np.zeros(RATE // 4), clips[i], np.zeros(RATE // 4), clips[i + 1], np.zeros(RATE // 4)])
        clean *= 0.1 / np.sqrt(np.mean(clean**2))
        for j, snr_db in enumerate((0, 5, 10, 15)):
            rng = np.random.default_rng([48, i, j])
            kind = (None, sounds.modulated, sounds.clicks, sounds.engine)[(i // 2 + j) % 4]
            n = np.resize(machine, len(clean)) if kind is None else kind(rng, len(clean), RATE)
            n = n * (np.sqrt(np.mean(clean**2) / np.mean(n**2)) * 10 ** (-snr_db / 20))
            scale = 0.7 / np.abs(clean + n).max()
            out.append((((clean + n) * scale).astype(np.float32), (clean * scale).astype(np.float32)))
    return out


def high_band_lsd_db(y: np.ndarray, clean: np.ndarray) -> float:
    def spectrum(x: np.ndarray) -> np.ndarray:
        frames = np.lib.stride_tricks.sliding_window_view(x, 1920)[::960] * np.hanning(1920)
        power = np.abs(np.fft.rfft(frames)) ** 2
        return power[:, 320:800].reshape(len(power), -1, 40).mean(-1)  # 8 ... 20 kHz in 1 kHz bands

    a, b = spectrum(y), spectrum(clean)
    voiced = b.sum(1) > 1e-3 * b.sum(1).max()
    d = 10 * np.log10((a[voiced] + 1e-4) / (b[voiced] + 1e-4))
    return float(np.sqrt((d**2).mean(1)).mean())


@plainly
def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("voices", type=Path)
    p.add_argument("printer", type=Path)
    a = p.parse_args()

    def full(x: np.ndarray) -> np.ndarray:
        return files.process(x[:, None], Stream(RATE))[0][:, 0]

    def narrow(x: np.ndarray) -> np.ndarray:
        y, _ = files.process(soxr.resample(x, RATE, 16000)[:, None].astype(np.float32), Stream(16000))
        return np.resize(soxr.resample(y[:, 0], 16000, RATE), len(x))

    systems: dict[str, Callable[[np.ndarray], np.ndarray]] = {"unprocessed": lambda x: x, "voicewire, 48 kHz": full}
    for s in peers.available(None)[0]:
        if s.at_48k:
            run, delay = s.at_48k, s.delay * 3
            systems[s.name] = lambda x, run=run, delay=delay: run(np.append(x, np.zeros(delay, np.float32)))[delay:]
    systems["voicewire, 16 kHz resampled"] = narrow
    print("| 48 kHz (16) | PESQ | STOI | SI-SDR | LSD 8-20 kHz |\n|---|--:|--:|--:|--:|")
    made = pairs(a.voices, a.printer)
    for name, system in systems.items():
        rows = []
        for noisy, clean in made:
            y = system(noisy)
            y16, c16 = (soxr.resample(z, RATE, 16000) for z in (y, clean))
            rows.append([metrics.pesq_wb(y16, c16), metrics.stoi(y16, c16), si_sdr_db(y, clean), high_band_lsd_db(y, clean)])
        m = np.mean(rows, 0)
        print(f"| {name} | {m[0]:.2f} | {m[1]:.3f} | {m[2]:.1f} | {m[3]:.1f} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
