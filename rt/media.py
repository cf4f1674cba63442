"""The sound of films and of phones' recordings (.m4a, .mp4, .mov, .mkv, .webm, …), through FFmpeg in PyAV (extra `[media]`)."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .files import BLOCK_SAMPLES, F32, InputError, Recording

# ending → (FFmpeg's name of the container, its coding of sound); rt/film.py writes them
CONTAINERS = {
    ".m4a": ("mp4", "aac"),
    ".mp4": ("mp4", "aac"),
    ".m4v": ("mp4", "aac"),
    ".mov": ("mov", "aac"),
    ".mkv": ("matroska", "aac"),
    ".mka": ("matroska", "aac"),
    ".webm": ("webm", "libopus"),
}
OLDEST_PYAV = 16  # that sets chapters and dispositions
SLACK_S = 0.04  # timestamps may be off by so much (some containers count milliseconds); beyond, something is missing or twice there
MOST_GAP_S, MOST_BACK_S = 3600.0, 1.0  # a clock that jumps further is taken for a broken one
LAST_FRAME_SAMPLES = 4096  # what the last packet may hold beyond the end that the container declares


def library() -> Any:
    """PyAV, or InputError."""
    try:
        import av
    except ImportError:
        raise InputError("films and phone recordings need PyAV: pip install 'voicewire[media]'") from None
    if int(av.__version__.split(".")[0]) < OLDEST_PYAV:
        raise InputError(f"films and phone recordings need a newer PyAV than {av.__version__}: pip install 'voicewire[media]'")
    return av


def _ebml_number(f: BinaryIO) -> tuple[int, bool]:
    """The size that Matroska says an element has → (it, whether it says that it does not know)."""
    first = f.read(1)
    width = 9 - first[0].bit_length() if first and first[0] else 1
    value = int.from_bytes(first + f.read(width - 1), "big") if first else 0
    size = value & ((1 << 7 * width) - 1)
    return size, size == (1 << 7 * width) - 1


def _check_whole(path: Path) -> None:
    """MP4 and Matroska say how long they are: InputError where less follows, as for a WAV file."""
    total, missing = path.stat().st_size, 0
    with path.open("rb") as f:
        head = f.read(12)
        if head[:4] == b"\x1aE\xdf\xa3":
            f.seek(4)
            size, _ = _ebml_number(f)
            f.seek(size, os.SEEK_CUR)
            if f.read(4) == b"\x18S\x80g":
                size, unknown = _ebml_number(f)
                missing = 0 if unknown else f.tell() + size - total
        elif head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            seen: set[bytes] = set()
            at = 0
            while at < total and b"moof" not in seen and not seen >= {b"moov", b"mdat"}:  # (in fragments: every one stands for itself)
                f.seek(at)
                size, kind = struct.unpack(">I4s", f.read(8).ljust(8, b"\0"))
                size = int.from_bytes(f.read(8), "big") if size == 1 else size or total - at
                seen.add(kind)
                at += max(8, size)
            missing = at - total if b"moof" not in seen else 0
            if missing <= 0 and b"moov" not in seen:
                raise InputError(f"{path} is cut off, or its recording was never ended: the index (moov) is missing; copy or record it again")
    if missing > 0:
        raise InputError(f"{path} is cut off: {missing:,} bytes of it are missing; copy or record it again")


def _floats(frame: Any) -> F32:
    """A decoded frame → [samples, channels] float32."""
    x: Any = frame.to_ndarray()  # [channels, samples], or [1, samples * channels]
    x = x.T if frame.format.is_planar else x.reshape(-1, len(frame.layout.channels))
    if x.dtype.kind == "u":
        y: F32 = (x.astype(np.float32) - 128) / np.float32(128)
    elif x.dtype.kind == "i":
        y = x.astype(np.float32) / np.float32(-np.iinfo(x.dtype).min)
    else:
        y = x.astype(np.float32, copy=False)
    return y


class Sound(Recording):
    """As `Recording`: the first sound track that can be decoded.

    `picture`: whether a picture goes with it; `zero_s`: where the container's time begins; `start_s`: when the first sample is heard, on that same clock.
    Gaps in the timestamps become silence, so that every sample keeps its place; what overlaps is left out.
    """

    def __init__(self, path: Path) -> None:
        _check_whole(path)
        self.path, self.samples, self.subtype = path, 0, ""
        self.rate, self.start_s = 0, Fraction(0)
        self._damaged = 0  # packets that could not be decoded
        with self.opened() as film:
            track = self._track(film)
            self.index = int(track.index)
            self.picture = any(not is_still(s) for s in film.streams.video)
            end_s = track.duration * track.time_base if track.duration and "mp4" in film.format.name else None
            zero_s = Fraction(film.start_time or 0, 1_000_000)
            coding = track.codec_context.name
        whole = sum(len(x) for x in self._placed())
        if not whole:
            raise InputError(f"the sound of {path} ({coding}) cannot be decoded" if self._damaged else f"{path} holds no samples")
        end = whole if end_s is None else round(end_s * self.rate)  # where an encoder filled up its last frame
        self.samples = end if 0 <= whole - end < LAST_FRAME_SAMPLES else whole
        self.zero_s = min(zero_s, self.start_s)
        self.notes = [f"{self._damaged} damaged packets of {path.name} are silence"] if self._damaged else []

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """The container, from its beginning; FFmpeg's errors become one line."""
        av = library()
        try:
            with av.open(str(self.path), metadata_errors="replace") as film:
                yield film
        except PermissionError:
            raise InputError(f"{self.path} may not be read; check its permissions") from None
        except (av.FFmpegError, UnicodeError) as e:
            raise InputError(f"{self.path} is not audio or a film that can be read ({_reason(e)})") from None

    def _track(self, film: Any) -> Any:
        for track in film.streams.audio:
            if track.codec_context is not None:
                return track
        if len(film.streams.audio):
            raise InputError(f"the sound of {self.path} is in a coding that cannot be read")
        raise InputError(f"{self.path} has no sound")

    def _frames(self) -> Iterator[Any]:
        """Decoded, at one rate and in one layout, those of the first."""
        av = library()
        self._damaged, begun, usual, converters = 0, False, (0, ""), {}
        with self.opened() as film:
            track = self._track(film)
            if kinds := getattr(av.stream, "Discard", None):  # so that pictures are passed over, not read
                for other in film.streams:
                    if other.index != track.index:
                        other.discard = kinds.all
            for packet in film.demux(track):
                try:
                    frames = packet.decode()
                except (av.FFmpegError, EOFError):
                    self._damaged += 1
                    continue
                for frame in frames:
                    kind = (int(frame.sample_rate), str(frame.layout.name))
                    if not begun:
                        self._damaged = 0  # (a broadcast begins anywhere)
                        begun, usual, self.channels, self.layout = True, kind, len(frame.layout.channels), kind[1]
                        self.rate = kind[0]
                    if kind == usual:
                        yield frame
                    else:
                        key = (*kind, frame.format.name)
                        if key not in converters:
                            converters[key] = av.AudioResampler(format="fltp", layout=usual[1], rate=usual[0])
                        yield from converters[key].resample(frame)

    def _placed(self) -> Iterator[F32]:
        """[samples, channels] each, any number of them, one after the other."""
        done, origin = 0, None
        for frame in self._frames():
            x = _floats(frame)
            if frame.pts is not None:
                at_s = frame.pts * frame.time_base
                if origin is None:
                    self.start_s = origin = at_s - Fraction(done, self.rate)
                gap = round((at_s - origin) * self.rate) - done
                if not -MOST_BACK_S * self.rate <= gap <= MOST_GAP_S * self.rate:
                    raise InputError(f"the clock of {self.path} jumps by {gap / self.rate:.1f} s at {done / self.rate:.1f} s; cut it there first")
                if gap > SLACK_S * self.rate:
                    for left in range(gap, 0, -BLOCK_SAMPLES):
                        yield np.zeros((min(left, BLOCK_SAMPLES), self.channels), np.float32)
                    done += gap
                elif gap < -SLACK_S * self.rate:
                    x = x[-gap:]
            done += len(x)
            yield x

    def blocks(self, size: int) -> Iterator[F32]:
        held: list[F32] = []
        count, left = 0, self.samples
        for x in self._placed():
            x = x[:left]
            left -= len(x)
            held.append(x)
            count += len(x)
            if count >= size:
                joined = np.concatenate(held)
                whole = count - count % size
                yield from (joined[at : at + size] for at in range(0, whole, size))
                held, count = [joined[whole:]], count - whole
        if count:
            yield np.concatenate(held)


def is_still(stream: Any) -> bool:
    """Whether a picture track is the cover of a recording. (1 << 10: FFmpeg's AV_DISPOSITION_ATTACHED_PIC)"""
    return bool(stream.disposition.value & 1 << 10)


def _reason(e: Exception) -> str:
    return (getattr(e, "strerror", None) or str(e) or type(e).__name__).splitlines()[0]
