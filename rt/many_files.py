"""`voicewire file IN… FOLDER`: many sound files, each by itself, on all cores. What is wrong with one does not keep the others waiting."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

from . import files
from .files import InputError

AHEAD = 4  # files a process that are in line


class Pair(NamedTuple):
    source: Path
    target: Path


class Outcome(NamedTuple):
    """report: what `file --json` says of it. error: one line, where there is none."""

    pair: Pair
    report: dict[str, Any]
    error: str | None


def pairs(inputs: Sequence[Path], folder: Path) -> list[Pair]:
    """What is to be made of what: of a folder all that are sound files by their names, in a tree of the same shape. InputError for what cannot be."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; the results of several files, or of a folder, need a folder")
    if not folder.exists() and folder.suffix[1:].lower() in files.ENDINGS:
        raise InputError(f"{folder} looks like a file; the results of several files, or of a folder, need a folder")
    found: list[Pair] = []
    for given in inputs:
        if given.is_dir():
            if folder.resolve().is_relative_to(given.resolve()):
                raise InputError(f"the folder of the results lies in {given}, where the recordings are; choose another place")
            inside = [p for p in sorted(given.rglob("*")) if p.suffix[1:].lower() in files.ENDINGS and not p.name.startswith(".") and p.is_file()]
            if not inside:
                raise InputError(f"{given} holds no sound files")
            found += [Pair(p, folder / p.relative_to(given)) for p in inside]
        else:
            found.append(Pair(given, folder / given.name))
    made: dict[Path, Path] = {}
    for source, target in found:
        if target in made:
            raise InputError(f"{made[target]} and {source} would both become {target}; process them into folders of their own")
        made[target] = source
        files.check_apart(source, target)
    return found


def run(a: argparse.Namespace, one: Callable[[argparse.Namespace, Path, Path], dict[str, Any]], tell: Callable[[dict[str, Any]], None]) -> int:
    """one(a, source, target) → report; `tell` prints it. → exit code, 2 where a file could not be processed"""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    work = pairs(a.input, a.output)
    there = [p for p in work if a.new and _is_newer(*p)]
    work = sorted(set(work) - set(there))
    jobs = min(len(work), a.jobs or (cores() if a.engine == "onnx" else 1))
    done = failed = 0
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("files"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=a.json or not sys.stderr.isatty()) as bar:
        shown = bar.add_task("", total=len(work))
        for outcome in _outcomes(a, one, work, jobs):
            if outcome.error is not None:
                failed += 1
                print(f"voicewire: {outcome.error}", file=sys.stderr)
            else:
                done += 1
                tell(outcome.report)
            bar.advance(shown)
    if not a.json:
        print(f"{a.output}: {done} files" + (f", {len(there)} were there already" if there else "") + (f", {failed} could not be processed" if failed else ""))
    return 2 if failed else 0


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_newer(source: Path, target: Path) -> bool:
    return target.is_file() and source.exists() and target.stat().st_mtime_ns >= source.stat().st_mtime_ns


def _outcomes(a: argparse.Namespace, one: Callable[..., dict[str, Any]], work: Sequence[Pair], jobs: int) -> Iterator[Outcome]:
    """As they come. What is still being made when this is ended early is left off, and nothing of it stays behind."""
    if jobs <= 1:
        for pair in work:
            yield _make(a, one, pair)
        return
    fresh = multiprocessing.get_context("spawn")  # ONNX Runtime does not survive a fork
    stop = fresh.Event()
    with ProcessPoolExecutor(jobs, fresh, _begin, (stop,)) as pool:
        try:
            yield from _spread(pool, a, one, work, jobs)
        except BrokenProcessPool:
            raise InputError("a process that was at work was killed (out of memory?); what is missing: again with --new and fewer --jobs") from None
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _spread(pool: ProcessPoolExecutor, a: argparse.Namespace, one: Callable[..., dict[str, Any]], work: Iterable[Pair], jobs: int) -> Iterator[Outcome]:
    waiting: set[Future[Outcome]] = set()
    for pair in work:
        waiting.add(pool.submit(_make, a, one, pair))
        if len(waiting) >= AHEAD * jobs:
            ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (f.result() for f in ready)
    while waiting:
        ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        yield from (f.result() for f in ready)


# -- in the process that makes them ------------------------------------------------------------------------------------
_stop: Any = None


def _begin(stop: Any) -> None:
    """Ctrl-C reaches all processes of a terminal; here it is the first one's to say what ends. When that one is gone, so are we."""
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def outlive() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=outlive, daemon=True).start()


def stopped() -> bool:
    """What is being made here is not wanted any more."""
    return _stop is not None and bool(_stop.is_set())


def _make(a: argparse.Namespace, one: Callable[..., dict[str, Any]], pair: Pair) -> Outcome:
    from voicewire.engines.engine import EngineError

    try:
        pair.target.parent.mkdir(parents=True, exist_ok=True)
        return Outcome(pair, one(a, *pair), None)
    except (ValueError, EngineError, OSError) as e:
        said = str(e)
        return Outcome(pair, {}, said if str(pair.source) in said or str(pair.target) in said else f"{pair.source}: {said}")
