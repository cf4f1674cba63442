"""A stream's memory as bytes: what moves between processes and machines."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voicewire.engines.config import HOPS_PER_FRAME
from voicewire.engines.stft import hop_samples

VERSION = 1
SPEECH = "speech"  # what is known of who speaks (speech.py), which snapshots of before do not have
DAMAGED = "this is not a voicewire snapshot, or it is damaged"
Arrays = Mapping[str, NDArray[Any]]


def kind(weights: str, rate: int, channels: int, task: str, mode: str) -> dict[str, Any]:
    """What must agree between the stream a snapshot was taken of and the one it continues on."""
    return {"snapshot": VERSION, "weights": weights, "rate": rate, "channels": channels, "task": task, "mode": mode}


def pack(head: dict[str, Any], state: Arrays, edge: Arrays) -> bytes:
    """head: the kind and counters; state: the engine's, edge: `tail`, `overlap`, `in`, `out`, and `speech` (see speech.py) if it is kept; [rows, ...] each."""
    arrays = {f"state:{k}": v for k, v in state.items()} | dict(edge)
    arrays["head"] = np.frombuffer(json.dumps(head).encode(), np.uint8)
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def head_of(data: bytes) -> dict[str, Any]:
    """What `pack` was given as the head. ValueError if it is not there."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as f:
            head = json.loads(f["head"].tobytes())
        if not isinstance(head, dict):
            raise ValueError
    except Exception:
        raise ValueError(DAMAGED) from None
    return head


def unpack(data: bytes, mine: dict[str, Any], fresh: Arrays) -> tuple[dict[str, Any], dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """→ (head, state in the order of `fresh`, edge). ValueError if damaged, of another kind than `mine`, or not shaped like `fresh`."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as f:
            arrays = {k: f[k] for k in f.files}
        head = json.loads(arrays.pop("head").tobytes())
        edge = {k: arrays[k] for k in ("tail", "overlap", "in", "out")}
        if not isinstance(head, dict) or not all(isinstance(head[k], int) and head[k] >= 0 for k in ("frames", "repaired_samples")):
            raise ValueError
        if not all(a.dtype == np.float32 and a.ndim == 2 and np.isfinite(a).all() for a in edge.values()):
            raise ValueError
    except Exception:
        raise ValueError(DAMAGED) from None
    for key, value in mine.items():
        if head.get(key) != value:
            raise ValueError(f"the snapshot is of a stream with {key} {head.get(key)}, this one has {value}")
    state = {k.removeprefix("state:"): v for k, v in arrays.items() if k.startswith("state:")}
    if {k: (v.shape, v.dtype) for k, v in state.items()} != {k: (v.shape, v.dtype) for k, v in fresh.items()}:
        raise ValueError("the snapshot's state does not fit this engine")
    hop = hop_samples(mine["rate"])
    rows, waiting = edge["tail"].shape[0], edge["in"].shape[1]
    frame = HOPS_PER_FRAME * hop
    if any(a.shape[0] != rows for a in edge.values()) or edge["tail"].shape[1] != hop or edge["overlap"].shape[1] != hop:
        raise ValueError(DAMAGED)
    if waiting >= frame or edge["out"].shape[1] + waiting < frame or not all(np.isfinite(v).all() for v in state.values()):
        raise ValueError(DAMAGED)
    return head, {k: state[k].copy() for k in fresh}, edge | ({SPEECH: arrays[SPEECH]} if SPEECH in arrays else {})
