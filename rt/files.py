"""Audio files in and out, checked: every refusal is one line that says what to do."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from .lane import to_int16
from .speech import spans
from .stream import Stream

F32 = NDArray[np.float32]
BLOCK_SAMPLES = 1 << 16  # read or written at once where the size does not matter
WIDEST_BYTES = 8  # of one sample in a file
BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32, "ULAW": 16, "ALAW": 16}  # of samples that are whole numbers, or made of them
PLAIN = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW")  # other subtypes are codings of their containers
ENDINGS = {"wav", "flac", "ogg", "opus", "mp3", "aif", "aiff", "au", "caf", "w64"}  # of what is taken to be sound in a folder
ENDINGS |= {"m4a", "mp4", "m4v", "mov", "mkv", "mka", "webm"}  # films: media.CONTAINERS
MOST_RIFF_BYTES = 0xFFFF0000  # 32 bits count what is in a WAV file


class InputError(ValueError):
    """The user's input cannot be used; the message is one line."""


class UnknownKindError(InputError):
    """libsndfile does not know this kind of file."""


@dataclass(frozen=True)
class Report:
    """What `voicewire file --json` prints. Step times in ms; rtf is CPU time over audio time. speech: from when to when somebody speaks in what came out, in s;
    speech_channels: the same channel by channel, where several are processed by themselves."""

    task: str
    engine: str
    latency_ms: float
    rtf: float
    step_p50_ms: float
    step_p99_ms: float
    step_p999_ms: float
    frames: int
    sample_rate: int
    channels: int
    samples: int
    repaired_samples: int
    speech: list[tuple[float, float]]
    speech_channels: list[list[tuple[float, float]]] | None = None

    def to_dict(self) -> dict[str, Any]:
        fields = {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}
        return fields if self.speech_channels else {k: v for k, v in fields.items() if k != "speech_channels"}


def _check_whole(path: Path) -> None:
    """A RIFF/WAVE file whose header promises more samples than follow was cut off; libsndfile would read on in silence."""
    size = path.stat().st_size
    with path.open("rb") as f:
        head = f.read(12)
        if head[:4] not in (b"RIFF", b"RF64") or head[8:] != b"WAVE":
            return
        while len(chunk := f.read(8)) == 8:
            name, length = chunk[:4], struct.unpack("<I", chunk[4:])[0]
            if name == b"data":
                if 0 < length < 0x7FFF0000 and f.tell() + length > size:
                    missing = (f.tell() + length - size) / max(1, length)
                    raise InputError(f"{path} is cut off: {missing:.0%} of its samples are missing; copy or record it again")
                return  # (a writer to a pipe leaves 0 or a huge number there)
            f.seek(length + length % 2, os.SEEK_CUR)
    raise InputError(f"{path} is cut off before its samples begin; copy or record it again")


def _known(path: Path) -> sf.SoundFile:
    try:
        return sf.SoundFile(path)
    except sf.LibsndfileError:
        raise UnknownKindError(f"{path} is not audio that can be read (WAV, FLAC, Ogg, MP3 and AIFF can)") from None


class Recording:
    """An audio file that was found to be whole, to be read in blocks: `rate`, `channels`, `samples`, `subtype`. InputError for anything else.

    It is read through once before anything is made of it: that it is cut off must not be found out after an hour's work. `notes`: what to tell the user.
    """

    notes: Sequence[str] = ()

    def __init__(self, path: Path) -> None:
        if str(path) == "-" or path.is_fifo():
            raise InputError(f"{path} is no file; for a pipe there is: voicewire pipe")
        if not path.exists():
            raise InputError(f"no file {path}")
        if path.is_dir():
            raise InputError(f"{path} is a folder; give one audio file")
        self.path, self.samples = path, 0
        try:
            _check_whole(path)
            with _known(path) as f:
                promised, self.rate, self.channels, self.subtype = int(f.frames), int(f.samplerate), int(f.channels), str(f.subtype)
            self.samples = sum(len(x) for x in self.blocks(BLOCK_SAMPLES))
        except PermissionError:
            raise InputError(f"{path} may not be read; check its permissions") from None
        except sf.LibsndfileError:
            raise InputError(f"{path} is not audio that can be read (WAV, FLAC, Ogg, MP3 and AIFF can)") from None
        if self.samples == 0:
            raise InputError(f"{path} holds no samples")
        if 0 <= promised < 1 << 62 and self.samples < promised:
            raise InputError(f"{path} is cut off: {1 - self.samples / promised:.0%} of its samples are missing; copy or record it again")

    def blocks(self, size: int) -> Iterator[F32]:
        """From the beginning: [size, channels] float32 each, the last one shorter."""
        with sf.SoundFile(self.path) as f:
            f.seekable = lambda: False  # soundfile seeks after every read, and every seek spoils what follows in an MP3 file
            while len(x := f.read(min(size, self.samples or size), dtype="float32", always_2d=True)):
                yield x


def opened(path: Path) -> Recording:
    """A sound file, or the sound of a film or of a phone's recording: what libsndfile does not know, FFmpeg may. InputError as `Recording`."""
    try:
        return Recording(path)
    except UnknownKindError as unknown:
        from . import media

        try:
            media.library()
        except InputError as missing:
            raise InputError(f"{unknown}; {missing}") from None
        return media.Sound(path)


def read(path: Path) -> tuple[F32, int, str]:
    """→ (samples [n, channels] float32, rate, subtype) of a file that fits into memory. InputError for anything that is not a whole audio file."""
    whole = opened(path)
    return np.concatenate(list(whole.blocks(BLOCK_SAMPLES))), whole.rate, whole.subtype


def check_writable(path: Path) -> None:
    """InputError now, rather than after minutes of work."""
    from . import media

    if str(path) == "-":
        raise InputError("give a name for the result; for a pipe there is: voicewire pipe")
    if path.suffix.lower() in media.CONTAINERS:
        media.library()
    elif path.suffix[1:].upper() not in {*sf.available_formats(), "AIF", "OPUS"}:
        raise InputError(f"cannot tell the format of {path} from its ending; use .wav or .flac, or .m4a, .mp4, .mov, .mkv or .webm")
    if not path.parent.is_dir():
        raise InputError(f"no folder {path.parent} to write {path.name} to; make it first")
    if path.is_dir() or not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise InputError(f"{path} may not be written; choose another place")


def check_no_sound(path: Path) -> None:
    """InputError where something else would be written over, or named like, a sound file."""
    if path.suffix[1:].lower() in ENDINGS:
        raise InputError(f"{path} is the name of a sound file, which the result is not; choose another")


def check_apart(source: Path, target: Path) -> None:
    """InputError where a file would be written over what it is made of, or over what is no file."""
    if target.exists() and source.exists() and target.samefile(source):
        raise InputError("IN and OUT are the same file; give another name for the result")
    if target.exists() and not target.is_file() and not target.is_dir():
        raise InputError(f"{target} is no file to write to; give another name for the result")


class Writing:
    """An audio file in the making: `with Writing(…) as out: out.write(y)`. When the block has ended the file is there, whole; after an error it is not.

    It keeps the sample format of the source, `subtype`, where that is one of plain samples and the container can. samples: how many there will be, if that
    is known; a WAV file that would pass 4 GB is written as RF64, its form for that. InputError where it cannot be written. `notes`: what to tell the user.
    """

    notes: list[str]
    _failures: tuple[type[Exception], ...] = (sf.LibsndfileError, OSError, AssertionError)  # (soundfile asserts that all was written: a full disk)

    def __init__(self, path: Path, rate: int, channels: int, subtype: str | None = None, samples: int = 0) -> None:
        kind = {".aif": "AIFF", ".opus": "OGG"}.get(path.suffix.lower(), path.suffix[1:].upper())
        if path.suffix.lower() == ".opus":
            subtype = "OPUS"
        elif subtype is None or not subtype.startswith(PLAIN) or not sf.check_format(kind, subtype):
            finer = subtype in ("PCM_24", "PCM_32", "FLOAT", "DOUBLE") and sf.check_format(kind, "PCM_24")
            subtype = "PCM_24" if finer else sf.default_subtype(kind)
        if kind == "WAV" and samples * channels * WIDEST_BYTES > MOST_RIFF_BYTES:
            kind = "RF64"
        self.path, self.notes, self._bits = path, [], BITS.get(subtype)
        path = path.resolve()  # a link stays one
        self._part = path.with_name(f".{path.name}.{os.getpid()}.part")  # another process may be at it, too: the last one wins, whole
        with self._refused():
            self._file = sf.SoundFile(self._part, "w", rate, channels, subtype, format=kind)

    def write(self, x: F32) -> None:
        """x: [n, channels]"""
        with self._refused():
            self._file.write(x if self._bits is None else whole_numbers(x, self._bits))

    @contextmanager
    def _refused(self) -> Iterator[None]:
        try:
            yield
        except self._failures as e:
            self._part.unlink(missing_ok=True)
            why = getattr(e, "error_string", None) or getattr(e, "strerror", None) or str(e) or "is the disk full?"
            raise InputError(f"{self.path} could not be written: {why}") from None

    def _close(self, whole: bool) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            with self._refused():
                self._close(whole=kind is None)
                if kind is None:
                    os.replace(self._part, self.path.resolve())
        finally:
            self._part.unlink(missing_ok=True)


def whole_numbers(x: F32, bits: int) -> NDArray[np.int16] | NDArray[np.int32]:
    """Samples rounded to so many bits and limited, as libsndfile takes them: in the upper bits of int32, or int16. By itself it writes n / 32768 back as
    round(x 32767), and rounds others down, which makes noise of silence: what was not changed must come back as it was."""
    if bits == 16:
        return to_int16(x)
    most = 2.0 ** (bits - 1)
    z = np.clip(np.rint(x.astype(np.float64) * most), -most, most - 1)
    return (z.astype(np.int64) << (32 - bits)).astype(np.int32)


def writing(path: Path, rate: int, channels: int, subtype: str | None = None, samples: int = 0, source: Recording | None = None) -> Writing:
    """By the ending, a sound file or a film. source: what it is made of, whose picture, tags and so on go along into a film; see `Writing`, `film.Film`."""
    from . import media

    if path.suffix.lower() in media.CONTAINERS:
        from . import film

        return film.Film(path, rate, channels, source)
    return Writing(path, rate, channels, subtype, samples)


def write(path: Path, x: F32, rate: int, subtype: str | None = None) -> None:
    """All of [n, channels] at once; see `Writing`."""
    with writing(path, rate, x.shape[1], subtype, len(x)) as out:
        for at in range(0, len(x), BLOCK_SAMPLES):
            out.write(x[at : at + BLOCK_SAMPLES])


def aligned(stream: Stream, blocks: Iterable[F32], raw_delay: bool = False) -> Iterator[F32]:
    """blocks: [n, channels] each, any n → [m, outputs] each, in all as many samples, the stream's delay removed unless `raw_delay`."""
    early = 0 if raw_delay else stream.latency_samples  # of what comes out, still to be left out
    for x in blocks:
        y = stream.process(x[:, 0] if stream.channels == 1 else x).reshape(-1, stream.outputs)
        yield y[early:].astype(np.float32, copy=False)
        early = max(0, early - len(y))
    if not raw_delay:
        yield stream.flush().reshape(-1, stream.outputs)[early:].astype(np.float32, copy=False)


class Passage:
    """A recording's way through a stream, as if it were live: iterate over `through` for what comes out, then ask for the `report`.

    realtime: at the speed of sound. raw_delay: leave the delay in. `samples`: how many went in so far.
    """

    def __init__(self, stream: Stream, *, realtime: bool = False, raw_delay: bool = False) -> None:
        self.stream, self.realtime, self.raw_delay = stream, realtime, raw_delay
        self.samples = self.frames = self.repaired_samples = 0
        self.cpu_s = self._before_s = 0.0
        self._steps_s, self._turns = stream.time_steps(), stream.time_speech()

    def _fed(self, blocks: Iterable[F32]) -> Iterator[F32]:
        started = time.monotonic()
        for x in blocks:
            self.samples += len(x)
            if self.realtime:
                time.sleep(max(0.0, started + self.samples / self.stream.rate - time.monotonic()))
            self._before_s = time.process_time()
            yield x
        self.frames, self.repaired_samples, self._steps_s = self.stream.frames, self.stream.repaired_samples, self._steps_s[:]
        self._before_s = time.process_time()

    def through(self, blocks: Iterable[F32]) -> Iterator[F32]:
        """As `aligned`."""
        for y in aligned(self.stream, self._fed(blocks), self.raw_delay):
            self.cpu_s += time.process_time() - self._before_s
            yield y

    def report(self) -> Report:
        """Of what went through."""
        stream, steps_s = self.stream, self._steps_s
        p50, p99, p999 = np.percentile(steps_s, [50, 99, 99.9]) * 1e3 if steps_s else (0.0, 0.0, 0.0)
        return Report(
            stream.task, stream.engine.name, stream.latency_ms, self.cpu_s / (self.samples / stream.rate), float(p50), float(p99), float(p999),
            self.frames, stream.rate, stream.outputs, self.samples, self.repaired_samples, self._speech_s(),
            [self._speech_s(channel) for channel in range(len(stream.speaking_in))] if len(stream.speaking_in) > 1 else None,
        )  # fmt: skip

    def _speech_s(self, channel: int | None = None) -> list[tuple[float, float]]:
        early, rate = 0 if self.raw_delay else self.stream.latency_samples, self.stream.rate
        return [(round(a / rate, 3), round(b / rate, 3)) for a, b in spans(self._turns, self.samples, early, channel)]


def process(x: F32, stream: Stream) -> tuple[F32, Report]:
    """[n, channels] that is in memory, through a stream in blocks of a frame → [n, outputs], the delay removed."""
    passage = Passage(stream)
    size = stream.frame_samples
    y = np.concatenate(list(passage.through(x[at : at + size] for at in range(0, len(x), size))))
    return y, passage.report()
