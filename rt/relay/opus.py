"""Opus packets as audio, through PyAV (extra `[opus]`). One packet a message, 2.5 to 60 ms in, 20 ms out."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..lane import Samples
from .events import ProtocolError

RATES = (8000, 12000, 16000, 24000, 48000)
BIT_RATE = 32000
PACKET_MS = 20
PRE_SKIP_MS = 6.5  # libopus looks ahead by so much when it is made for voice


class Opus:
    """Decoder and encoder of one stream. ProtocolError where PyAV is missing or the rate is none of Opus's."""

    def __init__(self, rate: int, channels: int) -> None:
        try:
            import av
        except ImportError:
            raise ProtocolError("unsupported", "this server has no Opus; on it: pip install 'voicewire[opus]'; or send s16le", fatal=True) from None
        if rate not in RATES or channels > 2:
            raise ProtocolError("bad_field", f"opus needs one or two channels and a rate of {', '.join(map(str, RATES))}")
        self._av: Any = av
        self._rate, self._channels = rate, channels
        layout = "mono" if channels == 1 else "stereo"
        self._decoder: Any = av.CodecContext.create("opus", "r")
        self._decoder.layout, self._decoder.sample_rate = layout, 48000
        self._down = av.AudioResampler("s16", layout, rate)
        self._encoder: Any = av.CodecContext.create("libopus", "w")
        self._encoder.layout, self._encoder.sample_rate, self._encoder.format = layout, rate, "s16"
        self._encoder.bit_rate = BIT_RATE
        self._encoder.options = {"application": "voip", "frame_duration": str(PACKET_MS)}
        self._encoder.open()
        self._layout, self._packet = layout, rate * PACKET_MS // 1000
        self._held = np.zeros((0, channels), np.int16)

    def decode(self, payload: bytes | memoryview) -> Samples:
        """One packet → [n, channels] int16."""
        if not len(payload):
            raise ProtocolError("bad_audio", "an empty message is no Opus packet")
        try:
            frames = [g for f in self._decoder.decode(self._av.Packet(bytes(payload))) for g in self._down.resample(f)]
        except (self._av.FFmpegError, ValueError):
            raise ProtocolError("bad_audio", "this message is no Opus packet") from None
        parts = [f.to_ndarray().reshape(-1, self._channels) for f in frames]
        return np.concatenate(parts) if parts else np.zeros((0, self._channels), np.int16)

    def encode(self, y: Samples) -> list[bytes]:
        """[n, channels] int16 → the packets that are full."""
        self._held = np.concatenate([self._held, y])
        packets = []
        while len(self._held) >= self._packet:
            packets += self._encode(self._held[: self._packet])
            self._held = self._held[self._packet :]
        return packets

    def flush(self) -> list[bytes]:
        """The last packet, filled up with silence."""
        if not len(self._held):
            return []
        last = np.zeros((self._packet, self._channels), np.int16)
        last[: len(self._held)] = self._held
        self._held = self._held[:0]
        return self._encode(last)

    def _encode(self, pcm: Samples) -> list[bytes]:
        frame = self._av.AudioFrame.from_ndarray(np.ascontiguousarray(pcm).reshape(1, -1), "s16", self._layout)
        frame.sample_rate = self._rate
        return [bytes(p) for p in self._encoder.encode(frame)]
