"""The reference engine: the PyTorch model itself, stepped. For tests, comparison and development."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from .engine import F32, State
from .export import load_weights


class TorchEngine:
    """Same interface and same numbers as the compiled engines, several times slower."""

    name = "torch"

    def __init__(self, folder: Path) -> None:
        self._model = load_weights(folder)
        self.weights: str = json.loads((folder / "model.json").read_text())["weights"]

    def init_state(self, batch: int, task: str = "restore") -> State:
        with torch.no_grad():
            return {k: v.numpy() for k, v in self._model.init_state(batch, task).items()}

    def step(self, x: F32, state: State) -> tuple[F32, State]:
        with torch.no_grad():
            y, new = self._model.step(torch.from_numpy(x), {k: torch.from_numpy(v) for k, v in state.items()})
        return y.numpy(), {k: v.numpy() for k, v in new.items()}

    advance = step
