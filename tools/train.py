"""Train the enhancer, in time boxes that can be stopped and resumed.

    python -m tools.train runs/restore --recipe tools/recipes/restore.toml --minutes 60          # start, or resume where it was
    python -m tools.train runs/more --recipe … --init engines/weights --minutes 30      # warm restart, from released weights or a .pt
    python -m tools.train runs/tasks --recipe … --init … --voice runs/voice/last.pt     # with [data] extract > 0: two tasks, one model
    python -m tools.train runs/query --recipe … --init runs/tasks/last.pt               # with [data] query > 0 too: three

Runs on one or two CPU cores or on CUDA from the same recipe, in bfloat16 where the machine has it. Leaves RUN/last.pt (to resume), RUN/step-N.pt (weights only)
and TensorBoard events; the learning rate is flat and falls in the last `decay_share` of the box.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from voicewire.engines.checkpoint import fill, read_checkpoint
from voicewire.engines.config import CORE_BINS
from voicewire.engines.export import load_weights
from voicewire.engines.net.model import Model
from voicewire.engines.net.spectrum import istft, stft
from voicewire.engines.sentence import SENTENCE_DIM

from .ending import plainly
from .losses import LOUD, EnhanceLoss
from .mixer import Mixer
from .queries import Queries
from .recipe import Data, Recipe, load
from .run import TimedRun, adamw, bf16, clip_and_step, command, rate, set_rate
from .said import Transcripts
from .talkers import Talkers

Batch = tuple[np.ndarray, ...]  # mixtures, targets and what the task has to know: enrolments, sentences


class Batches(Dataset[tuple[str, Batch]]):
    """Index i → task and arrays of batch `first + i`. Batches are made in worker processes."""

    def __init__(self, data: Data, first: int, said: bool = False) -> None:
        """said: batches of `restore` come with what the targets say."""
        self.seed, self.first = data.seed, first
        self.transcripts = Transcripts() if said else None
        given = (Path(data.cache), data.seed, data.batch, data.seconds)
        self.draws: dict[str, tuple[float, Callable[[int], Batch]]] = {}  # task: its share, its batch i
        self.mixer = Talkers(*given) if data.extract or data.separate else Mixer(*given)
        if data.extract:
            assert isinstance(self.mixer, Talkers)
            self.draws["extract"] = data.extract, self.mixer.extraction_batch
        if data.separate:
            assert isinstance(self.mixer, Talkers)
            self.draws["separate"] = data.separate, self.mixer.separation_batch
        if data.query:
            self.draws["query"] = data.query, Queries(*given).query_batch

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, i: int) -> tuple[str, Batch]:
        i += self.first
        at = np.random.default_rng([self.seed, i, 3]).random()
        for task, (share, draw) in self.draws.items():
            if at < share:
                return task, draw(i)
            at -= share
        mix, target = self.mixer.batch(i)
        return "restore", (mix, target) if self.transcripts is None else (mix, target, self.transcripts(target))


def enhance(model: Model, x: Tensor, task: str = "restore", known: Tensor | None = None) -> Tensor:
    """[B, samples at 16 kHz] → [B, samples] through STFT, model, inverse; `separate`: [places B, samples], those of the first place first.
    known: what the task has to know: [B, samples] enrolments, [B, 256] sentences."""
    voice = None
    if task == "extract":
        assert model.voice is not None and known is not None
        with torch.no_grad():  # the encoder stays as tools.train_voice left it: learning along, it knew the training talkers better and no others
            voice = model.voice.eval()(stft(known, 160)[:, :, :CORE_BINS])
    elif task == "query":
        assert model.asked is not None and known is not None
        voice = model.asked(known)
    elif task == "separate":
        assert model.places is not None
        voice = model.places(torch.arange(model.cfg.separate, device=x.device).repeat_interleave(len(x)))
    spec = stft(x, 160)
    s = model(spec[:, :, :CORE_BINS], task, voice)
    y = torch.nn.functional.pad(s, (0, 0, 0, spec.shape[2] - CORE_BINS))
    return istft(y, 160, x.shape[1])


def in_order(y: Tensor, targets: Tensor) -> Tensor:
    """y: [2 B, samples] of `enhance`, targets: [B, 2, samples] → the targets [2 B, samples], every mixture's in the order that fits y better."""
    made, floor = y.detach().unflatten(0, (2, -1)), 1e-3 * targets.square().mean((1, 2)) + 1e-12

    def error(i: int, j: int) -> Tensor:
        return ((made[i] - targets[:, j]).square().mean(1) + floor).log()

    straight, crossed = error(0, 0) + error(1, 1), error(0, 1) + error(1, 0)
    swap = (crossed < straight)[:, None, None]
    ordered = torch.where(swap, targets.flip(1), targets)
    return ordered.transpose(0, 1).flatten(0, 1)


def unclaimed(y: Tensor, targets: Tensor) -> Tensor:
    """y, targets: [2 B, samples], those of the first place first → the logarithmic error ratio of both talkers together. Without it each place leaves to the
    other what could be either's, and it is in neither (mixture consistency, Wisdom et al. 2019, but of the speech alone)."""
    made, wanted = (z.unflatten(0, (2, -1)).sum(0) for z in (y, targets))
    signal = wanted.square().mean(1) + 1e-7 * LOUD
    return (((made - wanted).square().mean(1) + 1e-3 * signal) / signal).log10().mean()


def part_places(model: Model, talkers: Talkers) -> None:
    """The places of `separate` begin as the two kinds of voices there are: the means of two clusters of enrolments, men's and women's by and large."""
    assert model.voice is not None and model.places is not None
    with torch.no_grad():
        heard = torch.from_numpy(np.concatenate([talkers.likeness_batch(i, 16)[1][0] for i in range(6)]))
        voices = model.voice.eval()(stft(heard, 160)[:, :, :CORE_BINS])
        axis = torch.pca_lowrank(voices, 1)[2][:, 0]
        side = (voices - voices.mean(0)) @ axis > 0
        model.places.voices.copy_(torch.stack([voices[side].mean(0), voices[~side].mean(0)]))


class Run(TimedRun):
    """One training run: model, averaged model, optimiser, counters, and their file."""

    def __init__(self, folder: Path, recipe: Recipe, device: str, init: Path | None, voice: Path | None) -> None:
        torch.manual_seed(recipe.train.seed)
        self.recipe, self.device = recipe, device
        self.model = Model(recipe.model).to(device)
        self.ema = copy.deepcopy(self.model).eval()
        if self.model.voice is not None:
            self.model.voice.requires_grad_(False)
        self.optimiser = adamw(self.model, recipe.train.lr, (0.9, 0.98), recipe.train.weight_decay)
        super().__init__(folder, device, {"config": recipe.model.to_dict()}, {"model": self.model, "ema": self.ema, "optimiser": self.optimiser})
        self.placeless = False
        self.norms = [m for m in self.model.modules() if isinstance(m, torch.nn.BatchNorm1d)]
        if recipe.model.recognise:
            raise ValueError("the gate is trained on the model as it is in the end: leave recognise out of [model], and run tools.train_gate afterwards")
        if recipe.data.extract and self.model.voice is None:
            raise ValueError("[data] extract needs a model with voices: set voice_dim in [model]")
        if recipe.data.extract + recipe.data.query + recipe.data.separate > 1:
            raise ValueError("[data] extract, query and separate are shares of the steps; together they are more than all")
        if recipe.data.separate and recipe.model.separate != 2:
            raise ValueError("[data] separate needs a model for two talkers: set separate = 2 in [model]")
        if recipe.data.query and self.model.asked is None:
            raise ValueError(f"[data] query needs a model that takes queries: set query_dim = {SENTENCE_DIM} in [model]")
        if init and not self.resumed:
            if init.is_dir():  # released weights
                weights = load_weights(init).core.state_dict()
            else:
                weights = read_checkpoint(init, "ema", device=device)["ema"]
            # what a model without voices, queries or places has not, starts new
            new = ("voice.", "turn.", "asked.", "places.", "trunk.voice.")
            weights = {k: v for k, v in weights.items() if not k.startswith("who.")}  # the gate is about the model as it was
            self.placeless = self.model.places is not None and "places.voices" not in weights
            weights = {k: v for k, v in self.model.state_dict().items() if k.startswith(new)} | weights
            fill(self.model, weights, init)
            print(f"warm start from {init}")
        if voice and not self.resumed:
            if self.model.voice is None:
                raise ValueError("--voice needs a model with voices: set voice_dim in [model]")
            saved = read_checkpoint(voice, "ema", device=device)["ema"]
            fill(self.model.voice, {k.removeprefix("encoder."): v for k, v in saved.items() if k.startswith("encoder.")}, voice)
        if not self.resumed:
            self.ema.load_state_dict(self.model.state_dict())

    def train(self, minutes: float, steps: int | None) -> None:
        t, data = self.recipe.train, self.recipe.data
        loss_of = {
            "restore": EnhanceLoss(t.snr, t.perceptual, words=t.words, said=t.said, opinion=t.opinion).to(self.device),
            # who is not sure whom to keep must not keep both, and nobody where the talker is not there
            "extract": EnhanceLoss(2 * t.snr, t.perceptual, missing=1.0, left=t.snr).to(self.device),
            "query": EnhanceLoss(2 * t.snr, 0.0, missing=1.0, left=t.snr).to(self.device),  # (loudness as PESQ has it is about speech)
            "separate": EnhanceLoss(2 * t.snr, t.perceptual, missing=1.0, left=t.snr).to(self.device),
        }
        batches = Batches(data, self.step, said=t.said > 0)
        if self.placeless and isinstance(batches.mixer, Talkers):
            part_places(self.model, batches.mixer)
            self.ema.load_state_dict(self.model.state_dict())
        print("data, hours:", json.dumps(batches.mixer.describe()), "parameters:", sum(p.numel() for p in self.model.parameters()))
        loader = DataLoader(batches, batch_size=None, num_workers=data.workers, pin_memory=self.device == "cuda")
        for progress, (task, arrays) in self.boxed(loader, minutes, steps, t.checkpoint_minutes):
            lr = t.lr * rate(progress, self.step, t.warmup_steps, t.decay_share)
            set_rate(self.optimiser, lr)
            mix, target, *more = (a.to(self.device, non_blocking=True) for a in arrays)
            self.model.train()
            if batches.draws:  # batches of several tasks have several statistics; the ones that are used afterwards would be none of them
                for norm in self.norms:
                    norm.eval()
            with bf16(self.device):
                y = enhance(self.model, mix, task, *([] if task == "restore" else more))
            y = y.float()
            if task == "separate":
                target, mix = in_order(y, target), mix.repeat(2, 1)
            loss, parts = loss_of[task](y, target, mix, *(more if task == "restore" else []))
            if task == "separate":
                lost = unclaimed(y, target)
                loss, parts = loss + 0.4 * t.snr * lost, parts | {"sum_error_db": 10 * lost.item()}
            grad = clip_and_step(self.model, self.optimiser, loss, t.clip)
            self.step += 1
            self.hours += mix.numel() / batches.mixer.rate / 3600
            self.average(t.ema)
            named = parts if task == "restore" else {f"{task}_{k}": v for k, v in parts.items()}
            self.log({"loss": loss.item(), "grad": grad, **named, "lr": lr}, headline)


def headline(row: dict[str, float]) -> str:
    return " ".join([f"loss {row['loss']:.4f}", *(f"{k.replace('_db', '')} {v:.2f} dB" for k, v in row.items() if k.endswith("error_db"))])


@plainly
def main() -> int:
    files = {
        "--init": "start from the averaged weights of this checkpoint, or from a weights folder",
        "--voice": "take the voice encoder of this checkpoint of tools.train_voice",
    }
    return command("train", __doc__, load, lambda a, recipe: Run(a.run, recipe, a.device, a.init, a.voice).train(a.minutes, a.steps), files)


if __name__ == "__main__":
    raise SystemExit(main())
