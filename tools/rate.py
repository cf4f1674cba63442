"""How well every clip of speech in a cache sounds to DNSMOS, so that training aims at good recordings.

    python -m tools.rate cache/16k-wide        # writes cache/16k-wide/ratings.json; 0.2 s of CPU a clip; needs the extra [eval]

What the enhancer is shown as clean speech is the best it can become. Games, prompts and lessons hold hours of speech whose signal-to-noise ratio is fine and
which sounds band-limited, compressed or roomy all the same; `tools.mixer` takes its targets from what is rated well, where there are ratings.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .ending import plainly
from .losses import LOUD
from .mixer import RATINGS
from .opinion import Listeners
from .run import bf16

SECONDS = 3.0  # from the middle of a clip


def rate(cache: Path) -> dict[str, float]:
    """OVRL of every clip of speech, by where it starts in the cache. ValueError for a cache that is not at 16 kHz."""
    meta = json.loads((cache / "index.json").read_text())
    if meta["rate"] != 16000:
        raise ValueError(f"{cache} is packed at {meta['rate']} Hz; listeners want 16000")
    pcm, listeners = np.load(cache / "pcm.npy", mmap_mode="r"), Listeners()
    found: dict[str, float] = {}
    for item in tqdm([i for i in meta["items"] if i["kind"] == "speech"], unit="clip", disable=None):
        n = min(item["samples"], int(SECONDS * meta["rate"]))
        if n < 640:
            continue
        start = item["start"] + (item["samples"] - n) // 2
        x = torch.from_numpy(pcm[start : start + n].astype(np.float32) / 32768)[None]
        x = (x * LOUD / x.square().mean().sqrt().clamp_min(1e-6)).clamp(-1, 1)
        with torch.no_grad(), bf16("cpu"):
            found[str(item["start"])] = round(float(listeners.three(x)[0, 2]), 2)
    return found


@plainly
def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("cache", type=Path, help="of tools.prepare")
    a = p.parse_args()
    torch.set_num_threads(1)
    (a.cache / RATINGS).write_text(json.dumps(rate(a.cache)) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
