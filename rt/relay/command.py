"""`voicewire serve`, `cluster` and `send` on the command line. Imports of weight only when they run."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _number(low: int, high: int) -> Any:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is outside {low} to {high}")
        return value

    return parse


def _add_server(s: Any) -> None:
    """What `serve` and `cluster` have in common."""
    s.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only; 0.0.0.0: everyone)")
    s.add_argument("--port", type=_number(0, 65535), default=8765)
    s.add_argument("--token", default=os.environ.get("VOICEWIRE_TOKEN"), help="what clients must show (or the environment's VOICEWIRE_TOKEN)")
    s.add_argument("--origin", action="append", default=[], metavar="URL", help="web pages from there may connect, like https://example.org; may be repeated")
    s.add_argument("--cert", type=Path, metavar="FILE", help="TLS: certificate chain, PEM")
    s.add_argument("--key", type=Path, metavar="FILE", help="TLS: its private key, PEM")
    s.add_argument("--engine", default="onnx", help="onnx (default); on an NVIDIA GPU tensorrt or torch-cuda; auto takes the first that works")
    s.add_argument("--tasks", action="store_true", help="all tasks: weights that know talkers and sounds, and restore a little worse, and the converter")
    s.add_argument("--max-streams", type=_number(1, 4096), metavar="N", help="streams of each worker (default: measured at start)")
    s.add_argument("--max-minutes", type=_number(1, 100000), metavar="N", help="longest session (default: no limit)")
    s.add_argument("--drain-s", type=_number(0, 86400), default=30, metavar="S", help="how long streams may go on after SIGTERM")
    s.add_argument("--record", type=Path, metavar="DIR", help="keep every stream's sound before and after in DIR; tell your users")


def add_commands(sub: Any, strength: Callable[[str], float]) -> None:
    """Add the commands to a parser's sub-commands."""
    s = sub.add_parser("serve", help="relay speech over WebSockets, many streams at once")
    _add_server(s)
    s.add_argument("--workers", type=_number(1, 256), default=1, metavar="N", help="processes that share the port, one a core")
    s.add_argument("--handover", type=Path, metavar="DIR", help="private folder through which streams move between workers (--workers makes one)")
    s.add_argument(
        "--onward", metavar="URL", default=os.environ.get("VOICEWIRE_ONWARD") or None,
        help="calls on /twilio and /vonage go on to this bot, wss://…, with the caller cleaned (or the environment's VOICEWIRE_ONWARD)",
    )  # fmt: skip

    k = sub.add_parser("cluster", help="relay workers on many machines, placed by Ray, behind one front door")
    _add_server(k)
    k.add_argument("--address", metavar="HOST:PORT", help="a Ray cluster that runs (default: RAY_ADDRESS, or else a small one on this machine)")
    k.add_argument("--workers", type=_number(1, 4096), default=1, metavar="N", help="workers that always run")
    k.add_argument("--max-workers", type=_number(1, 4096), metavar="N", help="as many when the slots are used (default: as --workers)")
    k.add_argument("--cpus", type=float, default=1.0, metavar="N", help="cores Ray reserves for a worker (default: 1)")
    k.add_argument("--gpus", type=float, default=0.0, metavar="N", help="GPUs Ray reserves for a worker (default: 0)")

    c = sub.add_parser("send", help="clean a sound file on a relay")
    c.add_argument("input", type=Path, metavar="IN")
    c.add_argument("output", type=Path, metavar="OUT")
    c.add_argument("--url", default="ws://127.0.0.1:8765", help="the relay (default: %(default)s)")
    c.add_argument("--token", default=os.environ.get("VOICEWIRE_TOKEN"))
    c.add_argument(
        "--task",
        help="what to do: restore (default), extract one talker (default with --enroll), query (default with --query), separate (with --talker), or convert",
    )
    c.add_argument("--enroll", type=Path, metavar="VOICE", help="the talker to extract, or to speak as: a file of voicewire enroll, or a recording")
    c.add_argument("--voice-strength", type=float, metavar="X", help="convert: how far to go, from 0 (the talker's own voice) to 1 (the other's, the default)")
    c.add_argument("--talker", type=int, metavar="N", help="of two talkers that nobody enrolled keep one, 1 or 2")
    c.add_argument("--query", metavar="TEXT", help="the sound to keep, in words: 'a dog barking'")
    c.add_argument("--query-gain", type=float, metavar="DB", help="keep everything, and change the queried sound by this many dB (-100: take it out)")
    c.add_argument("--strength", type=strength, metavar="DB", help="take away at most this many dB (restore 16, extract 60, else 40; 100 is no limit)")
    c.add_argument("--channels", choices=("mix", "each"), default="each", help="every channel in a stream of its own (default), or their mix")
    c.add_argument("--realtime", action="store_true", help="send at the speed of sound, and show the delay")
    c.add_argument("--json", action="store_true", help="print one JSON object with the measurements")


def run(a: argparse.Namespace) -> int:
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # a peer that is gone is an error of one connection, not the end of the process
    if a.command == "send":
        from .send import send_file

        return send_file(
            a.input, a.output, a.url, token=a.token, task=a.task, enrolled=a.enroll, talker=a.talker, query=a.query,
            query_gain_db=a.query_gain, voice_strength=a.voice_strength, strength_db=a.strength, mix=a.channels == "mix", realtime=a.realtime, as_json=a.json,
        )  # fmt: skip
    from . import workers

    return workers.cluster(a) if a.command == "cluster" else workers.serve(a)
