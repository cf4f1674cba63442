"""What the commands are asked to do with a sound: which task options mean, which go together, and, for `file` and `pipe`, the stream that they make."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from .files import InputError

if TYPE_CHECKING:
    from voicewire.engines.engine import Engine
    from voicewire.engines.voiceprint import Voiceprint

    from .stream import Stream


def usual_task(query: object, enrolled: object, talker: object) -> str | None:
    """The task that is meant where a query, somebody enrolled or a talker is given, and none is named."""
    return next((task for task, what in (("query", query), ("extract", enrolled), ("separate", talker)) if what is not None), None)


def check_asked(
    query: str | None, query_gain_db: float | None, enrolled: Path | None, talker: int | None = None, *,
    task: str | None = None, voice_strength: float | None = None, strength_db: float | None = None,
) -> None:  # fmt: skip
    """InputError for options of `file`, `pipe` and `send` that do not go together."""
    asked = [name for name, value in (("--query", query), ("--enroll", enrolled), ("--talker", talker)) if value is not None]
    if len(asked) > 1:
        raise InputError(f"{' and '.join(asked)} are several tasks; give one of them")
    if query_gain_db is not None and query is None:
        raise InputError("--query-gain changes how loud a queried sound is; say which with --query")
    if strength_db is not None and (task == "convert" or query_gain_db is not None):
        instead = "--voice-strength says how far to go towards the other" if task == "convert" else "--query-gain says how loud the queried sound is to be"
        raise InputError(f"--strength is about what is taken away; here {instead}")
    if voice_strength is not None and task != "convert":
        raise InputError("--voice-strength says how far to go towards another voice; it goes with --task convert")


def add_options(p: argparse.ArgumentParser, strength: Callable[[str], float]) -> None:
    p.add_argument(
        "--task",
        help="what to do: restore (default), extract one talker (default with --enroll), query (with --query), separate two talkers, or convert a voice",
    )
    p.add_argument(
        "--enroll",
        type=Path,
        metavar="VOICE",
        help="the talker to extract, or to speak as (convert): a file of voicewire enroll, or a recording of that talker alone",
    )
    p.add_argument("--voice-strength", type=float, metavar="X", help="convert: how far to go, from 0 (the talker's own voice) to 1 (the other's, the default)")
    p.add_argument("--talker", type=int, metavar="N", help="of the talkers that separate tells apart keep one, 1 or 2 (default: each in a channel of its own)")
    p.add_argument("--query", metavar="TEXT", help="the sound to keep, in words: 'a dog barking'")
    p.add_argument("--query-gain", type=float, metavar="DB", help="keep everything, and change the queried sound by this many dB (-100: take it out)")
    p.add_argument(
        "--strength",
        type=strength,
        metavar="DB",
        help="take away at most this many dB (restore 16, extract 60, else 40; 0 changes nothing, 100 is no limit)",
    )
    p.add_argument("--engine", default="onnx", help="onnx (default), tensorrt, torch-cuda, auto (the first that works), or torch")


def open_stream(a: argparse.Namespace, rate: int, channels: int, mix: bool | None = None) -> Stream:
    """The stream for these options. mix: treat channels as one (None: only where two talkers are told apart). ValueError with one line for what cannot be."""
    from .stream import Stream

    task = a.task or usual_task(a.query, a.enroll, a.talker) or "restore"
    check_asked(a.query, a.query_gain, a.enroll, a.talker, task=task, voice_strength=a.voice_strength, strength_db=a.strength)
    engine, voice = _opened(a.engine, task, a.query, a.enroll, a.talker)
    if mix is None:
        mix = task == "separate" and voice is None
    return Stream(
        rate, channels, task=task, voice=voice, mode="mix" if mix else "each", strength_db=a.strength, query_gain_db=a.query_gain,
        voice_strength=1.0 if a.voice_strength is None else a.voice_strength, engine=engine,
    )  # fmt: skip


@lru_cache(1)
def _opened(name: str, task: str, query: str | None, enrolled: Path | None, talker: int | None) -> tuple[Engine, Voiceprint | None]:
    """The engine, and whom or what it is asked for: the same for all the files of a process."""
    from voicewire.engines.engine import open_engine, weights_for
    from voicewire.engines.places import place
    from voicewire.engines.query import ask
    from voicewire.engines.voiceprint import taken_by

    from . import enroll

    engine = open_engine(name, weights_for((usual_task(query, enrolled, talker) or "restore") if task == "restore" else task))
    if query is not None:
        return engine, ask(query)
    if enrolled:
        return engine, enroll.load(enrolled, taken_by(engine))
    return engine, None if talker is None else place(talker)
