"""`voicewire pipe`: samples come on standard input and go to standard output, for ffmpeg, SoX, arecord, GStreamer or ssh on either side.

What has come is processed at once, whatever the sizes of the pieces are. The declared delay is left out at the beginning and made up for at the end, so as
many samples come out as went in, aligned with them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import asked
from .files import InputError

F32 = NDArray[np.float32]
PIECE_BYTES = 1 << 16  # read at once, at most: what a pipe of Linux holds
FORMATS: dict[str, np.dtype[Any]] = {"s16": np.dtype("<i2"), "f32": np.dtype("<f4")}
MOST_CHANNELS = 64
FILES = {"WAV": b"RIFF", "FLAC": b"fLaC", "Ogg": b"OggS", "MP3": b"ID3", "AIFF": b"FORM"}
READER_GONE = 141  # the exit code of one who is ended by SIGPIPE
HINT = "for example: ffmpeg -i talk.mp4 -f s16le -ac 1 -ar 48000 - | voicewire pipe --rate 48000 > clean.raw"


def add(sub: Any, strength: Callable[[str], float]) -> None:
    p = sub.add_parser("pipe", help="clean raw samples on their way from standard input to standard output")
    p.add_argument("--rate", type=int, required=True, metavar="HZ", help="8000 to 48000")
    p.add_argument("--channels", type=int, default=1, metavar="N", help="interleaved (1); each is processed by itself")
    p.add_argument("--format", choices=tuple(FORMATS), default="s16", help="of the samples, little-endian: 16-bit integers (default) or 32-bit floats")
    asked.add_options(p, strength)


def blocks(descriptor: int, kind: np.dtype[Any], channels: int) -> Iterator[F32]:
    """What comes there until it ends, [n, channels] float32 each. Bytes at the end that are no whole sample of every channel are left out, with a line."""
    whole, rest, first = kind.itemsize * channels, b"", True
    while piece := os.read(descriptor, PIECE_BYTES):
        rest += piece
        if first and (name := next((n for n, magic in FILES.items() if rest.startswith(magic)), None)):
            raise InputError(f"that is a {name} file, not samples; voicewire file reads files, or decode it before: {HINT}")
        first = False
        n = len(rest) // whole
        if n:
            x = np.frombuffer(rest, kind, n * channels).reshape(n, channels)
            rest = rest[n * whole :]
            yield x.astype(np.float32) / np.float32(32768) if kind.kind == "i" else x.astype(np.float32)
    if rest:
        print(f"voicewire: the last {len(rest)} bytes are no whole sample of {whole} bytes and were left out; check --format and --channels", file=sys.stderr)


def run(a: argparse.Namespace) -> int:
    from .files import aligned
    from .lane import to_int16

    if sys.stdin is None or sys.stdout is None or sys.stdin.isatty() or sys.stdout.isatty():
        raise InputError(f"pipe takes samples on standard input and gives them on standard output; {HINT}")
    if not 1 <= a.channels <= MOST_CHANNELS:
        raise InputError(f"--channels is 1 to {MOST_CHANNELS}, not {a.channels}")
    stream, kind = asked.open_stream(a, a.rate, a.channels), FORMATS[a.format]
    repaired = 0
    for y in aligned(stream, blocks(sys.stdin.fileno(), kind, a.channels)):
        repaired = max(repaired, stream.repaired_samples)
        data = memoryview((to_int16(y).astype(kind) if kind.kind == "i" else y.astype(kind)).tobytes())
        try:
            while len(data):
                data = data[os.write(sys.stdout.fileno(), data) :]
        except BrokenPipeError:  # whoever reads has had enough; the signal that says so may be blocked where this was started
            return READER_GONE
        except OSError as e:
            raise InputError(f"standard output takes no more: {e.strerror}") from None
    if repaired:
        print(f"voicewire: {repaired} samples were not finite, or a thousand times full scale, and were replaced by silence", file=sys.stderr)
    return 0
