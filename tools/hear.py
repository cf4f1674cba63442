"""What the frozen models make of training mixtures, cached once: what tools.train_heads trains on, so that a step is that of the heads alone.

    python -m tools.hear cache/16k-wide --out runs/heard --minutes 10        # run again to hear more

The released restoration model hears the mixture: `h`, the trunk's output. The released codec's encoder hears the clean target: `tokens`, what the heads
must say; and the restored mixture: `heard`, the numbers that its quantisers search for. All three have one frame grid (the same STFT), so nothing has to be
shifted.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from voicewire.engines.codec_engine import CODEC_WEIGHTS
from voicewire.engines.codec_export import load_codec
from voicewire.engines.config import CORE_BINS
from voicewire.engines.engine import WEIGHTS
from voicewire.engines.export import load_weights
from voicewire.engines.net.codec_quantise import BEAM, LEARNING_BEAM
from voicewire.engines.net.spectrum import stft

from .ending import plainly
from .mixer import Mixer
from .run import bf16

HOP = 160
KINDS = {"h": np.float16, "heard": np.float16, "tokens": np.int16}


@dataclass(frozen=True)
class Impression:
    """What the frozen models make of mixtures: spectra [B, hops, 160, 2], h [B, frames, trunk_dim], heard [B, frames, numbers]."""

    mixture: Tensor
    restored: Tensor
    h: Tensor
    heard: Tensor

    @property
    def given(self) -> Tensor:
        """What the heads read: [B, frames, trunk_dim + numbers]"""
        return torch.cat([self.h, self.heard], -1)


def named(description: Path) -> str:
    """The fingerprint of released weights from the file that describes them."""
    weights: str = json.loads(description.read_text())["weights"]
    return weights


class Ears:
    """Restoration model and codec as released, frozen."""

    def __init__(self, core: Path = WEIGHTS, codec: Path = CODEC_WEIGHTS) -> None:
        self.core, self.codec = load_weights(core).core.eval(), load_codec(codec)
        self.doc = {"core_weights": named(core / "model.json"), "codec_weights": named(codec / "codec.json")}

    @torch.no_grad()
    def latent(self, spec: Tensor) -> Tensor:
        """[B, hops, 160, 2] → what the codec's quantisers search for, acoustic numbers first, then semantic ones: [B, frames, numbers]"""
        e = self.codec.encoder
        acoustic, semantic, _, _ = e.features(spec)
        return torch.cat([e.acoustic_vq.project(acoustic.float()), e.semantic_vq.project(semantic.float())], -1)

    @torch.no_grad()
    def tokens(self, spec: Tensor, beam: int = BEAM) -> Tensor:
        """[B, hops, 160, 2] → [B, frames, streams]. beam: ways of the search, a smaller one for training, where the search would cost more than all the rest"""
        e = self.codec.encoder
        acoustic, semantic, _, _ = e.features(spec)
        s = e.semantic_vq.encode(e.semantic_vq.project(semantic))
        return torch.cat([s, e.acoustic_vq.encode(e.acoustic_vq.project(acoustic) - e.guessed(s), beam)], -1)

    @torch.no_grad()
    def hear(self, x: Tensor, fast: bool = False) -> Impression:
        """[B, samples at 16 kHz]. fast: the restoration model in bfloat16 where the machine has it. The codec's never: in bfloat16 four of ten acoustic tokens
        are others."""
        mixture = stft(x, HOP)[:, :, :CORE_BINS].contiguous()
        with bf16("cpu") if fast else nullcontext():
            restored, h, _ = self.core.forward_features(mixture)
        restored = restored.float()
        return Impression(mixture, restored, h.float(), self.latent(restored))


class Heard:
    """A folder written by `hear`: memory maps by name of KINDS, [frames, ...], and how many consecutive frames a clip has."""

    def __init__(self, folder: Path) -> None:
        try:
            self.doc: dict[str, Any] = json.loads((folder / "index.json").read_text())
        except (OSError, ValueError):
            raise ValueError(f"{folder} holds nothing that was heard; write it: python -m tools.hear CACHE --out {folder}") from None
        self.clip_frames: int = self.doc["clip_frames"]
        self.clips: int = self.doc["clips"]
        self.parts = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in KINDS}

    def clip(self, i: int, first: int, frames: int) -> dict[str, np.ndarray]:
        at = i * self.clip_frames + first
        return {name: np.array(part[at : at + frames]) for name, part in self.parts.items()}


def hear(cache: Path, out: Path, minutes: float, hours: float, seconds: float, batch: int, seed: int, ears: Ears) -> int:
    """Cache until the time is up or `hours` of mixtures are there; → clips. What is there is kept if it was heard by the same models."""
    mixer = Mixer(cache, seed, batch, seconds)
    frames = mixer.n // (2 * HOP)
    most = max(1, round(hours * 3600 / seconds / batch)) * batch
    cfg, codec = ears.core.cfg, ears.codec.cfg
    widths = {"h": cfg.trunk_dim, "heard": 2 * codec.code_dim + 1, "tokens": codec.streams}
    doc = ears.doc | {"codec": codec.to_dict(), "trunk_dim": cfg.trunk_dim, "clip_frames": frames, "seed": seed, "most": most, "clips": 0}
    out.mkdir(parents=True, exist_ok=True)
    index = out / "index.json"
    before = json.loads(index.read_text()) if index.exists() else {}
    if before | {"clips": 0} == doc:
        doc, mode = before, "r+"
    else:
        mode = "w+"
    parts = {n: np.lib.format.open_memmap(out / f"{n}.npy", mode, KINDS[n], (most * frames, w)) for n, w in widths.items()}  # type: ignore[no-untyped-call]
    begin = time.monotonic()
    with tqdm(total=most - doc["clips"], unit="clip", mininterval=5, disable=None) as bar:
        while doc["clips"] < most and time.monotonic() - begin < 60 * minutes:
            mix, target = (torch.from_numpy(z) for z in mixer.batch(doc["clips"] // batch))
            said, got = ears.tokens(stft(target, HOP)[:, :, :CORE_BINS], LEARNING_BEAM), ears.hear(mix, fast=True)
            at = doc["clips"] * frames
            for name, value in (("h", got.h), ("heard", got.heard), ("tokens", said)):
                parts[name][at : at + batch * frames] = value[:, :frames].flatten(0, 1).numpy()
            doc["clips"] += batch
            bar.update(batch)
            if doc["clips"] // batch % 20 == 0:
                index.write_text(json.dumps(doc) + "\n")
    for part in parts.values():
        part.flush()
    index.write_text(json.dumps(doc) + "\n")
    clips: int = doc["clips"]
    return clips


@plainly
def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("cache", type=Path, help="written by tools.prepare at 16 kHz")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--minutes", type=float, default=1e9)
    p.add_argument("--hours", type=float, default=6.0, help="of mixtures, at most; an hour takes 82 MB")
    p.add_argument("--seconds", type=float, default=6.0, help="a mixture")
    p.add_argument("--seed", type=int, default=61)
    p.add_argument("--core", type=Path, default=WEIGHTS)
    p.add_argument("--codec", type=Path, default=CODEC_WEIGHTS)
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    clips = hear(a.cache, a.out, a.minutes, a.hours, a.seconds, 4, a.seed, Ears(a.core, a.codec))
    print(f"{clips} mixtures, {clips * a.seconds / 3600:.2f} h; {a.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
