"""Films and .m4a in the making: the cleaned sound, encoded, beside the picture and all else, copied packet by packet."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from .files import F32, InputError, Recording, Writing
from .media import CONTAINERS, Sound, is_still, library

BITS_A_CHANNEL = 64_000
RATES = {
    "aac": (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000),
    "libopus": (8000, 12000, 16000, 24000, 48000),
}
LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
SOUND_ONLY = (".m4a", ".mka")
STALE = ("duration", "encoder", "major_brand", "minor_version", "compatible_brands", "bps", "number_of_frames", "number_of_bytes")  # of the old file


def _tags(metadata: dict[str, str]) -> dict[str, str]:
    return {k: v for k, v in metadata.items() if k.lower() not in STALE and not k.startswith("_STATISTICS")}


class Film(Writing):
    """As `Writing`. Of `source`, where it is a `Sound`, goes along what the container can hold: for a film everything but the track that was cleaned, for
    .m4a and .mka the cover; tags and chapters, too. Nothing of it is decoded. `notes` says what was left out.

    The sound is AAC, Opus in .webm, BITS_A_CHANNEL a channel; a rate that the coding does not have becomes the next higher one. Its delay (priming) is
    declared to the container, and it begins at the time at which the source's did.
    """

    def __init__(self, path: Path, rate: int, channels: int, source: Recording | None = None) -> None:
        av = library()
        self._av, self._failures = av, (av.FFmpegError, OSError, UnicodeError)
        container, coding = CONTAINERS[path.suffix.lower()]
        self.path, self.rate, self.notes = path, rate, []
        if channels not in LAYOUTS:
            raise InputError(f"{channels} channels do not go into {path.suffix}; use .wav")
        self._film = source if isinstance(source, Sound) else None
        same = self._film is not None and self._film.channels == channels and "channel" not in self._film.layout
        self._layout = self._film.layout if self._film is not None and same else LAYOUTS[channels]
        self._part = path.resolve().with_name(f".{path.resolve().name}.{os.getpid()}.part")  # a link stays one
        self._at = 0 if self._film is None else round((self._film.start_s - self._film.zero_s) * rate)
        self._early = self.rate // 2000 if coding == "libopus" else 0  # FFmpeg's Matroska counts Opus' delay of 6.5 ms as 7
        self._reading = ExitStack()
        self._copies: Iterator[Any] = iter(())
        with self._refused():
            brand = {"brand": "M4A "} if path.suffix.lower() == ".m4a" else {}
            self._out = av.open(str(self._part), "w", format=container, container_options=brand)
            if self._film is None:
                self._track = self._added(coding, channels)
            else:
                film = self._reading.enter_context(self._film.opened())
                self._copies = self._packets(film, self._film, self._add_tracks(film, self._film, coding, channels))
            self._out.start_encoding()
            self._next: Any = next(self._copies, None)

    def _added(self, coding: str, channels: int) -> Any:
        rates = RATES[coding]
        rate = min((r for r in rates if r >= self.rate), default=rates[-1])
        track = self._out.add_stream(coding, rate=rate)
        track.codec_context.layout = self._layout
        track.codec_context.bit_rate = min(BITS_A_CHANNEL, 4 * rate) * channels
        return track

    def _like(self, stream: Any, container: str) -> Any:
        """A track for the packets of one of the source's, or None where the container cannot hold them."""
        try:
            out = self._out.add_stream_from_template(stream, opaque=True)
        except ValueError:  # of PyAV, where the container does not have the coding
            return None
        name = stream.codec_context.name if stream.codec_context is not None else ""
        if name == "hevc" and container in ("mp4", "mov"):
            out.codec_context.codec_tag = "hvc1"  # what Apple's players ask for, instead of FFmpeg's hev1
        elif name == "prores" and container == "mov":
            out.codec_context.codec_tag = stream.codec_context.codec_tag
        return out

    def _add_tracks(self, film: Any, source: Sound, coding: str, channels: int) -> dict[int, Any]:
        """All there will be, in the source's order → by the source's index, those that its packets are copied to. Tags and chapters, too."""
        ending = self.path.suffix.lower()
        targets: dict[int, Any] = {}
        for stream in film.streams:
            cover = stream.type == "video" and is_still(stream)
            if stream.index == source.index:
                out = self._track = self._added(coding, channels)
            elif stream.type == "data" or (ending in SOUND_ONLY and not cover):
                continue  # (data: clocks and sensors, which FFmpeg can hardly write)
            elif (out := self._like(stream, CONTAINERS[ending][0])) is not None:
                targets[stream.index] = out
            elif stream.type == "video" and not cover:
                name = "unknown" if stream.codec_context is None else stream.codec_context.name
                raise InputError(f"the picture of {source.path} ({name}) does not go into {ending}; name the result {source.path.suffix} or .mkv")
            else:
                self.notes.append(f"track {stream.index} ({stream.type}) of {source.path.name} does not go into {ending} and is left out")
                continue
            out.disposition = stream.disposition.value
            out.metadata.update(_tags(stream.metadata))
        self._out.metadata.update(_tags(film.metadata))
        if chapters := film.chapters():
            for c in chapters:
                shift = round(source.zero_s / c["time_base"])
                c["start"], c["end"] = c["start"] - shift, c["end"] - shift
            self._out.set_chapters(chapters)
        return targets

    def _packets(self, film: Any, source: Sound, targets: dict[int, Any]) -> Iterator[Any]:
        """Those to be copied, as they come, on a clock that begins with the film, and one after the other in every track."""
        last: dict[int, int] = {}
        for packet in film.demux([s for s in film.streams if s.index in targets]) if targets else ():
            if packet.pts is None and packet.dts is None:
                if not packet.size:
                    continue  # the end of a track
                packet.pts = packet.dts = 0
            index, shift = packet.stream_index, round(source.zero_s / packet.time_base)
            dts = (packet.pts if packet.dts is None else packet.dts) - shift
            packet.dts = last[index] = max(dts, last.get(index, dts - 1) + 1)
            packet.pts = packet.dts if packet.pts is None else max(packet.pts - shift, packet.dts)
            packet.stream = targets[index]
            yield packet

    def _copy(self, until_s: float) -> None:
        while self._next is not None and self._next.dts * self._next.time_base <= until_s:
            self._out.mux(self._next)
            self._next = next(self._copies, None)

    def write(self, x: F32) -> None:
        if not len(x):
            return
        packed = np.ascontiguousarray(np.clip(x, -1, 1), dtype=np.float32).reshape(1, -1)
        frame = self._av.AudioFrame.from_ndarray(packed, format="flt", layout=self._layout)
        frame.sample_rate, frame.pts, frame.time_base = self.rate, self._at - self._early, Fraction(1, self.rate)
        self._at += len(x)
        with self._refused():
            self._out.mux(self._track.encode(frame))
            self._copy(self._at / self.rate)

    def _close(self, whole: bool) -> None:
        try:
            if whole:
                self._out.mux(self._track.encode(None))
                self._copy(math.inf)
        finally:
            self._copies = iter(())  # (a reader that is still at it, before what it reads)
            self._reading.close()
            try:
                self._out.close()
            except self._failures:
                if whole:
                    raise
