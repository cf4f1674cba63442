"""The commonest case of RFC 6455 by itself: one whole, unfragmented binary message. Everything else is for the websockets library."""

from __future__ import annotations

import struct

from websockets.frames import Frame

try:
    from websockets.speedups import apply_mask
except ImportError:  # no C extension on this platform
    from websockets.utils import apply_mask

_BINARY, _MASKED = 0x82, 0x80


def one_message(data: bytes, most: int) -> bytes | None:
    """The payload, if data is exactly one masked binary message of at most 65,535 and `most` bytes, in its shortest form; else None."""
    n = len(data)
    if n < 7 or data[0] != _BINARY or n > most + 6:
        return None
    size = data[1] - _MASKED
    if 0 < size < 126:
        return apply_mask(data[6:], data[2:6]) if n == 6 + size else None
    if size != 126 or n < 8 + 126 or n != 8 + (data[2] << 8 | data[3]):
        return None
    return apply_mask(data[8:], data[4:8])


def wire_bytes(frame: Frame) -> int:
    """Bytes a client's frame took, if it was sent in its shortest form (it took more else)."""
    n = len(frame.data)
    return n + (6 if n < 126 else 8 if n < 1 << 16 else 14)


def binary(payload: bytes) -> bytes:
    """A server's binary message."""
    n = len(payload)
    if n < 126:
        return struct.pack(">BB", _BINARY, n) + payload
    return (struct.pack(">BBH", _BINARY, 126, n) if n < 1 << 16 else struct.pack(">BBQ", _BINARY, 127, n)) + payload
