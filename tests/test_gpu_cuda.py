"""`CudaDevice` as far as a machine without a GPU can take it: its calls, their order and their failures. What a GPU makes of them: tools.gpu_check."""

from __future__ import annotations

import gc
import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest

if importlib.util.find_spec("cuda") is None:
    pytest.skip("no cuda-python: pip install 'voicewire[gpu]'", allow_module_level=True)

import cuda_stub
from cuda_stub import Runtime
from gpu_tools import layout, lowered

from voicewire.engines import Engine, EngineError
from voicewire.engines.contract import EngineSteps, verify_contract
from voicewire.engines.gpu import cuda
from voicewire.engines.gpu.cuda import CudaDevice, capability
from voicewire.engines.gpu.device import CaptureFailed
from voicewire.engines.gpu.engine import GpuEngine
from voicewire.engines.gpu.slots import DeviceSlots
from voicewire.engines.gpu.stepper import CapturedStepper
from voicewire.engines.gpu.verify import compare, compare_pcm, noise, noise_pcm


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    return cuda_stub.install(monkeypatch)


def engine_on(cpu: Engine) -> GpuEngine:
    return GpuEngine("tensorrt", cpu, lambda capacity, mirror, ends: CapturedStepper(CudaDevice(), lowered, layout(), capacity, mirror=mirror, ends=ends))


def test_the_contract_through_cuda_calls(runtime: Runtime, engine: Engine) -> None:
    gpu = engine_on(engine)
    verify_contract(EngineSteps(gpu), 0.2 * noise(3, 10))
    assert not gpu.lost and gpu.how == "tensorrt, one graph a frame"
    assert runtime.calls["cudaGraphLaunch"] > 10


def test_a_step_is_one_launch_one_event_one_wait(runtime: Runtime, engine: Engine) -> None:
    x = noise(2, 3)
    slots = engine_on(engine).slots(2)
    slots.prepare(2)
    slots.step(np.arange(2), np.ascontiguousarray(x[:, :2]))
    runtime.calls.clear()
    slots.attach(1)
    slots.step(np.arange(2), np.ascontiguousarray(x[:, 2:4]))
    assert runtime.calls == {"cudaGraphLaunch": 1, "cudaEventRecord": 1, "cudaEventSynchronize": 1}


def test_a_step_of_samples_is_as_little(runtime: Runtime, engine: Engine) -> None:
    """The kernels' arguments as cuda-python packs them; attaching, STFT and conversion cost the host no call."""
    slots, x = engine_on(engine).pcm_slots(2), noise_pcm(2, 12)
    assert compare_pcm(slots, engine, x).good("fp32")
    runtime.calls.clear()
    slots.attach(1, 480, whole=True)
    slots.step(np.arange(2), [x[0, 0], np.zeros(960, np.int16)], np.zeros(2, np.float32))
    assert runtime.calls == {"cudaGraphLaunch": 1, "cudaEventRecord": 1, "cudaEventSynchronize": 1}


def test_a_refused_capture_is_enqueued_instead(runtime: Runtime, engine: Engine) -> None:
    runtime.captures = False
    gpu = engine_on(engine)
    assert "enqueued (CUDA: cudaErrorStreamCaptureInvalidated)" in gpu.how
    assert compare(gpu.slots(2), engine, noise(2, 6)).good("fp32")
    assert "cudaGraphLaunch" not in runtime.calls


def test_an_error_of_any_call_is_a_lost_device(runtime: Runtime, engine: Engine) -> None:
    x = noise(1, 6)
    gpu, state = engine_on(engine), engine.init_state(1)
    slots = gpu.slots(1)
    for t in range(6):
        if t == 3:
            runtime.fails = cuda_stub.real.cudaError_t.cudaErrorIllegalAddress
        frame = np.ascontiguousarray(x[:, 2 * t : 2 * t + 2])
        want, state = engine.advance(frame, state)
        np.testing.assert_allclose(slots.step(np.arange(1), frame), want, atol=1e-5)
    assert gpu.lost == "CUDA: cudaErrorIllegalAddress"
    with pytest.raises(EngineError, match="cudaErrorIllegalAddress"):
        CudaDevice()


def test_no_room_and_a_foreign_engine_are_refused_in_one_line(runtime: Runtime, engine: Engine) -> None:
    assert capability() == (9, 0)
    device = CudaDevice()
    with pytest.raises(EngineError, match="stub cannot run its engine on stub: no reason"):
        device.load(b"bad")
    runtime.room = 2**20
    with pytest.raises(EngineError, match="not enough free memory"):
        DeviceSlots(CapturedStepper(device, lowered, layout(), 4, mirror=True), engine, 4)


def test_memory_is_given_back(runtime: Runtime, engine: Engine) -> None:
    gpu = engine_on(engine)
    before, graphs = len(runtime._memory), set(runtime._graphs)
    slots = gpu.slots(2)
    slots.prepare(2)
    slots.close()
    pinned = 1 + 2 * 2 * 2  # kept: what was fetched are views of it
    assert len(runtime._memory) == before + pinned and set(runtime._graphs) == graphs
    gpu.close()
    assert not runtime._graphs


def test_nothing_is_collected_while_capturing(runtime: Runtime) -> None:
    """Work that cannot be had, and garbage with a graph in it: the capture ends, and the first is a reason to enqueue."""
    device, collecting = CudaDevice(), gc.isenabled()

    def work() -> None:
        assert not gc.isenabled()
        raise EngineError("no compiler")

    with pytest.raises(CaptureFailed, match="no compiler"):
        device.capture(work)
    assert runtime._recording is None and gc.isenabled() == collecting


def test_a_package_that_does_not_fit_the_driver(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """pybind11 tells it by a TypeError."""

    def refused(log: object) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(cuda.trt, "module", lambda: SimpleNamespace(__name__="tensorrt", __version__="10", Runtime=refused, Builder=refused))
    with pytest.raises(EngineError, match="tensorrt 10 gives no Runtime here"):
        CudaDevice().load(b"plan")
    with pytest.raises(EngineError, match="gives no Builder here"):
        cuda.trt.TrtBuilder((9, 0)).build(b"onnx")
    assert cuda.name() == "stub" and cuda.trt.TrtBuilder((9, 0), cuda.name()).tag == "tensorrt 10 sm_90 stub"
