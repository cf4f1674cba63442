"""The commonest case of RFC 6455 by itself: whole, unfragmented binary messages. Everything else is for the websockets library."""

from __future__ import annotations

import struct

from websockets.frames import Frame

try:
    from websockets.speedups import apply_mask
except ImportError:  # no C extension on this platform
    from websockets.utils import apply_mask

_TEXT, _BINARY, _MASKED = 0x81, 0x82, 0x80


def whole_messages(data: bytes, most: int) -> tuple[list[bytes], int]:
    """The binary messages data begins with, each masked, at most 65,535 and `most` bytes long, in its shortest form.

    → (their payloads, bytes they took); what follows is something else, or not all there yet.
    """
    found: list[bytes] = []
    at, n = 0, len(data)
    while n - at >= 7 and data[at] == _BINARY:
        size, body = data[at + 1] - _MASKED, at + 6
        if size == 126:
            size, body = data[at + 2] << 8 | data[at + 3], at + 8
            if size < 126:
                break
        elif not 0 < size < 126:
            break
        if size > most or body + size > n:
            break
        found.append(apply_mask(data[body : body + size], data[body - 4 : body]))
        at = body + size
    return found, at


def wire_bytes(frame: Frame) -> int:
    """Bytes a client's frame took, if it was sent in its shortest form (it took more else)."""
    n = len(frame.data)
    return n + (6 if n < 126 else 8 if n < 1 << 16 else 14)


def message(payload: str | bytes) -> bytes:
    """A server's message on the wire, text or binary."""
    kind, body = (_BINARY, payload) if isinstance(payload, bytes) else (_TEXT, payload.encode())
    n = len(body)
    if n < 126:
        return struct.pack(">BB", kind, n) + body
    return (struct.pack(">BBH", kind, 126, n) if n < 1 << 16 else struct.pack(">BBQ", kind, 127, n)) + body
