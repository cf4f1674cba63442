"""Train the token heads on what tools.hear has cached, in time boxes that can be stopped and resumed.

    python -m tools.hear cache/16k-wide --out runs/heard --minutes 10
    python -m tools.train_heads runs/heads --recipe tools/recipes/heads/cpu.toml --minutes 15
    python -m tools.train_heads runs/heads-feedback --recipe tools/recipes/heads/feedback.toml --init runs/heads/last.pt --steps 500    # on from it
    python -m voicewire.engines.heads_export runs/heads/last.pt --out FOLDER

Cross-entropy of every stream, teacher forcing inside the frame. Of the clips every fiftieth is kept for validation. Leaves RUN/last.pt, RUN/step-N.pt and
RUN/log.jsonl like tools.train.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from voicewire.engines.checkpoint import read_checkpoint
from voicewire.engines.codec_engine import CODEC_WEIGHTS
from voicewire.engines.codec_export import load_codec
from voicewire.engines.heads_config import HeadsConfig
from voicewire.engines.net.heads import TokenHeads

from .ending import plainly
from .hear import Heard, named
from .recipe import Data, Train, sections
from .run import TimedRun, adamw, bf16, clip_and_step, command, rate, set_rate

VALIDATION = 50  # every so many-th clip is not trained on
VALIDATION_CLIPS = 8
STATISTICS_CLIPS = 200


@dataclass(frozen=True)
class HeadsData(Data):
    heard: str = "runs/heard"  # written by tools.hear
    codec: str = str(CODEC_WEIGHTS)  # whose tokens they are
    batch: int = 16
    seconds: float = 3.0


@dataclass(frozen=True)
class HeadsTrain(Train):
    nearness: float = 0.0  # weight of the distance from the mean of what is predicted to the right code: what `central` decides by
    feedback_dropout: float = 0.5  # share of the frames whose tokens feedback does not get to read
    foresight: float = 0.3  # weight of the tokens ahead


@dataclass(frozen=True)
class HeadsRecipe:
    model: HeadsConfig = field(default_factory=HeadsConfig)
    data: HeadsData = field(default_factory=HeadsData)
    train: HeadsTrain = field(default_factory=HeadsTrain)


def load(path: Path) -> HeadsRecipe:
    """Read a recipe; ValueError with one line when it does not fit the schema."""
    return HeadsRecipe(*sections(path, HeadsConfig, HeadsData, HeadsTrain))


def read_given(parts: dict[str, np.ndarray], heard: bool) -> np.ndarray:
    """What the heads read of a clip's parts: [frames, trunk_dim + heard_dim] float32"""
    given = [parts["h"], parts["heard"]] if heard else [parts["h"]]
    return np.concatenate(given, -1).astype(np.float32)


class Batches(Dataset[tuple[np.ndarray, np.ndarray]]):
    """Index i → (given [batch, frames, …], tokens [batch, frames, streams]) of batch `first + i`, a pure function of it."""

    def __init__(self, heard: Heard, data: HeadsData, listens: bool, first: int) -> None:
        self.heard, self.data, self.listens, self.first = heard, data, listens, first
        self.frames = min(round(data.seconds * 50), heard.clip_frames)
        self.train = [i for i in range(heard.clips) if i % VALIDATION]
        if not self.train:
            raise ValueError(f"{data.heard} holds {heard.clips} clips, too few to train on; go on with python -m tools.hear")

    def __len__(self) -> int:
        return 1 << 30

    def of(self, clips: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        rows = [self.heard.clip(i, at, self.frames) for i, at in clips]
        return np.stack([read_given(r, self.listens) for r in rows]), np.stack([r["tokens"] for r in rows]).astype(np.int64)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([self.data.seed, self.first + i])
        latest = self.heard.clip_frames - self.frames
        return self.of([(self.train[rng.integers(len(self.train))], int(rng.integers(latest + 1))) for _ in range(self.data.batch)])

    def validation(self) -> tuple[np.ndarray, np.ndarray]:
        return self.of([(i, 0) for i in range(0, self.heard.clips, VALIDATION)][:VALIDATION_CLIPS])


def losses(heads: TokenHeads, given: Tensor, tokens: Tensor, t: HeadsTrain, rng: torch.Generator | None) -> tuple[Tensor, dict[str, float]]:
    """→ loss, cross-entropy (`ce_*`, nats) and accuracy (`hit_*`) of every stream and of the tokens ahead. rng: for the dropout of feedback; none without."""
    read = tokens
    if heads.cfg.feedback and rng is not None:
        dropped = torch.rand(tokens.shape[:2], generator=rng) < t.feedback_dropout
        read = torch.where(dropped[..., None], -1, tokens)
    with bf16("cpu" if not given.is_cuda else "cuda"):
        logits, u = heads.teach(given, tokens, read)
        told = heads.foresee(u).float() if heads.cfg.foresight_frames else None
    logits, wanted = logits.float(), tokens[:, : logits.shape[1]]
    n, parts = heads.cfg.streams, {}
    each = cross_entropy(logits.flatten(0, 2), wanted.flatten(), reduction="none").view(-1, n).mean(0)
    hit = (logits.argmax(-1) == wanted).float().flatten(0, 1).mean(0)
    names = ["s", *(f"a{k}" for k in range(1, n))]
    parts |= {f"ce_{name}": v for name, v in zip(names, each.tolist(), strict=True)} | {f"hit_{name}": v for name, v in zip(names, hit.tolist(), strict=True)}
    # squared distance of the mean of the predicted codes to the right one, as a share of the codes' variance
    vectors = heads.depth.codes.vectors
    middle = torch.einsum("btsc,scd->btsd", logits.softmax(-1), vectors)
    right = torch.stack([v[k] for v, k in zip(vectors, wanted.unbind(-1), strict=True)], -2)
    off = (middle - right).square().sum(-1).mean((0, 1)) / vectors.var(1).sum(-1)
    parts |= {f"off_{name}": v for name, v in zip(names, off.tolist(), strict=True)}
    loss = each.sum() + t.nearness * off.sum()
    if told is not None:
        ahead = heads.cfg.foresight_frames
        told = told[:, :-ahead]
        wanted = tokens[:, :, 0].unfold(1, ahead + 1, 1)[..., 1:]
        foreseen = cross_entropy(told.flatten(0, 2), wanted.flatten())
        loss = loss + t.foresight * foreseen
        seen = (told.argmax(-1) == wanted).float().flatten(0, 1).mean(0)
        parts |= {"ce_ahead": foreseen.item()} | {f"hit_ahead{i}": v for i, v in enumerate(seen.tolist(), 1)}
    return loss, parts


class Run(TimedRun):
    """One training run: heads, averaged heads, optimiser, counters, and their file."""

    def __init__(self, folder: Path, recipe: HeadsRecipe, device: str, init: Path | None = None) -> None:
        t = recipe.train
        self.heard = Heard(Path(recipe.data.heard))
        codec = load_codec(Path(recipe.data.codec))
        if (made_by := self.heard.doc["codec_weights"]) != named(Path(recipe.data.codec) / "codec.json"):
            raise ValueError(f"{recipe.data.heard} was heard with codec weights {made_by}, {recipe.data.codec} holds others; run tools.hear again")
        c, width = codec.cfg, self.heard.parts["heard"].shape[1]
        if recipe.model.heard_dim not in (0, width):
            raise ValueError(f"heard_dim must be 0 or {width}, the numbers that the codec's quantisers search for, not {recipe.model.heard_dim}")
        sizes = {"trunk_dim": self.heard.doc["trunk_dim"], "streams": c.streams, "codes": c.codes, "code_dim": c.code_dim + 1}
        self.recipe, self.device, self.config = recipe, device, replace(recipe.model, **sizes).validate()
        torch.manual_seed(t.seed)
        self.model = TokenHeads(self.config)
        self.model.take_codes(codec)
        listens = recipe.model.heard_dim > 0
        some = range(0, self.heard.clips, max(1, self.heard.clips // STATISTICS_CLIPS))
        self.model.take_statistics(torch.from_numpy(np.concatenate([read_given(self.heard.clip(i, 0, self.heard.clip_frames), listens) for i in some])))
        self.model.to(device)
        self.ema = copy.deepcopy(self.model).eval()
        self.optimiser = adamw(self.model, t.lr, (0.9, 0.98), t.weight_decay)
        doc = {"config": self.config.to_dict(), **{k: self.heard.doc[k] for k in ("core_weights", "codec_weights")}}
        super().__init__(folder, device, doc, {"model": self.model, "ema": self.ema, "optimiser": self.optimiser})
        if init and not self.resumed:
            weights = read_checkpoint(init, "ema", device=device)["ema"]
            own = ("back", "ahead.", "depth.codes.", "mean", "spread")  # what only a switch brings starts new; codes and statistics are those of here
            new = {k: v for k, v in self.model.state_dict().items() if k.startswith(own)}
            try:
                self.model.load_state_dict(new | {k: v for k, v in weights.items() if not k.startswith(own)})
            except RuntimeError:
                raise ValueError(f"{init} holds heads of other sizes; train these from the start, without --init") from None
            self.ema.load_state_dict(self.model.state_dict())
            print(f"warm start from {init}")

    def train(self, minutes: float, steps: int | None) -> None:
        t, data = self.recipe.train, self.recipe.data
        batches = Batches(self.heard, data, self.recipe.model.heard_dim > 0, self.step)
        hours = self.heard.clips * self.heard.clip_frames / 50 / 3600
        print(f"heard: {hours:.2f} h, parameters: {sum(p.numel() for p in self.model.parameters())}")
        loader = DataLoader(batches, batch_size=None, num_workers=data.workers, pin_memory=self.device == "cuda")
        rng = torch.Generator().manual_seed(t.seed + self.step)
        kept = [torch.from_numpy(z).to(self.device) for z in batches.validation()]

        @torch.no_grad()
        def validate() -> dict[str, float]:
            return {f"valid_{k}": v for k, v in losses(self.ema, kept[0], kept[1], t, None)[1].items()}

        for progress, (given, tokens) in self.boxed(loader, minutes, steps, t.checkpoint_minutes):
            lr = t.lr * rate(progress, self.step, t.warmup_steps, t.decay_share)
            set_rate(self.optimiser, lr)
            given, tokens = given.to(self.device, non_blocking=True), tokens.to(self.device, non_blocking=True)
            self.model.train()
            loss, parts = losses(self.model, given, tokens, t, rng)
            norm = clip_and_step(self.model, self.optimiser, loss, t.clip)
            self.step += 1
            self.hours += tokens.shape[0] * tokens.shape[1] / 50 / 3600
            self.average(t.ema)
            self.log({"loss": loss.item(), "grad": norm, "lr": lr, **parts}, headline, validate)


def headline(row: dict[str, float]) -> str:
    return f"loss {row['loss']:.3f} hits s {row['valid_hit_s']:.3f} a1 {row['valid_hit_a1']:.3f}"


@plainly
def main() -> int:
    files = {"--init": "start from the averaged weights of this checkpoint"}
    return command("train_heads", __doc__, load, lambda a, recipe: Run(a.run, recipe, a.device, a.init).train(a.minutes, a.steps), files)


if __name__ == "__main__":
    raise SystemExit(main())
