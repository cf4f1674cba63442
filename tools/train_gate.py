"""Train the gate that closes while what the model lets through is not the talker who was asked for; all else stands still.

    python -m tools.train_gate runs/gate --cache cache/16k --init engines/weights/tasks --minutes 24
    python -m voicewire.engines.export runs/gate/last.pt --out engines/weights/tasks

Two thirds of the time go into hearing: scenes of `tools.talkers`, most of them with people whose voices are alike, through the model; what the gate reads
(`engines/net/recognise.py`), and per frame what is let through, what was wanted, and what of it is both. With these the loss of any gate is known without
the model: the logarithmic error ratio where the talker speaks, the logarithm of what is left where nothing should be. The rest of the time goes into the gate.
Leaves RUN/last.pt, the whole model with its gate, for `engines.export`; the gate of weights that have one begins anew.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from voicewire.engines.checkpoint import read_checkpoint
from voicewire.engines.config import CORE_BINS, HOPS_PER_FRAME, ModelConfig
from voicewire.engines.export import load_weights
from voicewire.engines.net.model import Model
from voicewire.engines.net.recognise import Recogniser
from voicewire.engines.net.spectrum import stft

from .ending import plainly
from .run import adamw, bf16, set_rate
from .talkers import Talkers

SECONDS, BATCH = 8.0, 4
HARD, OF = 0.7, 32  # this share of the others is the most alike of so many: new talkers are told apart less well than those the encoder was trained with
LEFT, QUIET = 0.5, 3e-4  # weight of what is left where the talker is not; 35 dB less is enough
HELD_OUT = 0.1
RATE, STEPS_BATCH = 1e-3, 16


@dataclass(frozen=True)
class Heard:
    """Of n scenes of T frames. compared, loud, h: what the gate reads; made, both, wanted, mixed: [n, T] power of what is let through, its product with what
    was wanted, powers of what was wanted and of the mixture."""

    compared: Tensor
    loud: Tensor
    h: Tensor
    made: Tensor
    both: Tensor
    wanted: Tensor
    mixed: Tensor

    def pick(self, at: Tensor) -> Heard:
        return Heard(**{k: v[at] for k, v in vars(self).items()})

    @classmethod
    def joined(cls, parts: list[Heard]) -> Heard:
        return cls(**{k: torch.cat([vars(p)[k] for p in parts]) for k in vars(parts[0])})


class Scenes(Dataset[tuple[np.ndarray, ...]]):
    def __init__(self, talkers: Talkers) -> None:
        self.talkers = talkers

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, i: int) -> tuple[np.ndarray, ...]:
        return self.talkers.extraction_batch(i)


@torch.no_grad()
def hear(model: Model, who: Recogniser, mix: Tensor, target: Tensor, enrolment: Tensor) -> Heard:
    """mix, target: [B, samples], enrolment: [B, enrol_samples]; the model without a gate."""
    assert model.voice is not None
    with bf16("cpu"):
        voice = model.voice(stft(enrolment, 160)[:, :, :CORE_BINS])
        x = stft(mix, 160)[:, :, :CORE_BINS]
        y, h, level = model.forward_features(x, "extract", voice)
    compared, loud = who.evidence(y, level, voice.float(), model.voice)
    t = stft(target, 160)[:, :, :CORE_BINS]

    def frames(z: Tensor) -> Tensor:
        return z.sum((2, 3)).unflatten(1, (-1, HOPS_PER_FRAME)).sum(2)

    return Heard(compared.half(), loud.half(), h.half(), frames(y.square()), frames(y * t), frames(t.square()), frames(x.square()))


def gates(who: Recogniser, heard: Heard) -> Tensor:
    """[n, T]"""
    return who.gate(heard.compared.float(), heard.loud.float(), heard.h.float())[..., 0]


def loss(g: Tensor, heard: Heard) -> tuple[Tensor, float, float]:
    """g: [n, T] gates → (loss, mean error ratio dB where the talker speaks, mean level dB of what is left where not)"""
    signal, mixed = heard.wanted.sum(1), heard.mixed.sum(1)
    speaks = signal > 1e-6 * mixed
    error = (g.square() * heard.made - 2 * g * heard.both + heard.wanted).sum(1)
    ratio = ((error.clamp_min(0) + 1e-3 * signal + 1e-12) / (signal + 1e-12)).log10()
    left = (g.square() * heard.made).sum(1) / mixed
    count, silent = speaks.sum().clamp_min(1), (~speaks).sum().clamp_min(1)
    total = (ratio * speaks).sum() / len(g) + LEFT * ((left + QUIET).log10() * ~speaks).sum() / len(g)
    return total, 10 * float((ratio * speaks).sum() / count), 10 * float(((left + 1e-12).log10() * ~speaks).sum() / silent)


def voices_of(model: Model) -> Callable[[np.ndarray], np.ndarray]:
    """[n, samples] → [n, dim] of length one, by the model's encoder: what `Talkers.meet` wants."""

    def voice(x: np.ndarray) -> np.ndarray:
        assert model.voice is not None
        with torch.no_grad():
            spec = stft(torch.from_numpy(x).to(next(model.parameters()).device), 160)[:, :, :CORE_BINS]
            found: np.ndarray = normalize(model.voice.eval()(spec), dim=-1).cpu().numpy()
        return found

    return voice


def begin(init: Path) -> tuple[Model, dict[str, Any]]:
    """The model of released weights, or of a checkpoint, without a gate; and what describes it."""
    if init.is_dir():
        meta = json.loads((init / "model.json").read_text())
        weights, doc = load_weights(init).core.state_dict(), {"config": meta["config"], "step": meta["steps"], "hours": meta["audio_hours"]}
    else:
        saved = read_checkpoint(init, "ema", "config", "step", "hours")
        weights, doc = saved["ema"], {k: saved[k] for k in ("config", "step", "hours")}
    cfg = replace(ModelConfig.from_dict(doc["config"]), recognise=0)
    if not cfg.voice_dim:
        raise ValueError(f"the model in {init} knows no voices, so there is nobody to recognise")
    model = Model(cfg)
    model.load_state_dict({k: v for k, v in weights.items() if not k.startswith("who.")})
    return model.eval().requires_grad_(False), doc


def train(who: Recogniser, fit: Heard, test: Heard, minutes: float) -> None:
    """Leaves the gate as it was when it was best on `test`."""
    optimiser = adamw(who, RATE, (0.9, 0.999), 1e-2)
    best, kept, start = float("inf"), copy.deepcopy(who.state_dict()), time.monotonic()
    with tqdm(total=round(60 * minutes), unit="s", disable=None) as bar:
        while (spent := time.monotonic() - start) < 60 * minutes:
            set_rate(optimiser, RATE * max(0.02, 1 - spent / 60 / minutes))
            for at in torch.randperm(len(fit.made)).split(STEPS_BATCH):
                few = fit.pick(at)
                total, _, _ = loss(gates(who, few), few)
                optimiser.zero_grad()
                total.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            with torch.no_grad():
                now, error_db, left_db = loss(gates(who, test), test)
            if now < best:
                best, kept = float(now), copy.deepcopy(who.state_dict())
            bar.set_postfix_str(f"held out: loss {now:.4f} error {error_db:.2f} dB absent {left_db:.1f} dB")
            bar.update(min(round(time.monotonic() - start), bar.total) - bar.n)
    who.load_state_dict(kept)


def run(a: argparse.Namespace) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(a.threads)
    model, doc = begin(a.init)
    assert model.voice is not None
    who = Recogniser(model.voice, model.cfg.trunk_dim)
    talkers = Talkers(a.cache, a.seed, BATCH, SECONDS)
    talkers.meet(voices_of(model), HARD, OF)
    parts, start = [], time.monotonic()
    with tqdm(total=round(40 * a.minutes), unit="s", disable=None) as bar:
        for arrays in DataLoader(Scenes(talkers), batch_size=None, num_workers=1):
            parts.append(hear(model, who, *arrays))
            bar.set_postfix_str(f"{len(parts) * BATCH} scenes")
            bar.update(min(round(time.monotonic() - start), bar.total) - bar.n)
            if time.monotonic() - start > 40 * a.minutes:
                break
    heard = Heard.joined(parts)
    n = len(heard.made)
    held = max(1, round(HELD_OUT * n))
    fit, test = heard.pick(torch.arange(held, n)), heard.pick(torch.arange(held))
    _, error_db, left_db = loss(torch.ones_like(test.made), test)
    print(f"{n} scenes; without a gate, held out: error {error_db:.2f} dB, absent {left_db:.1f} dB")
    train(who, fit, test, a.minutes / 3)
    cfg = replace(model.cfg, recognise=1)
    whole = Model(cfg)
    whole.load_state_dict(model.state_dict() | {f"who.{k}": v for k, v in who.state_dict().items()})
    a.run.mkdir(parents=True, exist_ok=True)
    torch.save(doc | {"config": cfg.to_dict(), "ema": whole.state_dict()}, a.run / "last.pt")
    with torch.no_grad():
        _, error_db, left_db = loss(gates(who, test), test)
    print(f"with it: error {error_db:.2f} dB, absent {left_db:.1f} dB; {a.run / 'last.pt'}")


@plainly
def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=Path, help="folder for the checkpoint")
    p.add_argument("--cache", type=Path, required=True, help="of tools.prepare")
    p.add_argument("--init", type=Path, required=True, help="weights folder, or a checkpoint of tools.train")
    p.add_argument("--minutes", type=float, default=24.0)
    p.add_argument("--seed", type=int, default=60)
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args()
    run(a)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
