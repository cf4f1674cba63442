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
    f = sub.add_parser("file", help="clean sound files, or the sound of films, through the same path as live audio")
    f.add_argument("input", type=Path, nargs="+", metavar="IN", help="a sound file or a film; or several, or a folder of them")
    f.add_argument("output", type=Path, metavar="OUT", help="the file to write; of several, the folder for them")
    asked.add_options(f, strength)
    f.add_argument("--channels", choices=("mix", "each"), help="process every channel by itself (default, but for separate), or their mix")
    f.add_argument("--block-ms", type=positive, default=20.0, help="size of the blocks fed to the stream (the result does not depend on it)")
    f.add_argument("--realtime", action="store_true", help="feed the file at the speed of sound")
    f.add_argument("--raw-delay", action="store_true", help="leave the delay in the output")
    f.add_argument("--jobs", type=_jobs, metavar="N", help="of several files so many at once (default: as many as there are cores)")
    f.add_argument("--new", action="store_true", help="of several files those whose result is missing, or older than they are")
    f.add_argument("--json", action="store_true", help="print one JSON object with the measurements, a line for every file")


def _jobs(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of processes, 1 to 1024")
    return int(text)


def run(a: argparse.Namespace) -> int:
    if len(a.input) > 1 or a.input[0].is_dir() or a.output.is_dir():
        from . import many_files

        asked.open_stream(a, 16000, 1)  # what is wrong for all of them is said once
        return many_files.run(a, one, lambda report: tell(a, report))
    if a.jobs or a.new:
        from .files import InputError

        raise InputError("--jobs and --new are about several files, or a folder of them")
    tell(a, one(a, a.input[0], a.output))
    return 0


def one(a: argparse.Namespace, given: Path, target: Path) -> dict[str, Any]:
    """One file. → what `--json` says of it. InputError for what cannot be."""
    from rich.console import Console
    from rich.progress import Progress

    from . import files, many_files

    files.check_writable(target)
    files.check_apart(given, target)
    source = files.opened(given)
    stream = asked.open_stream(a, source.rate, source.channels, None if a.channels is None else a.channels == "mix")
    passage = files.Passage(stream, realtime=a.realtime, raw_delay=a.raw_delay)
    size = max(1, round(a.block_ms * source.rate / 1000))
    bar = Progress(console=Console(stderr=True), transient=True, disable=target != a.output or a.json or not sys.stderr.isatty())
    with files.writing(target, source.rate, stream.outputs, source.subtype, source.samples, source) as out, bar:
        shown = bar.add_task(given.name, total=source.samples)
        for y in passage.through(source.blocks(size)):
            out.write(y)
            bar.update(shown, completed=passage.samples)
            if many_files.stopped():
                raise files.InputError("stopped")
    for note in (*source.notes, *out.notes):
        print(f"voicewire: {note}", file=sys.stderr)
    return {"input": str(given), "output": str(target), **passage.report().to_dict()}


def tell(a: argparse.Namespace, report: dict[str, Any]) -> None:
    if a.json:
        print(json.dumps(report), flush=True)
        return
    if report["repaired_samples"]:
        print(
            f"voicewire: {report['input']}: {report['repaired_samples']} samples were not finite, or a thousand times full scale, and were replaced by silence",
            file=sys.stderr,
        )
    left = "left in" if a.raw_delay else "removed"
    seconds = report["samples"] / report["sample_rate"]
    print(f"{report['output']}: {seconds:.1f} s at {report['sample_rate']} Hz, delay {report['latency_ms']:.1f} ms {left}, {report['rtf']:.1%} of one core")
