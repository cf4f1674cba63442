"""Samples at both ends of the captured step: a device that is lost, an engine that cannot, a batch for which there is no room."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gpu_tools import layout, lowered
from pcm_talkers import DRY, Talker, at_rate, slots_on, together

from voicewire.engines import Engine, EngineError
from voicewire.engines.gpu.ends import PCM, SPECTRA, Ends
from voicewire.engines.gpu.engine import GpuEngine
from voicewire.engines.gpu.fake import FakeDevice
from voicewire.engines.gpu.pcm_slots import DevicePcmSlots, Frames
from voicewire.engines.gpu.stepper import CapturedStepper, Stepper
from voicewire.engines.gpu.verify import compare_pcm, noise_pcm
from voicewire.engines.pcm_slots import HostPcmSlots, Luggage, open_pcm_slots
from voicewire.engines.slots import HostSlots

F32 = Any


# -- a device that is lost -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("whole", [False, True], ids=["float32", "int16"])
def test_streams_go_on_without_the_device(engine: Engine, noisy: F32, whole: bool) -> None:
    """The frame under way is made again on the CPU from the mirror, overlap and all: no gap, nothing is heard."""
    device = FakeDevice()
    slots = slots_on(device, engine, 3)
    fallen: list[str] = []
    slots._fallen = fallen.append
    talkers = [Talker(slots, engine, row, noisy[4000 * row :], whole=whole) for row in range(2)]
    for t in range(24):
        if t == 10:
            device.lost = True
        if t == 16:
            talkers.append(Talker(slots, engine, 2, at_rate(noisy, 48000), 48000, whole=whole))  # and another one comes
        together(talkers)
    for talker in talkers:
        talker.check()
    assert fallen == ["the device is lost"]


def test_steps_under_way_come_back(engine: Engine) -> None:
    x, device = noise_pcm(2, 20), FakeDevice()
    slots, host, dry = slots_on(device, engine, 2), HostPcmSlots(HostSlots(engine, 2), 2), np.full(2, DRY, np.float32)
    for row in range(2):
        slots.attach(row, 160)
        host.attach(row, 160)
    for t in range(0, 20, 2):
        tickets = [slots.submit(np.arange(2), Frames(list(x[:, t + i]), dry)) for i in range(2)]
        device.lost = t >= 10
        for i, ticket in enumerate(tickets):
            np.testing.assert_allclose(slots.collect(ticket), host.step(np.arange(2), list(x[:, t + i]), dry), atol=1e-5)


def test_too_many_to_mirror_begin_afresh_on_the_frame_under_way(engine: Engine, noisy: F32) -> None:
    device = FakeDevice()
    slots = slots_on(device, engine, 2, mirror=False)
    frames, one = noisy[:16000].reshape(-1, 320), np.full(1, DRY, np.float32)
    loud = np.ones((1, 160), np.float32)
    slots.attach(1, 160, luggage=Luggage(engine.init_state(1), loud, loud))  # of which nothing may sound again
    fresh = HostPcmSlots(HostSlots(engine, 2), 2)
    fresh.attach(1, 160)
    for t in range(20):
        if t == 10:
            device.lost = True
        y = slots.step(np.array([1]), [frames[t]], one)
        if t >= 10:
            np.testing.assert_allclose(y, fresh.step(np.array([1]), [frames[t]], one), atol=1e-5)


# -- the engine offers it --------------------------------------------------------------------------------------------------
def test_an_engine_on_a_device_offers_slots_of_samples(engine: Engine) -> None:
    device, asked = FakeDevice(), []

    def make(capacity: int, mirror: bool, ends: Ends) -> Stepper:
        asked.append(ends.name)
        return CapturedStepper(device, lowered, layout(), capacity, mirror=mirror, ends=ends)

    gpu = GpuEngine("tensorrt", engine, make)
    assert isinstance(open_pcm_slots(gpu, 2), DevicePcmSlots) and isinstance(open_pcm_slots(engine, 2), HostPcmSlots)
    gpu.host_stft = "no compiler"
    on_host = open_pcm_slots(gpu, 2)
    assert isinstance(on_host, HostPcmSlots) and gpu.how.endswith("STFT on the host")
    assert asked == ["spectra", "pcm", "spectra"]
    assert compare_pcm(on_host, engine, noise_pcm(2, 6)).good("fp32")
    device.lost = True
    gpu.advance(np.zeros((1, 2, 480, 2), np.float32), gpu.init_state(1))
    after = open_pcm_slots(gpu, 2)
    assert isinstance(after, HostPcmSlots) and isinstance(after.slots, HostSlots)


def test_the_ends_name_what_the_engine_reads_and_writes() -> None:
    for ends in (SPECTRA, PCM):
        for name in ("x", "y"):
            assert sum(name in fields for fields in (ends.given, ends.made, ends.scratch)) == 1


def test_a_batch_size_for_which_there_is_no_room_is_refused(engine: Engine) -> None:
    def plan(bucket: int) -> bytes:
        if bucket > 1:
            raise EngineError("no room")
        return lowered(bucket)

    slots = DevicePcmSlots(CapturedStepper(FakeDevice(), plan, layout(), 2, mirror=True, ends=PCM), engine, 2)
    x, dry = noise_pcm(2, 4), np.zeros(2, np.float32)
    host = HostPcmSlots(HostSlots(engine, 1), 1)
    host.attach(0, 160)
    for row in range(2):
        slots.attach(row, 160)
    for t in range(4):
        with pytest.raises(EngineError, match="no room"):
            slots.step(np.arange(2), list(x[:, t]), dry)
        np.testing.assert_allclose(slots.step(np.arange(1), [x[0, t]], dry[:1]), host.step(np.arange(1), [x[0, t]], dry[:1]), atol=1e-5)
