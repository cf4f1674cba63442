"""Which GPU engine there is here, and why not the ones before it: TensorRT with one graph a frame, TensorRT enqueued, PyTorch with one graph a
frame, and last the CPU. `open_engine("auto")` walks the chain, `"tensorrt"` and `"torch-cuda"` insist on one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..engine import Engine, EngineError
from ..onnx_engine import OnnxEngine
from ..pcm_slots import HostPcmSlots, PcmSlots
from . import cuda, trt
from .device import DeviceLost
from .ends import Ends
from .engine import GpuEngine
from .layout import Layout
from .lower import Precision
from .plans import Plans
from .stepper import CapturedStepper, Stepper
from .verify import compare_pcm, noise_pcm

PRECISION: Precision = "fp16"


def plans_for(
    weights: Path, precision: Precision, capability: tuple[int, int] | None, progress: Callable[[int, float], None] = lambda bucket, share: None
) -> Plans:
    """The engines for a GPU of this compute capability, None for any that the package can build for. EngineError without TensorRT."""
    layout = Layout(OnnxEngine(weights).init_state(1))
    return Plans(weights / "model.onnx", layout, precision, trt.TrtBuilder(capability, cuda.name() if capability else ""), progress)


def open_tensorrt(weights: Path, threads: int = 1, precision: Precision = PRECISION, graphs: bool = True) -> GpuEngine:
    """TensorRT on the first GPU; engines that are not in the cache are built. EngineError with what is missing."""
    plans = plans_for(weights, precision, cuda.capability())
    kind = f"{trt.module().__name__} {precision}"

    def make(capacity: int, mirror: bool, ends: Ends) -> Stepper:
        return CapturedStepper(cuda.CudaDevice(), plans, plans.layout, capacity, mirror=mirror, ends=ends, kind=kind, graphs=graphs)

    return _opened("tensorrt", OnnxEngine(weights, threads), make, precision)


def open_torch(weights: Path, threads: int = 1, precision: Precision = PRECISION, graphs: bool = True) -> GpuEngine:
    """PyTorch on the first GPU. EngineError with what is missing."""
    try:
        import torch

        from .torch_stepper import TorchStepper
    except ImportError as e:
        raise EngineError(f"the torch-cuda engine needs PyTorch and the packages of training ({e.name}): pip install 'voicewire[train]'") from None
    if not torch.cuda.is_available():
        raise EngineError(f"no NVIDIA GPU that PyTorch {torch.__version__} can use")
    cpu = OnnxEngine(weights, threads)
    layout = Layout(cpu.init_state(1))

    def make(capacity: int, mirror: bool, ends: Ends) -> Stepper:
        return TorchStepper(weights, layout, capacity, mirror=mirror, ends=ends, precision=precision, graphs=graphs)

    return _opened("torch-cuda", cpu, make, precision)


def _opened(name: str, cpu: Engine, make: Callable[[int, bool, Ends], Stepper], precision: Precision) -> GpuEngine:
    """The engine, once half a second of two streams came out as on the CPU, with the STFT on the host and in the graph. Where only the graph's
    is wrong or cannot be had (no compiler for the kernels, say), it stays on the host."""
    try:
        engine = GpuEngine(name, cpu, make)
        wrong = _wrong(HostPcmSlots(engine.slots(2), 2), cpu, precision)
    except DeviceLost as e:
        raise EngineError(f"the GPU fails at the first step: {e}") from None
    if engine.lost:
        raise EngineError(f"the GPU fails at the first step: {engine.lost}")
    if wrong:
        raise EngineError(f"the GPU gives {wrong}")
    try:
        wrong = _wrong(engine.pcm_slots(2), cpu, precision)
    except (EngineError, DeviceLost) as e:
        wrong = str(e)
    if engine.lost:
        raise EngineError(f"the GPU fails at the first step: {engine.lost}")
    if wrong:
        engine.host_stft = wrong
        engine.why.append(f"{name}: the STFT stays on the host ({wrong})")
    return engine


def _wrong(slots: PcmSlots, cpu: Engine, precision: Precision) -> str:
    """What is wrong with slots that hold two streams, or nothing."""
    found = compare_pcm(slots, cpu, noise_pcm(2, 25))
    slots.close()
    return "" if found.good(precision) else f"wrong numbers: {found.snr_db:.1f} dB from the CPU's, largest error {found.max_error:.1e}"


def open_named(name: str, weights: Path, threads: int = 1) -> Engine:
    """`tensorrt`, `torch-cuda`, or `auto`."""
    if name == "auto":
        return open_auto(weights, threads)
    return (open_tensorrt if name == "tensorrt" else open_torch)(weights, threads)


def open_auto(weights: Path, threads: int = 1) -> Engine:
    """The first of the chain that works; `why` says what became of the ones before."""
    why: list[str] = []
    for name, open_one in (("tensorrt", open_tensorrt), ("torch-cuda", open_torch)):
        try:
            engine = open_one(weights, threads)
        except EngineError as e:
            why.append(f"{name}: {e}")
        else:
            engine.why[:0] = why
            return engine
    cpu = OnnxEngine(weights, threads)
    cpu.why = why
    return cpu
