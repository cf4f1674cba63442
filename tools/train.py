"""Train the enhancer, in time boxes that can be stopped and resumed.

    python -m tools.train runs/restore --recipe tools/recipes/restore.toml --minutes 60          # start, or resume where it was
    python -m tools.train runs/more --recipe … --init engines/weights --minutes 30      # warm restart, from released weights or a .pt

Runs on one or two CPU cores or on CUDA (bf16) from the same recipe. Leaves RUN/last.pt (to resume), RUN/step-N.pt (weights only)
and TensorBoard events; the learning rate is flat and falls in the last `decay_share` of the box.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from voicewire.engines.config import CORE_BINS
from voicewire.engines.export import load_weights
from voicewire.engines.net.model import Model
from voicewire.engines.net.spectrum import istft, stft

from .losses import EnhanceLoss
from .mixer import Mixer
from .recipe import Recipe, load
from .run import TimedRun, clip_and_step, command, rate


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


class Run(TimedRun):
    """One training run: model, averaged model, optimiser, counters, and their file."""

    def __init__(self, folder: Path, recipe: Recipe, device: str, init: Path | None) -> None:
        torch.manual_seed(recipe.train.seed)
        self.recipe, self.device = recipe, device
        self.model = Model(recipe.model).to(device)
        self.ema = copy.deepcopy(self.model).eval()
        self.optimiser = torch.optim.AdamW(self.model.parameters(), recipe.train.lr, betas=(0.9, 0.98), weight_decay=recipe.train.weight_decay, fused=True)
        super().__init__(folder, device, {"config": recipe.model.to_dict()}, {"model": self.model, "ema": self.ema, "optimiser": self.optimiser})
        if init and not self.resumed:
            if init.is_dir():  # released weights
                weights = load_weights(init).core.state_dict()
            else:
                weights = torch.load(init, map_location=device, weights_only=True)["ema"]
            self.model.load_state_dict(weights)
            self.ema.load_state_dict(weights)
            print(f"warm start from {init}")

    def train(self, minutes: float, steps: int | None) -> None:
        t, data = self.recipe.train, self.recipe.data
        loss_of = EnhanceLoss(t.snr, t.perceptual).to(self.device)
        mixer = Mixer(Path(data.cache), data.seed, data.batch, data.seconds)
        print("data, hours:", json.dumps(mixer.describe()), "parameters:", sum(p.numel() for p in self.model.parameters()))
        loader = DataLoader(Batches(mixer, self.step), batch_size=None, num_workers=data.workers, pin_memory=self.device == "cuda")
        for progress, (mix, target) in self.boxed(loader, minutes, steps, t.checkpoint_minutes):
            lr = t.lr * rate(progress, self.step, t.warmup_steps, t.decay_share)
            self.optimiser.param_groups[0]["lr"] = lr
            mix, target = mix.to(self.device, non_blocking=True), target.to(self.device, non_blocking=True)
            self.model.train()
            with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
                y = enhance(self.model, mix)
            loss, parts = loss_of(y.float(), target, mix)
            norm = clip_and_step(self.model, self.optimiser, loss, t.clip)
            self.step += 1
            self.hours += mix.numel() / mixer.rate / 3600
            self.average(t.ema)
            numbers = {"loss": loss.item(), "grad": norm, **parts, "lr": lr}
            self.log(numbers, lambda row: f"loss {row['loss']:.4f} error {row['error_db']:.2f} dB")


def main() -> int:
    return command("train", __doc__, load, lambda a, recipe: Run(a.run, recipe, a.device, a.init).train(a.minutes, a.steps), warm=True)


if __name__ == "__main__":
    raise SystemExit(main())
