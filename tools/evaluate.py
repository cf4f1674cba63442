"""Systems side by side on pairs of noisy and clean files: one run, one table, every score cached.

    python -m tools.evaluate PAIRS [--systems unprocessed,voicewire,RNNoise] [--peers-dir FOLDER] [--weights FOLDER] [--json OUT]

PAIRS holds `noisy/` and `clean/` with the same file names, and may hold a manifest.csv with `id`, `snr_db`, `reverb` and `text`, which
gives rows of their own to reverberant and to high-SNR pairs. Without a text the words Whisper hears in the clean file are the reference.
voicewire runs through `voicewire file`, streaming. Delay is measured: the most by which a change in the input's future moves the output.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import soxr
from tqdm import tqdm

from voicewire.engines.engine import WEIGHTS, open_engine
from voicewire.rt import cli, files
from voicewire.rt.demo import si_sdr_db
from voicewire.rt.lane import USUAL_STRENGTH_DB
from voicewire.rt.stream import Stream

from . import metrics, peers
from .ending import plainly

RATE = metrics.RATE


@dataclass(frozen=True)
class Pair:
    id: str
    noisy: Path
    clean: Path
    snr_db: float
    reverb: bool
    text: str


def find_pairs(folder: Path) -> list[Pair]:
    listed = {}
    if (folder / "manifest.csv").exists():
        with (folder / "manifest.csv").open(newline="") as f:
            listed = {r["id"]: r for r in csv.DictReader(f)}
    pairs = []
    for noisy in sorted((folder / "noisy").iterdir()):
        clean, row = folder / "clean" / noisy.name, listed.get(noisy.stem, {})
        if clean.exists():
            pairs.append(Pair(noisy.stem, noisy, clean, float(row.get("snr_db") or "nan"), row.get("reverb") in ("1", "True"), row.get("text") or ""))
    return pairs


def mixtures(folder: Path, *columns: str) -> list[dict[str, str]]:
    """The rows of FOLDER/manifest.csv. ValueError unless it is there with these columns."""
    path, rows = folder / "manifest.csv", list[dict[str, str]]()
    if path.exists():
        with path.open(newline="") as f:
            rows = list(csv.DictReader(f))
    if not rows or not set(columns) <= set(rows[0]):
        raise ValueError(f"{folder} needs a manifest.csv with {', '.join(columns)}")
    return rows


def load(path: Path) -> np.ndarray:
    x, rate = sf.read(path, dtype="float32", always_2d=True)
    y: np.ndarray = soxr.resample(x.mean(1), rate, RATE).astype(np.float32)
    return y


def score(y: np.ndarray, clean: np.ndarray, said: list[str]) -> dict[str, float]:
    """All metrics of one aligned output; errors and words are kept apart so that the rate can be taken over the whole set."""
    y, clean = y[: len(clean)], clean[: len(y)]
    return {
        "PESQ": metrics.pesq_wb(y, clean), "STOI": metrics.stoi(y, clean), "SI-SDR": si_sdr_db(y, clean), **metrics.dnsmos(y),
        "errors": metrics.word_errors(metrics.transcribe(y), said), "words": len(said), "SPK": metrics.speaker_similarity(y, clean),
    }  # fmt: skip


def measured_latency_ms(run: Callable[[np.ndarray], np.ndarray], delay: int, x: np.ndarray) -> float:
    """Largest look-ahead of the aligned output, over positions inside a frame."""
    rng, n = np.random.default_rng(0), 2 * RATE
    x = x[: 2 * n]
    before, worst = run(x), 0
    for at in range(n, n + 960, 137):
        changed = x.copy()
        changed[at:] = 0.1 * rng.standard_normal(len(x) - at)
        moved = np.abs(run(changed) - before) > 1e-4 * np.abs(before).max()
        worst = max(worst, at - (int(moved.argmax()) - delay))
    return 1e3 * worst / RATE


def ours(weights: Path, rate: int = RATE, strength_db: float | None = None) -> peers.System:
    """voicewire through its own command line; aligned, so no delay to remove. At another rate: resampled there and back."""
    engine = open_engine("onnx", weights)
    options = [] if strength_db is None else ["--strength", f"{strength_db:g}"]

    def run(x: np.ndarray) -> np.ndarray:
        if weights != WEIGHTS or rate != RATE:
            there = soxr.resample(x, RATE, rate).astype(np.float32)
            y, _ = files.process(there[:, None], Stream(rate, engine=engine, strength_db=strength_db))
            return soxr.resample(y[:, 0], rate, RATE)[: len(x)]
        with tempfile.TemporaryDirectory() as folder:
            a, b = Path(folder) / "in.wav", Path(folder) / "out.wav"
            sf.write(a, x, RATE, subtype="FLOAT")
            with redirect_stdout(io.StringIO()):
                code = cli.main(["file", str(a), str(b), "--json", *options])
            if code:
                raise RuntimeError("voicewire file failed")
            y, _ = sf.read(b, dtype="float32")
        return y

    name = " ".join(["voicewire", *([] if rate == RATE else [f"at {rate} Hz"]), *options])
    strength = USUAL_STRENGTH_DB["restore"] if strength_db is None else strength_db
    return peers.System(name, run, 0, f"{engine.weights} {strength:g} dB")


class Cache:
    """Scores by (system, version, file content), so that a second run costs nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: Iterable[Any], make: Callable[[], Any]) -> Any:
        name = hashlib.sha256(json.dumps([str(k) for k in key]).encode()).hexdigest()[:24]
        path = self.folder / f"{name}.json"
        if path.exists():
            return json.loads(path.read_text())
        value = make()
        path.write_text(json.dumps(value))
        return value


def judge(system: peers.System, pair: Pair, cache: Cache) -> dict[str, Any]:
    """Scores of one system on one pair, and the CPU seconds it took."""
    noisy, clean = load(pair.noisy), load(pair.clean)
    content = hashlib.sha256(noisy.tobytes() + clean.tobytes()).hexdigest()

    def said() -> list[str]:
        return pair.text.lower().split() if pair.text else metrics.transcribe(clean)

    def run() -> dict[str, float]:
        begin = time.process_time()
        y = system.run(np.append(noisy, np.zeros(system.delay, np.float32)))[system.delay :]
        cpu = time.process_time() - begin
        return score(y, clean, cache.get(("said", content), said)) | {"cpu_s": cpu, "seconds": len(noisy) / RATE}

    row: dict[str, Any] = cache.get((system.name, system.version, content), run)
    return row | {"id": pair.id, "snr_db": pair.snr_db, "reverb": pair.reverb}


def evaluate(pairs: list[Pair], systems: list[peers.System], cache: Cache) -> dict[str, Any]:
    """→ {system: {"latency_ms", "rtf", "rows": [scores a pair]}}"""
    result: dict[str, Any] = {}
    some = np.concatenate([load(p.noisy) for p in pairs[:3]])
    with tqdm(total=len(pairs) * len(systems), unit="clip") as bar:
        for system in systems:
            rows = []
            for pair in pairs:
                rows.append(judge(system, pair, cache))
                bar.update()
            latency = cache.get(("latency", system.name, system.version), partial(measured_latency_ms, system.run, system.delay, some))
            rtf = sum(r["cpu_s"] for r in rows) / sum(r["seconds"] for r in rows)
            result[system.name] = {"version": system.version, "latency_ms": latency, "rtf": rtf, "rows": rows}
    return result


GROUPS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "all": lambda r: True,
    "dry": lambda r: not r["reverb"],
    "reverberant": lambda r: bool(r["reverb"]),
    "SNR >= 15 dB": lambda r: r["snr_db"] >= 15,
}


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    mean = {k: float(np.mean([r[k] for r in rows])) for k in metrics.COLUMNS if k != "WER"}
    words = max(1, sum(r["words"] for r in rows))
    mean["WER"] = 100 * sum(r["errors"] for r in rows) / words
    mean["capped"] = 100 * sum(min(r["errors"], r["words"]) for r in rows) / words
    return mean


def table(result: dict[str, Any]) -> str:
    """Markdown, one block a group."""
    lines = []
    for group, keep in GROUPS.items():
        n = len([r for r in next(iter(result.values()))["rows"] if keep(r)])
        if not n or (group != "all" and n == len(next(iter(result.values()))["rows"])):
            continue
        lines += [
            f"| {group} ({n}) | PESQ | STOI | SI-SDR | SIG | BAK | OVRL | P808 | WER % | speaker | delay ms | RTF |",
            "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        ]
        for name, r in result.items():
            s = summary([row for row in r["rows"] if keep(row)])
            lines.append(
                f"| {name} | {s['PESQ']:.2f} | {s['STOI']:.3f} | {s['SI-SDR']:.1f} | {s['SIG']:.2f} | {s['BAK']:.2f} | {s['OVRL']:.2f} | {s['P808']:.2f} "
                f"| {s['WER']:.1f} | {s['SPK']:.3f} | {r['latency_ms']:.1f} | {r['rtf']:.3f} |"
            )
        lines.append("")
    capped = ", ".join(f"{name} {summary(r['rows'])['capped']:.1f}" for name, r in result.items())
    lines.append(f"WER % where no clip counts more errors than it has words (a recogniser that repeats itself makes hundreds): {capped}")
    return "\n".join(lines)


@plainly
def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("pairs", type=Path)
    p.add_argument("--systems", help="comma-separated; default: all that can run here")
    p.add_argument("--peers-dir", type=Path, help="folder with gtcrn_simple.onnx and ulunas_stream_simple.onnx")
    p.add_argument("--weights", type=Path, default=WEIGHTS)
    p.add_argument("--rates", type=int, nargs="*", default=[], help="also run voicewire at these rates, resampled there and back")
    p.add_argument("--strengths", type=float, nargs="*", default=[], help="also run voicewire with these --strength, dB")
    p.add_argument("--cache", type=Path, default=Path("peers-cache"))
    p.add_argument("--json", type=Path, help="write every score here")
    a = p.parse_args()
    pairs = find_pairs(a.pairs) if (a.pairs / "noisy").is_dir() else []
    if not pairs:
        raise ValueError(f"{a.pairs} needs folders noisy/ and clean/ with the same file names")
    others, missing = peers.available(a.peers_dir)
    for line in missing:
        print(line, file=sys.stderr)
    systems = [peers.System("unprocessed", lambda x: x, 0, "-"), ours(a.weights), *(ours(a.weights, r) for r in a.rates)]
    systems += [*(ours(a.weights, strength_db=s) for s in a.strengths), *others]
    if a.systems:
        wanted = a.systems.split(",")
        unknown = sorted(set(wanted) - {s.name for s in systems})
        if unknown:
            raise ValueError(f"no system {', '.join(unknown)} here; there are: {', '.join(s.name for s in systems)}")
        systems = [s for s in systems if s.name in wanted]
    result = evaluate(pairs, systems, Cache(a.cache))
    print(table(result))
    if a.json:
        a.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
