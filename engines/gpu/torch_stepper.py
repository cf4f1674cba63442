"""The captured step without TensorRT: PyTorch's own kernels in one `torch.cuda.CUDAGraph` a batch size. Needs torch (extra `[train]`).

The same `Stepper` as `stepper.CapturedStepper`: masks, state in place, pinned blocks that take turns, capture while nobody is active. The kernels
of the ends are ours, launched through cuda-python into PyTorch's stream, so that they are captured with the rest. On a CPU (device="cpu") it
runs the same code without graph and with the kernels' twins, for tests.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from voicewire.kernels import Kernel, KernelError, launch

from ..engine import EngineError, State
from ..export import load_weights
from .device import CaptureFailed, DeviceLost, uncollected
from .ends import SPECTRA, Block, Ends, Views
from .layout import AT, FIXED, MOVING, POS, RINGS, Layout
from .lower import LARGEST, Precision
from .stepper import COPIED, COPIES, WARM_UPS, Stage, bucket_for, new_fields

KINDS = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass
class TorchStage(Stage):
    out: Views
    work: Callable[[], None]
    graph: torch.cuda.CUDAGraph | None = None
    mark: torch.cuda.Event | None = None


class TorchStepper:
    """folder: weights. EngineError when the GPU has no room, DeviceLost when it fails."""

    def __init__(
        self, folder: Path, layout: Layout, capacity: int, *, mirror: bool, ends: Ends = SPECTRA, precision: Precision = "fp32",
        device: str = "cuda", graphs: bool = True,
    ) -> None:  # fmt: skip
        self._device, self._mirror, self._precision = torch.device(device), mirror, precision
        self._cuda = self._device.type == "cuda"
        self._graphs = self._cuda and graphs
        self.why = ""  # why a graph could not be
        self.layout, self.ends = layout, ends
        self._functions: dict[str, launch.Function] = {}
        most = bucket_for(capacity)
        made = {**ends.made, **(new_fields(layout, ends) if mirror else {})}
        with self._guard():
            self._model = load_weights(folder).to(self._device)
            self._stream = torch.cuda.Stream(self._device) if self._cuda else None  # type: ignore[no-untyped-call]
            self._state, self._scratch, self._made = (
                {n: torch.from_numpy(np.zeros((most, *shape), dtype)).to(self._device) for n, (shape, dtype) in fields.items()}
                for fields in ({**layout.arrays, **ends.carried}, ends.scratch, made)
            )
        self._stages: dict[int, list[TorchStage]] = {}
        self._turn = 0
        prefix = {n: v for n, v in layout.first.items() if n in layout.packs[FIXED]}
        for row in range(capacity):
            self.write(row, prefix)

    @property
    def how(self) -> str:
        return f"torch {torch.__version__}, {self._precision}, {'one graph a frame' if self._graphs else 'eager'}{f' ({self.why})' if self.why else ''}"

    def _here(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._stream) if self._stream else nullcontext()

    # -- getting ready -------------------------------------------------------------------------------------------------
    def prepare(self, slots: int) -> None:
        bucket = bucket_for(slots)
        if bucket in self._stages:
            return
        with self._guard(), self._here():
            stages = [self._make(bucket) for _ in range(2)]
            for stage in stages:
                for _ in range(WARM_UPS):
                    stage.work()
                self._settle()
                if self._graphs:
                    try:
                        stage.graph = self._capture(stage.work)
                    except CaptureFailed as e:
                        self._graphs, self.why = False, str(e)
        self._stages[bucket] = stages

    def _capture(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            with uncollected(), torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                work()
        except RuntimeError as e:
            raise CaptureFailed(str(e).splitlines()[0]) from None
        return graph

    def _make(self, bucket: int) -> TorchStage:
        def pinned(size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.uint8, pin_memory=self._cuda)

        block = Block({"active": ((), np.bool_), "reset": ((), np.bool_), **self.ends.given}, bucket)
        filled, kinds = pinned(block.size), {n: torch.from_numpy(np.zeros(0, dtype)).dtype for n, (_, dtype) in block.fields.items()}
        scratch = {n: t[:bucket] for n, t in self._scratch.items()}
        state, made = ({n: t[:bucket] for n, t in tensors.items()} for tensors in (self._state, self._made))
        fetched = {n: pinned(t.nbytes).view(t.dtype).view(t.shape) for n, t in made.items()}

        def work() -> None:
            there = filled.to(self._device, non_blocking=True)
            of = {**scratch, **state, **made}
            for name, (shape, dtype) in block.fields.items():
                at = block.offsets[name]
                of[name] = there[at : at + int(np.prod(shape)) * dtype.itemsize].view(kinds[name]).view(shape)
            self.ends.before(self._call, bucket, of)
            new = self._step(of["active"], of["reset"], of["x"])
            of["y"].copy_(new.pop("y"))
            self.ends.after(self._call, bucket, of)
            new |= {f"{n}.new": state[n] for n in self.ends.carried}
            for name in new if self._mirror else ():
                made[name].copy_(new[name])
            for name, tensor in fetched.items():
                tensor.copy_(made[name], non_blocking=True)

        views = block.views(filled.numpy())
        return TorchStage(views["active"], views["reset"], views, {n: t.numpy() for n, t in fetched.items()}, work)

    def _call(self, kernel: Kernel, sizes: dict[str, int], *arguments: Tensor | int) -> None:
        """One launch of a kernel of ours in PyTorch's stream."""
        if not self._cuda:
            kernel.twin(*(a.numpy() if isinstance(a, Tensor) else a for a in arguments))
            return
        try:
            if kernel.entry not in self._functions:  # the first warm-up, never the capture
                major, minor = torch.cuda.get_device_capability(self._device)
                self._functions[kernel.entry] = launch.load(kernel, f"sm_{major}{minor}")
        except KernelError as e:
            raise EngineError(str(e)) from None
        packed = launch.pack(kernel, *(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments))
        try:
            launch.enqueue(self._functions[kernel.entry], kernel.geometry(**sizes), packed, torch.cuda.current_stream(self._device).cuda_stream)
        except KernelError as e:
            raise DeviceLost(str(e)) from None

    @torch.no_grad()
    def _step(self, active: Tensor, reset: Tensor, x: Tensor) -> dict[str, Tensor]:
        """One frame of the first slots, the state written back. active, reset: [bucket] bool, x: [bucket, 2, 480, 2]"""
        b = len(x)
        state = {n: t[:b] for n, t in self._state.items()}
        moving, pos = state[MOVING].masked_fill(reset[:, None], 0), state[POS].masked_fill(reset, 0)
        named: dict[str, Tensor] = {POS: pos, **{n: state[n] for n in RINGS}}
        for pack, tensor in ((MOVING, moving), (FIXED, state[FIXED])):
            for name, p in self.layout.packs[pack].items():
                named[name] = tensor[:, p.offset : p.offset + p.words].reshape(b, *p.shape)
        half = torch.autocast(self._device.type, KINDS[self._precision], cache_enabled=False) if self._precision in KINDS else nullcontext()
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if self._cuda and self._precision == "fp32" else nullcontext()
        with half, exact:
            y, new, *rows = self._model.step_rows(x, named)
        after = torch.cat([new[n].float().reshape(b, -1) for n in self.layout.packs[MOVING]], 1)
        state[MOVING].copy_(torch.where(active[:, None], after, moving))
        state[POS].copy_(torch.where(active, pos + 1, pos))
        place, slots = pos % state[RINGS[0]].shape[2], torch.arange(b, device=x.device)
        out = {"y": y.float(), f"{MOVING}.new": state[MOVING], f"{POS}.new": state[POS], AT: torch.where(active, place, -1).int()}
        for name, row in zip(RINGS, rows, strict=True):
            sane = torch.where(row.float().abs() <= LARGEST, row.float(), 0.0)
            keep = active[:, None, None, None]
            state[name][slots, :, place] = torch.where(keep, sane, state[name][slots, :, place])
            out[f"{name}.row"] = sane
        return out

    # -- stepping ------------------------------------------------------------------------------------------------------
    def _guard(self) -> AbstractContextManager[None]:
        return _Guard(self._cuda)

    def _settle(self) -> None:
        if self._stream:
            self._stream.synchronize()

    def stage(self, slots: int) -> TorchStage:
        self.prepare(slots)
        stage = self._stages[bucket_for(slots)][self._turn]
        self._turn = 1 - self._turn
        stage.clear()
        return stage

    def launch(self, stage: TorchStage) -> None:
        with self._guard(), self._here():
            if stage.graph is not None:
                stage.graph.replay()
            else:
                stage.work()
            if self._stream:
                stage.mark = stage.mark or torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # sleeps, other threads run
                stage.mark.record(self._stream)

    def wait(self, stage: TorchStage) -> Views:
        with self._guard():
            if stage.mark is not None:
                stage.mark.synchronize()
        return stage.out

    # -- rows in and out, between steps --------------------------------------------------------------------------------
    def write(self, row: int, state: State) -> None:
        with self._guard(), self._here():
            for name, value in {**self.layout.pack(state), **{n: state[n] for n in self.ends.carried if n in state}}.items():
                self._state[name][row : row + 1].copy_(torch.from_numpy(value[:1].copy()))
            self._settle()

    def read(self, row: int) -> State:
        with self._guard(), self._here():
            arrays = {n: t[row : row + 1].cpu().numpy().copy() for n, t in self._state.items()}
        return {**self.layout.unpack(arrays), **{n: arrays[n] for n in self.ends.carried}}

    @property
    def nodes(self) -> dict[int, int]:
        return {}  # PyTorch does not say

    def bandwidth(self) -> float:
        if not self._cuda:
            return 0.0
        memory = torch.empty(2, COPIED, dtype=torch.uint8, device=self._device)
        seconds = []
        with self._guard(), self._here():
            for _ in range(5):
                begin = time.perf_counter()
                for _ in range(COPIES):
                    memory[0].copy_(memory[1])
                self._settle()
                seconds.append(time.perf_counter() - begin)
        return 2 * COPIED * COPIES / min(seconds)

    def close(self) -> None:
        self._stages.clear()
        for tensors in (self._state, self._scratch, self._made):
            tensors.clear()


class _Guard(AbstractContextManager[None]):
    """Errors of CUDA and of its libraries in PyTorch as ours: they are RuntimeErrors of many wordings. cuda: whether there is one at all."""

    def __init__(self, cuda: bool) -> None:
        self._cuda = cuda

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            raise EngineError("the GPU has not enough free memory") from None
        if self._cuda and isinstance(error, RuntimeError) and not isinstance(error, (DeviceLost, CaptureFailed, EngineError)):
            raise DeviceLost(str(error).splitlines()[0]) from None
