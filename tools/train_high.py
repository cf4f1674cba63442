"""Train the bands above 8 kHz on a 48 kHz cache, the core model frozen.

    python -m tools.prepare --out cache/48k --rate 48000 --min-bandwidth-hz 10000 speech=… noise=…
    python -m tools.train_high runs/high --core runs/restore/last.pt --cache cache/48k --minutes 8

Small (some 30 k parameters) and quick; repeat it after every new core, because the head reads the core's features.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from voicewire.engines.checkpoint import read_checkpoint
from voicewire.engines.config import CORE_BINS, ModelConfig
from voicewire.engines.net.fullband import BINS, FullBand
from voicewire.engines.net.model import compress
from voicewire.engines.net.spectrum import stft

from .ending import plainly
from .mixer import Mixer
from .run import adamw, set_rate

LOUD = 0.05  # RMS the target is brought to before the spectra are compared


def loss_of(y: Tensor, target: Tensor, gain: Tensor) -> Tensor:
    """Compressed complex and magnitude error of the bins above 8 kHz. [B, hops, 320, 2] each, gain [B]."""
    y, target = compress(y * gain[:, None, None, None]), compress(target * gain[:, None, None, None])
    size = lambda z: (z.square().sum(-1) + 1e-8).sqrt()  # noqa: E731
    return 0.3 * (y - target).square().sum(-1).mean() + 0.7 * (size(y) - size(target)).square().mean()


def train(run: Path, core: Path, cache: Path, minutes: float, steps: int | None, lr: float = 2e-3) -> None:
    saved = read_checkpoint(core, "config", "ema")
    torch.manual_seed(0)
    model = FullBand(ModelConfig.from_dict(saved["config"]))
    model.core.load_state_dict(saved["ema"])
    run.mkdir(parents=True, exist_ok=True)
    last = run / "last.pt"
    first = 0  # batch: a run that goes on hears others than before
    if last.exists():
        before = read_checkpoint(last, "high", "step")
        model.high.load_state_dict(before["high"])
        first = before["step"]
        print(f"going on from {last}, step {first}")
    model.core.eval().requires_grad_(False)
    mixer = Mixer(cache, 7, 4, 2.0)
    hop = mixer.rate // 100
    print("data, hours:", json.dumps(mixer.describe()), "parameters:", sum(p.numel() for p in model.high.parameters()))
    optimiser = adamw(model.high, lr, (0.9, 0.98), 1e-2)
    begin, step, seen = time.monotonic(), 0, []
    bar = tqdm(total=round(minutes * 60), unit="s", mininterval=5, disable=None)
    with (run / "log.jsonl").open("a") as log:
        while True:
            progress = max((time.monotonic() - begin) / 60 / minutes, step / steps if steps else 0.0)
            if progress >= 1:
                break
            set_rate(optimiser, lr * min(1, (step + 1) / 50, max(0.02, (1 - progress) / 0.4)))
            mix, target = (torch.from_numpy(z) for z in mixer.batch(first + step))
            gain = LOUD / (target.square().mean(1) + 1e-6).sqrt()
            spectra = [torch.nn.functional.pad(s[:, :, :BINS], (0, 0, 0, max(0, BINS - s.shape[2]))) for s in (stft(mix, hop), stft(target, hop))]
            y = model(spectra[0])
            loss = loss_of(y[:, :, CORE_BINS:], spectra[1][:, :, CORE_BINS:], gain)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.high.parameters(), 1.0)
            optimiser.step()
            dry = loss_of(spectra[0][:, :, CORE_BINS:], spectra[1][:, :, CORE_BINS:], gain)
            seen.append([loss.item(), dry.item()])
            step += 1
            if step % 25 == 0:
                now, untouched = np.mean(seen[-25:], 0)
                log.write(
                    json.dumps({"step": step, "loss": round(now, 6), "untouched": round(untouched, 6), "minutes": round((time.monotonic() - begin) / 60, 2)})
                    + "\n"
                )
                log.flush()
                bar.set_postfix_str(f"step {step} loss {now:.5f}, untouched {untouched:.5f}")
                bar.update(min(round(time.monotonic() - begin), bar.total) - bar.n)
    bar.close()
    torch.save({"high": model.high.state_dict(), "step": first + step}, last)
    print(f"done: {first + step} steps, {last}")


@plainly
def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=Path)
    p.add_argument("--core", type=Path, required=True)
    p.add_argument("--cache", type=Path, default=Path("cache/48k"))
    p.add_argument("--minutes", type=float, default=8.0)
    p.add_argument("--steps", type=int)
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    train(a.run, a.core, a.cache, a.minutes, a.steps)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
