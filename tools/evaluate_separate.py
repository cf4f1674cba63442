"""How well two talkers whom nobody enrolled are told apart, one table.

    python -m tools.evaluate_separate MIXTURES [--weights FOLDER] [--json OUT]

MIXTURES holds a manifest.csv with `mix`, `target`, `interferer` (paths from the folder above it) and `same_sex`. Rows, over both talkers of the clips: gain
in SI-SDR over the mixture, outputs taken in the order that fits better (one a clip); share of the talkers whose output sounds (Resemblyzer) more like them
than like the other; levels of both outputs where one talker is alone. Then the same two talk for 30 s (unless --quick), and for every stretch of 3 s from 2 s
on the better order is found: the share of stretches where it is that of the whole.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from voicewire.engines.engine import Engine, open_engine, weights_for
from voicewire.engines.places import places
from voicewire.rt import files
from voicewire.rt.demo import si_sdr_db
from voicewire.rt.stream import Stream

from . import metrics
from .ending import plainly
from .evaluate import load, mixtures

RATE = metrics.RATE
LONG_S, STRETCH_S, BOOTSTRAP_S = 30, 3, 2


def apart(x: np.ndarray, engine: Engine, weights: Path) -> np.ndarray:
    """[n] → [2, n], aligned."""
    y: np.ndarray = files.process(x[:, None], Stream(RATE, task="separate", voice=places(weights), engine=engine))[0].T
    return y


def fits(y: np.ndarray, talkers: np.ndarray) -> tuple[float, float]:
    """Mean SI-SDR of [2, n] outputs to [2, n] talkers, in this order and in the other."""
    straight, crossed = (float(np.mean([si_sdr_db(a, b) for a, b in zip(y, t, strict=True)])) for t in (talkers, talkers[::-1]))
    return straight, crossed


def judge(y: np.ndarray, mix: np.ndarray, talkers: np.ndarray, engine: Engine, weights: Path) -> dict[str, float]:
    straight, crossed = fits(y, talkers)
    y = y if straight >= crossed else y[::-1]
    gains = [si_sdr_db(a, b) - si_sdr_db(mix, b) for a, b in zip(y, talkers, strict=True)]
    own = [metrics.speaker_similarity(y[i], talkers[i]) > metrics.speaker_similarity(y[i], talkers[1 - i]) for i in (0, 1)]
    alone = apart(talkers[0], engine, weights)
    levels = 10 * np.log10((alone**2).mean(1) / (talkers[0] ** 2).mean() + 1e-12)
    return {
        "gain_db": float(np.mean(gains)), "worse_db": min(gains), "right": float(np.mean(own)), "alone_kept_db": float(levels.max()),
        "alone_left_db": float(levels.min()), "PESQ": float(np.mean([metrics.pesq_wb(a, b) for a, b in zip(y, talkers, strict=True)])),
        "STOI": float(np.mean([metrics.stoi(a, b) for a, b in zip(y, talkers, strict=True)])),
    }  # fmt: skip


def steady(y: np.ndarray, talkers: np.ndarray) -> float:
    """Share of stretches whose better order is that of the whole, after the bootstrap; stretches in which a talker is silent are left out."""
    whole = np.subtract(*fits(y[:, BOOTSTRAP_S * RATE :], talkers[:, BOOTSTRAP_S * RATE :])) >= 0
    agree = []
    for at in range(BOOTSTRAP_S * RATE, y.shape[1] - STRETCH_S * RATE + 1, STRETCH_S * RATE):
        cut = slice(at, at + STRETCH_S * RATE)
        if (talkers[:, cut] ** 2).mean(1).min() > 1e-3 * (talkers**2).mean():
            agree.append((np.subtract(*fits(y[:, cut], talkers[:, cut])) >= 0) == whole)
    return float(np.mean(agree))


def long_mixtures(sounds: list[tuple[dict[str, str], np.ndarray, np.ndarray]]) -> list[tuple[bool, np.ndarray]]:
    """(same sex, [2, 30 s] talkers): the two of every clip again and again, with another pause each time, so that they fall together differently."""
    rng, made = np.random.default_rng(0), []
    for clip, target, other in sounds:
        rows = []
        for x in (target, other):
            parts = [x]
            while sum(map(len, parts)) < LONG_S * RATE:
                parts += [np.zeros(int(rng.uniform(0.1, 1.0) * RATE), np.float32), x]
            rows.append(np.concatenate(parts)[: LONG_S * RATE])
        made.append((clip["same_sex"] == "1", np.stack(rows)))
    return made


def table(rows: list[dict[str, Any]], order: list[tuple[bool, float]]) -> str:
    lines = ["| | all | other sex | same sex |", "|---|--:|--:|--:|"]

    def line(name: str, values: list[tuple[bool, float]], form: str) -> str:
        groups = ([v for _, v in values], [v for same, v in values if not same], [v for same, v in values if same])
        return f"| {name} | " + " | ".join(form.format(np.mean(g)) if g else "" for g in groups) + " |"

    names = {
        "gain_db": ("SI-SDR gain, both talkers, dB", "{:.1f}"), "worse_db": ("of the worse of the two, dB", "{:.1f}"),
        "right": ("output sounds like its talker", "{:.0%}"),
        "alone_kept_db": ("one talker alone: level of the talker's output, dB", "{:.1f}"), "alone_left_db": ("of the other output, dB", "{:.1f}"),
        "PESQ": ("PESQ", "{:.2f}"), "STOI": ("STOI", "{:.3f}"),
    }  # fmt: skip
    lines += [line(name, [(r["same_sex"], r[key]) for r in rows], form) for key, (name, form) in names.items()]
    if order:
        lines.append(line("30 s: stretches of 3 s in the order of the whole", order, "{:.0%}"))
    return "\n".join(lines)


@plainly
def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("mixtures", type=Path)
    p.add_argument("--weights", type=Path, default=weights_for("separate"))
    p.add_argument("--json", type=Path, help="write every score here")
    p.add_argument("--quick", action="store_true", help="without the mixtures of 30 s")
    a = p.parse_args()
    clips = mixtures(a.mixtures, "mix", "target", "interferer", "same_sex")
    engine = open_engine("onnx", a.weights)
    places(a.weights)
    sounds = [(clip, *(load(a.mixtures.parent / clip[k]) for k in ("mix", "target", "interferer"))) for clip in clips]
    rows, order = [], []
    for clip, mix, target, other in tqdm(sounds, unit="clip", disable=None):
        n = min(len(mix), len(target), len(other))
        talkers = np.stack([target[:n], other[:n]])
        rows.append(judge(apart(mix[:n], engine, a.weights), mix[:n], talkers, engine, a.weights) | {"id": clip["id"], "same_sex": clip["same_sex"] == "1"})
    if not a.quick:
        for same, talkers in tqdm(long_mixtures([(clip, target, other) for clip, _, target, other in sounds]), unit="30 s", disable=None):
            order.append((same, steady(apart(talkers.sum(0), engine, a.weights), talkers)))
    print(table(rows, order))
    if a.json:
        a.json.write_text(json.dumps({"clips": rows, "order": order}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
