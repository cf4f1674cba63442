"""What an engine is: a compiled form of the model that steps a batch of slots. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
State = dict[str, NDArray[np.generic]]  # flat, ordered; slot on axis 0 of every array

PINNED = (
    "trunk.prefix_k",
    "trunk.prefix_v",
    "trunk.prefix_on",
    "gain",
    "offset",
    "who.voice",
    "target.voice",
    "target.octave",
    "target.amount",
)  # the part of a state that says what to do: no step changes it

WEIGHTS = Path(__file__).parent / "weights"
TASK_WEIGHTS = WEIGHTS / "tasks"
CONVERT_WEIGHTS = WEIGHTS / "convert"
_KNOWS = {"extract": "voice.onnx", "query": "query.onnx", "separate": "places.npz", "convert": "convert.onnx"}  # what weights hold that know a task


class EngineError(RuntimeError):
    """An engine cannot be had here; the message is one line that says what to do."""


class Engine(Protocol):
    """One 20 ms frame for every slot at a time. Engines hold weights, never the state of a stream."""

    weights: str  # fingerprint of the weights, binds snapshots

    @property
    def name(self) -> str:
        """One of NAMES."""

    def init_state(self, batch: int, task: str = "restore") -> State:
        """Fresh state for `batch` slots."""

    def step(self, x: F32, state: State) -> tuple[F32, State]:
        """x: [slots, 2, 480, 2] float32 spectrum (two hops, re/im) → (same shape, new state). Pure."""

    def advance(self, x: F32, state: State) -> tuple[F32, State]:
        """`step` for the owner of `state`: may reuse its arrays instead of copying them."""


def pinned_part(state: State) -> State:
    """The part of a state that says what to do, as far as the weights have it."""
    return {name: state[name] for name in PINNED if name in state}


def copy_state(state: State) -> State:
    return {k: v.copy() for k, v in state.items()}


NAMES = ("auto", "onnx", "tensorrt", "torch-cuda", "torch")


def weights_for(task: str) -> Path:
    """The folder of released weights for a stream that is to do `task`, too. Those for restoration know nothing else, and restore a little better than those
    that know all tasks; these lie in the repository and, for their size, in no wheel."""
    return next((folder for folder in (WEIGHTS, TASK_WEIGHTS, CONVERT_WEIGHTS) if task in _KNOWS and (folder / _KNOWS[task]).exists()), WEIGHTS)


def open_engine(name: str = "onnx", weights: Path = WEIGHTS, threads: int = 1) -> Engine:
    """`onnx` (CPU, the default), `tensorrt` or `torch-cuda` (NVIDIA GPU), `auto` (the first of tensorrt, torch-cuda, onnx that works here)
    or `torch` (reference). EngineError when it cannot be had here."""
    if (weights / _KNOWS["convert"]).exists():
        if name not in ("onnx", "auto"):
            raise EngineError(f"voices are converted on the CPU only, not by the engine '{name}'; choose the engine onnx")
        from .convert_engine import ConvertEngine

        return ConvertEngine(weights, threads)
    if name == "onnx":
        from .onnx_engine import OnnxEngine

        return OnnxEngine(weights, threads)
    if name in ("auto", "tensorrt", "torch-cuda"):
        from .gpu import chain

        return chain.open_named(name, weights, threads)
    if name == "torch":
        try:
            from .torch_engine import TorchEngine
        except ImportError as e:
            raise EngineError(f"the torch engine needs the packages of training ({e.name}): pip install 'voicewire[train]'") from None
        return TorchEngine(weights)
    raise EngineError(f"unknown engine '{name}'; there are: {', '.join(NAMES)}")
