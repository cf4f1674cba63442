"""The voice converter's weights and graph out of a training checkpoint: one ONNX step with explicit state, and its description.

    python -m voicewire.engines.convert_export runs/convert/last.pt --out engines/weights/convert

The graph is the only copy of the weights: matrices as bytes with a scale a row, the rest as fp16, all computed in fp32. `load_converter` reads them back, so
that PyTorch steps with the very same numbers. Needs torch and onnx: `pip install voicewire[train]`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from .checkpoint import read_checkpoint
from .config import CORE_BINS, HOPS_PER_FRAME
from .convert_config import ConvertConfig
from .convert_engine import DESCRIPTION, GRAPH
from .engine import CONVERT_WEIGHTS, TASK_WEIGHTS
from .export import fingerprint, load_weights, reported, write_step
from .net.causal import State
from .net.convert import TARGET, Converter
from .onnx_small import bytes_and_halves


class Step(nn.Module):
    """`step` with positional tensors, as the exporter wants them."""

    def __init__(self, converter: Converter) -> None:
        super().__init__()
        self.converter, self.names = converter, list(converter.init_state(1))

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        y, new = self.converter.step(x, dict(zip(self.names, state, strict=True)))
        return (y, *(new[n] for n in moving(new)))


def moving(state: State) -> list[str]:
    """The states that a step changes."""
    return [n for n in state if n not in TARGET]


def _values(proto: onnx.ModelProto) -> dict[str, Tensor]:
    """The weights as they are computed with, by their names in the graph."""
    stored = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    values = {}
    for name, value in stored.items():
        if name.endswith(".small"):
            name = name.removesuffix(".small")
            value = value.astype(np.float32) * stored.get(f"{name}.scale", np.float16(1)).astype(np.float32)
        values[name] = torch.from_numpy(np.array(value))
    return values


def load_converter(folder: Path) -> Converter:
    """The converter in PyTorch from what `export_convert` wrote."""
    return _read(ConvertConfig.from_dict(json.loads((folder / DESCRIPTION).read_text())["config"]), onnx.load(str(folder / GRAPH)))


def _read(cfg: ConvertConfig, proto: onnx.ModelProto) -> Converter:
    converter, values = Converter(cfg).eval(), _values(proto)
    own = converter.state_dict()  # (how many batches a norm has seen is not in the graph)
    converter.load_state_dict({k: v if k.endswith("num_batches_tracked") else values[f"converter.{k}"] for k, v in own.items()})
    return converter


def voice_encoder(folder: Path) -> str:
    """Fingerprint of the encoder that makes the voices of these weights: voiceprints fit a converter that was trained with the same."""
    encoder = load_weights(folder).core.voice
    if encoder is None:
        raise ValueError(f"the model in {folder} knows no voices")
    return fingerprint(encoder)


def export_convert(saved: dict[str, Any], out: Path, voices: str) -> Converter:
    """Write OUT/convert.onnx and OUT/convert.json from a checkpoint of tools.train_convert. voices: `voice_encoder` it was trained with. → what was written."""
    out.mkdir(parents=True, exist_ok=True)
    converter = Converter(ConvertConfig.from_dict(saved["config"])).eval()
    converter.load_state_dict(saved["ema"])
    state = converter.init_state(2)
    x = 0.02 * torch.randn(2, HOPS_PER_FRAME, CORE_BINS, 2)
    write_step(Step(converter).eval(), x, state, ["y", *(f"{n}.new" for n in moving(state))], out / GRAPH, "", bytes_and_halves)
    proto = onnx.load(str(out / GRAPH))
    converter = _read(converter.cfg, proto)
    weights = fingerprint(converter)
    helper.set_model_props(proto, {"voicewire.weights": weights})
    onnx.save(proto, str(out / GRAPH))
    meta = {"config": converter.cfg.to_dict(), "weights": weights, "voice_encoder": voices, "steps": saved["step"], "audio_hours": round(saved["hours"], 2)}
    (out / DESCRIPTION).write_text(json.dumps(meta, indent=1) + "\n")
    return converter


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("checkpoint", type=Path, help="last.pt or step-N.pt of tools.train_convert")
    p.add_argument("--out", type=Path, default=CONVERT_WEIGHTS)
    p.add_argument("--voices", type=Path, default=TASK_WEIGHTS, help="weights whose voiceprints it was trained with")
    a = p.parse_args()
    return reported(
        "convert_export", a.out, lambda: export_convert(read_checkpoint(a.checkpoint, "config", "ema", "step", "hours"), a.out, voice_encoder(a.voices))
    )


if __name__ == "__main__":
    raise SystemExit(main())
