"""What half precision costs: the lowered step beside the model itself, both on ONNX Runtime on the CPU, over a minute of speech in noise, samples
in and samples out, nothing of the input mixed back.

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
from voicewire.engines.gpu.ends import PCM
from voicewire.engines.gpu.fake import FakeDevice
from voicewire.engines.gpu.layout import Layout
from voicewire.engines.gpu.lower import Precision, lower
from voicewire.engines.gpu.pcm_slots import DevicePcmSlots
from voicewire.engines.gpu.stepper import CapturedStepper
from voicewire.engines.gpu.verify import Difference, compare_pcm

NOISY = Path(__file__).parents[1] / "rt" / "samples" / "noisy.flac"


def recording(seconds: float) -> F32:
    """The bundled recording, repeated: [1, frames, 320]"""
    return np.resize(sf.read(NOISY, dtype="float32")[0], (1, int(seconds * 50), 320))


def measure(precision: Precision, x: F32) -> Difference:
    cpu = open_engine("onnx")
    layout = Layout(cpu.init_state(1))
    model = lower(WEIGHTS / "model.onnx", layout, 1, precision)
    stepper = CapturedStepper(FakeDevice(), lambda bucket: model, layout, 1, mirror=True, ends=PCM)
    return compare_pcm(DevicePcmSlots(stepper, cpu, 1), cpu, x, dry=0.0)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seconds", type=float, default=60.0)
    x = recording(p.parse_args().seconds)
    kinds: tuple[Precision, ...] = ("fp32", "fp16")
    for precision in kinds:
        found = measure(precision, x)
        print(f"{precision}: {found.snr_db:.1f} dB, largest error {found.max_error:.1e} of the largest value")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
