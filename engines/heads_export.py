"""Weights and graph of the token heads out of a checkpoint of tools.train_heads: fp16 safetensors, the ONNX step with explicit state, their description.

    python -m voicewire.engines.heads_export runs/heads/last.pt --out FOLDER

The graph takes noise that is added to the logits (zeros: the likeliest tokens), so a whole frame is drawn inside one step. Needs torch and onnx:
`pip install voicewire[train]`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .checkpoint import read_checkpoint
from .export import fingerprint, halved, reported, write_step
from .heads_config import HeadsConfig
from .net.heads import TokenHeads


class HeadsGraph(nn.Module):
    """`step` with positional tensors, as the exporter wants them."""

    def __init__(self, heads: TokenHeads) -> None:
        super().__init__()
        self.heads, self.names = heads, list(heads.init_state(1))

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """state: noise first"""
        tokens, new = self.heads.step(x[:, None], dict(zip(self.names, state[1:], strict=True)), state[0])
        return (tokens[:, 0], *(new[n] for n in self.names))


def load_heads(folder: Path) -> TokenHeads:
    """The heads in PyTorch from `heads.safetensors` + `heads.json`."""
    heads = TokenHeads(HeadsConfig.from_dict(json.loads((folder / "heads.json").read_text())["config"]))
    heads.load_state_dict({k: v.float() for k, v in load_file(folder / "heads.safetensors").items()})
    return heads.eval()


def export_heads(saved: dict[str, Any], out: Path) -> TokenHeads:
    """Write OUT/heads.safetensors (fp16), heads.onnx and heads.json from a checkpoint."""
    out.mkdir(parents=True, exist_ok=True)
    heads = TokenHeads(HeadsConfig.from_dict(saved["config"])).eval()
    half = halved(saved["ema"])
    heads.load_state_dict({k: v.float() for k, v in half.items()})
    save_file({k: v.contiguous() for k, v in half.items()}, out / "heads.safetensors")
    cfg = heads.cfg
    given = {"noise": torch.zeros(2, cfg.streams, cfg.codes)} | heads.init_state(2)
    outputs = ["tokens", *(f"{n}.new" for n in given if n != "noise")]
    write_step(HeadsGraph(heads).eval(), torch.randn(2, cfg.trunk_dim + cfg.heard_dim), given, outputs, out / "heads.onnx", fingerprint(heads))
    meta = {"config": cfg.to_dict(), "weights": fingerprint(heads), "steps": saved["step"], "audio_hours": round(saved["hours"], 2)}
    meta |= {name: saved[name] for name in ("core_weights", "codec_weights")}
    (out / "heads.json").write_text(json.dumps(meta, indent=1) + "\n")
    return heads


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("checkpoint", type=Path, help="last.pt or step-N.pt of tools.train_heads")
    p.add_argument("--out", type=Path, required=True)
    a = p.parse_args()
    return reported(
        "heads_export", a.out, lambda: export_heads(read_checkpoint(a.checkpoint, "config", "ema", "step", "hours", "core_weights", "codec_weights"), a.out)
    )


if __name__ == "__main__":
    raise SystemExit(main())
