"""Train the voice encoder alone: two recordings of one talker meet, those of others part.

    python -m tools.train_voice runs/voice --recipe tools/recipes/tasks-cpu.toml --minutes 15
    python -m tools.train runs/tasks --recipe tools/recipes/tasks-cpu.toml --init runs/restore/last.pt --voice runs/voice/last.pt --minutes 120

Contrastive (InfoNCE, both ways; van den Oord et al. 2018) over `people` talkers a step, each recorded twice: other words, other microphone, room and noise.
tools.train then keeps the encoder as it is.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from voicewire.engines.config import CORE_BINS
from voicewire.engines.net.spectrum import stft
from voicewire.engines.net.voice import VoiceEncoder

from .recipe import Recipe, load
from .run import TimedRun, clip_and_step, command, rate
from .talkers import Talkers


class Likenesses(Dataset[np.ndarray]):
    def __init__(self, talkers: Talkers, people: int, first: int) -> None:
        self.talkers, self.people, self.first = talkers, people, first

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, i: int) -> np.ndarray:
        return self.talkers.likeness_batch(self.first + i, self.people)


class Speaker(nn.Module):
    """The encoder and the sharpness of its similarities."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.encoder = VoiceEncoder(recipe.model)
        self.sharpness = nn.Parameter(torch.tensor(2.3))

    def forward(self, x: Tensor) -> tuple[Tensor, float]:
        """x: [2, people, samples] → (loss, share of recordings whose nearest other is of the same talker)"""
        n = x.shape[1]
        voices = self.encoder(stft(x.flatten(0, 1), 160)[:, :, :CORE_BINS]) / self.encoder.dim**0.5
        near = voices[:n] @ voices[n:].T
        own = torch.arange(n, device=x.device)
        scores = near * self.sharpness.exp().clamp_max(50.0)
        loss = 0.5 * (cross_entropy(scores, own) + cross_entropy(scores.T, own))
        return loss, (near.argmax(1) == own).float().mean().item()


class Run(TimedRun):
    def __init__(self, folder: Path, recipe: Recipe, device: str) -> None:
        torch.manual_seed(recipe.train.seed)
        if not recipe.model.voice_dim:
            raise ValueError("the recipe's [model] has voice_dim = 0: a model without voices")
        self.recipe, self.device = recipe, device
        self.model = Speaker(recipe).to(device)
        self.ema = copy.deepcopy(self.model).eval()
        self.optimiser = torch.optim.AdamW(self.model.parameters(), recipe.train.lr, betas=(0.9, 0.98), weight_decay=recipe.train.weight_decay, fused=True)
        super().__init__(folder, device, {"config": recipe.model.to_dict()}, {"model": self.model, "ema": self.ema, "optimiser": self.optimiser})

    def train(self, minutes: float, steps: int | None) -> None:
        t, data = self.recipe.train, self.recipe.data
        talkers = Talkers(Path(data.cache), data.seed, data.batch, data.seconds)
        print("people:", sum(len(p) for p in talkers.people), "parameters:", sum(p.numel() for p in self.model.parameters()))
        loader = DataLoader(Likenesses(talkers, data.people, self.step), batch_size=None, num_workers=data.workers)
        for progress, x in self.boxed(loader, minutes, steps, t.checkpoint_minutes):
            lr = t.lr * rate(progress, self.step, t.warmup_steps, t.decay_share)
            self.optimiser.param_groups[0]["lr"] = lr
            self.model.train()
            loss, right = self.model(x.to(self.device))
            norm = clip_and_step(self.model, self.optimiser, loss, t.clip)
            self.step += 1
            self.hours += x.numel() / talkers.rate / 3600
            self.average(t.ema)
            self.log({"loss": loss.item(), "grad": norm, "right": right, "lr": lr}, lambda row: f"loss {row['loss']:.3f} right {row['right']:.2f}")


def main() -> int:
    return command("train_voice", __doc__, load, lambda a, recipe: Run(a.run, recipe, a.device).train(a.minutes, a.steps))


if __name__ == "__main__":
    raise SystemExit(main())
