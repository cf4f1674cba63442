"""Train the enhancer, in time boxes that can be stopped and resumed.

    python -m tools.train runs/restore --recipe tools/recipes/restore.toml --minutes 60          # start, or resume where it was
    python -m tools.train runs/more --recipe … --init engines/weights --minutes 30      # warm restart, from released weights or a .pt

Runs on one or two CPU cores or on CUDA (bf16) from the same recipe. Leaves RUN/last.pt (to resume), RUN/step-N.pt (weights only)
and TensorBoard events; the learning rate is flat and falls in the last `decay_share` of the box.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from voicewire.engines.config import CORE_BINS
from voicewire.engines.export import load_weights
from voicewire.engines.net.model import Model
from voicewire.engines.net.spectrum import istft, stft

from .losses import EnhanceLoss
from .mixer import Mixer
from .recipe import Recipe, load


class Batches(Dataset[tuple[np.ndarray, np.ndarray]]):
    """Index i → batch `first + i`; batches are made in worker processes."""

    def __init__(self, mixer: Mixer, first: int) -> None:
        self.mixer, self.first = mixer, first

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        return self.mixer.batch(self.first + i)


def enhance(model: Model, x: Tensor) -> Tensor:
    """[B, samples at 16 kHz] → [B, samples] through STFT, model, inverse."""
    spec = stft(x, 160)
    s = model(spec[:, :, :CORE_BINS])
    y = torch.nn.functional.pad(s, (0, 0, 0, spec.shape[2] - CORE_BINS))
    return istft(y, 160, x.shape[1])


def rate(progress: float, step: int, recipe: Recipe) -> float:
    """Share of the full learning rate: linear warm-up, flat, then linear to 2 %."""
    t = recipe.train
    down = (1 - progress) / t.decay_share if t.decay_share else 1.0
    return min(1.0, (step + 1) / t.warmup_steps, max(0.02, down))


class Run:
    """One training run: model, averaged model, optimiser, counters, and their file."""

    def __init__(self, folder: Path, recipe: Recipe, device: str, init: Path | None) -> None:
        torch.manual_seed(recipe.train.seed)
        self.folder, self.recipe, self.device = folder, recipe, device
        self.model = Model(recipe.model).to(device)
        self.ema = copy.deepcopy(self.model).eval()
        self.optimiser = torch.optim.AdamW(self.model.parameters(), recipe.train.lr, betas=(0.9, 0.98), weight_decay=recipe.train.weight_decay, fused=True)
        self.step, self.minutes, self.hours = 0, 0.0, 0.0
        folder.mkdir(parents=True, exist_ok=True)
        last = folder / "last.pt"
        if last.exists():
            saved = torch.load(last, map_location=device, weights_only=True)
            self.model.load_state_dict(saved["model"])
            self.ema.load_state_dict(saved["ema"])
            self.optimiser.load_state_dict(saved["optimiser"])
            self.step, self.minutes, self.hours = saved["step"], saved["minutes"], saved["hours"]
            print(f"resumed {last} at step {self.step}, {self.hours:.1f} h of audio")
        elif init:
            if init.is_dir():  # released weights
                weights = load_weights(init).core.state_dict()
            else:
                weights = torch.load(init, map_location=device, weights_only=True)["ema"]
            self.model.load_state_dict(weights)
            self.ema.load_state_dict(weights)
            print(f"warm start from {init}")

    def save(self) -> None:
        doc: dict[str, Any] = {"config": self.recipe.model.to_dict(), "step": self.step, "minutes": self.minutes, "hours": self.hours}
        last = self.folder / "last.pt"
        torch.save(doc | {"model": self.model.state_dict(), "ema": self.ema.state_dict(), "optimiser": self.optimiser.state_dict()}, f"{last}.part")
        os.replace(f"{last}.part", last)
        torch.save(doc | {"ema": self.ema.state_dict()}, self.folder / f"step-{self.step}.pt")

    @torch.no_grad()
    def average(self) -> None:
        decay = min(self.recipe.train.ema, (1 + self.step) / (10 + self.step))
        for e, m in zip(self.ema.state_dict().values(), self.model.state_dict().values(), strict=True):
            if e.is_floating_point():
                e.lerp_(m, 1 - decay)
            else:
                e.copy_(m)

    def train(self, minutes: float, steps: int | None) -> None:
        t = self.recipe.train
        loss_of = EnhanceLoss(t.snr, t.perceptual).to(self.device)
        data = self.recipe.data
        mixer = Mixer(Path(data.cache), data.seed, data.batch, data.seconds)
        print("data, hours:", json.dumps(mixer.describe()), "parameters:", sum(p.numel() for p in self.model.parameters()))
        loader = DataLoader(Batches(mixer, self.step), batch_size=None, num_workers=data.workers, pin_memory=self.device == "cuda")
        board, log = SummaryWriter(str(self.folder)), (self.folder / "log.jsonl").open("a")
        start, saved, first_step = time.monotonic(), time.monotonic(), self.step
        before, seen = self.minutes, []
        bar = tqdm(total=round(minutes * 60), unit="s", mininterval=5, disable=None)
        for mix, target in loader:
            spent = time.monotonic() - start
            progress = max(spent / 60 / minutes, (self.step - first_step) / steps if steps else 0.0)
            if progress >= 1:
                break
            for group in self.optimiser.param_groups:
                group["lr"] = t.lr * rate(progress, self.step, self.recipe)
            mix, target = mix.to(self.device, non_blocking=True), target.to(self.device, non_blocking=True)
            self.model.train()
            with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
                y = enhance(self.model, mix)
            loss, parts = loss_of(y.float(), target, mix)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), t.clip)
            if torch.isfinite(norm):
                self.optimiser.step()
            self.step += 1
            self.hours += mix.numel() / mixer.rate / 3600
            self.average()
            seen.append({"loss": loss.item(), "grad": norm.item(), **parts})
            if self.step % 50 == 0:
                row = {k: float(np.mean([s[k] for s in seen])) for k in seen[0]}
                seen.clear()
                self.minutes = before + (time.monotonic() - start) / 60
                for k, v in row.items():
                    board.add_scalar(k, v, self.step)
                row |= {"step": self.step, "minutes": self.minutes, "hours": self.hours, "lr": self.optimiser.param_groups[0]["lr"]}
                log.write(json.dumps({k: round(v, 5) for k, v in row.items()}) + "\n")
                log.flush()
                bar.set_postfix_str(f"step {self.step} loss {row['loss']:.4f} error {row['error_db']:.2f} dB")
                bar.update(min(round(time.monotonic() - start), bar.total) - bar.n)
            if time.monotonic() - saved > 60 * t.checkpoint_minutes:
                saved = time.monotonic()
                self.save()
        self.minutes = before + (time.monotonic() - start) / 60
        self.save()
        bar.close()
        print(f"done: step {self.step}, {self.hours:.1f} h of audio, {self.minutes:.1f} min in all; {self.folder / 'last.pt'}")


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=Path, help="folder of the run; resumed if it holds last.pt")
    p.add_argument("--recipe", type=Path, help="TOML; default: the one saved in RUN")
    p.add_argument("--minutes", type=float, default=1e9)
    p.add_argument("--steps", type=int)
    p.add_argument("--init", type=Path, help="start from the averaged weights of this checkpoint, or from a weights folder")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args()
    own = a.run / "recipe.toml"
    try:
        if a.recipe:
            recipe = load(a.recipe)
            a.run.mkdir(parents=True, exist_ok=True)
            if a.recipe.resolve() != own.resolve():
                shutil.copy(a.recipe, own)
        else:
            recipe = load(own)
        torch.set_num_threads(a.threads)
        Run(a.run, recipe, a.device, a.init).train(a.minutes, a.steps)
    except (ValueError, FileNotFoundError) as e:
        print(f"train: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
