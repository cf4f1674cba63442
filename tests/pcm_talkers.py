"""Streams in two places at once, a row of slots that take samples and `Stream` on the CPU, for the tests of the captured step."""

from __future__ import annotations

from typing import Any

import numpy as np
from gpu_tools import layout, lowered

from voicewire.engines import Engine
from voicewire.engines.engine import WEIGHTS
from voicewire.engines.gpu.ends import PCM
from voicewire.engines.gpu.fake import FakeDevice
from voicewire.engines.gpu.lower import Precision
from voicewire.engines.gpu.pcm_slots import DevicePcmSlots
from voicewire.engines.gpu.stepper import CapturedStepper
from voicewire.engines.gpu.torch_stepper import TorchStepper
from voicewire.engines.stft import hop_samples
from voicewire.rt import Stream
from voicewire.rt.lane import dry_share, to_int16

F32 = Any
DRY = dry_share(None, False)  # what a stream keeps if nothing is said


def slots_on(device: FakeDevice, cpu: Engine, capacity: int, *, mirror: bool = True, **options: Any) -> DevicePcmSlots:
    slots = DevicePcmSlots(CapturedStepper(device, lowered, layout(), capacity, mirror=mirror, ends=PCM, **options), cpu, capacity)
    if not mirror:
        slots.host = None
    return slots


def on_torch(cpu: Engine, capacity: int, precision: Precision = "fp32") -> DevicePcmSlots:
    return DevicePcmSlots(TorchStepper(WEIGHTS, layout(), capacity, mirror=True, ends=PCM, precision=precision, device="cpu"), cpu, capacity)


class Talker:
    """One stream in two places: a row of the slots, and `Stream` on the CPU. whole: int16 goes in and comes out; mixed: float32 goes in, as what is
    mixed down from stereo does, and int16 comes out."""

    def __init__(self, slots: Any, cpu: Engine, row: int, x: F32, rate: int = 16000, whole: bool = False, mixed: bool = False, **options: Any) -> None:
        self.slots, self.row, self.hop, self.t = slots, row, hop_samples(rate), 0
        self.plain = Stream(rate, engine=cpu, **options)
        self.frames = (to_int16(x) if whole else x)[: len(x) // (2 * self.hop) * 2 * self.hop].reshape(-1, 2 * self.hop)
        self.dry = dry_share(self.plain.strength_db, self.plain.bypass)
        self.got: list[F32] = []
        self.want: list[F32] = []
        self.mixed = mixed
        slots.attach(row, self.hop, whole=whole or mixed)

    def take(self) -> F32:
        frame = self.frames[self.t]
        self.t += 1
        self.want.append(self.plain.process(frame))
        return frame

    def check(self, tolerance: float = 1e-4) -> None:
        """`Stream` is a frame later: it has one to collect first."""
        got, want = np.concatenate(self.got[:-1]), np.concatenate(self.want[1:])
        want = to_int16(want) if self.mixed else want
        assert got.dtype == want.dtype
        scale = 32768 if got.dtype == np.int16 else 1
        np.testing.assert_allclose(got / scale, want / scale, atol=tolerance)
        assert np.abs(want).max() > 0.01 * scale


def together(talkers: list[Talker]) -> None:
    """One step of those, in the order of their rows."""
    talkers = sorted(talkers, key=lambda k: k.row)
    slots, frames = talkers[0].slots, [k.take() for k in talkers]
    dry = np.array([k.dry for k in talkers], np.float32)
    for talker, y in zip(talkers, slots.step(np.array([k.row for k in talkers]), frames, dry), strict=True):
        talker.got.append(y)


def at_rate(x: F32, rate: int) -> F32:
    """The recording at another rate, by straight lines: any sound will do."""
    n = len(x) * rate // 16000
    y: F32 = np.interp(np.arange(n) * 16000 / rate, np.arange(len(x)), x).astype(np.float32)
    return y
