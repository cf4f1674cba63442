"""The token heads on ONNX Runtime: what the trunk knows of a frame → the codec's tokens, a batch of slots a step, state outside. No PyTorch.

Drawing is Gumbel's, with the noise of `kernels.sampling` (Philox, keyed by seed, frame and stream): the same tokens on every machine, and those of the
kernel `depth_sample` where all codes may be drawn.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from voicewire.kernels.sampling import noise

from .codec_engine import OnnxStep
from .engine import F32, EngineError, State
from .heads_config import HeadsConfig

I64 = NDArray[np.int64]


def drawn(seed: NDArray[np.uint64], position: I64, temperature: float, streams: int, codes: int) -> F32:
    """seed, position: [slots] → what is added to the logits so that their argmax is a draw at this temperature: [slots, streams, codes] float32."""
    if not temperature > 0:
        return np.zeros((len(position), streams, codes), np.float32)
    rows: F32 = np.stack([noise(seed, position, k, codes) for k in range(streams)], 1) * np.float32(temperature)
    return rows


class HeadsEngine:
    """Heads from a folder that `heads_export` wrote. Safe to share between threads (no state inside)."""

    name = "onnx"

    def __init__(self, folder: Path, threads: int = 1) -> None:
        try:
            meta = json.loads((folder / "heads.json").read_text())
            self.config = HeadsConfig.from_dict(meta["config"])
            self.weights: str = meta["weights"]
        except (ValueError, KeyError, TypeError, OSError) as e:
            raise EngineError(f"{folder / 'heads.json'} is not what heads_export writes ({e}); write it: python -m voicewire.engines.heads_export") from None
        self._step = OnnxStep(folder / "heads.onnx", threads, given=("noise",))

    def init_state(self, batch: int) -> State:
        return self._step.fresh(batch) | {"position": np.zeros(batch, np.int64)}

    def step(self, x: F32, state: State, seed: NDArray[np.uint64] | None = None, temperature: float = 1.0) -> tuple[I64, State]:
        """x: [slots, trunk_dim + heard_dim] → (tokens [slots, streams], new state). Pure. seed: [slots] to draw; without it the likeliest are taken, or
        what `central` says."""
        cfg, position = self.config, state["position"]
        if seed is not None and cfg.central:
            raise ValueError("heads that take the code nearest to the mean cannot draw; export them without central")
        keys = np.zeros(len(x), np.uint64) if seed is None else seed
        added = drawn(keys, position.astype(np.int64), 0.0 if seed is None else temperature, cfg.streams, cfg.codes)
        (tokens,), new = self._step(x, {"noise": added} | {k: v for k, v in state.items() if k != "position"})
        return tokens, new | {"position": position + 1}
