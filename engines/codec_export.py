"""Codec weights and graphs out of a training checkpoint: fp16 safetensors, ONNX steps of encoder and decoder with explicit state, their description.

    python -m voicewire.engines.codec_export runs/codec/last.pt --out engines/weights/codec

Needs torch and onnx: `pip install voicewire[train]`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .checkpoint import fill, read_checkpoint
from .codec_config import CodecConfig
from .codec_engine import CODEC_WEIGHTS
from .config import CORE_BINS, HOPS_PER_FRAME
from .export import fingerprint, halved, reported, write_step
from .net.causal import State
from .net.codec import Codec

LEARNING = ("count", "total", "steps")  # of a codebook: needed only to go on training


def load_codec(folder: Path) -> Codec:
    """The codec in PyTorch from `codec.safetensors` + `codec.json`."""
    codec = Codec(CodecConfig.from_dict(json.loads((folder / "codec.json").read_text())["config"]))
    fill(codec, _whole(codec, load_file(folder / "codec.safetensors")), folder)
    return codec.eval()


def _whole(codec: Codec, weights: State) -> State:
    """Values as they are used: fp32 made from what is stored in halves, the rest as it is in `codec`."""
    return {k: weights[k].float() if k in weights and v.is_floating_point() else weights.get(k, v) for k, v in codec.state_dict().items()}


class EncodeGraph(nn.Module):
    """`encode_step` with positional tensors, as the exporter wants them."""

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.codec, self.names = codec, list(codec.encoder.init_state(1))

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        tokens, semantic, new = self.codec.encode_step(x, dict(zip(self.names, state, strict=True)))
        return (tokens[:, 0], semantic[:, 0], *(new[n] for n in self.names))


class DecodeGraph(nn.Module):
    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.codec, self.names = codec, list(codec.decoder.init_state(1))

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        y, new = self.codec.decode_step(x[:, None], dict(zip(self.names, state, strict=True)))
        return (y, *(new[n] for n in self.names))


def _write(graph: EncodeGraph | DecodeGraph, x: Tensor, state: State, outputs: list[str], path: Path) -> None:
    write_step(graph.eval(), x, state, [*outputs, *(f"{n}.new" for n in state)], path, fingerprint(graph.codec))


def export_codec(saved: dict[str, Any], out: Path) -> Codec:
    """Write OUT/codec.safetensors (fp16), encode.onnx, decode.onnx and codec.json from a checkpoint of tools.train_codec."""
    out.mkdir(parents=True, exist_ok=True)
    codec = Codec(CodecConfig.from_dict(saved["config"])).eval()
    kept = halved({k: v for k, v in saved["ema"].items() if k.rsplit(".", 1)[-1] not in LEARNING})
    codec.load_state_dict(_whole(codec, kept))
    save_file({k: v.contiguous() for k, v in kept.items()}, out / "codec.safetensors")
    x = 0.02 * torch.randn(2, HOPS_PER_FRAME, CORE_BINS, 2)
    tokens = torch.randint(0, codec.cfg.codes, (2, codec.cfg.streams))
    _write(EncodeGraph(codec), x, codec.encoder.init_state(2), ["tokens", "semantic"], out / "encode.onnx")
    _write(DecodeGraph(codec), tokens, codec.decoder.init_state(2), ["y"], out / "decode.onnx")
    meta = {"config": codec.cfg.to_dict(), "weights": fingerprint(codec), "steps": saved["step"], "audio_hours": round(saved["hours"], 2)}
    (out / "codec.json").write_text(json.dumps(meta | {"teacher_lag": saved["teacher_lag"]}, indent=1) + "\n")
    return codec


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("checkpoint", type=Path, help="last.pt or step-N.pt of tools.train_codec")
    p.add_argument("--out", type=Path, default=CODEC_WEIGHTS)
    a = p.parse_args()
    return reported("codec_export", a.out, lambda: export_codec(read_checkpoint(a.checkpoint, "config", "ema", "step", "hours", "teacher_lag"), a.out))


if __name__ == "__main__":
    raise SystemExit(main())
