"""Fixtures shared by all tests: seeded noise, the bundled recording, one engine a session, and small weights that know voices."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray
from relay_tools import FREE, Running

from tools.relay_peer import Wire
from voicewire.engines import Engine, open_engine
from voicewire.engines.voiceprint import Voiceprint, enrol

F32 = NDArray[np.float32]

settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # how fast this machine is just now is not tested
settings.load_profile("busy")


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


@pytest.fixture(scope="session")
def talkers_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Audio of three talkers and a fan, packed for training."""
    from voice_weights import pack_talkers  # training needs packages that most tests do without

    return pack_talkers(tmp_path_factory.mktemp("talkers"))


@pytest.fixture(scope="session")
def voice_weights(talkers_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights that know voices; 25 s."""
    from voice_weights import train

    return train(talkers_cache, tmp_path_factory.mktemp("voice-weights"))


@pytest.fixture(scope="session")
def voice_engine(voice_weights: Path) -> Engine:
    return open_engine("onnx", voice_weights)


@pytest.fixture(scope="session")
def voices(voice_weights: Path) -> tuple[Voiceprint, Voiceprint]:
    """Of two talkers."""
    from voice_weights import talker

    return enrol(talker(210, 6), 16000, voice_weights), enrol(talker(110, 6), 16000, voice_weights)


@pytest.fixture(scope="module")
def wire() -> Iterator[Running]:
    """A relay whose engine changes nothing."""
    with Running(Wire(), limits=FREE, max_streams=8) as r:
        yield r


@pytest.fixture(autouse=True)
def _tidy(request: pytest.FixtureRequest) -> Iterator[None]:
    """A relay that several tests share is left without streams."""
    yield
    for name in {"relay", "wire"} & set(request.fixturenames):
        relay = request.getfixturevalue(name)
        if isinstance(relay, Running):
            relay.close_all()
