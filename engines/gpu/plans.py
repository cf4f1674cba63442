"""Engines on disk, by hash of everything that decides them: the ONNX, how it is lowered, TensorRT's package and version, the GPU's compute
capability, the batch size and the precision. A file that is cut short, changed or not ours is built again, never loaded.

Lies in `$XDG_CACHE_HOME/voicewire/engines` (`~/.cache/…`), one file a batch size.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import onnxruntime as ort

from voicewire.kernels import cache

from . import layout, lower
from .layout import Layout
from .lower import Precision
from .trt import Builder


def folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "voicewire" / "engines"


class Plans:
    """`plans(bucket)` is the engine of a batch size, kept or built; progress(bucket, share) while it is built."""

    def __init__(
        self, model: Path, layout_: Layout, precision: Precision, builder: Builder, progress: Callable[[int, float], None] = lambda bucket, share: None
    ) -> None:
        self.precision, self.builder, self.layout = precision, builder, layout_
        self._model, self._progress = model, progress
        self._held: dict[int, bytes] = {}
        code = b"".join(Path(str(m.__file__)).read_bytes() for m in (lower, layout))
        self._made_of = (model.read_bytes(), code, ort.__version__.encode(), builder.tag.encode(), precision.encode())

    def _key(self, bucket: int) -> bytes:
        digest = hashlib.sha256()
        for part in (*self._made_of, str(bucket).encode()):
            digest.update(len(part).to_bytes(8, "little") + part)
        return digest.digest()

    def path(self, bucket: int) -> Path:
        return folder() / f"step-{self.precision}-{bucket}-{self._key(bucket).hex()[:16]}.plan"

    def kept(self, bucket: int) -> bool:
        """Whether it is there and whole."""
        return cache.load(self.path(bucket), self._key(bucket)) is not None

    def __call__(self, bucket: int) -> bytes:
        if bucket not in self._held:
            key, path = self._key(bucket), self.path(bucket)
            plan = cache.load(path, key)
            if plan is None:
                onnx = lower.lower(self._model, self.layout, bucket, self.precision)
                plan = self.builder.build(onnx, lambda share: self._progress(bucket, share))
                cache.store(path, key, plan)
            self._held[bucket] = plan
        return self._held[bucket]
