"""`voicewire file IN OUT`: a sound file through the same path as live audio, read and written block by block, so that length costs no memory."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import asked


def add(sub: Any, positive: Callable[[str], float], strength: Callable[[str], float]) -> None:
    f = sub.add_parser("file", help="clean a sound file through the same path as live audio")
    f.add_argument("input", type=Path, metavar="IN")
    f.add_argument("output", type=Path, metavar="OUT")
    asked.add_options(f, strength)
    f.add_argument("--channels", choices=("mix", "each"), help="process every channel by itself (default, but for separate), or their mix")
    f.add_argument("--block-ms", type=positive, default=20.0, help="size of the blocks fed to the stream (the result does not depend on it)")
    f.add_argument("--realtime", action="store_true", help="feed the file at the speed of sound")
    f.add_argument("--raw-delay", action="store_true", help="leave the delay in the output")
    f.add_argument("--json", action="store_true", help="print one JSON object with the measurements")


def run(a: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from . import files

    files.check_writable(a.output)
    files.check_apart(a.input, a.output)
    source = files.Recording(a.input)
    stream = asked.open_stream(a, source.rate, source.channels, None if a.channels is None else a.channels == "mix")
    passage = files.Passage(stream, realtime=a.realtime, raw_delay=a.raw_delay)
    size = max(1, round(a.block_ms * source.rate / 1000))
    bar = Progress(console=Console(stderr=True), transient=True, disable=a.json or not sys.stderr.isatty())
    with files.Writing(a.output, source.rate, stream.outputs, source.subtype, source.samples) as out, bar:
        shown = bar.add_task(a.input.name, total=source.samples)
        for y in passage.through(source.blocks(size)):
            out.write(y)
            bar.update(shown, completed=passage.samples)
    report = passage.report()
    if a.json:
        print(json.dumps(report.to_dict()))
        return 0
    if report.repaired_samples:
        print(f"voicewire: {report.repaired_samples} samples were not finite and were replaced by silence", file=sys.stderr)
    left = "left in" if a.raw_delay else "removed"
    print(f"{a.output}: {source.samples / source.rate:.1f} s at {source.rate} Hz, delay {report.latency_ms:.1f} ms {left}, {report.rtf:.1%} of one core")
    return 0
