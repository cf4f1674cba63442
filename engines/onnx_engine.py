"""The model on ONNX Runtime: one CPU thread by default, no PyTorch, ready in a fraction of a second."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort

from .config import TASKS
from .engine import F32, EngineError, State, copy_state

_ROWS = ("trunk.k", "trunk.v")


class OnnxEngine:
    """Steps `model.onnx` from a weights folder. Safe to share between threads (no state inside)."""

    name = "onnx"
    how = "onnxruntime, CPU"

    def __init__(self, folder: Path, threads: int = 1) -> None:
        self.why: list[str] = []  # engines that were tried before this one, and what they lack
        model = folder / "model.onnx"
        if not model.exists():
            raise EngineError(f"no model at {model}; reinstall voicewire or export one: python -m voicewire.engines.export")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self.weights: str = json.loads((folder / "model.json").read_text())["weights"]
        inputs = {i.name: i for i in self._session.get_inputs()}
        del inputs["x"]
        types = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
        self._shapes = {n: (tuple(i.shape[1:]), types[i.type]) for n, i in inputs.items()}
        self._outputs = [o.name for o in self._session.get_outputs()]
        with np.load(folder / "prefix.npz") as f:  # pinned keys and values of every task
            self._prefix = {k: f[k] for k in f.files}

    def init_state(self, batch: int, task: str = "restore") -> State:
        state: State = {n: np.zeros((batch, *shape), dtype) for n, (shape, dtype) in self._shapes.items()}
        t = TASKS.index(task)
        state["trunk.prefix_k"][:, :, 0] = self._prefix["k"][t]
        state["trunk.prefix_v"][:, :, 0] = self._prefix["v"][t]
        state["trunk.prefix_on"][:, 0] = 1
        return state

    def step(self, x: F32, state: State) -> tuple[F32, State]:
        return self.advance(x, copy_state(state))

    def advance(self, x: F32, state: State) -> tuple[F32, State]:
        out = dict(zip(self._outputs, self._session.run(None, {"x": x, **state}), strict=True))
        slots = np.arange(len(x))
        at = state["trunk.pos"] % state["trunk.k"].shape[2]
        for ring in _ROWS:
            state[ring][slots, :, at] = out[ring + ".row"]
        new = {n: out.get(n + ".new", value) for n, value in state.items()}
        new["trunk.pos"] = state["trunk.pos"] + 1
        return out["y"], new
