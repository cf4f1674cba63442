"""`voicewire codec encode IN OUT.tok` and `voicewire codec decode IN.tok OUT.wav`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from voicewire.engines.codec_config import FRAMES_PER_SECOND
from voicewire.engines.codec_engine import CODEC_WEIGHTS, CodecEngine
from voicewire.engines.codec_variable import VariableRate

from . import codec, files
from .codec_format import TokenError
from .lane import F32, to_float

DEFAULT = VariableRate()
CAP_MS = 1000 * DEFAULT.cap_frames / FRAMES_PER_SECOND


def add(sub: Any, positive: Callable[[str], float]) -> None:
    c = sub.add_parser("codec", help="speech as tokens, about 2 kbit/s, and back")
    kinds = c.add_subparsers(dest="action", required=True, metavar="encode|decode", parser_class=type(c))
    e = kinds.add_parser("encode", help="a sound file to a token file")
    e.add_argument("input", type=Path, metavar="IN")
    e.add_argument("output", type=Path, metavar="OUT.tok")
    e.add_argument("--bitrate", type=positive, metavar="KBIT", help="leave out acoustic layers to stay below so many kbit/s before packing; default: all, 2.5")
    e.add_argument("--variable", action="store_true", help="variable rate: tokens are held, or cheaper ones are sent, where that spoils little")
    e.add_argument("--price", type=positive, help=f"with --variable: squared error that a bit is worth (lambda), more for fewer bits; default {DEFAULT.price}")
    e.add_argument("--threshold", type=positive, help=f"with --variable: agreement (cosine) below which nothing is held; default {DEFAULT.threshold}")
    e.add_argument("--cap-ms", type=positive, help=f"with --variable: longest time that tokens are held; default {CAP_MS:.0f}")
    d = kinds.add_parser("decode", help="a token file to a sound file")
    d.add_argument("input", type=Path, metavar="IN.tok")
    d.add_argument("output", type=Path, metavar="OUT")
    for p in (e, d):
        p.add_argument("--weights", type=Path, default=CODEC_WEIGHTS, help="folder with the codec's weights")


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as e:
        raise files.InputError(f"{path} could not be written: {e.strerror}") from None
    finally:
        part.unlink(missing_ok=True)


def _check_place(source: Path, path: Path) -> None:
    if str(path) == "-":
        raise files.InputError("give a name for the result; there is no codec on standard output")
    if not path.parent.is_dir():
        raise files.InputError(f"no folder {path.parent} to write {path.name} to; make it first")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise files.InputError(f"{path} may not be written; choose another place")
    files.check_apart(source, path)


def _encode(a: argparse.Namespace) -> str:
    _check_place(a.input, a.output)
    files.check_no_sound(a.output)
    if a.threshold and a.threshold > 1:
        raise files.InputError(f"--threshold is a cosine, at most 1, not {a.threshold:g}")
    if not a.variable and (a.price or a.threshold or a.cap_ms):
        raise files.InputError("--price, --threshold and --cap-ms go with --variable")
    cap_frames = max(1, round((a.cap_ms or CAP_MS) * FRAMES_PER_SECOND / 1000))
    variable = VariableRate(a.price or DEFAULT.price, a.threshold or DEFAULT.threshold, cap_frames) if a.variable else None
    source = files.opened(a.input)
    engine = CodecEngine(a.weights)
    streams = codec.streams_within(a.bitrate, engine) if a.bitrate else None
    repaired = 0

    def mono() -> Iterator[F32]:
        nonlocal repaired
        for x in source.blocks(source.rate):
            y, bad = to_float(x)
            repaired += bad
            yield y.mean(1)

    data = b"".join(codec.encode(mono(), source.rate, engine, variable, streams=streams))
    _write(a.output, data)
    if repaired:
        print(f"voicewire: {repaired} samples were not finite, or a thousand times full scale, and were replaced by silence", file=sys.stderr)
    seconds = source.samples / source.rate
    return f"{a.output}: {seconds:.1f} s at {source.rate} Hz in {len(data)} bytes, {8 * len(data) / seconds / 1000:.2f} kbit/s"


def _decode(a: argparse.Namespace) -> str:
    files.check_writable(a.output)
    _check_place(a.input, a.output)
    if not a.input.is_file():
        raise files.InputError(f"no file {a.input}")
    engine = CodecEngine(a.weights)
    try:
        header, tokens, sent, samples = codec.read_tokens(a.input.read_bytes(), engine.odds)
    except TokenError as e:
        raise files.InputError(f"{a.input} {e}") from None
    with files.writing(a.output, header.rate, 1, samples=samples) as out:
        for y in codec.decoded(tokens, header.rate, samples, engine):
            out.write(y[:, None])
    kind = f"{sent.mean():.0%} of the frames sent" if header.variable and len(sent) else "constant rate"
    return f"{a.output}: {samples / header.rate:.1f} s at {header.rate} Hz, {kind}"


def run(a: argparse.Namespace) -> int:
    print(_encode(a) if a.action == "encode" else _decode(a))
    return 0
