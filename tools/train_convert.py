"""Train the voice converter, in time boxes that can be stopped and resumed.

    python -m tools.train_convert runs/convert --recipe tools/recipes/convert/cpu.toml --codec engines/weights/codec --minutes 60
    python -m voicewire.engines.convert_export runs/convert/last.pt --out engines/weights/convert

Begins with the codec's layers and what its quantisers were given. Every example is a talker in disguise (pitch, formants, microphone, room, noise), who has
to be given back undisguised in the voice of another recording; and in some, one talker is given the voice of the next, which should be heard in it
(released voice encoder, Resemblyzer), along with the same content. Leaves RUN/last.pt, RUN/step-N.pt and RUN/log.jsonl like tools.train.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity
from torch.utils.data import DataLoader, Dataset

from voicewire.engines.codec_export import load_codec
from voicewire.engines.config import CORE_BINS, HOPS_PER_FRAME
from voicewire.engines.convert_config import ConvertConfig
from voicewire.engines.engine import TASK_WEIGHTS
from voicewire.engines.net.codec import Codec
from voicewire.engines.net.convert import Converter
from voicewire.engines.net.spectrum import stft

from .codec_losses import CodecLoss, hearing_loss
from .convert_mixer import ConvertMixer
from .ending import plainly
from .likeness import HOP, Likeness, at_one_level
from .recipe import Data, Train, sections
from .run import TimedRun, adamw, bf16, clip_and_step, command, rate, set_rate
from .train_codec import waveform
from .words import Hearing, misheard

Batch = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class ConvertTrain(Train):
    lr: float = 1e-3
    mel: float = 1.0
    perceptual: float = 0.3
    envelopes: float = 0.5
    hearing: float = 0.2  # pitch and voicing
    blur: float = 0.2  # noise on the content, whose numbers vary by one
    converted: int = 2  # examples of a batch that are also spoken in another's voice
    same: float = 0.5  # content in disguise and without, and before conversion and after
    voice: float = 0.5  # what the released voice encoder hears
    likeness: float = 1.5  # what Resemblyzer hears in those converted
    own: float = 0.2  # the talker's own voice
    tracked: float = 0.4  # share of the examples spoken at the pitch that the ear follows; the others at the true one


@dataclass(frozen=True)
class ConvertRecipe:
    model: ConvertConfig = field(default_factory=ConvertConfig)
    data: Data = field(default_factory=Data)
    train: ConvertTrain = field(default_factory=ConvertTrain)


def load(path: Path) -> ConvertRecipe:
    """Read a recipe; ValueError with one line when it does not fit the schema."""
    return ConvertRecipe(*sections(path, ConvertConfig, Data, ConvertTrain))


@torch.no_grad()
def begin_with(codec: Codec, converter: Converter) -> None:
    """Take over what hears and what speaks. The content begins as what the codec's quantisers are given: the converter begins as a codec without them."""
    e, d, to = codec.encoder, codec.decoder, converter
    kept = to.hear.state_dict()
    to.hear.load_state_dict({k: v for k, v in e.state_dict().items() if k in kept})
    n = converter.cfg.content_dim
    for narrow, vq in ((to.said, e.semantic_vq), (to.sounded, e.acoustic_vq)):
        narrow.norm.load_state_dict(vq.norm.state_dict())
        narrow.out.load_state_dict(vq.narrow.state_dict())
        narrow.spread.load_state_dict(vq.spread.state_dict())
    speaker = to.speaker
    speaker.load_state_dict({k: v for k, v in d.state_dict().items() if k.split(".")[0] in ("stack", "norm", "from_dim", "up", "tail")}, strict=False)
    dim = converter.cfg.dim
    inp_s, inp_a = d.inp.weight[:, :dim], d.inp.weight[:, dim:]
    s, a = inp_s @ e.semantic_vq.widen.weight @ e.semantic_vq.metric.t(), inp_a @ e.acoustic_vq.widen.weight @ e.acoustic_vq.metric.t()
    speaker.inp.weight.zero_()
    speaker.inp.weight[:, :n], speaker.inp.weight[:, n : 2 * n] = s, a[:, :n]
    speaker.inp.weight[:, 2 * n : 2 * n + HOPS_PER_FRAME] = a[:, n:] / HOPS_PER_FRAME  # the pitch
    speaker.inp.bias.copy_(d.inp.bias + inp_s @ e.semantic_vq.widen.bias + inp_a @ e.acoustic_vq.widen.bias)


class Batches(Dataset[Batch]):
    """Index i → batch `first + i`."""

    def __init__(self, mixer: ConvertMixer, first: int) -> None:
        self.mixer, self.first = mixer, first

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, i: int) -> Batch:
        return self.mixer.conversion_batch(self.first + i)


class Objective:
    """One batch through the model in training."""

    def __init__(self, t: ConvertTrain, device: str, seed: int) -> None:
        self.t, self.device = t, device
        self.sound = CodecLoss(t.mel, t.perceptual, t.envelopes).to(device)
        self.likeness = Likeness(TASK_WEIGHTS).to(device)
        self.words = Hearing().to(device) if t.words else None
        self.rng = np.random.default_rng(seed)

    def _octaves(self, model: Converter, ear: Tensor, voiced: Tensor, pitch: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
        """→ (pitch to speak at, log2 of Hz [B, hops], its mean where there is a voice [B, 1])"""
        with torch.no_grad():
            followed = model.range(torch.cat([ear, voiced.sigmoid()[..., None]], -1))[..., 0] - moved[:, None]
        true = torch.nn.functional.pad(pitch, (0, followed.shape[1] - pitch.shape[1]))
        there = true > 0
        mean = (true.clamp_min(1).log2() * there).sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp_min(1)
        own = torch.from_numpy(self.rng.random(len(pitch)) < self.t.tracked).to(pitch.device)
        octave = torch.where(there & ~own[:, None], true.clamp_min(1).log2(), followed)
        return octave.clamp(model.lowest, model.highest), mean

    def __call__(self, model: Converter, judge: Converter, batch: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
        """judge: hears whether what was converted says the same. → (loss, parts)"""
        t = self.t
        heard, target, known, own, pitch, moved = batch
        b, k, n = len(target), t.converted, target.shape[1]
        with torch.no_grad():
            voice, now = self.likeness.voice(known), self.likeness.voice(heard)
            likes = self.likeness.judge(at_one_level(own[: k + 1]))
        with bf16(self.device):
            h = model.hear.heard(stft(torch.cat([heard, target[:k]]), HOP)[:, :, :CORE_BINS])
            u = model._understood(h)
        octave, mean = self._octaves(model, u.ear[:b], u.voiced[:b], pitch, moved)
        other = mean.roll(-1, 0)
        octaves = torch.cat([octave, (octave[:k] - mean[:k] + other[:k]).clamp(model.lowest, model.highest)])
        voices = torch.cat([voice, voice[1 : k + 1]])
        content = u.content + t.blur * torch.randn_like(u.content)
        with bf16(self.device):
            spec = model.speak(content, octaves, u.voiced.sigmoid().detach(), voices[:, None], u.level)
        made = waveform(spec.float(), n)
        loss, parts = self.sound(made[:b], target)
        hearing = hearing_loss(h.pitch[:b], pitch * moved.exp2()[:, None])
        there = (pitch > 0).to(loss.dtype)
        voicing = binary_cross_entropy_with_logits(u.voiced[:b, : pitch.shape[1]], there)
        weight = u.voiced[:b].sigmoid().detach().view(b, -1, HOPS_PER_FRAME).mean(-1, keepdim=True)
        foreign = (1 - cosine_similarity((weight * u.own[:b]).sum(1), now)).mean()
        speaks = weight[:k] * 0.8 + 0.2
        same = ((u.content[:k] - u.content[b:]).square() * speaks).mean()
        with bf16(self.device):
            said = judge._understood(judge.hear.heard(stft(target[:k], HOP)[:, :, :CORE_BINS])).content.detach()
            again = judge._understood(judge.hear.heard(stft(made[b:], HOP)[:, :, :CORE_BINS])).content
        changed = ((again - said).square() * speaks).mean()
        made = at_one_level(made)
        misheard_words = loss.new_zeros(())
        if self.words is not None:
            with bf16(self.device):
                with torch.no_grad():
                    clean = self.words(at_one_level(target[:k]))
                misheard_words = misheard(self.words(made[b:]), clean).mean()
        unlike_voice = (1 - cosine_similarity(self.likeness.voice(made), voices)).mean()
        like = self.likeness.judge(made[b:])  # (the longest part of a step: not for those who are given their own voice)
        unlike = (1 - cosine_similarity(like, likes[1:])).mean()
        loss = loss + t.hearing * (hearing + voicing) + t.own * foreign + t.same * (same + changed)
        loss = loss + t.voice * unlike_voice + t.likeness * unlike + t.words * misheard_words
        nearer = cosine_similarity(like, likes[1:]) > cosine_similarity(like, likes[:k])
        parts |= {
            "hearing": hearing.item(), "voicing": voicing.item(), "own": foreign.item(), "same": same.item(), "changed": changed.item(),
            "misheard": misheard_words.item(), "unlike_voice": unlike_voice.item(), "unlike_heard": unlike.item(), "nearer": float(nearer.float().mean()),
        }  # fmt: skip
        return loss, parts


class Run(TimedRun):
    """One training run: model, averaged model, optimiser, counters, and their file."""

    def __init__(self, folder: Path, recipe: ConvertRecipe, codec: Path | None, device: str) -> None:
        t = recipe.train
        torch.manual_seed(t.seed)
        self.recipe, self.device = recipe, device
        self.model = Converter(recipe.model).to(device)
        if codec is not None:
            begin_with(load_codec(codec).to(device), self.model)
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimiser = adamw(self.model, t.lr, (0.9, 0.98), t.weight_decay)
        super().__init__(folder, device, {"config": recipe.model.to_dict()}, {"model": self.model, "ema": self.ema, "optimiser": self.optimiser})
        if codec is None and not self.resumed:
            raise ValueError("a converter begins with the codec's weights: give --codec FOLDER")

    def train(self, minutes: float, steps: int | None) -> None:
        t, data = self.recipe.train, self.recipe.data
        mixer = ConvertMixer(Path(data.cache), data.seed, data.batch, data.seconds)
        if not 0 < t.converted < data.batch:
            raise ValueError(f"[train] converted must be from 1 to {data.batch - 1}, one less than the batch, not {t.converted}")
        print("people:", sum(len(p) for p in mixer.people), "parameters:", sum(p.numel() for p in self.model.parameters()))
        loader = DataLoader(Batches(mixer, self.step), batch_size=None, num_workers=data.workers)
        objective = Objective(t, self.device, self.step)
        for progress, batch in self.boxed(loader, minutes, steps, t.checkpoint_minutes):
            lr = t.lr * rate(progress, self.step, t.warmup_steps, t.decay_share)
            set_rate(self.optimiser, lr)
            self.model.train()
            loss, parts = objective(self.model, self.ema, [z.to(self.device) for z in batch])
            norm = clip_and_step(self.model, self.optimiser, loss, t.clip)
            self.step += 1
            self.hours += batch[0].numel() / mixer.rate / 3600
            self.average(t.ema)
            self.log(
                {"loss": loss.item(), "grad": norm, **parts, "lr": lr}, lambda row: f"loss {row['loss']:.3f} mel {row['mel']:.3f} nearer {row['nearer']:.2f}"
            )


@plainly
def main() -> int:
    return command(
        "train_convert", __doc__, load, lambda a, recipe: Run(a.run, recipe, a.codec, a.device).train(a.minutes, a.steps),
        {"--codec": "weights folder of the codec to begin with"},
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
