"""How well it is told when somebody speaks, one table.

    python -m tools.evaluate_speech PAIRS [--json OUT]                      # PAIRS/noisy/*.wav and PAIRS/clean/*.wav; needs the extra [eval]
    python -m tools.evaluate_speech cache/16k-wide --clips 60 [--sweep]     # mixtures of a training cache instead; --sweep: of other rules, too

Who speaks when is taken from the clean file: a frame of 20 ms is speech where its level is within 30 dB of the 95th percentile of the file's frames (and
above -75 dBFS); gaps under 200 ms are filled, and what is then shorter than 40 ms is dropped. Of pairs without reverberation the difference of both files is
the noise: a second of it, reversed in time, comes before the pair, and all of it by itself is a clip in which nobody speaks.

Rows, over all frames: hits, the share of speech that is called so; false alarms, that of everything else in the pairs; F1; balanced accuracy, (hits + 1 - false
alarms) / 2; in the clips of noise alone the share that is called speech, and how often a minute speech begins; by how much the beginning of speech is late
(after 300 ms of none; median and 90th percentile of those that were not called speech before they began, within a second), and how many of them were called
too early, or missed. voicewire: `Stream.speaking` as it is known live; as spans, dated back, as `voicewire file --json` gives them. webrtcvad: frames of 20 ms,
on the noisy file and on what voicewire makes of it (aligned); RNNoise: its own voice activity, where the extra [peers] is installed.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from voicewire.engines.energies import energies_of
from voicewire.engines.engine import Engine, open_engine
from voicewire.rt.speech import USUAL, Heard, Rule, Turn, spans, step, turn
from voicewire.rt.stream import Stream

from .ending import plainly
from .evaluate import find_pairs, load
from .metrics import RATE
from .mixer import Mixer, Rng

FRAME = RATE // 50
RANGE_DB, QUIET_DB, GAP_FRAMES, BURST_FRAMES = 30.0, -75.0, 10, 2
BEST = 40  # of a sweep's rows are shown
LEAD_S, APART_FRAMES, LATE_FRAMES = 1.0, 15, 50
Bools = np.ndarray  # a frame each


def stretches(on: Bools) -> list[tuple[int, int]]:
    """From which frame to which it is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], on.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def labels(clean: np.ndarray) -> Bools:
    """See the module."""
    frames = clean[: len(clean) // FRAME * FRAME].reshape(-1, FRAME).astype(np.float64)
    db = 10 * np.log10((frames**2).mean(1) + 1e-12)
    on = db > max(np.percentile(db, 95) - RANGE_DB, QUIET_DB)
    for a, b in stretches(~on):
        if b - a < GAP_FRAMES and a > 0 and b < len(on):
            on[a:b] = True
    for a, b in stretches(on):
        if b - a < BURST_FRAMES:
            on[a:b] = False
    return on


class Overheard(Stream):
    """Keeps what is heard of every frame, for rules to be tried."""

    def _hear(self, spec: np.ndarray, speech: np.ndarray) -> None:
        self.energies = [*getattr(self, "energies", []), energies_of(spec[0], speech[0])]
        super()._hear(spec, speech)


def told(energies: list[tuple[float, float]], rule: Rule) -> tuple[Bools, Bools]:
    """→ as it is known live, frame by frame, and as spans."""
    state, live, turns = Heard(), [], list[Turn]()
    for each in energies:
        before, state = state, step(each, state, rule=rule)
        live.append(state.on)
        turns += [found for found in [turn(0, before, state, FRAME)] if found]
    dated = np.zeros(len(live), np.bool_)
    for a, b in spans(turns, (len(live) + 1) * FRAME, FRAME):  # frame k is sample (k + 1) FRAME of the output, give or take half a frame
        dated[a // FRAME : b // FRAME] = True
    return np.array(live), dated


def webrtc(x: np.ndarray, mode: int) -> Bools:
    import webrtcvad

    vad, pcm = webrtcvad.Vad(mode), (np.clip(x, -1, 1) * 32767).astype(np.int16)
    return np.array([vad.is_speech(pcm[at : at + FRAME].tobytes(), RATE) for at in range(0, len(pcm) // FRAME * FRAME, FRAME)])


def rnnoise(x: np.ndarray, least: float) -> Bools:
    """Called speech where the higher of a frame's two probabilities is at least so high."""
    import ctypes

    import soxr
    from pyrnnoise import rnnoise as lib

    pointer, state, out = ctypes.POINTER(ctypes.c_float), lib.create(), np.empty(480, np.float32)
    lib.lib.rnnoise_process_frame.restype = ctypes.c_float
    y = soxr.resample(x[: len(x) // FRAME * FRAME], RATE, 48000).astype(np.float32) * np.float32(32768)
    y = np.pad(y, (0, -len(y) % 480))
    found = [
        lib.lib.rnnoise_process_frame(state, out.ctypes.data_as(pointer), np.ascontiguousarray(y[at : at + 480]).ctypes.data_as(pointer))
        for at in range(0, len(y), 480)
    ]
    lib.destroy(state)
    return np.array(found[: len(found) // 2 * 2]).reshape(-1, 2).max(1) >= least


class Judge:
    """Ways to tell speech, each on every clip."""

    def __init__(self, engine: Engine, sweep: bool) -> None:
        self.engine, self.rules = engine, {"usual": USUAL}
        if sweep:
            grid = itertools.product((25.0, 30.0, 35.0, 40.0), (-7.0, -9.0, -11.0, -13.0, -15.0), (2, 3), (10, 15))
            self.rules |= {
                f"{r:.0f} dB, share {s:.0f} dB, {b} to begin, {e} to end": replace(USUAL, range_db=r, share_db=s, begin_frames=b, end_frames=e)
                for r, s, b, e in grid
            }
        self.sweep = sweep

    def ways(self, x: np.ndarray) -> dict[str, Bools]:
        stream = Overheard(RATE, engine=self.engine)
        y = np.concatenate([stream.process(x), np.zeros(0, np.float32)])
        energies = stream.energies
        y = np.concatenate([y, stream.flush()])[stream.latency_samples :]
        found: dict[str, Bools] = {}
        for name, rule in self.rules.items():
            label = "" if name == "usual" else f" {name}"
            found[f"voicewire, live{label}"], found[f"voicewire, spans{label}"] = told(energies, rule)
        if not self.sweep:
            for where, z in (("", x), (" after voicewire", y)):
                found |= {f"webrtcvad {mode}{where}": webrtc(z, mode) for mode in (1, 2, 3)}
            try:
                found |= {f"RNNoise, {least:.0%}": rnnoise(x, least) for least in (0.5, 0.9)}
            except (ImportError, OSError):
                pass
        return found


def score(clips: list[tuple[Bools, Bools]], alone: list[Bools]) -> dict[str, float]:
    """clips: (told, label); alone: told where nobody speaks."""
    said = np.concatenate([t[: len(label)] for t, label in clips])
    true = np.concatenate([label[: len(t)] for t, label in clips])
    hits, alarms = float(said[true].mean()), float(said[~true].mean())
    late: list[int] = []
    early = missed = 0
    for t, label in clips:
        for begin, _ in stretches(label[: len(t)]):
            if begin >= APART_FRAMES and not label[begin - APART_FRAMES : begin].any():
                if t[begin - 1]:
                    early += 1
                elif (after := t[begin : begin + LATE_FRAMES]).any():
                    late.append(int(after.argmax()))
                else:
                    missed += 1
    frames = sum(map(len, alone))
    return {
        "hits": hits, "alarms": alarms, "f1": 2 * float((said & true).sum()) / max(1, int(said.sum() + true.sum())), "balanced": (hits + 1 - alarms) / 2,
        "alone": sum(float(t.sum()) for t in alone) / max(1, frames), "alone_a_minute": 3000 * sum(len(stretches(t)) for t in alone) / max(1, frames),
        "late_ms": 20 * float(np.median(late)) if late else float("nan"), "late90_ms": 20 * float(np.percentile(late, 90)) if late else float("nan"),
        "early": early, "missed": missed, "beginnings": early + missed + len(late),
    }  # fmt: skip


class Talk(Mixer):
    """Mixtures in which the talker pauses, half a second to three, once or twice."""

    def speech(self, rng: Rng, good: bool = False) -> np.ndarray:
        x = super().speech(rng, good)
        fade = self.rate // 100
        for _ in range(int(rng.integers(1, 3)) if good else 0):
            n = int(rng.uniform(0.5, 3) * self.rate)
            at = int(rng.integers(0, self.n - n))
            x[at : at + n] = 0
            if at > fade:
                x[at - fade : at] *= np.linspace(1, 0, fade)
            if at + n + fade < self.n:
                x[at + n : at + n + fade] *= np.linspace(0, 1, fade)
        return x


Clip = tuple[np.ndarray, Bools, bool]  # samples, label, noise alone


def from_pairs(folder: Path) -> Iterator[Clip]:
    for pair in find_pairs(folder):
        noisy, clean = load(pair.noisy), load(pair.clean)
        n = min(len(noisy), len(clean))
        noisy, clean, label = noisy[:n], clean[:n], labels(clean[:n])
        if pair.reverb:  # the difference is the room's speech, too
            yield noisy, label, False
            continue
        noise, lead = noisy - clean, round(min(LEAD_S, n / RATE) * 50) * FRAME
        before = noise[::-1][-lead:]
        yield np.concatenate([before, noisy]), np.concatenate([np.zeros(lead // FRAME, np.bool_), label]), False
        yield noise, np.zeros(n // FRAME, np.bool_), True


def from_cache(cache: Path, seed: int, clips: int) -> Iterator[Clip]:
    mixer = Talk(cache, seed, 1, 8.0)
    for i in range(clips):
        mix, target = (batch[0] for batch in mixer.batch(i))
        nobody = not np.abs(target).max() > 0
        yield mix, np.zeros(len(mix) // FRAME, np.bool_) if nobody else labels(target), nobody


def table(scores: dict[str, dict[str, float]]) -> str:
    lines = [
        "| | hits % | false alarms % | F1 | balanced % | noise alone: % | begins a minute | late ms, median | 90 % | early | missed | of |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, s in scores.items():
        lines.append(
            f"| {name} | {100 * s['hits']:.1f} | {100 * s['alarms']:.1f} | {s['f1']:.3f} | {100 * s['balanced']:.1f} | {100 * s['alone']:.1f} "
            f"| {s['alone_a_minute']:.1f} | {s['late_ms']:.0f} | {s['late90_ms']:.0f} | {s['early']:.0f} | {s['missed']:.0f} | {s['beginnings']:.0f} |"
        )
    return "\n".join(lines)


@plainly
def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path, metavar="PAIRS")
    p.add_argument("--clips", type=int, default=60, help="of a training cache")
    p.add_argument("--seed", type=int, default=90210)
    p.add_argument("--sweep", action="store_true", help="how other rules would do")
    p.add_argument("--json", type=Path, help="write every score here")
    a = p.parse_args()
    packed = (a.folder / "pcm.npy").exists()
    if not packed and not (a.folder / "noisy").is_dir():
        raise ValueError(f"{a.folder} is neither a folder with noisy/ and clean/ nor a packed cache")
    clips: Callable[[], Iterator[Clip]] = (lambda: from_cache(a.folder, a.seed, a.clips)) if packed else (lambda: from_pairs(a.folder))
    judge, found, alone = Judge(open_engine(), a.sweep), dict[str, list[tuple[Bools, Bools]]](), dict[str, list[Bools]]()
    for x, label, nobody in tqdm(clips(), unit="clip", disable=None):
        for name, t in judge.ways(x).items():
            found.setdefault(name, [])
            if nobody:
                alone.setdefault(name, []).append(t[: len(label)])
            else:
                found[name].append((t, label))
    scores: dict[str, Any] = {name: score(pairs, alone.get(name, [])) for name, pairs in found.items()}
    if a.sweep:
        ranked = sorted(scores.items(), key=lambda item: -item[1]["balanced"])
        scores = {name: s for i, (name, s) in enumerate(ranked) if i < BEST or name in ("voicewire, live", "voicewire, spans")}
    speech, silent_s = np.concatenate([label for _, label in next(iter(found.values()))]), sum(map(len, next(iter(alone.values()), []))) / 50
    print(f"{len(speech) / 50:.0f} s, {speech.mean():.0%} of it speech; {silent_s:.0f} s of noise alone\n\n{table(scores)}")
    if a.json:
        a.json.write_text(json.dumps(scores, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
