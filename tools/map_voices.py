"""Put a newly trained encoder of voices into a model that was trained with another: its voices are brought to where the other's are.

    python -m tools.train_voice runs/voice --recipe tools/recipes/voice-cpu.toml --init engines/weights/tasks --minutes 45
    python -m tools.map_voices runs/voice/last.pt --init engines/weights/tasks --cache cache/16k --out runs/mapped     # 2 minutes
    python -m tools.train_gate runs/gate --cache cache/16k --init runs/mapped/last.pt

Everything that reads voices (mask, places, queries, the converter) stays as it is; only the encoder's last layer is fitted, by least squares (ridge), to say of
two recordings of a talker what the old encoder says of both in the mean. That mean is more the talker's and less the recording's, so the new voices keep what
makes them easier to tell apart.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from voicewire.engines.checkpoint import read_checkpoint
from voicewire.engines.config import CORE_BINS
from voicewire.engines.export import load_weights
from voicewire.engines.net.spectrum import stft
from voicewire.engines.net.voice import VoiceEncoder

from .ending import plainly
from .talkers import Talkers

RIDGE = 1e-2  # of the statistics' mean square
HELD_OUT = 10  # one recording of so many tells how good the fit is


def _statistics(encoder: VoiceEncoder, x: Tensor) -> Tensor:
    """[n, samples] → [n, 2 channels]: what the last layer reads."""
    kept: list[Tensor] = []
    hook = encoder.norm.register_forward_hook(lambda module, given, made: kept.append(made))
    encoder(stft(x, 160)[:, :, :CORE_BINS])
    hook.remove()
    return kept[0]


@torch.no_grad()
def mapped(old: VoiceEncoder, new: VoiceEncoder, talkers: Talkers, batches: int, people: int) -> tuple[VoiceEncoder, float]:
    """→ the new encoder with a fitted last layer, and the cosine of its voices to the old encoder's on recordings that were held out."""
    known, wanted = [], []
    for i in tqdm(range(batches), unit="batch", disable=None):
        recorded, clean = (torch.from_numpy(x) for x in talkers.likeness_batch(i, people))
        voices = old(stft(clean.flatten(0, 1), 160)[:, :, :CORE_BINS]).unflatten(0, (2, -1))
        wanted += [normalize(voices.sum(0), dim=-1)] * 4
        known += [_statistics(new, recorded.flatten(0, 1)), _statistics(new, clean.flatten(0, 1))]
    x, v = torch.cat(known).double(), torch.cat(wanted).double()
    x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    test = torch.arange(len(x)) >= len(x) - len(x) // HELD_OUT
    a = x[~test]
    weights = torch.linalg.solve(a.T @ a + RIDGE * len(a) * torch.eye(a.shape[1], dtype=a.dtype), a.T @ v[~test])
    cosine = float((normalize(x[test] @ weights, dim=-1) * v[test]).sum(-1).mean())
    made = copy.deepcopy(new)
    made.out.weight.copy_(weights[:-1].T)
    made.out.bias.copy_(weights[-1])
    return made, cosine


def run(voice: Path, init: Path, cache: Path, out: Path, batches: int, people: int) -> float:
    """ValueError where encoder and model do not go together."""
    meta = json.loads((init / "model.json").read_text())
    model = load_weights(init).core
    if model.voice is None:
        raise ValueError(f"the model in {init} knows no voices")
    new = copy.deepcopy(model.voice)
    saved = {k.removeprefix("encoder."): v for k, v in read_checkpoint(voice, "ema")["ema"].items() if k.startswith("encoder.")}
    if {k: v.shape for k, v in saved.items()} != {k: v.shape for k, v in new.state_dict().items()}:
        raise ValueError(f"{voice} is no encoder of the sizes of that in {init}")
    new.load_state_dict(saved)
    made, cosine = mapped(model.voice.eval(), new.eval(), Talkers(cache, 123, 3, 3.0), batches, people)
    weights = model.state_dict() | {f"voice.{k}": v for k, v in made.state_dict().items()}
    out.mkdir(parents=True, exist_ok=True)
    torch.save({"config": meta["config"], "step": meta["steps"], "minutes": 0.0, "hours": meta["audio_hours"], "ema": weights}, out / "last.pt")
    return cosine


@plainly
def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("voice", type=Path, help="checkpoint of tools.train_voice")
    p.add_argument("--init", type=Path, required=True, help="weights folder of the model")
    p.add_argument("--cache", type=Path, required=True, help="of tools.prepare")
    p.add_argument("--out", type=Path, required=True, help="folder for the checkpoint of the model with the new encoder")
    p.add_argument("--batches", type=int, default=130, help="of talkers, each recorded twice")
    p.add_argument("--people", type=int, default=24, help="talkers a batch")
    a = p.parse_args()
    torch.set_num_threads(1)
    cosine = run(a.voice, a.init, a.cache, a.out, a.batches, a.people)
    print(f"voices are {np.round(cosine, 3)} like the old ones (cosine, recordings held out); {a.out / 'last.pt'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
