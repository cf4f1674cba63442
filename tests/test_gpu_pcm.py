"""Samples at both ends of the captured step, on a device of NumPy and ONNX Runtime: the STFT, its overlaps, the share of the input and the samples'
formats are the graph's. What is right is what `Stream` does on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from convert_weights import export_small, somebody
from kernel_host import FIBERS, Host, build, has_compiler
from pcm_talkers import DRY, Talker, at_rate, on_torch, slots_on, together

from voicewire.engines import Engine
from voicewire.engines.contract import verify_contract
from voicewire.engines.convert_engine import ConvertEngine
from voicewire.engines.converting import Converting, is_converters
from voicewire.engines.engine import pinned_part
from voicewire.engines.gpu.device import Array
from voicewire.engines.gpu.fake import FakeDevice
from voicewire.engines.gpu.lower import Precision
from voicewire.engines.gpu.pcm_slots import Frames
from voicewire.engines.gpu.verify import compare_pcm, noise_pcm
from voicewire.engines.pcm_slots import HostPcmSlots, Luggage, open_pcm_slots
from voicewire.engines.slots import HostSlots
from voicewire.kernels import Kernel
from voicewire.rt import Stream
from voicewire.rt.lane import dry_share
from voicewire.rt.snapshot import pack, unpack

F32 = Any


# -- the same as the CPU ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["graph", "enqueue", "torch"])
def test_streams_on_the_device_say_what_streams_on_the_cpu_say(engine: Engine, noisy: F32, kind: str) -> None:
    """A recording in every slot, out of step with the others: rates from 8 to 48 kHz, int16 and float32, limited, without limit and bypassed. Bar: 1e-4."""
    slots = on_torch(engine, 7) if kind == "torch" else slots_on(FakeDevice(kind == "graph"), engine, 7)
    talkers = [
        Talker(slots, engine, 0, noisy),
        Talker(slots, engine, 1, noisy[5000:], whole=True),
        Talker(slots, engine, 2, at_rate(noisy[9000:], 48000), 48000, strength_db=12),
        Talker(slots, engine, 3, at_rate(noisy, 8000), 8000, strength_db=np.inf),
        Talker(slots, engine, 4, at_rate(noisy[20000:], 44100), 44100, whole=True),
        Talker(slots, engine, 5, 0.1 * np.random.default_rng(0).standard_normal(96000).astype(np.float32), 48000, bypass=True),  # 24 kHz itself is in it
        Talker(slots, engine, 6, noisy[30000:], mixed=True),
    ]
    for t in range(40):
        together([k for k in talkers if (t + 1) % (k.row + 2)])
    for talker in talkers:
        assert len(talker.got) > 15
        talker.check()
    assert not slots.lost


@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler (apt-get install g++)")
def test_the_kernels_sources_themselves_in_the_step(engine: Engine, noisy: F32, tmp_path: Any) -> None:
    """The fake device runs what g++ made of the `.cu` files, not their twins."""
    host: Host = build(tmp_path, FIBERS)

    class Shim(FakeDevice):
        def call(self, kernel: Kernel, sizes: dict[str, int], *arguments: Array | int) -> None:
            def run() -> None:
                views = [self.array(a.address, a.shape, a.dtype) if isinstance(a, Array) else a for a in arguments]
                mine = copy.deepcopy(views)
                done = host.launch(kernel, sizes, tuple(mine))
                assert done.returncode == 0, done.stderr
                for view, value in zip(views, mine, strict=True):
                    if isinstance(view, np.ndarray):
                        view[...] = value

            self.queue(run)

    slots = slots_on(Shim(), engine, 4)
    talkers = [
        Talker(slots, engine, 0, noisy),
        Talker(slots, engine, 1, noisy[5000:], whole=True),
        Talker(slots, engine, 3, at_rate(noisy[9000:], 44100), 44100, strength_db=12),
    ]
    for t in range(12):
        together([k for k in talkers if (t + 1) % (k.row + 2)])
    for talker in talkers:
        talker.check()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_in_pytorch_is_good_enough_to_be_taken(engine: Engine, precision: Precision) -> None:
    """What `chain` asks of it before it is used; 55 and 39 dB here."""
    assert compare_pcm(on_torch(engine, 2, precision), engine, noise_pcm(2, 25)).good(precision)


def test_replay_is_bit_equal_to_enqueue_and_one_launch_a_frame(engine: Engine) -> None:
    x, results = noise_pcm(3, 20), []
    for captures in (True, False):
        device = FakeDevice(captures)
        slots = slots_on(device, engine, 4)
        for row in range(3):
            slots.attach(row, 160, whole=row == 1)
        made = [slots.step(np.arange(3), list(x[:, t]), np.full(3, DRY, np.float32)) for t in range(20)]
        luggage = [slots.export(row) for row in range(3)]
        results.append([y for ys in made for y in ys] + [v for kept in luggage for v in (*kept.state.values(), kept.tail, kept.overlap)])
        assert device.launches == (20 if captures else 0)
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))


def test_the_graph_is_ten_nodes_with_the_engine_as_one(engine: Engine) -> None:
    """Copy in, samples, analysis, engine, two write-backs, rings, synthesis, samples, copy out; with a mirror its two edges, too."""
    for mirror, nodes in ((False, 10), (True, 12)):
        slots = slots_on(FakeDevice(), engine, 2, mirror=mirror)
        slots.prepare(2)
        assert slots.stepper.nodes == {1: nodes, 2: nodes}


# -- slots -----------------------------------------------------------------------------------------------------------------
class Steps:
    """Slots behind the contract's interface: x [slots, frames, 320], a frame a step; the state is what each stream takes along."""

    step_size, latency = 1, 0
    forward: Callable[[F32], F32] | None = None

    def __init__(self, slots: Any, cpu: Engine) -> None:
        self._slots, self._cpu = slots, cpu

    def init_state(self, batch: int) -> dict[str, F32]:
        silence = np.zeros((batch, 160), np.float32)
        return {**self._cpu.init_state(batch), "tail": silence, "overlap": silence.copy()}

    def step(self, x: F32, state: dict[str, F32]) -> tuple[F32, dict[str, F32]]:
        rows = np.arange(len(x))
        for row in rows:
            mine = {k: v[row : row + 1].copy() for k, v in state.items()}
            tail, overlap = mine.pop("tail"), mine.pop("overlap")
            self._slots.attach(int(row), 160, luggage=Luggage(mine, tail, overlap))
        y = np.stack(self._slots.step(rows, list(x[:, 0]), np.full(len(x), DRY, np.float32)))[:, None]
        kept = [self._slots.export(int(row)) for row in rows]
        new = {n: np.concatenate([k.state[n] for k in kept]) for n in kept[0].state}
        return y, {**new, "tail": np.concatenate([k.tail for k in kept]), "overlap": np.concatenate([k.overlap for k in kept])}


@pytest.mark.parametrize("kind", ["mirrored", "too many to mirror", "torch", "host"])
def test_slots_of_samples_keep_the_contract(engine: Engine, kind: str) -> None:
    """Pure, no leak between slots, reset is a fresh start, what a stream takes along is complete."""
    if kind == "host":
        slots: Any = HostPcmSlots(HostSlots(engine, 3), 3)
    else:
        slots = on_torch(engine, 3) if kind == "torch" else slots_on(FakeDevice(), engine, 3, mirror=kind == "mirrored")
    verify_contract(Steps(slots, engine), 0.1 * np.random.default_rng(1).standard_normal((3, 12, 320)).astype(np.float32))


def test_idle_rows_keep_every_bit_and_the_mirror_is_the_device(engine: Engine) -> None:
    """Growth from one batch size to the next, warm-up and capture in mid-stream included."""
    x, rng = noise_pcm(4, 12, 480), np.random.default_rng(0)
    slots = slots_on(FakeDevice(), engine, 4)
    for row in range(4):
        slots.attach(row, 480)
    for t, rows in enumerate([[0], [0, 1], [1], [0, 1, 3], [3], [0, 2], [0, 1, 2, 3], [1]]):
        before = {r: slots.stepper.read(r) for r in range(4)}
        slots.step(np.array(rows), list(x[rows, t]), rng.random(len(rows)).astype(np.float32))
        for r in range(4):
            there, mirrored = slots.stepper.read(r), slots.export(r)
            assert all(np.array_equal(there[k], v) for k, v in {**mirrored.state, "tail": mirrored.tail, "overlap": mirrored.overlap}.items()), (t, r)
            assert r in rows or all(np.array_equal(there[k], v) for k, v in before[r].items()), (t, r)


def test_who_takes_a_row_over_hears_nothing_of_the_one_before(engine: Engine, noisy: F32) -> None:
    """At another rate, after a longer one, without a launch; whoever stays goes on."""
    device = FakeDevice()
    slots = slots_on(device, engine, 2)
    stays, leaves = Talker(slots, engine, 0, noisy), Talker(slots, engine, 1, at_rate(noisy, 48000), 48000)
    for _ in range(8):
        together([stays, leaves])
    before = device.mark().at
    comes = Talker(slots, engine, 1, noisy[3000:], whole=True)
    assert device.mark().at == before, "attaching costs no work on the device"
    for _ in range(8):
        together([stays, comes])
    again = Talker(slots, engine, 1, at_rate(noisy, 48000), 48000)
    for _ in range(8):
        together([stays, again])
    for talker in (stays, leaves, comes, again):
        talker.check()


def test_a_stream_moves_from_the_cpu_to_the_device_and_back(engine: Engine, noisy: F32) -> None:
    """The luggage is `Stream`'s: a snapshot made on one side goes on on the other, in mid-frame."""
    here, plain = Stream(16000, engine=engine), Stream(16000, engine=engine)
    want = plain.process(noisy[:32000])
    got = [here.process(noisy[:8100])]
    head, state, edge = unpack(here.snapshot(), here._kind(), engine.init_state(1))
    for mirror in (True, False):
        slots = slots_on(FakeDevice(), engine, 4, mirror=mirror)
        slots.attach(3, 160, luggage=Luggage(state, edge["tail"], edge["overlap"]))
        inside, out = edge["in"][0], edge["out"][0]
        at = 8100 if mirror else 16100
        samples = np.concatenate([inside, noisy[at : at + 8000]])
        for i in range(len(samples) // 320):
            out = np.concatenate([out, slots.step(np.array([3]), [samples[320 * i : 320 * i + 320]], np.full(1, DRY, np.float32))[0]])
        got.append(out[:8000])
        state, tail, overlap = slots.export(3)
        edge = {"tail": tail, "overlap": overlap, "in": samples[None, len(samples) // 320 * 320 :], "out": out[None, 8000:]}
    back = Stream(16000, engine=engine)
    back.restore(pack(head, state, edge))
    got.append(back.process(noisy[24100:32000]))
    np.testing.assert_allclose(np.concatenate(got), want, atol=1e-4)


def test_a_row_goes_from_the_device_to_the_converter_and_back(engine: Engine, noisy: F32, tmp_path: Any) -> None:
    """What the stream takes along is the edge; its neighbour on the device does not notice."""
    export_small(tmp_path)
    converter = ConvertEngine(tmp_path)

    class OnDevice:
        name, weights, init_state, step, advance = "device", engine.weights, engine.init_state, engine.step, engine.advance
        pcm_slots = staticmethod(lambda capacity: slots_on(FakeDevice(), engine, capacity))

    both = Converting(OnDevice(), converter)
    slots = open_pcm_slots(both, 3)
    stays, goes, other = Talker(slots, engine, 0, noisy), Talker(slots, engine, 1, noisy[5000:], whole=True), Talker(slots, engine, 2, noisy[8000:])
    for _ in range(6):
        together([stays, goes, other])
    voice = somebody(converter, 1)
    for task, wanted, now in (("convert", voice, converter), ("restore", None, engine)):
        before, goes.plain = goes.plain, Stream(16000, task=task, voice=wanted, engine=now)
        goes.plain._tail, goes.plain._overlap, goes.plain._lane = before._tail, before._overlap, before._lane
        goes.dry = dry_share(None, False, task)
        slots.pin(1, pinned_part(goes.plain._state))
        assert is_converters(slots.export(1).state) == (task == "convert")
        for _ in range(6):
            together([stays, goes, other])
    for talker in (stays, goes, other):
        talker.check(1e-3)
    assert np.abs(np.concatenate(goes.got[7:11])).max() > 100
    slots.close()


def test_two_steps_under_way(engine: Engine) -> None:
    """Nothing is computed before somebody waits, so a block that were used twice would show."""
    x, waiting = noise_pcm(2, 9), []
    slots, host = slots_on(FakeDevice(), engine, 2), HostPcmSlots(HostSlots(engine, 2), 2)
    dry = np.array([DRY, -0.1], np.float32)  # the second keeps everything, and what was found at -20 dB
    for row in range(2):
        slots.attach(row, 160)
        host.attach(row, 160)
    for t in range(9):
        waiting.append(slots.submit(np.arange(2), Frames(list(x[:, t]), dry)))
        if len(waiting) == 2:
            np.testing.assert_allclose(slots.collect(waiting.pop(0)), host.step(np.arange(2), list(x[:, t - 1]), dry), atol=1e-5)


def test_a_step_under_way_belongs_to_who_was_there(engine: Engine) -> None:
    x, slots, host, dry = noise_pcm(1, 2), slots_on(FakeDevice(), engine, 1), HostPcmSlots(HostSlots(engine, 1), 1), np.full(1, DRY, np.float32)
    slots.attach(0, 160)
    host.attach(0, 160)
    ticket = slots.submit(np.arange(1), Frames([x[0, 0]], dry))
    slots.attach(0, 480, whole=True)
    np.testing.assert_allclose(slots.collect(ticket)[0], host.step(np.arange(1), [x[0, 0]], dry)[0], atol=1e-5)
    assert not any(v.any() for v in (slots.export(0).tail, slots.export(0).overlap)), "it was written into the new one's mirror"


def test_what_was_given_stays_as_it_was_fetched(engine: Engine) -> None:
    """The relay keeps frames until the client has them: they are no views of a block that is used again."""
    x, slots = noise_pcm(1, 8), slots_on(FakeDevice(), engine, 1)
    slots.attach(0, 160)
    ys = [slots.step(np.arange(1), [x[0, t]], np.zeros(1, np.float32))[0] for t in range(8)]
    kept = [y.copy() for y in ys]
    slots.step(np.arange(1), [x[0, 0]], np.zeros(1, np.float32))
    assert all(np.array_equal(a, b) for a, b in zip(ys, kept, strict=True))
    assert len({y.tobytes() for y in ys}) == 8


def test_what_is_not_a_number_is_silence(engine: Engine, noisy: F32) -> None:
    x = noisy[:3200].copy()
    x[::50], x[1::50] = np.nan, np.inf
    slots = slots_on(FakeDevice(), engine, 1)
    talker = Talker(slots, engine, 0, x)
    for _ in range(10):
        together([talker])
    talker.check()
