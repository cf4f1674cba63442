"""The two ends of a captured step: what lies in its pinned blocks beside the masks, and what it does before and after the engine.

`SPECTRA`: the host did the STFT and does the inverse (`Stream`, and the checks of engines).
`PCM`: the host hands over samples and gets samples, at any rate, int16 or float32 as each slot says; conversion, STFT with its carried hop,
share of the input, inverse with its overlap and conversion back are kernels of the graph:

    s16_to_slots ─► stft_analyse ─► engine ─► stft_synthesise ─► slots_to_s16

Nothing of a rate or of the bands above 8 kHz is left to the host, for bins are 50 Hz apart at every rate and the engine models all to 24 kHz. What
stays there: blocks to frames, downmixing, µ-law and Opus (the relay's adapters decode them), and what is not a number in float32 samples.
A slot moves 5.8 kB to the device and as much back, whatever its rate: rows are as long as 20 ms at 48 kHz.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voicewire.kernels import S16_TO_SLOTS, SLOTS_TO_S16, STFT_ANALYSE, STFT_SYNTHESISE
from voicewire.kernels.pcm import ROW
from voicewire.kernels.stft import MAX_HOP

from ..config import HOPS_PER_FRAME
from ..stft import BINS

SPECTRUM = (HOPS_PER_FRAME, BINS - 1, 2)
ALIGN = 256  # bytes; what TensorRT asks of addresses

Fields = Mapping[str, tuple[tuple[int, ...], Any]]  # name → (shape of a slot, type)
Views = dict[str, NDArray[Any]]
Call = Callable[..., None]  # (kernel, sizes of its geometry, *arguments), in stream order
Arrays = Mapping[str, Any]  # arrays of the device by name, [bucket, ...] each


def nothing(call: Call, slots: int, of: Arrays) -> None:
    """Samples that are spectra already."""


@dataclass(frozen=True)
class Ends:
    """given: copied in, beside the masks `active` and `reset`; made: copied out; scratch: only on the device; carried: state of the slots beside the
    model's, zeros at first. `x`, the engine's input, and `y`, its output, are in one of them each. before, after: the kernels around the engine."""

    name: str
    given: Fields
    made: Fields
    scratch: Fields = field(default_factory=dict)
    carried: Fields = field(default_factory=dict)
    before: Callable[[Call, int, Arrays], None] = nothing
    after: Callable[[Call, int, Arrays], None] = nothing


def _before(call: Call, slots: int, of: Arrays) -> None:
    call(S16_TO_SLOTS, {"entries": slots}, of["s16"], of["s16.slot"], of["samples"], of["heard"])
    call(STFT_ANALYSE, {"slots": slots}, of["heard"], of["tail"], of["hop"], of["active"], of["reset"], of["x"])


def _after(call: Call, slots: int, of: Arrays) -> None:
    masks = of["active"], of["reset"]
    call(STFT_SYNTHESISE, {"slots": slots}, of["y"], of["heard"], of["tail"], of["overlap"], of["hop"], of["dry"], *masks, of["pcm"])
    call(SLOTS_TO_S16, {"entries": slots}, of["pcm"], of["whole.slot"], of["samples"], of["whole"])


_F32, _I32, _I16 = np.float32, np.int32, np.int16

SPECTRA = Ends("spectra", {"x": (SPECTRUM, _F32)}, {"y": (SPECTRUM, _F32)})
PCM = Ends(
    "pcm",
    given={
        "hop": ((), _I32), "samples": ((), _I32), "dry": ((), _F32),  # samples: 2 hop
        "s16.slot": ((), _I32), "whole.slot": ((), _I32),  # the slot itself where int16 comes in, or is wanted; -1 where float32
        "s16": ((ROW,), _I16), "heard": ((ROW,), _F32),
    },
    made={"pcm": ((ROW,), _F32), "whole": ((ROW,), _I16)},
    scratch={"x": (SPECTRUM, _F32), "y": (SPECTRUM, _F32)},
    carried={"tail": ((MAX_HOP,), _F32), "overlap": ((MAX_HOP,), _F32)},
    before=_before, after=_after,
)  # fmt: skip


class Block:
    """Tensors that lie together, so that one copy moves them: name → ([bucket, *shape], type)."""

    def __init__(self, fields: Fields, bucket: int) -> None:
        self.fields: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {n: ((bucket, *s), np.dtype(t)) for n, (s, t) in fields.items()}
        self.offsets: dict[str, int] = {}
        self.size = 0
        for name, (shape, dtype) in self.fields.items():
            self.offsets[name] = self.size
            self.size += -(-int(np.prod(shape)) * dtype.itemsize // ALIGN) * ALIGN

    def views(self, memory: NDArray[np.uint8]) -> Views:
        """The tensors in host memory."""
        return {n: np.frombuffer(memory, dtype, int(np.prod(shape)), self.offsets[n]).reshape(shape) for n, (shape, dtype) in self.fields.items()}
