"""How much speech survives lost and late packets: PESQ of zeros, repetition and our concealment, before and after the model.

    python -m tools.bench_loss [--loss 0.1] [--jitter-ms 40] [--seeds 5] [--pairs FOLDER] [--minutes 10] [--json]

Packets of 20 ms, each lost with the given probability and late by 0 … jitter ms, run through the relay's `JitterBuffer` in simulated time. On the
bundled recording, noisy and clean; with --pairs also on a folder with noisy/ and clean/ (16 kHz). Then so many minutes of the same: what grows?
"""

from __future__ import annotations

import argparse
import json
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import soundfile as sf
from rich.console import Console
from rich.table import Table

from voicewire.engines import Engine, open_engine
from voicewire.rt.relay.jitter import Frame, JitterBuffer
from voicewire.rt.stream import Stream

from .metrics import RATE, pesq_wb

PACKET = RATE // 50
NETWORK_S = 0.020  # the fastest packet's way; cancels out


def receive(x: np.ndarray, buffer: JitterBuffer, loss: float, jitter_s: float, seed: int, tick_s: float = 0.005) -> Iterator[list[Frame]]:
    """x [n] sent in 20 ms packets through a bad network into `buffer`, in simulated time; yields what each tick gives. Ends when all is given."""
    rng = np.random.default_rng(seed)
    n = len(x) // PACKET
    arrival = (np.arange(n) + 1) * PACKET / RATE + NETWORK_S + rng.uniform(0, jitter_s, n)
    kept = rng.random(n) >= loss
    kept[[0, -1]] = True  # so that beginning and end are where they were
    order = np.argsort(arrival, kind="stable")
    order = order[kept[order]]
    now, k = 0.0, 0
    while k < len(order):
        while k < len(order) and arrival[i := int(order[k])] <= now:
            buffer.push(i, i * 20_000, x[i * PACKET : (i + 1) * PACKET], float(arrival[i]))
            k += 1
        yield buffer.pull(now)
        now += tick_s
    yield buffer.flush()


def zeros(x: np.ndarray, lost: np.ndarray) -> np.ndarray:
    return np.where(lost, 0, x).astype(np.float32)


def repeat(x: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """The last 20 ms that were received, again and again."""
    y = x.copy()
    for i in np.flatnonzero(lost):
        y[i] = y[i - PACKET] if i >= PACKET else 0
    return y


WAYS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {"zeros": zeros, "repetition": repeat, "ours": lambda x, lost: x}


def through_model(x: np.ndarray, engine: Engine) -> np.ndarray:
    stream = Stream(RATE, engine=engine)
    return np.concatenate([stream.process(x), stream.flush()])[stream.latency_samples :]


def score(pairs: list[tuple[np.ndarray, np.ndarray]], loss: float, jitter_s: float, seeds: int, engine: Engine) -> dict[str, tuple[float, float]]:
    """→ {way: (PESQ as it is, PESQ after the model)}, mean over pairs and seeds."""
    got: dict[str, list[tuple[float, float]]] = {name: [] for name in ("no loss", *WAYS)}
    for noisy, clean in pairs:
        got["no loss"].append((pesq_wb(noisy, clean), pesq_wb(through_model(noisy, engine), clean)))
        for seed in range(seeds):
            frames = [f for some in receive(noisy, JitterBuffer(RATE), loss, jitter_s, seed) for f in some]
            x, lost = np.concatenate([f.samples for f in frames]), np.concatenate([f.lost for f in frames])
            for name, way in WAYS.items():
                y = way(x, lost)
                got[name].append((pesq_wb(y, clean), pesq_wb(through_model(y, engine), clean)))
    return {name: tuple(np.mean(v, 0).round(3).tolist()) for name, v in got.items()}  # type: ignore[misc]


def grows(x: np.ndarray, loss: float, jitter_s: float, minutes: float) -> dict[str, object]:
    """The whole time in one buffer: the most it held, its delay and memory in the second and in the last tenth."""
    buffer = JitterBuffer(RATE)
    most, packets = 0.0, int(minutes * 60 * 50)
    delays, given, memory, looks = np.zeros(packets + 500), 0, np.zeros(packets // 50 + 10), 0
    long = np.tile(x, -(-packets * PACKET // len(x)))[: packets * PACKET]
    tracemalloc.start()
    for k, frames in enumerate(receive(long, buffer, loss, jitter_s, 0, 0.020)):
        most = max(most, buffer.held_ms)
        for f in frames:
            delays[given] = k * 20.0 - f.capture_us / 1e3
            given += 1
        if k % 50 == 0:
            memory[looks] = tracemalloc.get_traced_memory()[0]
            looks += 1
    tracemalloc.stop()
    delays, memory = delays[:given], memory[:looks]
    tenth, tenth_m = len(delays) // 10, max(1, len(memory) // 10)
    return {
        "minutes": minutes, "most_held_ms": round(most, 1), "delay_ms_second_tenth": round(float(np.mean(delays[tenth : 2 * tenth])), 1),
        "delay_ms_last_tenth": round(float(np.mean(delays[-tenth:-25])), 1),
        "bytes_grown": int(np.median(memory[-tenth_m:]) - np.median(memory[tenth_m : 2 * tenth_m])), "counts": asdict(buffer.counts),
    }  # fmt: skip


def _pairs(folder: Path | None) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    with as_file(files("voicewire.rt") / "samples") as samples:
        noisy, clean = (sf.read(samples / f"{name}.flac", dtype="float32")[0] for name in ("noisy", "clean"))
    sets = {"bundled, noisy": [(noisy, clean)], "bundled, clean": [(clean, clean)]}
    if folder:
        paths = sorted((folder / "noisy").iterdir())
        read = [(sf.read(p, dtype="float32")[0], sf.read(folder / "clean" / p.name, dtype="float32")[0]) for p in paths]
        sets |= {f"{folder.name}, noisy": read, f"{folder.name}, clean": [(c, c) for _, c in read]}
    return {name: [(x[: len(x) // PACKET * PACKET], c[: len(x) // PACKET * PACKET]) for x, c in pairs] for name, pairs in sets.items()}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--loss", type=float, default=0.1)
    p.add_argument("--jitter-ms", type=float, default=40.0)
    p.add_argument("--seeds", type=int, default=5)
    p.add_argument("--pairs", type=Path, help="folder with noisy/ and clean/")
    p.add_argument("--minutes", type=float, default=10.0)
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    engine, sets = open_engine(), _pairs(a.pairs)
    results = {name: score(pairs, a.loss, a.jitter_ms / 1e3, a.seeds, engine) for name, pairs in sets.items()}
    growth = grows(sets["bundled, noisy"][0][0], a.loss, a.jitter_ms / 1e3, a.minutes)
    if a.json:
        print(json.dumps({"loss": a.loss, "jitter_ms": a.jitter_ms, "pesq": results, "growth": growth}))
        return
    console = Console()
    table = Table(title=f"PESQ (wide band): {a.loss:.0%} of 20 ms packets lost, 0 … {a.jitter_ms:g} ms late", title_justify="left")
    for head in ("recording", "lost packets become"):
        table.add_column(head)
    for head in ("as it is", "after the model"):
        table.add_column(head, justify="right")
    for name, rows in results.items():
        for way, (plain, after) in rows.items():
            table.add_row(name if way == "no loss" else "", way, f"{plain:.3f}", f"{after:.3f}")
    console.print(table)
    console.print(growth, highlight=False)


if __name__ == "__main__":
    main()
