"""Speech from tokens, and tokens beside the mask, on pairs of noisy and clean files: is what the heads say worth hearing?

    python -m tools.evaluate_heads PAIRS --heads runs/heads/last.pt runs/heads-feedback/last.pt … [--fit cache/16k-wide] [--quick] [--json OUT]

PAIRS as for tools.evaluate. The first checkpoint is blended with the mask in every way of tools.blends, with --fit also by least squares; of the others the
tokens alone are scored. Two tables: how often tokens are right, against the best constant answer, the codec's own tokens of the mixture and those of the
restored mixture; and how it sounds, with the released restoration (mask alone) above and the codec's ceiling below. Heads and codec run offline in PyTorch;
streaming gives the same (tests). Words and DNSMOS, which cost most, can be measured of some rows alone. Every number is cached: a second run costs little.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from voicewire.engines.codec_engine import CODEC_WEIGHTS
from voicewire.engines.engine import WEIGHTS
from voicewire.rt.demo import si_sdr_db

from . import metrics
from .blends import BLENDS, Blend
from .ending import plainly
from .evaluate import Cache, find_pairs
from .heads_clips import FIT_BATCHES, Clip, Heads, fitted
from .hear import Ears

DRAW_TEMPERATURE = 0.7
LATENCY_MS, FRAME_MS = 30.0, 20.0
DIGITS = {"PESQ": 2, "STOI": 3, "SI-SDR": 1, "SIG": 2, "BAK": 2, "OVRL": 2, "P808": 2, "WER": 1}


def token_rows(clips: list[Clip], heads: list[Heads]) -> dict[str, list[float]]:
    """Where somebody speaks: share of right tokens a stream, and how far off the codes' sum is, as a share of its variance."""
    codec, true = clips[0].ears.codec, torch.cat([c.spoken(c.of_clean) for c in clips])
    rows: dict[str, list[float]] = {}

    def summed(tokens: Tensor) -> Tensor:
        e = codec.encoder
        return e.acoustic_vq.summed(tokens[None, :, 1:])[0] + e.guessed(tokens[None, :, :1])[0]

    def add(name: str, said: Tensor, wanted: Tensor, decided: bool = True) -> None:
        a, b = summed(said), summed(wanted)
        off = ((a - b).square().sum() / (b - b.mean(0)).square().sum()).item()
        rows[name] = [*(100 * (said == wanted).float().mean(0)).tolist(), off if decided else float("nan")]

    most = torch.stack([t.bincount().argmax() for t in true.t()])
    add("best constant answer", most.expand_as(true), true, False)
    add("codec of the mixture", torch.cat([c.spoken(c.of_mixture) for c in clips]), true)
    add("codec of the restored mixture", torch.cat([c.spoken(c.of_restored) for c in clips]), true)
    for h in heads:
        add(h.name, torch.cat([c.spoken(h.say(c.sound)) for c in clips]), true)
        if not h.module.cfg.central:
            told = [h.module.teach(h.given(c.sound), c.of_clean)[0].argmax(-1) for c in clips]
            whole = [c.of_clean[:, : t.shape[1]] for c, t in zip(clips, told, strict=True)]  # with the delay pattern the last frames never are
            said, wanted = (torch.cat([c.spoken(t) for c, t in zip(clips, z, strict=True)]) for z in (told, whole))
            add(f"{h.name}, tokens before known", said, wanted, False)
    return rows


def ahead_rows(clips: list[Clip], heads: Heads) -> dict[str, list[float]]:
    """Share of right semantic tokens 1, 2, … frames ahead: of the heads, of "as now", of the best constant answer."""
    ahead = heads.module.cfg.foresight_frames
    told, now, wanted = [], [], []
    for c in clips:
        s = c.of_clean[0, :, 0]
        later = s.unfold(0, ahead + 1, 1)[:, 1:]
        keep = c.speaks[: len(later)]
        told.append(heads.module.foresee(heads.module.body(heads.given(c.sound)))[0, : len(later)].argmax(-1)[keep])
        now.append(s[: len(later), None].expand_as(later)[keep])
        wanted.append(later[keep])
    true = torch.cat(wanted)
    most = torch.stack([t.bincount().argmax() for t in true.t()]).expand_as(true)
    answers = {"foresight": torch.cat(told), "the token of now": torch.cat(now), "best constant answer": most}
    return {name: (100 * (said == true).float().mean(0)).tolist() for name, said in answers.items()}


@dataclass(frozen=True)
class Row:
    """One line of the table of sounds: what makes it of a clip, and the versions of all that takes part."""

    name: str
    versions: tuple[str, ...]
    make: Callable[[Clip], np.ndarray]


def sound_rows(heads: list[Heads], blended: Heads, blends: dict[str, Blend], ears: Ears) -> list[Row]:
    core, codec = ears.doc["core_weights"], ears.doc["codec_weights"]
    rows = [
        Row("unprocessed", (), lambda c: c.noisy),
        Row("mask alone, as released", (core,), lambda c: c.with_share(c.sound.restored)),
        Row("mask alone, nothing left in", (core,), lambda c: c.wave(c.sound.restored)),
    ]

    def alone(h: Heads) -> Row:
        return Row(f"tokens alone: {h.name}", (core, codec, h.version), lambda c: c.wave(c.spectrum(h.say(c.sound))))

    def both(name: str, blend: Blend) -> Row:
        return Row(f"mask + tokens: {name}", (core, codec, blended.version, str(FIT_BATCHES)), lambda c: c.blended(blend, blended.say(c.sound)))

    def drawn(h: Heads) -> Row:
        name = f"tokens alone: {h.name}, drawn at {DRAW_TEMPERATURE}"
        return Row(name, (core, codec, h.version), lambda c: c.wave(c.spectrum(h.say(c.sound, 1, DRAW_TEMPERATURE))))

    rows += [alone(h) for h in heads] + [drawn(heads[0])] + [both(name, blend) for name, blend in blends.items()]
    return [
        *rows,
        Row("codec of the mixture", (core, codec), lambda c: c.wave(c.spectrum(c.of_mixture))),
        Row("codec of the restored mixture", (core, codec), lambda c: c.wave(c.spectrum(c.of_restored))),
        Row("codec of the clean speech (ceiling)", (core, codec), lambda c: c.wave(c.spectrum(c.of_clean))),
    ]


def scored(row: Row, c: Clip, cache: Cache, words: bool, mos: bool) -> dict[str, float]:
    """The measures that are asked for, each cached by itself."""
    made: list[np.ndarray] = []

    def y() -> np.ndarray:
        if not made:
            made.append(row.make(c))
        return made[0]

    def said() -> list[str]:
        return c.pair.text.lower().split() if c.pair.text else metrics.transcribe(c.clean)

    def sound() -> dict[str, float]:
        return {"PESQ": metrics.pesq_wb(y(), c.clean), "STOI": metrics.stoi(y(), c.clean), "SI-SDR": si_sdr_db(y(), c.clean)}

    def errors() -> dict[str, int]:
        wanted = cache.get(("said", c.content), said)
        return {"errors": metrics.word_errors(metrics.transcribe(y()), wanted), "words": len(wanted)}

    key = (row.name, *row.versions, c.content)
    out: dict[str, float] = dict(cache.get(("sound", *key), sound))
    if words:
        out |= cache.get(("words", *key), errors)
    if mos:
        out |= cache.get(("mos", *key), lambda: metrics.dnsmos(y()))
    return out


def mean(rows: list[dict[str, Any]]) -> dict[str, float]:
    out = {k: float(np.mean([r[k] for r in rows])) for k in DIGITS if k in rows[0]}
    if "errors" in rows[0]:
        out["WER"] = 100 * sum(r["errors"] for r in rows) / max(1, sum(r["words"] for r in rows))
    return out


def sound_table(result: dict[str, dict[str, float]]) -> str:
    columns = [k for k in DIGITS if any(k in r for r in result.values())]
    lines = ["| | " + " | ".join(columns).replace("WER", "WER %") + " |", "|---|" + "--:|" * len(columns)]
    lines += [f"| {name} | " + " | ".join(f"{r[k]:.{DIGITS[k]}f}" if k in r else "" for k in columns) + " |" for name, r in result.items()]
    return "\n".join(lines)


def token_table(rows: dict[str, list[float]], heads: list[str]) -> str:
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    show = lambda v, head: "" if np.isnan(v) else f"{v:.2f}" if head == "error" else f"{v:.1f}"  # noqa: E731
    return "\n".join(lines + [f"| {name} | " + " | ".join(show(v, h) for v, h in zip(row, heads, strict=True)) + " |" for name, row in rows.items()])


@plainly
def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("pairs", type=Path)
    p.add_argument("--heads", type=Path, nargs="+", required=True, metavar="CHECKPOINT", help="of tools.train_heads; the name of its folder is shown")
    p.add_argument("--core", type=Path, default=WEIGHTS)
    p.add_argument("--codec", type=Path, default=CODEC_WEIGHTS)
    p.add_argument("--fit", type=Path, metavar="CACHE", help="training data to fit blends on")
    p.add_argument("--central", action="store_true", help="blend with the codes nearest to the mean instead of the likeliest")
    p.add_argument("--rows", help="only rows of sounds that contain one of these, comma-separated")
    p.add_argument("--words", help="word errors of rows that contain one of these; default: of all")
    p.add_argument("--mos", help="DNSMOS of rows that contain one of these; default: of all")
    p.add_argument("--quick", action="store_true", help="neither words nor DNSMOS")
    p.add_argument("--limit", type=int, help="only the first so many pairs")
    p.add_argument("--cache", type=Path, default=Path("peers-cache"))
    p.add_argument("--json", type=Path, help="write the numbers here")
    a = p.parse_args()
    torch.set_num_threads(1)
    pairs = (find_pairs(a.pairs) if (a.pairs / "noisy").is_dir() else [])[: a.limit]
    if not pairs:
        raise ValueError(f"{a.pairs} needs folders noisy/ and clean/ with the same file names")
    ears = Ears(a.core, a.codec)
    trained = [Heads.read(path, ears) for path in a.heads]
    middle = trained[0].central()
    blended, heads = middle if a.central else trained[0], [trained[0], middle, *trained[1:]]
    blends = BLENDS | (fitted(a.fit, ears, blended) if a.fit else {})
    cache, clips = Cache(a.cache), [Clip(pair, ears) for pair in tqdm(pairs, desc="hear", disable=None)]
    found: dict[str, Any] = {}
    with torch.no_grad():
        found["tokens"] = token_rows(clips, heads)
        found["ahead"] = {h.name: ahead_rows(clips, h) for h in trained if h.module.cfg.foresight_frames}
    named = lambda row, parts: parts is None or any(part in row.name for part in parts.split(","))  # noqa: E731
    sounds: dict[str, dict[str, float]] = {}
    for row in sound_rows(heads, blended, blends, ears):
        if named(row, a.rows):
            words, mos = (not a.quick and named(row, parts) for parts in (a.words, a.mos))
            sounds[row.name] = mean([scored(row, c, cache, words, mos) for c in tqdm(clips, desc=row.name, disable=None)])
    found |= {"sounds": sounds, "step_ms": {h.name: h.step_ms() for h in trained}}
    streams = ["semantic", *(f"acoustic {k}" for k in range(1, trained[0].module.cfg.streams)), "error"]
    print("right tokens, %\n", token_table(found["tokens"], streams), "", sound_table(sounds), sep="\n")
    for name, rows in found["ahead"].items():
        print(f"\n{name}, right semantic tokens, %\n", token_table(rows, [f"{k} ahead" for k in range(1, len(rows["foresight"]) + 1)]), sep="\n")
    for h in trained:
        late = FRAME_MS * h.module.cfg.delay_frames
        print(f"{h.name}: {h.saved['step']} steps, {LATENCY_MS + late:.0f} ms delay, {found['step_ms'][h.name]:.2f} ms of CPU a step of 20 ms")
    if a.json:
        a.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
