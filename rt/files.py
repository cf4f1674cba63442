"""Audio files in and out, checked: every refusal is one line that says what to do."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from .lane import to_int16
from .stream import Stream

F32 = NDArray[np.float32]


class InputError(ValueError):
    """The user's input cannot be used; the message is one line."""


@dataclass(frozen=True)
class Report:
    """What `voicewire file --json` prints. Step times in ms; rtf is CPU time over audio time."""

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

    def to_dict(self) -> dict[str, Any]:
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}


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


def read(path: Path) -> tuple[F32, int, str]:
    """→ (samples [n, channels] float32, rate, subtype). InputError for anything that is not a whole audio file."""
    if not path.exists():
        raise InputError(f"no file {path}")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give one audio file")
    try:
        _check_whole(path)
        with sf.SoundFile(path) as f:
            x = f.read(dtype="float32", always_2d=True)
            promised, rate, subtype = f.frames, f.samplerate, f.subtype
    except sf.LibsndfileError:
        raise InputError(f"{path} is not audio that can be read (WAV, FLAC, Ogg, MP3 and AIFF can)") from None
    except PermissionError:
        raise InputError(f"{path} may not be read; check its permissions") from None
    if len(x) == 0:
        raise InputError(f"{path} holds no samples")
    if 0 <= promised < 1 << 62 and len(x) < promised:
        raise InputError(f"{path} is cut off: {1 - len(x) / promised:.0%} of its samples are missing; copy or record it again")
    return x, rate, subtype


def check_writable(path: Path) -> None:
    """InputError now, rather than after minutes of work."""
    if path.suffix[1:].upper() not in {*sf.available_formats(), "AIF", "OPUS"}:
        raise InputError(f"cannot tell the format of {path} from its ending; use .wav or .flac")
    if not path.parent.is_dir():
        raise InputError(f"no folder {path.parent} to write {path.name} to; make it first")
    if path.is_dir() or not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise InputError(f"{path} may not be written; choose another place")


def check_asked(query: str | None, query_gain_db: float | None, enrolled: Path | None, talker: int | None = None) -> None:
    """InputError for options of `file`, `live` and `send` that do not go together."""
    asked = [name for name, value in (("--query", query), ("--enroll", enrolled), ("--talker", talker)) if value is not None]
    if len(asked) > 1:
        raise InputError(f"{' and '.join(asked)} are several tasks; give one of them")
    if query_gain_db is not None and query is None:
        raise InputError("--query-gain changes how loud a queried sound is; say which with --query")


def write(path: Path, x: F32, rate: int, subtype: str | None = None) -> None:
    """Write [n, channels] whole or not at all; keeps the sample format of the source where the container can."""
    kind = {".aif": "AIFF", ".opus": "OGG"}.get(path.suffix.lower(), path.suffix[1:].upper())
    if path.suffix.lower() == ".opus":
        subtype = "OPUS"
    if subtype is None or not sf.check_format(kind, subtype):
        subtype = sf.default_subtype(kind)
    part = path.with_name(f".{path.name}.part")
    try:
        # libsndfile reads 16 bits as n / 32768 but writes round(x 32767): what was not changed must come back as it was
        sf.write(part, to_int16(x) if subtype == "PCM_16" else x, rate, format=kind, subtype=subtype)
        os.replace(part, path)
    except (sf.LibsndfileError, OSError) as e:
        raise InputError(f"{path} could not be written: {e}") from None
    finally:
        part.unlink(missing_ok=True)


def process(
    x: F32, stream: Stream, *, block_ms: float = 20.0, realtime: bool = False, raw_delay: bool = False, progress: Callable[[float], None] | None = None
) -> tuple[F32, Report]:
    """Stream [n, channels] through in blocks, as live audio would come. Output has n samples, the delay removed unless `raw_delay`."""
    block = max(1, round(block_ms * stream.rate / 1000))
    shaped = x[:, 0] if stream.channels == 1 else x
    steps = stream.time_steps()
    out, started, cpu = [], time.monotonic(), 0.0
    for at in range(0, len(x), block):
        if realtime:
            time.sleep(max(0.0, started + min(at + block, len(x)) / stream.rate - time.monotonic()))
        before = time.process_time()
        out.append(stream.process(shaped[at : at + block]))
        cpu += time.process_time() - before
        if progress:
            progress(min(1.0, (at + block) / len(x)))
    frames, repaired = stream.frames, stream.repaired_samples
    timed = list(steps)
    if not raw_delay:
        out.append(stream.flush())
    y = np.concatenate(out).astype(np.float32).reshape(-1, stream.outputs)
    y = y[: len(x)] if raw_delay else y[stream.latency_samples :]
    p50, p99, p999 = np.percentile(timed, [50, 99, 99.9]) * 1e3 if timed else (0.0, 0.0, 0.0)
    report = Report(
        stream.task, stream.engine.name, stream.latency_ms, cpu / (len(x) / stream.rate), float(p50), float(p99), float(p999),
        frames, stream.rate, stream.outputs, len(x), repaired,
    )  # fmt: skip
    return y, report
