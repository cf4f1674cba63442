"""`voicewire bench --engine auto|tensorrt|torch-cuda`: a step on a GPU by number of streams, every way to make it, beside the floor."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from voicewire.engines.engine import WEIGHTS, EngineError
from voicewire.engines.gpu.measure import FRAME_MS, Timing, carried, sweep, variants

STREAMS = (1, 4, 16, 64, 256, 1024, 2048, 4096)
CHOSEN = {"auto": "", "tensorrt": "tensorrt", "torch-cuda": "torch"}


def table(timings: list[Timing]) -> Table:
    t = Table(title=f"a step of all streams, ms (a frame is {FRAME_MS:.0f} ms)", title_justify="left")
    for head in ("way", "streams", "p50", "p99", "p99.9", "max", "steps", "nodes", "MB", "floor", "host us"):
        t.add_column(head, justify="left" if head == "way" else "right")
    for row in timings:
        t.add_row(
            row.variant, str(row.streams), f"{row.p50_ms:.3f}", f"{row.p99_ms:.3f}", f"{row.p999_ms:.3f}", f"{row.max_ms:.3f}", str(row.steps),
            str(row.nodes or "-"), f"{row.moved_mb:.1f}" if row.moved_mb else "-", f"{row.floor_ms:.3f}" if row.floor_ms else "-",
            f"{row.host_us:.1f}" if row.host_us else "-",
        )  # fmt: skip
    return t


def run(console: Console, *, engine: str, seconds: float, streams: tuple[int, ...] | None, as_json: bool) -> None:
    """Print the table, or one JSON object. EngineError when there is no way at all."""
    sizes = streams or STREAMS
    ways = {name: way for name, way in variants(WEIGHTS).items() if name.startswith(CHOSEN[engine])}
    timings, missing = [], []
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("measuring", total=len(ways) * len(sizes))
        for found in sweep(ways, sizes, seconds, (WEIGHTS / "model.onnx").stat().st_size):
            if isinstance(found, Timing):
                timings.append(found)
                bar.advance(task)
            else:
                missing.append(found)
    if not timings:
        raise EngineError("no GPU engine here: " + "; ".join(dict.fromkeys(line.partition(": ")[2] for line in missing)))
    most = carried(timings)
    if as_json:
        doc: dict[str, Any] = {"engine": engine, "rows": [t.to_dict() for t in timings], "missing": missing, "streams_below_a_frame": most}
        console.file.write(json.dumps(doc) + "\n")
        return
    console.print(table(timings))
    for variant, n in most.items():
        console.print(f"{variant}: {n} streams at p99.9 below a frame", highlight=False)
    for line in missing:
        console.print(line, highlight=False)
    console.print(
        "int16 in, int16 out at 16 kHz. nodes: launches and copies inside the one graph launch; floor: weights and state at the memory's measured "
        "bandwidth; host us: what a stream costs this thread a step",
        highlight=False,
    )
