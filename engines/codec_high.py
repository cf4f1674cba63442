"""What is heard above 8 kHz, of which no token tells: the spectrum of 4 to 8 kHz moved up, at levels that clean speech has there on average.

Spectral replication (Dietz et al. 2002) without side information. Moved by 4 kHz, 40 turns a hop, phases still fit from hop to hop. Levels follow those below
8 kHz by a line in dB, fitted by `tools.fit_codec_high`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .config import CORE_BINS

F32 = NDArray[np.float32]
BAND = 20  # bins: 1 kHz
HIGH_BINS = 480  # up to 24 kHz
SOURCE = slice(CORE_BINS // 2, CORE_BINS)
FLOOR = 1e-12
# level above that of 6 to 8 kHz in dB, and more of it for every dB that 4 to 6 kHz lies above that; 8 to 9 kHz first
# fmt: off
LINES = np.array([
    (-2.1, -0.32), (-3.4, -0.22), (-3.3, -0.20), (-4.7, -0.12), (-5.1, -0.10), (-5.3, -0.09), (-5.9, -0.09), (-6.1, -0.02),
    (-6.4, -0.10), (-6.9, -0.15), (-6.8, -0.18), (-7.6, -0.12), (-22.7, 0.02), (-33.3, 0.21), (-33.4, 0.21), (-33.4, 0.21),
], np.float32)
# fmt: on


def _db(power: F32) -> F32:
    db: F32 = (10 * np.log10(power + FLOOR)).astype(np.float32)
    return db


def low_levels_db(spec: F32) -> F32:
    """spec: [..., bins, 2] → mean power a bin of 4 to 6 and of 6 to 8 kHz, [..., 2] dB."""
    return _db((spec[..., SOURCE, :] ** 2).sum(-1).reshape(*spec.shape[:-2], 2, -1).mean(-1))


def band_levels_db(spec: F32) -> F32:
    """spec: [..., 480, 2] → mean power a bin of the 16 bands above 8 kHz, dB."""
    return _db((spec[..., CORE_BINS:HIGH_BINS, :] ** 2).sum(-1).reshape(*spec.shape[:-2], -1, BAND).mean(-1))


def extend(spec: F32) -> None:
    """Fill bins from 160 on of spec: [..., 480 or more, 2], from those below."""
    low = low_levels_db(spec)
    wanted = low[..., 1:] + LINES[:, 0] + LINES[:, 1] * (low[..., :1] - low[..., 1:])
    tiles = spec[..., SOURCE, :].reshape(*spec.shape[:-2], -1, BAND, 2)  # four bands of 1 kHz
    gain = 10 ** ((wanted - np.tile(_db((tiles**2).sum(-1).mean(-1)), len(LINES) // tiles.shape[-3])) / 20)
    moved = np.concatenate([tiles] * (len(LINES) // tiles.shape[-3]), -3) * gain[..., None, None].astype(np.float32)
    spec[..., CORE_BINS:HIGH_BINS, :] = moved.reshape(*spec.shape[:-2], -1, 2)
