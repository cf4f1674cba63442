"""Variable rate on talk with pauses: price of a bit against threshold and cap, on clips of the training cache that no odds were fitted on. The command's
defaults come from here.

    python -m tools.sweep_codec_hold cache/16k-wide
    python -m tools.sweep_codec_hold cache/16k-wide --prices 0.02,0.04 --thresholds 0.9 --caps 320,640 --clips 30

Clips of 4 to 8 s, each by another talker in turn, with a second of quiet noise behind every two seconds (tools.evaluate_codec). "tokens": bits of the tokens
sent at ten each, and of the flags; "file": as packed, heads and all. "±": standard error of the loss over the clips.
"""

from __future__ import annotations

import argparse
from itertools import islice, product
from pathlib import Path

import numpy as np
from tqdm import tqdm

from voicewire.engines.codec_config import FRAMES_PER_SECOND
from voicewire.engines.codec_engine import CODEC_WEIGHTS, CodecEngine
from voicewire.engines.codec_variable import VariableRate

from . import metrics
from .codec_spoken import RATE, speech
from .ending import plainly
from .evaluate_codec import through, with_pauses

SHORTEST_S, LONGEST_S = 4, 8


def clips(cache: Path, n: int) -> list[np.ndarray]:
    usable = (x for x in speech(cache, True) if SHORTEST_S <= len(x) / RATE <= LONGEST_S)
    return [with_pauses(x) for x in islice(usable, n)]


def measured(some: list[np.ndarray], variable: VariableRate | None, engine: CodecEngine) -> tuple[float, float, np.ndarray]:
    """→ (kbit/s of the tokens, of the files, PESQ of each clip)"""
    bits, tokens, pesq = 0.0, 0.0, []
    for x in some:
        y, n, sent = through(x, engine, variable)
        bits += n
        tokens += sent.sum() * engine.config.bits * engine.config.streams + len(sent) * (variable is not None)
        pesq.append(metrics.pesq_wb(y, x))
    per_kbit_s = 1000 * sum(map(len, some)) / RATE
    return float(tokens / per_kbit_s), float(bits / per_kbit_s), np.array(pesq)


@plainly
def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("cache", type=Path)
    p.add_argument("--weights", type=Path, default=CODEC_WEIGHTS)
    p.add_argument("--clips", type=int, default=12)
    p.add_argument("--prices", default="0.002,0.004,0.005,0.006,0.008,0.012", help="comma-separated")
    p.add_argument("--thresholds", default=str(VariableRate.threshold))
    p.add_argument("--caps", default=str(VariableRate.cap_frames * 1000 // FRAMES_PER_SECOND), help="ms")
    a = p.parse_args()
    engine = CodecEngine(a.weights)
    some = clips(a.cache, a.clips)
    if not some:
        raise ValueError(f"{a.cache} has no clean speech of {SHORTEST_S} to {LONGEST_S} s")
    numbers = lambda listed: [float(v) for v in listed.split(",")]  # noqa: E731
    every = product(numbers(a.caps), numbers(a.thresholds), numbers(a.prices))
    settings = [None, *(VariableRate(price, threshold, round(cap * FRAMES_PER_SECOND / 1000)) for cap, threshold, price in every)]
    print(f"{len(some)} clips, {sum(map(len, some)) / RATE:.0f} s, weights {engine.weights}\n")
    print("| cap ms | threshold | price | tokens kbit/s | file kbit/s | fewer bits % | PESQ-WB | loss | ± |\n|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    whole: tuple[float, np.ndarray] | None = None
    for v in tqdm(settings, disable=None):
        tokens, files, pesq = measured(some, v, engine)
        whole = whole or (files, pesq)
        lost = whole[1] - pesq
        name = f"{v.cap_frames * 1000 // FRAMES_PER_SECOND} | {v.threshold:g} | {v.price:g}" if v else "| | constant"
        row = f"{tokens:.2f} | {files:.2f} | {100 * (1 - files / whole[0]):.1f} | {pesq.mean():.2f} | {lost.mean():.3f} | {lost.std() / len(lost) ** 0.5:.3f}"
        print(f"| {name} | {row} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
