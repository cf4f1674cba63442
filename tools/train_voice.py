"""Train the voice encoder alone: two recordings of one talker meet, those of others part.

    python -m tools.train_voice runs/voice --recipe tools/recipes/tasks-cpu.toml --minutes 15
    python -m tools.train_voice runs/more --recipe tools/recipes/voice-cpu.toml --init engines/weights/tasks --minutes 40
    python -m tools.train runs/tasks --recipe tools/recipes/tasks-cpu.toml --init runs/restore/last.pt --voice runs/voice/last.pt --minutes 120

Contrastive (InfoNCE, both ways; van den Oord et al. 2018) over `people` talkers a step, each recorded twice: other words, other microphone, room and noise.
With [train] teacher > 0 the encoder also learns to tell what Resemblyzer (GE2E, Wan et al. 2018; heard thousands of talkers, extra [eval]) hears in the
clean recording: with few talkers to learn from, that carries further than telling them apart. tools.train then keeps the encoder as it is.
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
from voicewire.engines.export import load_weights
from voicewire.engines.net.spectrum import stft
from voicewire.engines.net.voice import VoiceEncoder

from .ending import plainly
from .recipe import Recipe, load
from .run import TimedRun, adamw, bf16, clip_and_step, command, rate, set_rate
from .talkers import Talkers

TEACHER_FRAMES, TEACHER_DIM = 160, 256  # 10 ms each


class Likenesses(Dataset[tuple[np.ndarray, np.ndarray]]):
    """Index i → recordings [2, people, samples] and the same before microphone, room and noise."""

    def __init__(self, talkers: Talkers, people: int, first: int) -> None:
        self.talkers, self.people, self.first = talkers, people, first

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        return self.talkers.likeness_batch(self.first + i, self.people)


class Teacher:
    """[n, samples at 16 kHz] → what Resemblyzer hears in the middle 1.6 s, [n, 256] of length one."""

    def __init__(self) -> None:
        try:
            from resemblyzer import VoiceEncoder as Resemblyzer
            from resemblyzer import wav_to_mel_spectrogram
        except ImportError:
            raise ValueError("[train] teacher needs Resemblyzer: pip install 'voicewire[eval]', or set teacher = 0") from None
        self._mel, self._net = wav_to_mel_spectrogram, Resemblyzer("cpu", verbose=False)

    @torch.no_grad()
    def __call__(self, x: np.ndarray) -> Tensor:
        loud = x * (10**-1.5 / np.sqrt((x**2).mean(1, keepdims=True) + 1e-9))
        mels = [self._mel(row) for row in loud]
        start = (len(mels[0]) - TEACHER_FRAMES) // 2
        heard: Tensor = self._net(torch.from_numpy(np.stack([m[start : start + TEACHER_FRAMES] for m in mels])))
        return heard


class Speaker(nn.Module):
    """The encoder, the sharpness of its similarities, and what makes its voices the teacher's."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.encoder = VoiceEncoder(recipe.model)
        self.sharpness = nn.Parameter(torch.tensor(2.3))
        self.told = nn.Linear(recipe.model.voice_dim, TEACHER_DIM)

    def forward(self, x: Tensor, heard: Tensor | None) -> tuple[Tensor, Tensor, float]:
        """x: [2, people, samples], heard: [2 people, 256] by the teacher → (contrastive loss, share of what the teacher hears that is not told,
        share of recordings whose nearest other is of the same talker)"""
        n = x.shape[1]
        voices = self.encoder(stft(x.flatten(0, 1), 160)[:, :, :CORE_BINS]) / self.encoder.dim**0.5
        near = voices[:n] @ voices[n:].T
        own = torch.arange(n, device=x.device)
        scores = near * self.sharpness.exp().clamp_max(50.0)
        loss = 0.5 * (cross_entropy(scores, own) + cross_entropy(scores.T, own))
        untold = torch.zeros(())
        if heard is not None:
            untold = (self.told(voices) - heard).square().sum() / (heard - heard.mean(0)).square().sum()
        return loss, untold, (near.argmax(1) == own).float().mean().item()


class Run(TimedRun):
    def __init__(self, folder: Path, recipe: Recipe, device: str, init: Path | None = None) -> None:
        torch.manual_seed(recipe.train.seed)
        if not recipe.model.voice_dim:
            raise ValueError("the recipe's [model] has voice_dim = 0: a model without voices")
        self.recipe, self.device = recipe, device
        self.model = Speaker(recipe).to(device)
        self.ema = copy.deepcopy(self.model).eval()
        self.optimiser = adamw(self.model, recipe.train.lr, (0.9, 0.98), recipe.train.weight_decay)
        super().__init__(folder, device, {"config": recipe.model.to_dict()}, {"model": self.model, "ema": self.ema, "optimiser": self.optimiser})
        if init and not self.resumed:
            voice = load_weights(init).core.voice
            if voice is None:
                raise ValueError(f"{init}: weights that know no voices")
            try:
                for model in (self.model, self.ema):
                    model.encoder.load_state_dict(voice.state_dict())
            except RuntimeError:
                raise ValueError(f"{init}: its encoder of voices has other sizes than the recipe's [model]") from None
            print(f"warm start from {init}")

    def train(self, minutes: float, steps: int | None) -> None:
        t, data = self.recipe.train, self.recipe.data
        talkers = Talkers(Path(data.cache), data.seed, data.batch, data.seconds)
        print("people:", sum(len(p) for p in talkers.people), "parameters:", sum(p.numel() for p in self.model.parameters()))
        loader = DataLoader(Likenesses(talkers, data.people, self.step), batch_size=None, num_workers=data.workers)
        teacher = Teacher() if t.teacher else None
        for progress, (x, clean) in self.boxed(loader, minutes, steps, t.checkpoint_minutes):
            lr = t.lr * rate(progress, self.step, t.warmup_steps, t.decay_share)
            set_rate(self.optimiser, lr)
            self.model.train()
            heard = teacher(clean.flatten(0, 1).numpy()).to(self.device) if teacher else None
            with bf16(self.device):
                contrast, untold, right = self.model(x.to(self.device), heard)
            loss = contrast + t.teacher * untold
            norm = clip_and_step(self.model, self.optimiser, loss, t.clip)
            self.step += 1
            self.hours += x.numel() / talkers.rate / 3600
            self.average(t.ema)
            row = {"loss": loss.item(), "untold": untold.item(), "grad": norm, "right": right, "lr": lr}
            self.log(row, lambda row: f"loss {row['loss']:.3f} right {row['right']:.2f} untold {row['untold']:.2f}")


@plainly
def main() -> int:
    files = {"--init": "start from the voice encoder of this weights folder"}
    return command("train_voice", __doc__, load, lambda a, recipe: Run(a.run, recipe, a.device, a.init).train(a.minutes, a.steps), files)


if __name__ == "__main__":
    raise SystemExit(main())
