"""The GPU back end without a GPU: lowering, cache, graphs, masks, slots and fallback on a device of NumPy and ONNX Runtime."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from gpu_tools import FakeBuilder, install, layout, lowered

from voicewire.engines import Engine, EngineError, open_engine
from voicewire.engines.contract import EngineSteps, verify_contract
from voicewire.engines.engine import WEIGHTS, State, copy_state
from voicewire.engines.gpu import chain, trt
from voicewire.engines.gpu.device import CaptureFailed, DeviceLost
from voicewire.engines.gpu.ends import Ends
from voicewire.engines.gpu.engine import GpuEngine
from voicewire.engines.gpu.fake import FakeDevice
from voicewire.engines.gpu.lower import Precision
from voicewire.engines.gpu.plans import Plans
from voicewire.engines.gpu.resident import MIRRORED
from voicewire.engines.gpu.slots import DeviceSlots
from voicewire.engines.gpu.stepper import CapturedStepper, bucket_for
from voicewire.engines.gpu.torch_stepper import TorchStepper, _Guard
from voicewire.engines.gpu.verify import compare, noise
from voicewire.rt import Stream

F32 = Any
MASKS = {"active": np.ones(1, bool), "reset": np.zeros(1, bool)}


def on_fake(device: FakeDevice, cpu: Engine, **options: Any) -> GpuEngine:
    return GpuEngine("tensorrt", cpu, lambda capacity, mirror, ends: CapturedStepper(device, lowered, layout(), capacity, mirror=mirror, ends=ends, **options))


def slots_on(device: FakeDevice, cpu: Engine, capacity: int, mirror: bool = True, **options: Any) -> DeviceSlots:
    slots = DeviceSlots(CapturedStepper(device, lowered, layout(), capacity, mirror=mirror, **options), cpu, capacity)
    if not mirror:
        slots.host = None
    return slots


def frame(x: F32, t: int) -> F32:
    return np.ascontiguousarray(x[:, 2 * t : 2 * t + 2])


# -- lowering --------------------------------------------------------------------------------------------------------------
def run_lowered(model: bytes, cpu: Engine, x: F32) -> F32:
    """One stream through a lowered step, its state carried by hand."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    arrays: State = {k: v.copy() for k, v in layout().pack(cpu.init_state(1)).items()}
    ys = []
    for t in range(x.shape[1] // 2):
        out = dict(zip(names, session.run(None, {"x": frame(x, t), **arrays, **MASKS}), strict=True))
        for name in ("trunk.k", "trunk.v"):
            arrays[name][0, :, out["trunk.at"][0]] = out[f"{name}.row"][0]
        arrays |= {n: out[f"{n}.new"] for n in ("moving", "trunk.pos")}
        ys.append(out["y"])
    return np.concatenate(ys, 1)


def snr_db(y: F32, want: F32) -> float:
    return float(10 * np.log10(np.square(want, dtype=float).sum() / np.square(y - want, dtype=float).sum()))


def as_floats(model: bytes) -> bytes:
    """bf16 for a CPU that cannot: values are rounded to bf16 where the model says so, and multiplied as float32."""
    proto = onnx.load_from_string(model)
    half, full = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    nodes = []
    for i in proto.graph.initializer:
        if i.data_type == half:
            i.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(i).astype(np.float32), i.name))
    for node in proto.graph.node:
        if node.op_type == "Cast" and node.attribute[0].i == half:
            rounded = f"{node.output[0]}.rounded"
            nodes += [onnx.helper.make_node("Cast", node.input, [rounded], to=half), onnx.helper.make_node("Cast", [rounded], node.output, to=full)]
        else:
            nodes.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return bytes(proto.SerializeToString())


@pytest.mark.parametrize(("precision", "least_db"), [("fp32", 100.0), ("fp16", 45.0), ("bf16", 25.0)])
def test_lowered_step_says_what_the_model_says(engine: Engine, precision: Precision, least_db: float) -> None:
    """Silence, bursts and levels 60 dB apart, past the point where the ring wraps; 60 s of speech: see the README."""
    x = noise(1, 160)
    state, want = engine.init_state(1), []
    for t in range(160):
        y, state = engine.advance(frame(x, t), state)
        want.append(y)
    model = lowered(1, precision)
    got = run_lowered(as_floats(model) if precision == "bf16" else model, engine, x)
    assert np.isfinite(got).all()
    assert snr_db(got, np.concatenate(want, 1)) > least_db


def test_half_precision_is_where_it_should_be() -> None:
    proto = onnx.load_from_string(lowered(1, "fp16"))
    kinds = {i.name: i.data_type for i in proto.graph.initializer}
    products = [n for n in proto.graph.node if n.op_type in ("MatMul", "Gemm", "Conv", "ConvTranspose")]
    assert len(products) > 40
    assert all(name.endswith(".half") for n in products for name in n.input if name)
    others = [n for n in proto.graph.node if n not in products and n.op_type != "Cast"]
    assert not [i for n in others for i in n.input if kinds.get(i) == onnx.TensorProto.FLOAT16]
    assert not [n for n in proto.graph.node if n.op_type == "BatchNormalization"], "norms are folded into the convolutions"
    small = {float(onnx.numpy_helper.to_array(i).item()) for i in proto.graph.initializer if onnx.numpy_helper.to_array(i).size == 1}
    assert any(abs(v - 1e-10) < 1e-12 for v in small), "the epsilon of the compression was lost"


# -- the captured step -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("captures", [True, False], ids=["graph", "enqueue"])
def test_engine_on_the_device_keeps_the_contract(engine: Engine, captures: bool) -> None:
    device = FakeDevice(captures)
    gpu = on_fake(device, engine)
    verify_contract(EngineSteps(gpu), 0.2 * noise(3, 20))
    assert bool(device.launches) is captures and not gpu.lost
    assert ("one graph a frame" in gpu.how) is captures


def test_torch_stepper_keeps_the_contract(engine: Engine) -> None:
    """The same code as on a GPU, without the graph."""
    gpu = GpuEngine("torch-cuda", engine, lambda capacity, mirror, ends: TorchStepper(WEIGHTS, layout(), capacity, mirror=mirror, ends=ends, device="cpu"))
    verify_contract(EngineSteps(gpu), 0.2 * noise(3, 20))
    slots = gpu.slots(4)
    assert compare(slots, engine, noise(3, 20)).good("fp32")
    assert not gpu.lost


def test_replay_is_bit_equal_to_enqueue_and_one_launch_a_frame(engine: Engine) -> None:
    x, results = noise(3, 20), []
    for captures in (True, False):
        device = FakeDevice(captures)
        slots = slots_on(device, engine, 4)
        results.append([slots.step(np.arange(3), frame(x, t)).copy() for t in range(20)] + [v for r in range(3) for v in slots.export(r).values()])
        assert device.launches == (20 if captures else 0)
    assert slots.stepper.nodes == {}
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))


def test_a_graph_is_six_nodes_beside_the_engine(engine: Engine) -> None:
    slots = slots_on(FakeDevice(), engine, 2)
    slots.prepare(2)
    assert slots.stepper.nodes == {1: 6, 2: 6}  # copy in, engine (one here), two write-backs, rings, copy out


def test_device_state_is_the_mirror_and_idle_slots_keep_every_bit(engine: Engine) -> None:
    """Growth from bucket to bucket, warm-up and capture of new buckets in mid-stream included."""
    x = noise(4, 12)
    slots = slots_on(FakeDevice(), engine, 4)
    alone = [engine.init_state(1) for _ in range(4)]
    for t, rows in enumerate([[0], [0], [0, 1], [1], [0, 1, 3], [3], [0, 2], [2, 3], [0, 1, 2, 3], [1]]):
        before = {r: slots.stepper.read(r) for r in range(4)}
        y = slots.step(np.array(rows), frame(x, t)[rows])
        for i, r in enumerate(rows):
            want, alone[r] = engine.advance(frame(x, t)[r : r + 1], alone[r])
            np.testing.assert_allclose(y[i], want[0], atol=1e-5)
        for r in range(4):
            on_device, mirrored = slots.stepper.read(r), slots.export(r)
            assert all(np.array_equal(on_device[k], mirrored[k]) for k in mirrored), (t, r)
            if r not in rows:
                assert all(np.array_equal(on_device[k], v) for k, v in before[r].items()), (t, r)


def test_attaching_costs_no_work_on_the_device(engine: Engine) -> None:
    device = FakeDevice()
    slots = slots_on(device, engine, 2)
    slots.prepare(2)
    x = noise(2, 6)
    slots.step(np.arange(2), frame(x, 0))
    before = device.mark().at
    slots.attach(1)
    assert device.mark().at == before
    y = slots.step(np.arange(2), frame(x, 1))
    fresh, _ = engine.advance(frame(x, 1)[1:], engine.init_state(1))
    np.testing.assert_allclose(y[1], fresh[0], atol=1e-5)


def test_a_task_and_luggage_reach_the_device(engine: Engine) -> None:
    x = noise(3, 12)
    slots = slots_on(FakeDevice(), engine, 4, mirror=False)
    slots.attach(1, "extract")
    states = [engine.init_state(1), engine.init_state(1, "extract"), engine.init_state(1)]
    for t in range(12):
        if t == 6:  # the third goes on in the fourth row
            slots.attach(3, "restore", slots.export(2))
        rows = np.array([0, 1, 3]) if t >= 6 else np.arange(3)
        y = slots.step(rows, frame(x, t))
        for i in range(3):
            want, states[i] = engine.advance(frame(x, t)[i : i + 1], states[i])
            np.testing.assert_allclose(y[i], want[0], atol=1e-5)


def test_nothing_of_a_poisoned_stream_is_left(engine: Engine) -> None:
    x = noise(2, 8)
    bad = x.copy()
    bad[1] = np.nan
    slots = slots_on(FakeDevice(), engine, 2)
    for t in range(8):
        slots.step(np.arange(2), frame(bad, t))
    slots.attach(1)
    state = engine.init_state(1)
    for t in range(8):
        y = slots.step(np.arange(2), frame(x, t))
        want, state = engine.advance(frame(x, t)[1:], state)
        np.testing.assert_allclose(y[1], want[0], atol=1e-5)
    assert all(np.isfinite(v).all() for v in slots.stepper.read(1).values())


def test_two_steps_under_way(engine: Engine) -> None:
    """Nothing is computed before somebody waits, so a block that were used twice would show."""
    x = noise(2, 9)
    slots, state, waiting = slots_on(FakeDevice(), engine, 2), engine.init_state(2), []
    for t in range(9):
        waiting.append(slots.submit(np.arange(2), frame(x, t)))
        if len(waiting) == 2:
            with pytest.raises(ValueError, match="two steps"):
                slots.submit(np.arange(2), frame(x, t))
            y = slots.collect(waiting.pop(0))
            want, state = engine.advance(frame(x, t - 1), state)
            np.testing.assert_allclose(y, want, atol=1e-5)


def test_the_fake_device_catches_what_a_gpu_would_not_forgive() -> None:
    device = FakeDevice()
    a = device.alloc((4,), np.float32)
    with pytest.raises(DeviceLost, match="captured"):
        device.capture(lambda: device.wait(device.mark()))
    with pytest.raises(DeviceLost, match="captured"):
        device.capture(lambda: device.alloc((1,), np.float32))
    device.copy(a.address, a.address + 8, 16)
    with pytest.raises(DeviceLost, match="illegal"):
        device.wait(device.mark())
    with pytest.raises(DeviceLost, match="lost"):
        device.mark()


# -- a device that is lost -------------------------------------------------------------------------------------------------
def test_a_stream_goes_on_without_the_device(engine: Engine, noisy: F32) -> None:
    """Through `Stream`: the frame under way is stepped again on the CPU, nothing is lost, a snapshot fits."""
    device = FakeDevice()
    gpu = on_fake(device, engine)
    stream, plain = Stream(16000, engine=gpu), Stream(16000, engine=engine)
    block = noisy[:32000].reshape(-1, 320)
    for i, b in enumerate(block):
        if i == 40:
            device.lost = True
        np.testing.assert_allclose(stream.process(b), plain.process(b), atol=1e-4)
        assert gpu.name == ("onnx" if i >= 40 else "tensorrt")
    assert len(gpu.why) == 1 and "lost" in gpu.why[0]
    plain.restore(stream.snapshot())
    np.testing.assert_array_equal(stream.process(block[0]), plain.process(block[0]))
    after = Stream(16000, engine=gpu)  # and a new one begins on the CPU
    np.testing.assert_array_equal(after.process(noisy[:3200]), Stream(16000, engine=engine).process(noisy[:3200]))


def test_a_stream_that_asks_for_something_else_keeps_what_it_heard(engine: Engine, noisy: F32) -> None:
    """Its row may be another stream's before its next frame."""
    gpu, blocks = on_fake(FakeDevice(), engine), noisy[:6400].reshape(-1, 320)
    stream, plain = Stream(16000, engine=gpu), Stream(16000, engine=engine)
    for i, b in enumerate(blocks):
        if i == 10:
            stream.ask("restore")
            plain.ask("restore")
            Stream(16000, engine=gpu).process(noisy[8000:9600])
        np.testing.assert_allclose(stream.process(b), plain.process(b), atol=1e-4)


@pytest.mark.parametrize("mirror", [True, False], ids=["mirrored", "too many to mirror"])
def test_slots_go_on_without_the_device(engine: Engine, mirror: bool) -> None:
    """Two steps under way when it goes: both come back. Without a mirror the streams begin afresh, on the frame under way."""
    x = noise(2, 20)
    device = FakeDevice()
    slots = slots_on(device, engine, 2, mirror)
    fallen: list[str] = []
    slots._fallen = fallen.append
    state = engine.init_state(2)
    for t in range(0, 20, 2):
        tickets = [slots.submit(np.arange(2), frame(x, t + i)) for i in range(2)]
        if t == 10:
            device.lost = True
            state = state if mirror else engine.init_state(2)
        for i, ticket in enumerate(tickets):
            want, state = engine.advance(frame(x, t + i), state)
            np.testing.assert_allclose(slots.collect(ticket), want, atol=1e-5)
    assert fallen == ["the device is lost"]
    assert slots.host is not None


def test_a_batch_size_for_which_there_is_no_room_is_refused_and_the_others_go_on(engine: Engine) -> None:
    def plan(bucket: int) -> bytes:
        if bucket > 1:
            raise EngineError("no room")
        return lowered(bucket)

    x = noise(2, 2)
    slots = DeviceSlots(CapturedStepper(FakeDevice(), plan, layout(), 2, mirror=True), engine, 2)
    for t in range(2):
        y = slots.step(np.arange(1), frame(x, t)[:1])
        with pytest.raises(EngineError, match="no room"):
            slots.step(np.arange(2), frame(x, t))
    _, state = engine.advance(frame(x, 0)[:1], engine.init_state(1))
    want, _ = engine.advance(frame(x, 1)[:1], state)
    np.testing.assert_allclose(y, want, atol=1e-5)
    assert not slots.lost


def test_only_what_fits_is_mirrored(engine: Engine) -> None:
    asked: list[tuple[int, bool]] = []

    def make(capacity: int, mirror: bool, ends: Ends) -> CapturedStepper:
        asked.append((capacity, mirror))
        return CapturedStepper(FakeDevice(), lowered, layout(), capacity, mirror=mirror, ends=ends)

    gpu = GpuEngine("tensorrt", engine, make)
    assert isinstance(gpu.slots(MIRRORED + 1), DeviceSlots)
    assert asked == [(64, True), (MIRRORED + 1, False)]


def test_more_streams_than_rows_are_stepped_on_the_cpu_and_rows_come_back(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voicewire.engines.gpu.engine.STREAMS", 3)
    gpu = on_fake(FakeDevice(), engine)
    x = noise(1, 2)
    states = []
    for _ in range(4):
        y, state = gpu.advance(frame(x, 0), gpu.init_state(1))
        states.append(state)
    assert gpu._taken.all()
    want, _ = engine.step(frame(x, 0), engine.init_state(1))
    np.testing.assert_array_equal(y, want)
    del states, state
    assert not gpu._taken.any()


# -- engines on disk -------------------------------------------------------------------------------------------------------
@pytest.fixture
def plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plans]:
    install(monkeypatch, tmp_path)

    def make(tag: str = "fake 1", precision: Precision = "fp32", builder: FakeBuilder | None = None) -> Plans:
        builder = builder or FakeBuilder()
        builder.tag = tag
        return Plans(WEIGHTS / "model.onnx", layout(), precision, builder)

    return make


def builds(p: Plans) -> int:
    assert isinstance(p.builder, FakeBuilder)
    return p.builder.built


def test_an_engine_is_built_once(plans: Callable[..., Plans]) -> None:
    first, again = plans(), plans()
    assert first(1) == first(1) == again(1) == lowered(1)
    assert (builds(first), builds(again)) == (1, 0)


@pytest.mark.parametrize("harm", [lambda b: b[:-1], lambda b: b[:100] + b"x" + b[101:], lambda b: b"", lambda b: b[:32], lambda b: b"y" * len(b)])
def test_a_damaged_engine_is_built_again(plans: Callable[..., Plans], harm: Callable[[bytes], bytes]) -> None:
    path = (first := plans()).path(1)
    first(1)
    path.write_bytes(harm(path.read_bytes()))
    after = plans()
    assert not after.kept(1)
    assert after(1) == lowered(1) and builds(after) == 1
    assert plans().kept(1)


def test_an_engine_of_something_else_is_not_taken(plans: Callable[..., Plans]) -> None:
    """Another TensorRT, another GPU, another precision or batch size, also under the right name."""
    first = plans()
    first(1)
    for other in (plans("fake 2"), plans("fake 1 sm_80"), plans(precision="fp16")):
        assert not other.kept(1) and other.path(1) != first.path(1)
        other.path(1).write_bytes(first.path(1).read_bytes())
        assert not other.kept(1)
    first.path(2).write_bytes(first.path(1).read_bytes())
    assert not first.kept(2)


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None and importlib.util.find_spec("tensorrt") is None, reason="no TensorRT: voicewire[gpu]")
def test_tensorrt_builds_our_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real builder, without a GPU: for a GPU that is not here it turns to all that it knows. Running what it built: tools.gpu_check."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shares: list[float] = []
    plans = Plans(WEIGHTS / "model.onnx", layout(), "fp16", trt.TrtBuilder((9, 0)), lambda bucket, share: shares.append(share))
    assert len(plans(2)) > 1_000_000
    assert shares[-1] == 1.0 and len(shares) > 3
    with pytest.raises(EngineError, match="cannot read the model"):
        trt.TrtBuilder(None).build(b"no model")


# -- the chain -------------------------------------------------------------------------------------------------------------
def test_without_a_gpu_the_chain_ends_on_the_cpu_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(ordinal: int = 0) -> tuple[int, int]:
        raise EngineError("no NVIDIA GPU here")

    monkeypatch.setattr(chain.cuda, "capability", none)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    engine = open_engine("auto")
    assert engine.name == "onnx"
    assert [w.partition(":")[0] for w in engine.why] == ["tensorrt", "torch-cuda"]  # type: ignore[attr-defined]
    for name in ("tensorrt", "torch-cuda"):
        with pytest.raises(EngineError, match="no NVIDIA GPU") as e:
            open_engine(name)
        assert "\n" not in str(e.value)


def test_the_chain_takes_tensorrt_then_enqueues_where_graphs_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path)
    assert open_engine("auto").how == "fake fp16, one graph a frame"  # type: ignore[attr-defined]
    install(monkeypatch, tmp_path, captures=False)
    assert open_engine("auto").how == "fake fp16, enqueued (the fake device was told not to capture)"  # type: ignore[attr-defined]


def test_an_engine_that_gives_wrong_numbers_is_not_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def wrong(model: Path, layout: Any, bucket: int, precision: Precision) -> bytes:
        proto = onnx.load_from_string(lowered(bucket, precision))
        for i in proto.graph.initializer:
            if i.name.endswith(".half"):  # one weight in a thousand is off
                value = onnx.numpy_helper.to_array(i).copy()
                value.reshape(-1)[::1000] *= 3
                i.CopyFrom(onnx.numpy_helper.from_array(value, i.name))
        return bytes(proto.SerializeToString())

    install(monkeypatch, tmp_path)
    monkeypatch.setattr("voicewire.engines.gpu.plans.lower.lower", wrong)
    with pytest.raises(EngineError, match="wrong numbers"):
        open_engine("tensorrt")


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys\n"
        "for m in ('cuda', 'cuda.bindings', 'tensorrt', 'tensorrt_rtx', 'torch', 'onnx'): sys.modules[m] = None\n"
        "from voicewire.engines import EngineError, open_engine\n"
        "from voicewire.engines.gpu import lower, trt\n"
        "from voicewire.engines.gpu.layout import Layout\n"
        "from voicewire.engines.engine import WEIGHTS\n"
        "cpu = open_engine('auto')\n"
        "tries = [lambda: open_engine('tensorrt'), lambda: open_engine('torch-cuda'), trt.module,\n"
        "         lambda: lower.lower(WEIGHTS / 'model.onnx', Layout(cpu.init_state(1)), 1, 'fp16')]\n"
        "for t in tries:\n"
        "    try: t()\n"
        "    except EngineError as e: print(e)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ).stdout.splitlines()
    assert len(out) == 4 and all("pip install 'voicewire[" in line for line in out), out


def test_buckets() -> None:
    assert [bucket_for(n) for n in (1, 2, 3, 64, 65, 4096)] == [1, 2, 4, 64, 128, 4096]
    with pytest.raises(ValueError, match="4096"):
        bucket_for(4097)


def test_states_are_packed_and_unpacked(engine: Engine) -> None:
    state = engine.init_state(3)
    for t in range(3):
        _, state = engine.step(frame(noise(3, 3), t), state)
    there = layout().unpack(layout().pack(copy_state(state)))
    assert list(there) == list(state)
    assert all(np.array_equal(there[k], v) and there[k].dtype == v.dtype for k, v in state.items())


def test_errors_of_pytorchs_gpu_libraries_are_a_lost_device() -> None:
    """They are RuntimeErrors of many wordings; what is ours stays what it is, and on a CPU there is no device to lose."""
    for error in (RuntimeError("CUDA error: an illegal memory access"), RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")):
        with pytest.raises(DeviceLost), _Guard(True):
            raise error
        with pytest.raises(RuntimeError, match="err") as told, _Guard(False):
            raise error
        assert not isinstance(told.value, DeviceLost)
    for ours in (EngineError("compiling the CUDA kernels needs NVRTC"), CaptureFailed("CUDA: no")):
        with pytest.raises(type(ours)) as told, _Guard(True):
            raise ours
        assert told.value is ours
