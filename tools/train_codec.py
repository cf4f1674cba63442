"""Train the codec, in time boxes that can be stopped and resumed.

    python -m tools.teach cache/16k --minutes 60                                                     # once: the teacher's features
    python -m tools.train_codec runs/codec --recipe tools/recipes/codec/cpu.toml --minutes 60        # start, or resume where it was
    python -m voicewire.engines.codec_export runs/codec/last.pt --out weights

Runs on one CPU core or on CUDA (bf16) from the same kind of recipe. Every clean example is encoded and decoded; every degraded one is encoded, so that
its semantic tokens tell the same words, and some are decoded to what was heard. Leaves RUN/last.pt, RUN/step-N.pt and RUN/log.jsonl like tools.train.
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

from voicewire.engines.codec_hold import source_frames
from voicewire.engines.config import CORE_BINS
from voicewire.engines.net.codec import Codec
from voicewire.engines.net.spectrum import istft, stft

from .codec_losses import CodecLoss, semantic_loss
from .codec_mixer import CodecMixer
from .codec_recipe import CodecRecipe, CodecTrain, load
from .discriminator import Discriminator
from .teach import Teacher
from .train import rate

HOP = 160
HOLD_CAP_FRAMES = 8
Batch = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class Batches(Dataset[Batch]):
    """Index i → batch `first + i`; batches are made in worker processes."""

    def __init__(self, mixer: CodecMixer, first: int) -> None:
        self.mixer, self.first = mixer, first

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, i: int) -> Batch:
        return self.mixer.taught_batch(self.first + i)


def waveform(spec: Tensor, samples: int) -> Tensor:
    """[B, hops, 160, 2] → [B, samples]"""
    return istft(torch.nn.functional.pad(spec, (0, 0, 0, HOP + 1 - CORE_BINS)), HOP, samples)


def reconstruct(model: Codec, x: Tensor) -> tuple[Tensor, Tensor]:
    """Offline, as used for checks: [B, samples] → ([B, samples], tokens [B, frames, streams])."""
    tokens = model.encoder(stft(x, HOP)[:, :, :CORE_BINS])
    return waveform(model.decoder(model.vectors(tokens)), x.shape[1]), tokens


class Usage:
    """Which codes were used lately, a stream."""

    def __init__(self, streams: int, codes: int) -> None:
        self.seen = torch.zeros(streams, codes, dtype=torch.bool)

    def add(self, tokens: Tensor) -> None:
        for stream, used in enumerate(tokens.flatten(0, -2).t()):
            self.seen[stream, used.cpu()] = True

    def take(self) -> dict[str, float]:
        share = self.seen.float().mean(1).tolist()
        self.seen.zero_()
        return {"use_s": share[0]} | {f"use_a{i}": v for i, v in enumerate(share[1:], 1)}


class Objective:
    """One batch through the model in training: sound, tokens and the loss of everything but the discriminators."""

    def __init__(self, t: CodecTrain, layers: int, device: str, seed: int) -> None:
        self.t, self.layers, self.device = t, layers, device
        self.sound = CodecLoss(t.complex_share, t.mel, t.perceptual).to(device)
        self.rng = np.random.default_rng(seed)

    def _held(self, z: Tensor) -> Tensor | None:
        """[B, T, code_dim] → frames whose tokens are heard [B, T], in some steps."""
        if self.rng.random() >= self.t.hold:
            return None
        threshold = self.rng.uniform(0.7, 1.0)
        return torch.from_numpy(np.stack([source_frames(v, threshold, HOLD_CAP_FRAMES) for v in z.detach().float().cpu().numpy()])).to(z.device)

    def __call__(self, model: Codec, mix: Tensor, target: Tensor, features: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, float]]:
        """→ (loss, made [n, samples], real [n, samples], tokens, parts)"""
        t, b = self.t, len(target)
        x = torch.cat([target, mix])
        decoded = b + round(t.degraded_decoded * b)
        bf16 = torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda")
        with bf16:
            acoustic, semantic, gate = model.encoder.features(stft(x, HOP)[:, :, :CORE_BINS])
        acoustic, semantic = acoustic.float(), semantic.float()
        full = self.rng.random(2 * b) < t.full_layers
        keep = torch.from_numpy(np.where(full, self.layers, self.rng.integers(0, self.layers + 1, 2 * b))).to(x.device)
        s, s_index, s_commit, z = model.encoder.semantic_vq.train_step(semantic, torch.ones_like(keep))
        a, a_index, a_commit, _ = model.encoder.acoustic_vq.train_step(acoustic, keep)
        features, known = features.float().repeat(2, 1, 1), known.repeat(2, 1)
        frames = features.shape[1]
        told = model.teach(s)[:, :frames]
        clean_loss, clean_cosine = semantic_loss(told[:b], features[:b], known[:b], t.teacher_lag_frames)
        noisy_loss, noisy_cosine = semantic_loss(told[b:], features[b:], known[b:], t.teacher_lag_frames)
        drop = torch.from_numpy(self.rng.random(2 * b) < t.semantic_dropout).to(x.device)
        s = torch.where(drop[:, None, None], model.encoder.semantic_vq.widen.bias, s)
        v = torch.cat([s, a], -1)[:decoded]
        held = self._held(z[:decoded])
        if held is not None:
            v = v.gather(1, held[..., None].expand_as(v))
        with bf16:
            spec = model.decoder(v)
        made, real = waveform(spec.float(), x.shape[1]), x[:decoded]
        loss, parts = self.sound(made, real)
        loss = loss + t.semantic * (clean_loss + noisy_loss) / 2 + t.commitment * (s_commit + a_commit)
        parts |= {
            "cosine": clean_cosine.item(), "cosine_noisy": noisy_cosine.item(), "gate": gate[:b].float().mean().item(),
            "gate_noisy": gate[b:].float().mean().item(), "commit_s": s_commit.item(), "commit_a": a_commit.item(),
        }  # fmt: skip
        return loss, made, real, torch.cat([s_index, a_index], -1), parts


class Run:
    """One training run: model, averaged model, discriminators, optimisers, counters, and their file."""

    def __init__(self, folder: Path, recipe: CodecRecipe, device: str) -> None:
        t = recipe.train
        torch.manual_seed(t.seed)
        self.folder, self.recipe, self.device = folder, recipe, device
        self.model = Codec(recipe.model).to(device)
        self.ema = copy.deepcopy(self.model).eval()
        self.judge = Discriminator(t.judge_channels).to(device)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), t.lr, betas=(0.8, 0.98), weight_decay=t.weight_decay, fused=True)
        self.judge_optimiser = torch.optim.AdamW(self.judge.parameters(), t.lr / 3, betas=(0.8, 0.98), fused=True)
        self.step, self.minutes, self.hours = 0, 0.0, 0.0
        folder.mkdir(parents=True, exist_ok=True)
        last = folder / "last.pt"
        if last.exists():
            saved = torch.load(last, map_location=device, weights_only=True)
            for name in self._parts():
                getattr(self, name).load_state_dict(saved[name])
            self.step, self.minutes, self.hours = saved["step"], saved["minutes"], saved["hours"]
            print(f"resumed {last} at step {self.step}, {self.hours:.1f} h of audio")

    @staticmethod
    def _parts() -> tuple[str, ...]:
        return ("model", "ema", "judge", "optimiser", "judge_optimiser")

    def save(self) -> None:
        lag = self.recipe.train.teacher_lag_frames
        doc: dict[str, Any] = {"config": self.recipe.model.to_dict(), "step": self.step, "minutes": self.minutes, "hours": self.hours, "teacher_lag": lag}
        last = self.folder / "last.pt"
        torch.save(doc | {name: getattr(self, name).state_dict() for name in self._parts()}, f"{last}.part")
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

    def _adversarial(self, made: Tensor, real: Tensor, gain: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The discriminators' own step, then what they think of the model's sound."""
        t = self.recipe.train
        made, real = made * gain, real * gain
        judged = self.judge.judge(real, made)
        self.judge_optimiser.zero_grad(set_to_none=True)
        judged.backward()
        torch.nn.utils.clip_grad_norm_(self.judge.parameters(), t.clip)
        self.judge_optimiser.step()
        fool, match = self.judge.deceive(real, made)
        return t.adversarial * (fool + t.feature_matching * match), {"judge": judged.item(), "fool": fool.item(), "match": match.item()}

    def one_step(self, objective: Objective, batch: list[Tensor]) -> tuple[dict[str, float], Tensor]:
        """Forward, backward, update, average → (numbers for the log, tokens)."""
        t = self.recipe.train
        mix, target, features, known = (z.to(self.device, non_blocking=True) for z in batch)
        self.model.train()
        loss, made, real, tokens, parts = objective(self.model, mix, target, features, known)
        if t.adversarial and self.step >= t.adversarial_from_step:
            gain = (0.05 / (real.square().mean(1, keepdim=True) + 1e-8).sqrt()).clamp_max(100.0)
            extra, more = self._adversarial(made, real, gain)
            loss, parts = loss + extra, parts | more
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), t.clip)
        if torch.isfinite(norm):
            self.optimiser.step()
        self.step += 1
        self.hours += mix.numel() / 16000 / 3600
        self.average()
        return {"loss": loss.item(), "grad": norm.item(), **parts}, tokens

    def train(self, minutes: float, steps: int | None) -> None:
        t, data = self.recipe.train, self.recipe.data
        teacher = Teacher.load(Path(data.teacher)) if data.teacher else None
        if teacher and teacher.frames.shape[1] != self.recipe.model.teacher_dim:
            raise ValueError(f"the teacher's features have {teacher.frames.shape[1]} numbers, teacher_dim says {self.recipe.model.teacher_dim}")
        mixer = CodecMixer(Path(data.cache), data.seed, data.batch, data.seconds, teacher, data.taught_share)
        taught_h = sum(n for _, n in teacher.clips.values()) / 50 / 3600 if teacher else 0.0
        print("data, hours:", json.dumps(mixer.describe() | {"taught": round(taught_h, 2)}), "parameters:", sum(p.numel() for p in self.model.parameters()))
        loader = DataLoader(Batches(mixer, self.step), batch_size=None, num_workers=data.workers, pin_memory=self.device == "cuda")
        objective = Objective(t, self.recipe.model.layers, self.device, self.step)
        usage = Usage(self.recipe.model.streams, self.recipe.model.codes)
        board, log = SummaryWriter(str(self.folder)), (self.folder / "log.jsonl").open("a")
        start, saved, first_step, before = time.monotonic(), time.monotonic(), self.step, self.minutes
        seen: list[dict[str, float]] = []
        bar = tqdm(total=round(minutes * 60), unit="s", mininterval=5, disable=None)
        for batch in loader:
            progress = max((time.monotonic() - start) / 60 / minutes, (self.step - first_step) / steps if steps else 0.0)
            if progress >= 1:
                break
            share = rate(progress, self.step, self.recipe)
            self.optimiser.param_groups[0]["lr"], self.judge_optimiser.param_groups[0]["lr"] = t.lr * share, t.lr / 3 * share
            numbers, tokens = self.one_step(objective, batch)
            usage.add(tokens)
            seen.append(numbers)
            if self.step % 50 == 0:
                row = {k: float(np.mean([s[k] for s in seen if k in s])) for k in seen[-1]} | usage.take()
                seen.clear()
                self.minutes = before + (time.monotonic() - start) / 60
                for k, v in row.items():
                    board.add_scalar(k, v, self.step)
                row |= {"step": self.step, "minutes": self.minutes, "hours": self.hours, "lr": t.lr * share}
                log.write(json.dumps({k: round(v, 5) for k, v in row.items()}) + "\n")
                log.flush()
                bar.set_postfix_str(f"step {self.step} loss {row['loss']:.3f} mel {row['mel']:.3f} cosine {row['cosine']:.2f}")
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
        Run(a.run, recipe, a.device).train(a.minutes, a.steps)
    except (ValueError, FileNotFoundError) as e:
        print(f"train_codec: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
