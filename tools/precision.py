"""What half precision costs: the lowered step beside the model itself, both on ONNX Runtime on the CPU, over a minute of speech in noise.

    python -m tools.precision [--seconds 60]

Rounding is that of fp16 products with float32 sums; a GPU may add in another order. bf16 has no products on a CPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import soundfile as sf

from voicewire.engines import open_engine
from voicewire.engines.engine import F32, WEIGHTS
from voicewire.engines.gpu.fake import FakeDevice
from voicewire.engines.gpu.layout import Layout
from voicewire.engines.gpu.lower import Precision, lower
from voicewire.engines.gpu.slots import DeviceSlots
from voicewire.engines.gpu.stepper import CapturedStepper
from voicewire.engines.gpu.verify import Difference, compare
from voicewire.engines.stft import analyse

NOISY = Path(__file__).parents[1] / "rt" / "samples" / "noisy.flac"


def spectra(seconds: float) -> F32:
    """The bundled recording, repeated: [1, hops, 480, 2]"""
    x = np.resize(sf.read(NOISY, dtype="float32")[0], int(seconds * 50) * 320)
    tail, frames = np.zeros((1, 160), np.float32), []
    for at in range(0, len(x), 320):
        spectrum, tail = analyse(tail, x[None, at : at + 320])
        frames.append(spectrum[:, :, :-1])
    return np.concatenate(frames, 1)


def measure(precision: Precision, x: F32) -> Difference:
    cpu = open_engine("onnx")
    layout = Layout(cpu.init_state(1))
    model = lower(WEIGHTS / "model.onnx", layout, 1, precision)
    return compare(DeviceSlots(CapturedStepper(FakeDevice(), lambda bucket: model, layout, 1, mirror=True), cpu, 1), cpu, x)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seconds", type=float, default=60.0)
    x = spectra(p.parse_args().seconds)
    kinds: tuple[Precision, ...] = ("fp32", "fp16")
    for precision in kinds:
        found = measure(precision, x)
        print(f"{precision}: {found.snr_db:.1f} dB, largest error {found.max_error:.1e} of the largest value")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
