"""How well a sound asked for in words is taken out of a mixture, one table.

    python -m tools.evaluate_query MIXTURES [--weights FOLDER] [--json OUT]

MIXTURES holds a manifest.csv with `mix`, `target` (paths from the folder above it), `query` and `other` (what else is heard, in words). Rows, over the clips:
gain in SI-SDR over the mixture with the wording of the manifest, and with the wordings that training never saw (wordings.toml); the same after a change of the
query, from 0.5 s after it on (the first second asks for the other sound), beside that stretch asked for from the start; level of the target in the output when
the other sound is asked for (the queried sound itself being 0 dB), and the other way round when the target is; level left when what is asked for is not there
(the other sound alone goes in); SI-SDR gain of what is left after the other sound was taken out instead (--query-gain -100).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from voicewire.engines.engine import Engine, open_engine, weights_for
from voicewire.engines.query import Query, ask
from voicewire.rt import files
from voicewire.rt.demo import si_sdr_db
from voicewire.rt.stream import Stream

from .ending import plainly
from .evaluate import load, mixtures
from .metrics import RATE
from .queries import class_of, wordings

CHANGE_S, EFFECT_S = 1.0, 0.5


class Asker:
    """Streams of one engine, and what was asked before."""

    def __init__(self, engine: Engine, weights: Path) -> None:
        self.engine, self.weights = engine, weights
        self._made: dict[str, Query] = {}

    def query(self, text: str) -> Query:
        if text not in self._made:
            self._made[text] = ask(text, self.weights)
        return self._made[text]

    def run(self, x: np.ndarray, text: str, query_gain_db: float | None = None) -> np.ndarray:
        stream = Stream(RATE, task="query", voice=self.query(text), query_gain_db=query_gain_db, engine=self.engine)
        y: np.ndarray = files.process(x[:, None], stream)[0][:, 0]
        return y

    def changed(self, x: np.ndarray, first: str, then: str, at: int) -> np.ndarray:
        """`first` is asked for, and `then` from sample `at` on."""
        stream = Stream(RATE, task="query", voice=self.query(first), engine=self.engine)
        head = stream.process(x[:at])
        stream.ask("query", self.query(then))
        y = np.concatenate([head, stream.process(x[at:]), stream.flush()])
        return y[stream.latency_samples :]


def shares_db(y: np.ndarray, target: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """How loud target and other are in y, against themselves: least squares over both."""
    found = np.linalg.lstsq(np.stack([target, other], 1), y, rcond=None)[0]
    a, b = (20 * np.log10(abs(float(f)) + 1e-4) for f in found)
    return a, b


def judge(asker: Asker, mix: np.ndarray, target: np.ndarray, query: str, other_query: str, unseen: list[str]) -> dict[str, float]:
    other = mix - target
    before = si_sdr_db(mix, target)
    right, wrong, alone = asker.run(mix, query), asker.run(mix, other_query), asker.run(other, query)
    at = round(CHANGE_S * RATE)
    rest = slice(at + round(EFFECT_S * RATE), None)
    changed = asker.changed(mix, other_query, query, at)
    heard = all(float((z[rest] ** 2).mean()) > 0.01 * float((z**2).mean()) for z in (target, other))  # SI-SDR where one of them is silent says nothing
    early = si_sdr_db(mix[rest], target[rest])
    return {
        "gain_db": si_sdr_db(right, target) - before,
        "unseen_gain_db": float(np.mean([si_sdr_db(asker.run(mix, text), target) - before for text in unseen])) if unseen else float("nan"),
        "changed_gain_db": si_sdr_db(changed[rest], target[rest]) - early if heard else float("nan"),
        "unchanged_gain_db": si_sdr_db(right[rest], target[rest]) - early if heard else float("nan"),
        "wrong_gain_db": si_sdr_db(wrong, target) - before,
        "target_left_db": shares_db(wrong, target, other)[0],
        "target_kept_db": shares_db(right, target, other)[0],
        "other_left_db": shares_db(right, target, other)[1],
        "absent_db": float(10 * np.log10((alone**2).mean() / (other**2).mean() + 1e-12)),
        "taken_out_gain_db": si_sdr_db(asker.run(mix, other_query, -100.0), target) - before,
    }


def table(rows: list[dict[str, float]]) -> str:
    then = CHANGE_S + EFFECT_S
    names = {
        "gain_db": "SI-SDR gain, wording of the manifest", "unseen_gain_db": "SI-SDR gain, unseen wordings",
        "unchanged_gain_db": f"SI-SDR gain from {then:.1f} s on, asked for from the start",
        "changed_gain_db": f"SI-SDR gain from {then:.1f} s on, asked for at {CHANGE_S:.1f} s", "wrong_gain_db": "SI-SDR gain, the other asked for",
        "target_kept_db": "target in the output", "other_left_db": "other sound in the output", "target_left_db": "target in the output, the other asked for",
        "absent_db": "level left, what is asked for not there", "taken_out_gain_db": "SI-SDR gain, the other taken out",
    }  # fmt: skip
    lines = ["| | dB, mean | median |", "|---|--:|--:|"]
    for key, name in names.items():
        values = [r[key] for r in rows]
        lines.append(f"| {name} | {np.nanmean(values):.1f} | {np.nanmedian(values):.1f} |")
    return "\n".join(lines)


@plainly
def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("mixtures", type=Path)
    p.add_argument("--weights", type=Path, default=weights_for("query"))
    p.add_argument("--json", type=Path, help="write every score here")
    a = p.parse_args()
    spoken, rows = wordings(), []
    clips = mixtures(a.mixtures, "mix", "target", "query", "other")
    asker = Asker(open_engine("onnx", a.weights), a.weights)
    for clip in tqdm(clips, unit="clip", disable=None):
        mix, target = (load(a.mixtures.parent / clip[k]) for k in ("mix", "target"))
        name = class_of(clip["query"], spoken)
        rows.append({"id": clip["id"]} | judge(asker, mix, target, clip["query"], clip["other"], spoken[name]["unseen"] if name else []))
    print(table(rows))
    if a.json:
        a.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
