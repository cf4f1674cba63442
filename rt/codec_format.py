"""The token file and stream of `voicewire codec`: self-describing, versioned, checked. All numbers little-endian.

    header   32 bytes  "vwtokens", version u8, flags u8 (1: variable rate), tokens a frame u8, bits a token u8, sample rate u32, frames a second u8,
                       3 zero bytes, fingerprint of the codec's weights (8 bytes), CRC-32 of all before
    packet   13 bytes  "P", number of its first frame u32, frames u16, bytes of payload u16, CRC-32 of these fields and the payload; then the payload
    end      17 bytes  "E", frames in all u32, samples in all u64, CRC-32 of these fields

Payload: at variable rate first one bit a frame (1: sent, 0: the tokens sent last are held; the first of a packet is always sent); then, at the next
whole byte, the tokens of the frames sent, semantic first, most significant bit first, filled up with zeros. Every packet can be read by itself.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from voicewire.engines.codec_config import FRAMES_PER_SECOND
from voicewire.engines.config import HOPS_PER_FRAME
from voicewire.engines.stft import MAX_RATE, MIN_RATE, hop_samples

MAGIC = b"vwtokens"
VERSION = 1
VARIABLE = 1
PACKET_FRAMES = 500  # 10 s: the heads are 10 bit/s; who sends them over a network takes fewer
_HEADER = struct.Struct("<8sBBBBIB3x8s")
_PACKET = struct.Struct("<cIHH")
_END = struct.Struct("<cIQ")
_CRC = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CRC.size

Tokens = NDArray[np.int64]


class TokenError(ValueError):
    """Not a whole, undamaged token file; the message is one line without the file's name."""


def frames_of(samples: int, rate: int) -> int:
    """Frames that carry `samples`: the last sample is under two windows, so one hop more than whole blocks."""
    hop = hop_samples(rate)
    return -(-(samples + hop) // (HOPS_PER_FRAME * hop))


@dataclass(frozen=True)
class Header:
    rate: int
    streams: int
    bits: int
    weights: str  # 16 hexadecimal digits
    variable: bool = False

    def pack(self) -> bytes:
        head = _HEADER.pack(MAGIC, VERSION, VARIABLE * self.variable, self.streams, self.bits, self.rate, FRAMES_PER_SECOND, bytes.fromhex(self.weights))
        return head + _CRC.pack(zlib.crc32(head))

    @classmethod
    def unpack(cls, data: bytes) -> Header:
        """From the first 32 bytes. TokenError for what is foreign, newer or damaged."""
        if not MAGIC.startswith(data[: len(MAGIC)]):
            raise TokenError("is not a voicewire token file")
        if len(data) < HEADER_BYTES:
            raise TokenError("is cut off in its header")
        _, version, flags, streams, bits, rate, frames, weights = _HEADER.unpack_from(data)
        if version != VERSION:
            raise TokenError(f"has version {version} of the token format, this voicewire reads version {VERSION}")
        if _CRC.unpack_from(data, _HEADER.size)[0] != zlib.crc32(data[: _HEADER.size]):
            raise TokenError("is damaged: the checksum of its header is wrong")
        if frames != FRAMES_PER_SECOND or flags > VARIABLE or not streams or not 1 <= bits <= 16 or not MIN_RATE <= rate <= MAX_RATE:
            raise TokenError(f"has {frames} frames a second of {streams} tokens of {bits} bits at {rate} Hz, which this voicewire cannot read")
        return cls(rate, streams, bits, weights.hex(), bool(flags & VARIABLE))


@dataclass(frozen=True)
class Packet:
    """tokens: [frames, streams], held ones filled in; sent: [frames] bool."""

    first: int
    tokens: Tokens
    sent: NDArray[np.bool_]


@dataclass(frozen=True)
class End:
    frames: int
    samples: int


def pack_bits(values: Tokens, bits: int) -> bytes:
    """Integers below 2^bits, most significant bit first, filled up to a whole byte with zeros."""
    if values.size and not 0 <= int(values.min()) <= int(values.max()) < 1 << bits:
        raise ValueError(f"a token is outside 0 to {(1 << bits) - 1}")
    shifts = np.arange(bits - 1, -1, -1)
    return np.packbits((values.reshape(-1, 1) >> shifts & 1).astype(np.uint8)).tobytes()


def unpack_bits(data: bytes, bits: int, n: int) -> Tokens:
    """Inverse of `pack_bits`; TokenError when the length or the filling is not as it must be."""
    if len(data) != -(-n * bits // 8):
        raise TokenError(f"is damaged: {n} tokens do not take {len(data)} bytes")
    stream = np.unpackbits(np.frombuffer(data, np.uint8))
    if stream[n * bits :].any():
        raise TokenError("is damaged: there is something behind the last token of a packet")
    out: Tokens = stream[: n * bits].reshape(n, bits).astype(np.int64) @ (1 << np.arange(bits - 1, -1, -1))
    return out


def pack_packet(header: Header, packet: Packet) -> bytes:
    n = len(packet.tokens)
    if not 1 <= n <= 0xFFFF or not packet.sent[0]:
        raise ValueError("a packet holds 1 to 65535 frames and begins with one that is sent")
    flags = np.packbits(packet.sent).tobytes() if header.variable else b""
    if not header.variable and not packet.sent.all():
        raise ValueError("at constant rate every frame is sent")
    payload = flags + pack_bits(packet.tokens[packet.sent], header.bits)
    head = _PACKET.pack(b"P", packet.first, n, len(payload))
    return head + _CRC.pack(zlib.crc32(payload, zlib.crc32(head))) + payload


def pack_end(end: End) -> bytes:
    tail = _END.pack(b"E", end.frames, end.samples)
    return tail + _CRC.pack(zlib.crc32(tail))


def _unpack_payload(header: Header, first: int, n: int, payload: bytes) -> Packet:
    sent, at = np.ones(n, bool), 0
    if header.variable:
        at = -(-n // 8)
        flags = np.unpackbits(np.frombuffer(payload[:at], np.uint8)).astype(bool)
        if len(payload) < at or not flags[0] or flags[n:].any():
            raise TokenError(f"is damaged: frame {first} cannot be held or sent as it says")
        sent = flags[:n]
    count = int(sent.sum())
    tokens = unpack_bits(payload[at:], header.bits, count * header.streams).reshape(count, header.streams)
    return Packet(first, tokens[np.cumsum(sent) - 1], sent)


class Parser:
    """Bytes as they come → packets. Nothing is handed out before its checksum is right; TokenError at the first thing that is not.

    `header` is None until its 32 bytes are there, `end` until the end was read.
    """

    def __init__(self) -> None:
        self.header: Header | None = None
        self.end: End | None = None
        self.frames = 0
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Packet]:
        self._rest += data
        if self.header is None:
            if len(self._rest) < HEADER_BYTES:
                if not MAGIC.startswith(self._rest[: len(MAGIC)]):
                    raise TokenError("is not a voicewire token file")
                return
            self.header = Header.unpack(self._rest)
            self._rest = self._rest[HEADER_BYTES:]
        while self._rest:
            if self.end is not None:
                raise TokenError("is damaged: there is something behind its end")
            packet = self._packet(self.header)
            if packet is not None:
                yield packet
            elif self.end is None:
                return

    def finish(self) -> End:
        """What the end says; TokenError if it has not come."""
        if self.header is None:
            Header.unpack(self._rest)
        if self.end is None:
            raise TokenError(f"is cut off after {self.frames / FRAMES_PER_SECOND:.1f} s; copy or record it again")
        return self.end

    def _checked(self, size: int, head: int) -> bytes | None:
        """The next `size` bytes of which the first `head` and those after the checksum are checked; None: not there yet."""
        if len(self._rest) < size:
            return None
        data, self._rest = self._rest[:size], self._rest[size:]
        body = data[head + _CRC.size :]
        if _CRC.unpack_from(data, head)[0] != zlib.crc32(body, zlib.crc32(data[:head])):
            raise TokenError(f"is damaged after {self.frames / FRAMES_PER_SECOND:.1f} s: a checksum is wrong")
        return body

    def _packet(self, header: Header) -> Packet | None:
        kind = self._rest[:1]
        if kind == b"E":
            ending = self._rest[: _END.size]
            if self._checked(_END.size + _CRC.size, _END.size) is None:
                return None
            _, frames, samples = _END.unpack(ending)
            if frames != self.frames or frames != frames_of(samples, header.rate):
                raise TokenError(f"is damaged: it has {self.frames} frames and says {frames} for {samples} samples")
            self.end = End(frames, samples)
            return None
        if kind != b"P":
            raise TokenError(f"is damaged after {self.frames / FRAMES_PER_SECOND:.1f} s: neither a packet nor the end")
        if len(self._rest) < _PACKET.size:
            return None
        _, first, n, size = _PACKET.unpack_from(self._rest)
        payload = self._checked(_PACKET.size + _CRC.size + size, _PACKET.size)
        if payload is None:
            return None
        if first != self.frames or not n:
            raise TokenError(f"is damaged: frame {self.frames} is missing")
        packet = _unpack_payload(header, first, n, payload)
        self.frames += n
        return packet
