"""What the long training runs have in common: the time box, the averaged model, the file to resume from, the log and the command line."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from voicewire.engines.checkpoint import fill, read_checkpoint

T = TypeVar("T")
LOG_EVERY = 50  # steps


def rate(progress: float, step: int, warmup_steps: int, decay_share: float) -> float:
    """Share of the full learning rate: linear warm-up, flat, then linear to 2 %."""
    down = (1 - progress) / decay_share if decay_share else 1.0
    return min(1.0, (step + 1) / warmup_steps, max(0.02, down))


def adamw(model: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) that decays matrices alone: biases, gains and memories of recurrences are no better for being near 0."""
    parts = list(model.parameters())
    groups = [{"params": [p for p in parts if p.ndim > 1]}, {"params": [p for p in parts if p.ndim <= 1], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr, betas=betas, weight_decay=weight_decay, fused=True)


def set_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = lr


class TimedRun:
    """A run in `folder` that stops when its box of minutes or steps is full and goes on from there when it is started again.

    kept: what last.pt holds, by name; `model` and its running mean `ema` are always among it. doc: what describes the model in every file.
    """

    def __init__(self, folder: Path, device: str, doc: dict[str, Any], kept: dict[str, Any]) -> None:
        self.folder, self.doc, self.kept = folder, doc, kept
        self.step, self.minutes, self.hours = 0, 0.0, 0.0
        self._seen: list[dict[str, float]] = []
        folder.mkdir(parents=True, exist_ok=True)
        last = folder / "last.pt"
        self.resumed = last.exists()
        if self.resumed:
            saved = read_checkpoint(last, *kept, "step", "minutes", "hours", device=device)
            for name, part in kept.items():
                if isinstance(part, nn.Module):
                    fill(part, saved[name], last)
                else:
                    try:
                        part.load_state_dict(saved[name])
                    except ValueError:
                        raise ValueError(f"{last} is of a training with another optimiser; start a new run from it: --init {last}") from None
            self.step, self.minutes, self.hours = saved["step"], saved["minutes"], saved["hours"]
            print(f"resumed {last} at step {self.step}, {self.hours:.1f} h of audio")

    def save(self) -> None:
        """RUN/last.pt, to resume, and RUN/step-N.pt with the averaged weights alone."""
        doc = self.doc | {"step": self.step, "minutes": self.minutes, "hours": self.hours}
        last = self.folder / "last.pt"
        torch.save(doc | {name: part.state_dict() for name, part in self.kept.items()}, f"{last}.part")
        os.replace(f"{last}.part", last)
        torch.save(doc | {"ema": self.kept["ema"].state_dict()}, self.folder / f"step-{self.step}.pt")

    @torch.no_grad()
    def average(self, most: float) -> None:
        """Move the running mean by 1 - `most`, by more in the first steps."""
        model, ema = self.kept["model"], self.kept["ema"]
        decay = min(most, (1 + self.step) / (10 + self.step))
        for e, m in zip(ema.state_dict().values(), model.state_dict().values(), strict=True):
            if e.is_floating_point():
                e.lerp_(m, 1 - decay)
            else:
                e.copy_(m)

    def boxed(self, batches: Iterable[T], minutes: float, steps: int | None, checkpoint_minutes: float) -> Iterator[tuple[float, T]]:
        """(progress from 0 to 1, batch) until the box is full; saves every `checkpoint_minutes` and at the end."""
        start = saved = time.monotonic()
        first, before = self.step, self.minutes
        with SummaryWriter(str(self.folder)) as self._board, (self.folder / "log.jsonl").open("a") as self._log:
            self._bar = tqdm(total=round(minutes * 60), unit="s", mininterval=5, disable=None)
            for batch in batches:
                progress = max((time.monotonic() - start) / 60 / minutes, (self.step - first) / steps if steps else 0.0)
                if progress >= 1:
                    break
                yield progress, batch
                self.minutes = before + (time.monotonic() - start) / 60
                self._bar.update(min(round(time.monotonic() - start), self._bar.total) - self._bar.n)
                if time.monotonic() - saved > 60 * checkpoint_minutes:
                    saved = time.monotonic()
                    self.save()
            self.save()
            self._bar.close()
        print(f"done: step {self.step}, {self.hours:.1f} h of audio, {self.minutes:.1f} min in all; {self.folder / 'last.pt'}")

    def log(self, numbers: dict[str, float], headline: Callable[[dict[str, float]], str], more: Callable[[], dict[str, float]] = dict) -> None:
        """Collect the numbers of a step; every 50 steps their means and `more()` go to TensorBoard and RUN/log.jsonl, the headline beside the bar."""
        self._seen.append(numbers)
        if self.step % LOG_EVERY:
            return
        row = {k: float(np.mean([s[k] for s in self._seen if k in s])) for k in {k: None for s in self._seen for k in s}} | more()
        self._seen.clear()
        for k, v in row.items():
            self._board.add_scalar(k, v, self.step)
        counters = {"step": self.step, "minutes": self.minutes, "hours": self.hours}
        self._log.write(json.dumps({k: round(v, 5) for k, v in (row | counters).items()}) + "\n")
        self._log.flush()
        self._bar.set_postfix_str(f"step {self.step} {headline(row)}")


def has_bf16(device: str) -> bool:
    """CUDA, and CPUs with AVX-512 BF16."""
    return device == "cuda" or bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def bf16(device: str) -> torch.autocast:
    """Products in bfloat16 where the machine has them (on a CPU a quarter less time a step)."""
    return torch.autocast(device, torch.bfloat16, enabled=has_bf16(device))


def clip_and_step(model: nn.Module, optimiser: torch.optim.Optimizer, loss: torch.Tensor, clip: float) -> float:
    """Backward and update; a step whose gradient is not finite is left out. → the gradient's norm before clipping."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    if torch.isfinite(norm):
        optimiser.step()
    return norm.item()


def command(
    name: str, doc: str | None, load: Callable[[Path], Any], start: Callable[[argparse.Namespace, Any], None], files: dict[str, str] | None = None
) -> int:
    """RUN [--recipe R] [--minutes M] [--steps N] [--device D] [--threads T], and options that name `files`, with their help.

    start(arguments, recipe). → exit code
    """
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=Path, help="folder of the run; resumed if it holds last.pt")
    p.add_argument("--recipe", type=Path, help="TOML; default: the one saved in RUN")
    p.add_argument("--minutes", type=float, default=1e9)
    p.add_argument("--steps", type=int)
    for option, text in (files or {}).items():
        p.add_argument(option, type=Path, help=text)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args()
    own = a.run / "recipe.toml"
    recipe = load(a.recipe or own)
    before = own.read_bytes() if own.exists() else None
    if a.recipe and a.recipe.resolve() != own.resolve():
        a.run.mkdir(parents=True, exist_ok=True)
        shutil.copy(a.recipe, own)
    torch.set_num_threads(a.threads)
    try:
        start(a, recipe)
    except ValueError:  # a recipe that does not fit the run is not the run's
        if before is not None:
            own.write_bytes(before)
        raise
    except KeyboardInterrupt:
        print(
            f"{name}: stopped; {f'the same command goes on from {last}' if (last := a.run / 'last.pt').exists() else 'nothing was saved yet'}", file=sys.stderr
        )
        return 130
    return 0
