"""Fixtures shared by all tests: seeded noise, the bundled recording, one engine a session."""

from __future__ import annotations

from importlib.resources import as_file, files

import numpy as np
import pytest
import soundfile as sf
from numpy.typing import NDArray

from voicewire.engines import Engine, open_engine

F32 = NDArray[np.float32]


@pytest.fixture(scope="session")
def engine() -> Engine:
    return open_engine("onnx")


@pytest.fixture(scope="session")
def noisy() -> F32:
    """The bundled noisy recording, 16 kHz."""
    with as_file(files("voicewire.rt") / "samples" / "noisy.flac") as path:
        x: F32 = sf.read(path, dtype="float32")[0]
    return x


@pytest.fixture(scope="session")
def clean() -> F32:
    with as_file(files("voicewire.rt") / "samples" / "clean.flac") as path:
        x: F32 = sf.read(path, dtype="float32")[0]
    return x
