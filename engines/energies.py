"""How much of a frame the model took for speech, and how much there was: two numbers a stream and frame, for whoever wants to know when somebody speaks."""

from __future__ import annotations

import numpy as np

from .config import BIN_HZ
from .engine import F32

LOW_HZ, HIGH_HZ = 300, 4000  # hum and rumble, which lies below, says nothing; hiss, which lies above, little
_BAND = slice(LOW_HZ // BIN_HZ, HIGH_HZ // BIN_HZ + 1)


def energies_of(spec: F32, speech: F32) -> tuple[float, float]:
    """One stream's frame. spec: [2, 481, 2] of the input; speech: [2, 480, 2] from the engine, before a share of the input is left in → energy of the speech
    and of the input, 300 to 4,000 Hz, in the units of `stft.analyse`."""
    taken, whole = speech[:, _BAND].reshape(-1), spec[:, _BAND].reshape(-1)
    return float(np.dot(taken, taken)), float(np.dot(whole, whole))
