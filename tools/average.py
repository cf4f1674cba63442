"""The mean of the weights of two runs, one of which went on from the other ("model soup", Wortsman et al. 2022): keeps what each has gained.

python -m tools.average engines/weights runs/words/last.pt --out runs/mean.pt      # released weights or checkpoints of tools.train
python -m tools.average engines/weights runs/said/last.pt --share 0.75 --out runs/mean.pt      # three quarters of the latter
python -m voicewire.engines.export runs/mean.pt
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from voicewire.engines.checkpoint import read_checkpoint
from voicewire.engines.export import load_weights

from .ending import plainly


def read(path: Path) -> dict[str, torch.Tensor]:
    """The averaged weights of a checkpoint, or those of a weights folder."""
    weights: dict[str, torch.Tensor] = load_weights(path).core.state_dict() if path.is_dir() else read_checkpoint(path, "ema")["ema"]
    return weights


def average(a: Path, b: Path, out: Path, share: float = 0.5) -> None:
    """b, a checkpoint, says what the model is; share: b's. ValueError unless both are of one shape."""
    one, doc = read(a), read_checkpoint(b, "config", "step", "minutes", "hours", "ema")
    two = doc["ema"]
    if {k: v.shape for k, v in one.items()} != {k: v.shape for k, v in two.items()}:
        raise ValueError(f"{a} and {b} are not the same model")
    mean = {k: one[k].float().lerp(v.float(), share).to(v.dtype) if v.is_floating_point() else v for k, v in two.items()}
    torch.save({k: doc[k] for k in ("config", "step", "minutes", "hours")} | {"ema": mean}, out)


@plainly
def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("a", type=Path, metavar="A", help="weights folder or checkpoint")
    p.add_argument("b", type=Path, metavar="B", help="checkpoint")
    p.add_argument("--share", type=float, default=0.5, help="of B; default: 0.5")
    p.add_argument("--out", type=Path, required=True)
    args = p.parse_args(argv)
    if not 0 <= args.share <= 1:
        raise ValueError(f"--share is from 0 to 1, not {args.share:g}")
    average(args.a, args.b, args.out, args.share)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
