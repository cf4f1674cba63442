"""Variable rate on talk with pauses: threshold against cap, on clips of the training cache that no odds were fitted on. The command's defaults come from here.

    python -m tools.sweep_codec_hold cache/16k-wide
    python -m tools.sweep_codec_hold cache/16k-wide --thresholds 0.95,0.94 --caps 160,320 --clips 12

Clips of 4 to 8 s, each by another talker in turn, with a second of quiet noise behind every two seconds (tools.evaluate_codec). "tokens": bits of the tokens
sent at ten each, and of the flags; "file": as packed, heads and all.
"""

from __future__ import annotations

import argparse
import sys
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from voicewire.engines.codec_config import FRAMES_PER_SECOND
from voicewire.engines.codec_engine import CODEC_WEIGHTS, CodecEngine
from voicewire.engines.engine import EngineError

from . import metrics
from .codec_spoken import RATE, speech
from .evaluate_codec import Clip, encode, held, sent_frames, with_pauses

SHORTEST_S, LONGEST_S = 4, 8


def clips(cache: Path, n: int, engine: CodecEngine) -> list[Clip]:
    usable = (x for x in speech(cache, True) if SHORTEST_S <= len(x) / RATE <= LONGEST_S)
    paused = (with_pauses(x) for x in islice(usable, n))
    return [Clip(str(i), x, [], *encode(x, engine)) for i, x in enumerate(paused)]


def measured(some: list[Clip], threshold: float, cap_frames: int, engine: CodecEngine) -> tuple[float, float, float]:
    """→ (kbit/s of the tokens, of the files, mean PESQ)"""
    bits, tokens, pesq = 0.0, 0.0, []
    for c in some:
        sent = sent_frames(c.semantic, threshold, cap_frames)
        y, n = held(c, sent, engine)
        bits += n
        tokens += sent.sum() * engine.config.bits * engine.config.streams + len(sent) * (cap_frames > 1)
        pesq.append(metrics.pesq_wb(y, c.x))
    per_kbit_s = 1000 * sum(len(c.x) for c in some) / RATE
    return float(tokens / per_kbit_s), float(bits / per_kbit_s), float(np.mean(pesq))


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("cache", type=Path)
    p.add_argument("--weights", type=Path, default=CODEC_WEIGHTS)
    p.add_argument("--clips", type=int, default=12)
    p.add_argument("--thresholds", default="0.97,0.96,0.95,0.94,0.93")
    p.add_argument("--caps", default="160,320,640", help="ms, comma-separated")
    a = p.parse_args()
    try:
        engine = CodecEngine(a.weights)
        some = clips(a.cache, a.clips, engine)
        if not some:
            raise ValueError(f"{a.cache} has no clean speech of {SHORTEST_S} to {LONGEST_S} s")
        settings = [(2.0, 1)] + [(float(t), round(float(c) * FRAMES_PER_SECOND / 1000)) for c in a.caps.split(",") for t in a.thresholds.split(",")]
    except (OSError, ValueError, EngineError) as e:
        print(f"sweep_codec_hold: {e}", file=sys.stderr)
        return 2
    seconds = sum(len(c.x) for c in some) / RATE
    print(
        f"{len(some)} clips, {seconds:.0f} s, weights {engine.weights}\n\n| cap ms | threshold | tokens kbit/s | file kbit/s | fewer bits % | PESQ-WB | loss |"
    )
    print("|--:|--:|--:|--:|--:|--:|--:|")
    whole: tuple[float, float, float] | None = None
    for threshold, cap in tqdm(settings, disable=None):
        tokens, files, pesq = measured(some, threshold, cap, engine)
        whole = whole or (tokens, files, pesq)
        name = "| | constant" if cap == 1 else f"| {cap * 1000 // FRAMES_PER_SECOND} | {threshold:g}"
        print(f"{name} | {tokens:.2f} | {files:.2f} | {100 * (1 - files / whole[1]):.1f} | {pesq:.2f} | {whole[2] - pesq:.3f} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
