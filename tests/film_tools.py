"""Films for the tests, made by PyAV, and what is in a film: packets and sound by the clock."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
FPS = 25
KINDS = {  # ending → container, coding of the picture, of the sound
    ".mp4": ("mp4", "mpeg4", "aac"),
    ".m4a": ("mp4", "", "aac"),
    ".mov": ("mov", "mpeg4", "aac"),
    ".mkv": ("matroska", "mpeg4", "aac"),
    ".mka": ("matroska", "", "flac"),
    ".webm": ("webm", "libvpx", "libopus"),
    ".ts": ("mpegts", "mpeg2video", "aac"),
    ".avi": ("avi", "mpeg4", "pcm_s16le"),
    ".aac": ("adts", "", "aac"),
}


def _sound(track: Any, x: F32, rate: int, start_s: float, hole: tuple[float, float] | None) -> list[Any]:
    packets: list[Any] = []
    frame_samples = 960
    for at in range(0, len(x), frame_samples):
        part = np.ascontiguousarray(x[at : at + frame_samples])
        frame = av.AudioFrame.from_ndarray(part.reshape(1, -1), format="flt", layout=track.codec_context.layout.name)
        frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
        frame.pts = round(start_s * rate) + at
        packets += track.encode(frame)
    packets += track.encode(None)
    if hole:
        packets = [p for p in packets if not hole[0] <= float(p.pts * p.time_base) - start_s < hole[1]]
    return packets


def _picture(track: Any, seconds: float, start_s: float) -> list[Any]:
    packets: list[Any] = []
    rng = np.random.default_rng(1)
    for i in range(round(seconds * FPS)):
        image = np.zeros((96, 128, 3), np.uint8)
        image[:, i % 128 : i % 128 + 20] = rng.integers(0, 255, 3)
        frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = i + round(start_s * FPS), Fraction(1, FPS)
        packets += track.encode(frame)
    return packets + track.encode(None)


def make(
    path: Path, sounds: Sequence[F32], rate: int, *, seconds: float = 0.0, sound_start_s: float = 0.0, start_s: float = 0.0, picture: str | None = None,
    hole: tuple[float, float] | None = None, sound: str | None = None, options: dict[str, str] | None = None,
) -> Path:  # fmt: skip
    """sounds: [n, channels] each, a track. seconds: of the picture, none for 0. hole: packets of sound left out, in seconds of it."""
    container, usual_picture, usual_sound = KINDS[path.suffix]
    with av.open(str(path), "w", format=container, container_options=options or {}) as out:
        out.metadata["title"] = "A talk"
        packets: list[Any] = []
        shown = None
        if seconds:
            shown = out.add_stream(picture or usual_picture, rate=FPS)
            shown.width, shown.height, shown.pix_fmt = 128, 96, "yuv420p"
            shown.codec_context.thread_count = 1
            if usual_picture == "libvpx":
                shown.options = {"deadline": "realtime", "cpu-used": "8"}
            shown.codec_context.max_b_frames = 2 if usual_picture == "mpeg4" and container != "avi" else 0
        tracks = []
        for i, x in enumerate(sounds):
            track = out.add_stream(sound or usual_sound, rate=rate)
            track.codec_context.layout = {1: "mono", 2: "stereo", 6: "5.1"}[x.shape[1]]
            track.codec_context.bit_rate = 96000 * x.shape[1]
            track.metadata["language"] = ("eng", "deu", "fra")[i]
            tracks.append(track)
        out.start_encoding()
        if shown is not None:
            packets += _picture(shown, seconds, start_s)
        for track, x in zip(tracks, sounds, strict=True):
            packets += _sound(track, x, rate, start_s + sound_start_s, hole)
        packets.sort(key=lambda p: p.dts * p.time_base)
        out.mux(packets)
    return path


def packets(path: Path, kind: str = "video", number: int = 0) -> list[tuple[float, bytes]]:
    """(time shown, content) of every packet of a track, in the order of the file."""
    with av.open(str(path)) as film:
        track = [s for s in film.streams if s.type == kind][number]
        return [(float(p.pts * p.time_base), bytes(p)) for p in film.demux(track) if p.size]


def heard(path: Path, rate: int, number: int = 0) -> F32:
    """What is heard on the clock of the film, whose first sample is at 0 s: [samples, channels]"""
    with av.open(str(path)) as film:
        track = film.streams.audio[number]
        out = np.zeros((60 * rate, track.codec_context.layout.nb_channels), np.float32)
        resampler = av.AudioResampler(format="fltp", rate=rate)
        last = 0
        for frame in [f for g in film.decode(track) for f in resampler.resample(g)]:
            x, at = frame.to_ndarray().T, round(frame.pts * frame.time_base * rate)
            x, at = x[max(0, -at) :], max(0, at)
            at = last if last and abs(at - last) < 0.005 * rate else at  # (Matroska counts milliseconds)
            out[at : at + len(x)] = x
            last = at + len(x)
    return out[:last]


def lag_ms(y: F32, x: F32, rate: int, most_ms: int = 60) -> tuple[float, float]:
    """How much later y is than x, in ms, by the highest correlation, and that correlation."""
    n, most = min(len(x), len(y)), most_ms * rate // 1000
    x, y = x[:n].astype(np.float64), y[:n].astype(np.float64)
    best = [float(np.dot(y[max(0, k) : n + min(0, k)], x[max(0, -k) : n - max(0, k)])) for k in range(-most, most + 1)]
    k = int(np.argmax(best))
    return (k - most) * 1000 / rate, best[k] / float(np.linalg.norm(x) * np.linalg.norm(y))
