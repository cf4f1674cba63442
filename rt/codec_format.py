"""The token file and stream of `voicewire codec`: self-describing, versioned, checked. All numbers little-endian.

    header   24 bytes  "vwtokens", version u8, tokens a frame u8 (and 128: variable rate), sample rate u16, fingerprint of the codec's weights and odds
                       (8 bytes), CRC-32 of all before
    packet    8 bytes  frames u16 (1 to 500), bytes of payload u16, CRC-32 of the number of its first frame (u32, not written) and of all else; then the payload
    end      12 bytes  zero u16, samples in all u48, CRC-32 of the number of frames in all (u32, not written) and of all before

Payload: the packet's frames by `codec_payload`; every packet can be read by itself. A frame is 20 ms.

Messages of a relay are smaller than a packet's head is worth: `pack_bits` is all they have.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from voicewire.engines.codec_config import FRAMES_PER_SECOND
from voicewire.engines.codec_odds import Odds
from voicewire.engines.config import HOPS_PER_FRAME
from voicewire.engines.stft import MAX_RATE, MIN_RATE, hop_samples

from .codec_payload import pack_frames, unpack_frames

MAGIC = b"vwtokens"
VERSION = 2
VARIABLE = 128
PACKET_FRAMES = 500  # 10 s, and no packet has more: what a reader must hold and count on is bounded
_HEADER = struct.Struct("<8sBBH8s")
_PACKET = struct.Struct("<HH")
_CRC = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CRC.size
_SAMPLES_BYTES = 6
_END_BYTES = 2 + _SAMPLES_BYTES

Tokens = NDArray[np.int64]


class TokenError(ValueError):
    """Not a whole, undamaged token file; the message is one line without the file's name."""


def frames_of(samples: int, rate: int) -> int:
    """Frames that carry `samples`: the last sample is under two windows, so one hop more than whole blocks."""
    hop = hop_samples(rate)
    return -(-(samples + hop) // (HOPS_PER_FRAME * hop))


def _crc(first: int, *parts: bytes) -> bytes:
    """Of what is written behind `first` frames."""
    crc = zlib.crc32(_CRC.pack(first))
    for part in parts:
        crc = zlib.crc32(part, crc)
    return _CRC.pack(crc)


@dataclass(frozen=True)
class Header:
    rate: int
    streams: int
    fingerprint: str  # of weights and odds, 16 hexadecimal digits
    variable: bool = False

    def pack(self) -> bytes:
        head = _HEADER.pack(MAGIC, VERSION, self.streams + VARIABLE * self.variable, self.rate, bytes.fromhex(self.fingerprint))
        return head + _CRC.pack(zlib.crc32(head))

    @classmethod
    def unpack(cls, data: bytes) -> Header:
        """From the first 24 bytes. TokenError for what is foreign, older, newer or damaged."""
        if not MAGIC.startswith(data[: len(MAGIC)]):
            raise TokenError("is not a voicewire token file")
        if len(data) < HEADER_BYTES:
            raise TokenError("is cut off in its header")
        _, version, kind, rate, fingerprint = _HEADER.unpack_from(data)
        if version != VERSION:
            raise TokenError(f"has version {version} of the token format, this voicewire reads version {VERSION}; encode the sound again")
        if _CRC.unpack_from(data, _HEADER.size)[0] != zlib.crc32(data[: _HEADER.size]):
            raise TokenError("is damaged: the checksum of its header is wrong")
        streams = kind & ~VARIABLE
        if not streams or not MIN_RATE <= rate <= MAX_RATE:
            raise TokenError(f"has {streams} tokens a frame at {rate} Hz, which this voicewire cannot read")
        return cls(rate, streams, fingerprint.hex(), bool(kind & VARIABLE))


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


def pack_packet(header: Header, packet: Packet, odds: Odds) -> bytes:
    n = len(packet.tokens)
    if not 1 <= n <= PACKET_FRAMES or not packet.sent[0]:
        raise ValueError(f"a packet holds 1 to {PACKET_FRAMES} frames and begins with one that is sent")
    if not header.variable and not packet.sent.all():
        raise ValueError("at constant rate every frame is sent")
    payload = pack_frames(packet.tokens, packet.sent, odds, header.variable)
    head = _PACKET.pack(n, len(payload))
    return head + _crc(packet.first, head, payload) + payload


def pack_end(end: End) -> bytes:
    tail = bytes(2) + end.samples.to_bytes(_SAMPLES_BYTES, "little")
    return tail + _crc(end.frames, tail)


class Parser:
    """Bytes as they come → packets. Nothing is handed out before its checksum is right; TokenError at the first thing that is not.

    odds: of the codec that is to hear them. `header` is None until its 24 bytes are there, `end` until the end was read.
    """

    def __init__(self, odds: Odds) -> None:
        self.header: Header | None = None
        self.end: End | None = None
        self.frames = 0
        self._odds = odds
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Packet]:
        self._rest += data
        if self.header is None:
            if len(self._rest) < HEADER_BYTES:
                if not MAGIC.startswith(self._rest[: len(MAGIC)]):
                    raise TokenError("is not a voicewire token file")
                return
            header = Header.unpack(self._rest)
            if header.fingerprint != self._odds.fingerprint or header.streams > self._odds.streams:
                raise TokenError(f"was made with codec weights {header.fingerprint}, here are {self._odds.fingerprint}; name the right folder with --weights")
            self.header, self._rest = header, self._rest[HEADER_BYTES:]
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
            raise TokenError(f"is cut off after {self._seconds()}; copy or record it again")
        return self.end

    def _seconds(self) -> str:
        return f"{self.frames / FRAMES_PER_SECOND:.1f} s"

    def _checked(self, head: int, body: int) -> tuple[bytes, bytes] | None:
        """The next `head` bytes and, behind their checksum, `body` bytes; None: not there yet."""
        size = head + _CRC.size + body
        if len(self._rest) < size:
            return None
        data, self._rest = self._rest[:size], self._rest[size:]
        parts = data[:head], data[head + _CRC.size :]
        if data[head : head + _CRC.size] != _crc(self.frames, *parts):
            raise TokenError(f"is damaged after {self._seconds()}: a checksum is wrong, or something is missing")
        return parts

    def _packet(self, header: Header) -> Packet | None:
        if len(self._rest) < _PACKET.size:
            return None
        n, size = _PACKET.unpack_from(self._rest)
        if n == 0:
            ending = self._checked(_END_BYTES, 0)
            if ending is not None:
                samples = int.from_bytes(ending[0][2:], "little")
                if self.frames != frames_of(samples, header.rate):
                    raise TokenError(f"is damaged: it has {self.frames} frames for {samples} samples")
                self.end = End(self.frames, samples)
            return None
        if n > PACKET_FRAMES:
            raise TokenError(f"is damaged after {self._seconds()}: neither a packet nor the end")
        parts = self._checked(_PACKET.size, size)
        if parts is None:
            return None
        try:
            packet = Packet(self.frames, *unpack_frames(parts[1], n, header.streams, self._odds, header.variable))
        except ValueError as e:
            raise TokenError(f"is damaged after {self._seconds()}: {e}") from None
        self.frames += n
        return packet
