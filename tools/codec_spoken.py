"""Tokens of the training cache's speech, cached once: what the odds of tokens are fitted on.

    python -m tools.codec_spoken cache/16k-wide --out runs/spoken --hours 2.75

Clips of all groups and talkers in turn. One of five is left out: settings are chosen on those (tools.sweep_codec_hold). One in twenty of the others is there
twice, the second time with pauses.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from voicewire.engines.codec_config import FRAMES_PER_SECOND
from voicewire.engines.codec_engine import CODEC_WEIGHTS
from voicewire.engines.codec_export import load_codec
from voicewire.engines.config import CORE_BINS, HOPS_PER_FRAME
from voicewire.engines.net.codec import Codec
from voicewire.engines.net.spectrum import stft
from voicewire.rt.codec_format import frames_of

from .ending import plainly
from .evaluate_codec import with_pauses
from .mixer import MIN_SPEECH_SNR_DB
from .teach import in_turn

RATE, HOP, FRAME = 16000, 160, 320
SHORTEST_S, LONGEST_S = 1, 20
APART = 5  # one clip in so many is for choosing
PAUSED = 20  # one in so many of the others has pauses, too


@dataclass(frozen=True)
class Spoken:
    """Clips one after the other: tokens [frames, streams], semantic vectors [frames, code_dim]; sizes: [clips] frames."""

    weights: str
    tokens: np.ndarray
    semantic: np.ndarray
    sizes: np.ndarray

    @classmethod
    def load(cls, folder: Path) -> Spoken:
        try:
            with np.load(folder / "spoken.npz", allow_pickle=False) as f:
                return cls(str(f["weights"]), f["tokens"].astype(np.int64), f["semantic"].astype(np.float32), f["sizes"])
        except (OSError, KeyError, ValueError):
            raise ValueError(f"{folder} holds no tokens; write some: python -m tools.codec_spoken CACHE --out {folder}") from None

    def clips(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        ends = np.cumsum(self.sizes)
        for begin, end in zip(ends - self.sizes, ends, strict=True):
            yield self.tokens[begin:end], self.semantic[begin:end]


def speech(cache: Path, chosen: bool) -> Iterator[np.ndarray]:
    """Clean clips [samples], those for choosing or the others."""
    meta = json.loads((cache / "index.json").read_text())
    if meta["rate"] != RATE:
        raise ValueError(f"{cache} is at {meta['rate']} Hz; tokens are made of {RATE} Hz")
    pcm = np.load(cache / "pcm.npy", mmap_mode="r")
    clean = lambda i: i["kind"] == "speech" and i["snr_db"] >= MIN_SPEECH_SNR_DB and i["bandwidth_hz"] >= 6000  # noqa: E731
    usable = [i for i in meta["items"] if clean(i) and i["samples"] >= SHORTEST_S * RATE]
    for n, i in enumerate(in_turn(usable)):
        if (n % APART == 0) == chosen:
            yield pcm[i["start"] : i["start"] + min(i["samples"], LONGEST_S * RATE)].astype(np.float32) / 32768


@torch.no_grad()
def tokens_of(x: np.ndarray, codec: Codec) -> tuple[np.ndarray, np.ndarray]:
    """[samples] → tokens [frames, streams], what the semantic search was given [frames, code_dim]."""
    frames = frames_of(len(x), RATE)
    spec = stft(torch.from_numpy(np.pad(x, (0, frames * FRAME - len(x))))[None], HOP)[:, : frames * HOPS_PER_FRAME, :CORE_BINS].contiguous()
    acoustic, semantic, _, _ = codec.encoder.features(spec)
    tokens, z = codec.encoder.tokens(acoustic, semantic)
    return tokens[0].numpy(), z[0].numpy()


def gather(cache: Path, weights: Path, hours: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
    codec, tokens, semantic = load_codec(weights), [], []
    with tqdm(total=round(hours * 3600 * FRAMES_PER_SECOND), unit="frame", disable=None) as bar:
        for n, x in enumerate(speech(cache, False)):
            for y in (x, with_pauses(x)) if n % PAUSED == 0 else (x,):
                t, z = tokens_of(y, codec)
                tokens.append(t.astype(np.int16))
                semantic.append(z.astype(np.float16))
                bar.update(len(t))
            if bar.n >= bar.total:
                break
    return tokens, semantic


@plainly
def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("cache", type=Path)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--weights", type=Path, default=CODEC_WEIGHTS)
    p.add_argument("--hours", type=float, default=2.75)
    a = p.parse_args()
    torch.set_num_threads(1)
    named = json.loads((a.weights / "codec.json").read_text())["weights"]
    tokens, semantic = gather(a.cache, a.weights, a.hours)
    if not tokens:
        raise ValueError(f"{a.cache} has no clean speech")
    a.out.mkdir(parents=True, exist_ok=True)
    sizes = np.array([len(t) for t in tokens])
    np.savez_compressed(a.out / "spoken.npz", weights=named, tokens=np.concatenate(tokens), semantic=np.concatenate(semantic), sizes=sizes)
    print(f"{a.out}: {len(tokens)} clips, {sizes.sum() / FRAMES_PER_SECOND / 3600:.2f} h of tokens")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
