"""A recording that is in memory, all at once."""

from __future__ import annotations

from typing import Any

import numpy as np

from .lane import Samples
from .stream import Stream


def clean(x: Samples, rate: int, **asked: Any) -> Samples:
    """All of a recording through a `Stream` of its own, without the delay.

    x: [n] or [n, channels], float32 (full scale 1.0) or int16 → same shape and type; [n, 2] where two talkers are told apart. rate: 8,000 to 48,000 Hz.
    asked: what `Stream` takes: task, voice, strength_db, … Channels are processed each by itself, or as one (`mode="mix"`). ValueError, with one line, for what
    cannot be processed.
    """
    x = np.asarray(x)
    channels = x.shape[1] if x.ndim == 2 else 1
    apart = asked.get("task") == "separate" and asked.get("voice") is None
    stream = Stream(rate, channels, **{"mode": "mix" if apart else "each"} | asked)
    inside = np.zeros((stream.latency_samples, *x.shape[1:]), x.dtype)
    return stream.process(np.concatenate([x, inside]))[stream.latency_samples :]
