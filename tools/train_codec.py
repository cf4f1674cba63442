"""Train the codec, in time boxes that can be stopped and resumed.

    python -m tools.teach cache/16k --minutes 60                                                     # once: the teacher's features
    python -m tools.train_codec runs/codec --recipe tools/recipes/codec/cpu.toml --minutes 60        # start, or resume where it was
    python -m tools.train_codec runs/more --recipe … --init engines/weights/codec --minutes 60       # warm restart, from released weights or a .pt
    python -m voicewire.engines.codec_export runs/codec/last.pt --out weights

Runs on one CPU core or on CUDA from the same kind of recipe. Every clean example is encoded and decoded; every degraded one is encoded, so that
its semantic tokens tell the same words, and some may be decoded to what was heard. Leaves RUN/last.pt, RUN/step-N.pt and RUN/log.jsonl like tools.train.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, Dataset

from voicewire.engines.checkpoint import fill, read_checkpoint
from voicewire.engines.codec_export import load_codec
from voicewire.engines.codec_hold import source_frames
from voicewire.engines.config import CORE_BINS
from voicewire.engines.net.codec import Codec
from voicewire.engines.net.codec_quantise import Codebook, Told, correlation
from voicewire.engines.net.spectrum import istft, stft

from .codec_losses import CodecLoss, hearing_loss, pitch_loss, semantic_loss
from .codec_mixer import CodecMixer
from .codec_primitives import NONE, Primitives
from .codec_recipe import CodecRecipe, CodecTrain, load
from .discriminator import Discriminator
from .ending import plainly
from .run import TimedRun, adamw, bf16, clip_and_step, command, rate, set_rate
from .teach import Teacher
from .words import Hearing, misheard

HOP = 160
HOLD_CAP_FRAMES = 8
WEIGH_STEPS = 200
Batch = tuple[np.ndarray, ...]


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


def to_level(x: Tensor) -> Tensor:
    """[B, samples] → [B, 1] what brings each to one loudness."""
    return (0.05 / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()).clamp_max(100.0)


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
        self.sound = CodecLoss(t.mel, t.perceptual, t.envelopes).to(device)
        self.hearing = Hearing().to(device) if t.words else None
        self.rng = np.random.default_rng(seed)

    def _held(self, z: Tensor) -> Tensor | None:
        """[B, T, code_dim] → frames whose tokens are heard [B, T], in some steps."""
        if self.rng.random() >= self.t.hold:
            return None
        threshold = self.rng.uniform(0.7, 1.0)
        return torch.from_numpy(np.stack([source_frames(v, threshold, HOLD_CAP_FRAMES) for v in z.detach().float().cpu().numpy()])).to(z.device)

    def _misheard(self, made: Tensor, real: Tensor) -> Tensor:
        """[n, samples] each → by how much a recogniser hears otherwise, on average."""
        if self.hearing is None:
            return made.new_zeros(())
        gain = to_level(real)
        with torch.no_grad(), bf16(self.device):
            clean = self.hearing(real * gain)
        with bf16(self.device):
            heard = self.hearing(made * gain)
        return misheard(heard.float(), clean.float()).mean()

    def _primitives(
        self, primitives: Primitives, s: Tensor, features: Tensor, known: Tensor, told_of: Tensor, scene: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """s, features, known: of clean examples and then degraded ones; told_of and scene: of the clean ones and, of the degraded ones, the scene."""
        if not self.t.primitives:
            return s.new_zeros(()), {}
        b = len(told_of)
        pitch, energy, speaks = torch.cat([told_of, told_of[: len(s) - b]]).unbind(-1)
        content = primitives.content(features, known & (speaks > 0), self.t.teacher_lag_frames)
        kinds = torch.cat([torch.zeros_like(scene), scene[: len(s) - b]])[:, None].expand_as(pitch)
        return primitives(s, {"content": content, "pitch": pitch, "energy": energy, "scene": torch.where(speaks > 0, kinds, NONE)})

    def __call__(
        self, model: Codec, primitives: Primitives, mix: Tensor, target: Tensor, features: Tensor, known: Tensor, pitch: Tensor, told_of: Tensor, scene: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, float]]:
        """→ (loss, made [n, samples], real [n, samples], tokens, parts). See CodecMixer for what is given."""
        t, b = self.t, len(target)
        mix = mix[: round(t.degraded * b)]
        n = b + len(mix)
        x = torch.cat([target, mix])
        decoded = b + round(t.degraded_decoded * len(mix))
        with bf16(self.device):
            acoustic, semantic, gate, ear = model.encoder.features(stft(x, HOP)[:, :, :CORE_BINS])
        acoustic, semantic = acoustic.float(), semantic.float()
        full = self.rng.random(n) < t.full_layers
        keep = np.where(full, self.layers, self.rng.integers(0, self.layers + 1, n))
        keep = torch.from_numpy(np.where(self.rng.random(n) < t.alone, 0, keep)).to(x.device)
        s, s_index, s_commit, z = model.encoder.semantic_vq.train_step(semantic, torch.ones_like(keep))
        drop = torch.from_numpy(self.rng.random(n) < t.semantic_dropout).to(x.device)[:, None, None]
        guess = model.encoder.guessed(s_index)
        heard = torch.where(drop, model.encoder.guess.means[-1], guess)
        vq = model.encoder.acoustic_vq
        a, a_index, a_commit, za = vq.train_step(acoustic, keep, guess, heard)
        model.encoder.guess.learn(za.detach().flatten(0, 1), s_index.flatten())  # after: what is heard in training is what would be heard in use
        unguessed = mse_loss(za, guess)
        features, known = (torch.cat([z, z[: len(mix)]]) for z in (features.float(), known))
        frames = features.shape[1]
        told = model.teach(s)[:, :frames]
        told_more, right = self._primitives(primitives, s[:, :frames], features, known, told_of, scene)
        clean_loss, clean_cosine = semantic_loss(told[:b], features[:b], known[:b], t.teacher_lag_frames)
        noisy_loss, noisy_cosine = semantic_loss(told[b:], features[b:], known[b:], t.teacher_lag_frames)
        s = torch.where(drop, model.encoder.semantic_vq.widen.bias, s)
        v = torch.cat([s, a], -1)[:decoded]
        held = self._held(z[:decoded])
        if held is not None:
            v = v.gather(1, held[..., None].expand_as(v))
        with bf16(self.device):
            spec, hz = model.decoder.spectrum_and_pitch(v)
        made, real = waveform(spec.float(), x.shape[1]), x[:decoded]
        loss, parts = self.sound(made, real)
        # the semantic token alone is to tell words, not the melody
        melody = pitch * (keep[:b, None] > 0)
        off, wrong = pitch_loss(hz[:b, : pitch.shape[1]], melody)
        eared, same = hearing_loss(ear[:b], pitch), correlation(torch.linalg.solve(vq.metric, za, left=False))
        other = self._misheard(made, real)
        loss = loss + t.pitch * off + t.hearing * eared + t.correlation * same + t.words * other + t.told * unguessed
        loss = loss + t.primitives * told_more + t.semantic * (clean_loss + noisy_loss) / 2 + t.commitment * (s_commit + a_commit)
        parts |= {
            "cosine": clean_cosine.item(), "cosine_noisy": noisy_cosine.item(), "pitch": off.item(), "pitch_wrong": wrong, "hearing": eared.item(),
            "correlation": same.item(), "gate": gate[:b].float().mean().item(), "gate_noisy": gate[b:].float().mean().item(),
            "commit_s": s_commit.item(), "commit_a": a_commit.item(), "unguessed": unguessed.item(), "misheard": other.item(), **right,
        }  # fmt: skip
        return loss, made, real, torch.cat([s_index, a_index], -1), parts


class Run(TimedRun):
    """One training run: model, averaged model, discriminators, optimisers, counters, and their file."""

    def __init__(self, folder: Path, recipe: CodecRecipe, device: str, init: Path | None = None) -> None:
        t = recipe.train
        torch.manual_seed(t.seed)
        self.recipe, self.device = recipe, device
        self.model = Codec(recipe.model).to(device)
        self.ema = copy.deepcopy(self.model).eval()
        self.sensitivity = torch.zeros(recipe.model.code_dim, recipe.model.code_dim, device=device)
        self.judge = Discriminator(t.judge_channels).to(device)
        self.primitives = Primitives(recipe.model.dim, recipe.model.teacher_dim).to(device)
        self.trained = nn.ModuleList([self.model, self.primitives])
        self.optimiser = adamw(self.trained, t.lr, (0.8, 0.98), t.weight_decay)
        self.judge_optimiser = torch.optim.AdamW(self.judge.parameters(), t.lr / 3, betas=(0.8, 0.98), fused=True)
        kept = {"model": self.model, "ema": self.ema, "primitives": self.primitives, "judge": self.judge}
        kept |= {"optimiser": self.optimiser, "judge_optimiser": self.judge_optimiser}
        super().__init__(folder, device, {"config": recipe.model.to_dict(), "teacher_lag": t.teacher_lag_frames}, kept)
        if init and not self.resumed:
            weights = load_codec(init).state_dict() if init.is_dir() else read_checkpoint(init, "ema", device=device)["ema"]
            # a file without what the teacher is told with, or with another way of it, starts that new
            own = self.model.state_dict()
            if any(k not in weights or weights[k].shape != v.shape for k, v in own.items() if k.startswith("teach.")):
                weights |= {k: v for k, v in own.items() if k.startswith("teach.")}
            fill(self.model, {k: weights.get(k, v) for k, v in own.items()}, init)
            for book in self.model.modules():
                if isinstance(book, Codebook | Told):
                    book.begin()
            self.ema.load_state_dict(self.model.state_dict())
            print(f"warm start from {init}")

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

    def _weigh(self, at: int) -> None:
        if at - WEIGH_STEPS < self.step <= at:
            heard = self.model.encoder.acoustic_vq.heard
            assert heard is not None and heard.grad is not None
            g = heard.grad.flatten(0, 1)[:, : len(self.sensitivity)]
            self.sensitivity += g.t() @ g
        if self.step == at:
            for model in (self.model, self.ema):
                model.encoder.weigh(self.sensitivity)

    def one_step(self, objective: Objective, batch: list[Tensor]) -> tuple[dict[str, float], Tensor]:
        """Forward, backward, update, average → (numbers for the log, tokens)."""
        t = self.recipe.train
        mix, *more = (z.to(self.device, non_blocking=True) for z in batch)
        self.model.train()
        loss, made, real, tokens, parts = objective(self.model, self.primitives, mix, *more)
        if t.adversarial and self.step >= t.adversarial_from_step:
            extra, judged = self._adversarial(made, real, to_level(real))
            loss, parts = loss + extra, parts | judged
        norm = clip_and_step(self.trained, self.optimiser, loss, t.clip)
        self.step += 1
        self._weigh(t.weigh_step)
        self.hours += mix.numel() / 16000 / 3600
        self.average(t.ema)
        return {"loss": loss.item(), "grad": norm, **parts}, tokens

    def train(self, minutes: float, steps: int | None) -> None:
        t, data = self.recipe.train, self.recipe.data
        teacher = Teacher.load(Path(data.teacher)) if data.teacher else None
        if teacher and teacher.frames.shape[1] != self.recipe.model.teacher_dim:
            raise ValueError(f"the teacher's features have {teacher.frames.shape[1]} numbers, teacher_dim says {self.recipe.model.teacher_dim}")
        if teacher and not self.resumed:
            self.primitives.begin(teacher.frames)
        mixer = CodecMixer(Path(data.cache), data.seed, data.batch, data.seconds, teacher, data.taught_share)
        taught_h = sum(n for _, n in teacher.clips.values()) / 50 / 3600 if teacher else 0.0
        print("data, hours:", json.dumps(mixer.describe() | {"taught": round(taught_h, 2)}), "parameters:", sum(p.numel() for p in self.model.parameters()))
        loader = DataLoader(Batches(mixer, self.step), batch_size=None, num_workers=data.workers, pin_memory=self.device == "cuda")
        objective = Objective(t, self.recipe.model.layers, self.device, self.step)
        usage = Usage(self.recipe.model.streams, self.recipe.model.codes)
        for progress, batch in self.boxed(loader, minutes, steps, t.checkpoint_minutes):
            lr = t.lr * rate(progress, self.step, t.warmup_steps, t.decay_share)
            set_rate(self.optimiser, lr)
            set_rate(self.judge_optimiser, lr / 3)
            numbers, tokens = self.one_step(objective, batch)
            usage.add(tokens)
            self.log(numbers | {"lr": lr}, lambda row: f"loss {row['loss']:.3f} mel {row['mel']:.3f} cosine {row['cosine']:.2f}", usage.take)


@plainly
def main() -> int:
    files = {"--init": "start from the averaged weights of this checkpoint, or from a weights folder"}
    return command("train_codec", __doc__, load, lambda a, recipe: Run(a.run, recipe, a.device, a.init).train(a.minutes, a.steps), files)


if __name__ == "__main__":
    raise SystemExit(main())
