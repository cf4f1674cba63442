"""The voice converter on ONNX Runtime: a frame for every slot, state outside, behind the same protocol as the other engines. No PyTorch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from .codec_engine import OnnxStep
from .codec_high import extend
from .config import CORE_BINS, HOPS_PER_FRAME
from .engine import F32, EngineError, State

GRAPH, DESCRIPTION = "convert.onnx", "convert.json"
LEAST_VOICE = 10.0  # hops: for the mean of a talker's pitch


class ConvertEngine:
    """Steps `convert.onnx` from a weights folder. Safe to share between threads (no state inside).

    What says whom to speak as is in the state (`net.convert.TARGET`): a voiceprint's `turn` writes it.
    """

    name = "onnx"
    how = "onnxruntime, CPU"

    def __init__(self, folder: Path, threads: int = 1) -> None:
        self.why: list[str] = []
        try:
            self.weights: str = json.loads((folder / DESCRIPTION).read_text())["weights"]
        except (ValueError, KeyError, OSError) as e:
            raise EngineError(f"{folder / DESCRIPTION} is not what convert_export writes ({e}); export the weights again") from None
        self._step = OnnxStep(folder / GRAPH, threads)

    def init_state(self, batch: int, task: str = "convert") -> State:
        return self._step.fresh(batch)

    def step(self, x: F32, state: State) -> tuple[F32, State]:
        """Above 8 kHz, of which the model knows nothing, as the codec: made from what is below.

        A row comes out the same, bit for bit, whoever is stepped beside it: ONNX Runtime multiplies one row by a matrix in another order than several, so a
        row alone is stepped twice (a tenth more work).
        """
        rows = len(x)
        if rows == 1:
            x, state = np.repeat(x, 2, 0), {name: np.repeat(value, 2, 0) for name, value in state.items()}
        y, new = self._together(x, state)
        return y[:rows], {name: value[:rows] for name, value in new.items()}

    advance = step

    def _together(self, x: F32, state: State) -> tuple[F32, State]:
        y = np.zeros_like(x)
        (y[:, :, :CORE_BINS],), new = self._step(np.ascontiguousarray(x[:, :, :CORE_BINS]), state)
        wide = x[:, :, CORE_BINS + 1 :].any((1, 2, 3))  # (bin 160 is the end of what 16 kHz hold)
        if wide.any():
            rows = y[wide]
            extend(rows)
            y[wide] = rows
        return y, new

    def octave(self, x: F32) -> float | None:
        """x: [1, hops, 160, 2] spectrum of a talker → where that voice lies: mean pitch, log2 of Hz. None where there is hardly any voice."""
        state = self.init_state(1)
        for t in range(0, x.shape[1], HOPS_PER_FRAME):
            _, state = self._step(x[:, t : t + HOPS_PER_FRAME], state)
        voiced, total = (float(v) for v in state["range.sums"][0])
        return total / voiced if voiced >= LEAST_VOICE else None
