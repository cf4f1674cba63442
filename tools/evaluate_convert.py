"""How well one talker is turned into another: every bar of the task `convert` in one table.

    python -m tools.evaluate_convert SPEECH [--pairs N] [--systems ROWS] [--weights FOLDER] [--json OUT] [--sounds FOLDER]

SPEECH holds a manifest.csv with `path`, `speaker`, `sex`, `language`. Every talker with 8 s or more of English is a source; of every talker 8 s (or what there
is) that are not converted are the reference. PAIRS of source and reference are drawn with a fixed seed (default: all ordered ones). Everything runs through
`Stream`. Columns: share of the pairs whose voice (Resemblyzer) is nearer the reference than the source, and the same by voicewire's own voice encoder;
cosines to both; words (Whisper base): errors against what it hears in the source; correlation of log-F0 with the source's where both have a voice (each
listened to a second time in its own range; heard once: in the range of all voices) and by how many semitones the mean misses the reference's; lag of the
loudness contour in ms; DNSMOS; CPU time over audio time.

"unprocessed" is the source itself; "shifted" the source with pitch and formants moved to the reference's pitch (tools.disguise, not live): what no training
gives. The converter was trained to please Resemblyzer; the other encoder learnt from Resemblyzer.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
from tqdm import tqdm

from voicewire.engines.engine import open_engine, weights_for
from voicewire.engines.voiceprint import Voiceprint, enrol
from voicewire.rt import files
from voicewire.rt.stream import Stream

from . import metrics
from .disguise import shift
from .ending import plainly
from .evaluate import load
from .pitch import pitch, pitch_of_one

RATE = metrics.RATE
REFERENCE_S, SOURCE_S, LEAST_SOURCE_S = 8.0, 6.0, 3.0
Sound = np.ndarray


@dataclass(frozen=True)
class Talker:
    """reference: to know the voice by; source: to convert, empty where there is too little. They share no sample."""

    name: str
    sex: str
    reference: Sound
    source: Sound
    voice: Voiceprint
    heard: tuple[Sound, Sound]  # what Resemblyzer hears in both
    own: Sound  # what the own encoder hears in the source

    @cached_property
    def said(self) -> list[str]:
        return metrics.transcribe(self.source)


def talkers(folder: Path) -> list[Talker]:
    """ValueError where the folder is not as described."""
    if not (folder / "manifest.csv").exists():
        raise ValueError(f"no manifest.csv in {folder}")
    with (folder / "manifest.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    out = []
    for name in dict.fromkeys(r["speaker"] for r in rows):
        own = [r for r in rows if r["speaker"] == name]
        paths = [folder / r["path"] if (folder / r["path"]).exists() else folder.parent / r["path"] for r in own]
        x = np.concatenate([load(p) for p in paths])
        n = min(int(REFERENCE_S * RATE), max(len(x) - int(LEAST_SOURCE_S * RATE), len(x) // 2))
        source = x[n : n + int(SOURCE_S * RATE)] if own[0]["language"] == "en" else x[:0]
        if len(source) < LEAST_SOURCE_S * RATE or len(own) > 1:  # (short sentences, end to end: a voice, but no speech of one piece)
            source, n = x[:0], min(len(x), int(REFERENCE_S * RATE))
        there = len(source) > 0
        heard = metrics.speaker(x[:n]), metrics.speaker(source) if there else source
        voice = enrol(source, RATE).voice if there else source
        out.append(Talker(name, own[0]["sex"], x[:n], source, enrol(x[:n], RATE), heard, voice))
    return out


def lag_ms(y: Sound, x: Sound) -> float:
    """By how much the loudness contour of y comes after that of x."""
    size = RATE // 200
    a, b = (np.sqrt((z[: len(z) // size * size].reshape(-1, size) ** 2).mean(1)) for z in (y, x))
    a, b = a - a.mean(), b - b.mean()
    most = 40
    scores = [float((a[max(0, k) : len(a) + min(0, k)] * b[max(0, -k) : len(b) - max(0, k)]).sum()) for k in range(-most, most + 1)]
    return 5.0 * (int(np.argmax(scores)) - most)


def octaves(hz: Sound) -> tuple[Sound, Sound]:
    """(log2 of Hz, whether there is a voice), [hops] each"""
    return np.log2(np.maximum(hz, 1)), hz > 0


def melody(y: Sound, x: Sound) -> float:
    """Correlation of the log-pitches [hops] Hz of two sounds where both have a voice."""
    (py, vy), (px, vx) = octaves(y), octaves(x)
    both = vy & vx
    return float(np.corrcoef(py[both], px[both])[0, 1]) if both.sum() > 20 else 0.0


def judge(y: Sound, a: Talker, b: Talker, cpu: float, quick: bool) -> dict[str, Any]:
    x = a.source
    heard, own = metrics.speaker(y), enrol(y, RATE).voice
    to_b, to_a = float(heard @ b.heard[0]), float(heard @ a.heard[1])
    size = float(np.linalg.norm(b.voice.voice) ** 2)
    hz = pitch_of_one(y), pitch_of_one(x), pitch_of_one(b.reference)
    (py, vy), (_, vx), (pb, vb) = map(octaves, hz)
    return {
        "from": a.name, "to": b.name, "same_sex": a.sex == b.sex, "nearer": float(to_b > to_a), "nearer_own": float(own @ b.voice.voice > own @ a.own),
        "to_reference": to_b, "to_source": to_a, "own_to_reference": float(own @ b.voice.voice) / size,
        "errors": metrics.word_errors(metrics.transcribe(y), a.said), "words": len(a.said),
        "f0": melody(hz[0], hz[1]), "f0_once": melody(pitch(y), pitch(x)),
        "f0_semitones": 12 * abs(float(py[vy].mean() - pb[vb].mean())) if vy.any() else 99.0,
        "voicing": float((vy == vx).mean()), "lag_ms": lag_ms(y, x), "OVRL": float("nan") if quick else metrics.dnsmos(y)["OVRL"], "rtf": cpu / (len(x) / RATE),
    }  # fmt: skip


System = Callable[[Talker, Talker], Sound]


def systems(weights: Path) -> dict[str, System]:
    engine = open_engine("onnx", weights)

    def convert(a: Talker, b: Talker) -> Sound:
        y: Sound = files.process(a.source[:, None], Stream(RATE, task="convert", voice=b.voice, engine=engine))[0][:, 0]
        return y

    def shifted(a: Talker, b: Talker) -> Sound:
        assert a.voice.octave is not None and b.voice.octave is not None
        return shift(a.source, b.voice.octave - a.voice.octave)

    return {"unprocessed": lambda a, b: a.source, "shifted": shifted, "converted": convert}


def table(result: dict[str, list[dict[str, Any]]]) -> str:
    lines = [
        "| | nearer reference | same sex | by own encoder | cosine to reference | to source | word errors % | F0 corr. | heard once | F0 off, st "
        "| lag ms | DNSMOS | rtf |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, rows in result.items():

        def mean(key: str, some: list[dict[str, Any]] = rows) -> float:
            return float(np.mean([r[key] for r in some])) if some else float("nan")

        errors = 100 * sum(r["errors"] for r in rows) / max(1, sum(r["words"] for r in rows))
        lines.append(
            f"| {name} | {mean('nearer'):.0%} | {mean('nearer', [r for r in rows if r['same_sex']]):.0%} | {mean('nearer_own'):.0%} "
            f"| {mean('to_reference'):.3f} | {mean('to_source'):.3f} | {errors:.1f} | {mean('f0'):.2f} | {mean('f0_once'):.2f} | {mean('f0_semitones'):.1f} "
            f"| {mean('lag_ms'):.0f} | {mean('OVRL'):.2f} | {mean('rtf'):.3f} |"
        )
    return "\n".join(lines)


@plainly
def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("speech", type=Path)
    p.add_argument("--pairs", type=int, help="only so many, drawn with a fixed seed")
    p.add_argument("--weights", type=Path, default=weights_for("convert"))
    p.add_argument("--quick", action="store_true", help="no DNSMOS")
    p.add_argument("--systems", help="only these rows, comma-separated")
    p.add_argument("--json", type=Path, help="write every score here")
    p.add_argument("--sounds", type=Path, help="write what was converted into this folder")
    a = p.parse_args()
    made = {name: run for name, run in systems(a.weights).items() if not a.systems or name in a.systems.split(",")}
    people = talkers(a.speech)
    pairs = [(s, t) for s in people for t in people if s is not t and len(s.source)]
    if a.pairs:
        pairs = [pairs[i] for i in np.random.default_rng(7).permutation(len(pairs))[: a.pairs]]
    result: dict[str, list[dict[str, Any]]] = {name: [] for name in made}
    with tqdm(total=len(pairs) * len(made), unit="pair", disable=None) as bar:
        for source, target in pairs:
            for name, run in made.items():
                begin = time.process_time()
                y = run(source, target)
                result[name].append(judge(y, source, target, time.process_time() - begin, a.quick))
                if a.sounds and name == "converted":
                    a.sounds.mkdir(parents=True, exist_ok=True)
                    sf.write(a.sounds / f"{source.name}-as-{target.name}.wav".replace(":", "_"), y, RATE)
                bar.update()
    print(table(result))
    print(f"\n{len(pairs)} pairs of {len(people)} talkers")
    if a.json:
        a.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
