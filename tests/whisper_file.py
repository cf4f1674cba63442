"""A model file in CTranslate2's binary layout, with weights made in a test."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import torch


def write_model(folder: Path, variables: Mapping[str, torch.Tensor]) -> None:
    """FOLDER/model.bin: a Whisper of binary version 6, all variables in half precision."""
    with (folder / "model.bin").open("wb") as f:
        f.write(struct.pack("<I", 6) + struct.pack("<H", 12) + b"WhisperSpec\0" + struct.pack("<II", 3, len(variables)))
        for name, value in variables.items():
            data = value.detach().half().numpy().tobytes()
            f.write(struct.pack("<H", len(name) + 1) + name.encode() + b"\0")
            f.write(struct.pack(f"<B{value.dim()}I", value.dim(), *value.shape) + struct.pack("<BI", 4, len(data)) + data)
