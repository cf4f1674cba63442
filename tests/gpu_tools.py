"""A GPU that is not there: the chain's own code on `FakeDevice`, engines being the lowered ONNX itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from voicewire.engines import open_engine
from voicewire.engines.engine import WEIGHTS
from voicewire.engines.gpu import chain
from voicewire.engines.gpu.fake import FakeDevice
from voicewire.engines.gpu.layout import Layout
from voicewire.engines.gpu.lower import Precision, lower


@cache
def layout() -> Layout:
    return Layout(open_engine("onnx").init_state(1))


@cache
def lowered(bucket: int, precision: Precision = "fp32") -> bytes:
    """Made once a test run."""
    return lower(WEIGHTS / "model.onnx", layout(), bucket, precision)


class FakeBuilder:
    """TensorRT's place: what it "builds" is the ONNX. built: how often it was asked."""

    def __init__(self, capability: tuple[int, int] | None = None, device: str = "") -> None:
        self.tag, self.built = f"fake 1 {capability}", 0

    def build(self, onnx: bytes, progress: Callable[[float], None] = lambda share: None) -> bytes:
        self.built += 1
        progress(1.0)
        return onnx


def install(monkeypatch: pytest.MonkeyPatch, cache_folder: Path, **options: Any) -> list[FakeDevice]:
    """From here on there is a GPU; → the devices that are opened on it."""
    devices: list[FakeDevice] = []

    def device() -> FakeDevice:
        devices.append(FakeDevice(**options))
        return devices[-1]

    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_folder))
    monkeypatch.setattr(chain.cuda, "capability", lambda ordinal=0: (9, 0))
    monkeypatch.setattr(chain.cuda, "CudaDevice", device)
    monkeypatch.setattr(chain.trt, "module", lambda: SimpleNamespace(__name__="fake"))
    monkeypatch.setattr(chain.trt, "TrtBuilder", FakeBuilder)
    monkeypatch.setattr("voicewire.engines.gpu.plans.lower.lower", lambda model, layout, bucket, precision: lowered(bucket, precision))
    return devices
