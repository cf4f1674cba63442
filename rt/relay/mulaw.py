"""µ-law of telephones (ITU-T G.711): 8 bits a sample. Tables; Python's own `audioop` is gone since 3.13."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

I16 = NDArray[np.int16]
_BIAS, _MOST = 0x84, 32635


def _decoded() -> I16:
    code = ~np.arange(256, dtype=np.int32) & 0xFF
    size = (((code & 0x0F) << 3) + _BIAS << ((code & 0x70) >> 4)) - _BIAS
    return np.where(code & 0x80, -size, size).astype(np.int16)


def _encoded() -> NDArray[np.uint8]:
    """By sample as uint16."""
    x = np.arange(65536).astype(np.uint16).view(np.int16).astype(np.int32)
    # 14 bits, as the tables of G.711 are written for: negative samples round down first
    size = np.minimum(np.where(x < 0, -(x >> 2), x >> 2), _MOST >> 2) + (_BIAS >> 2)
    exponent = np.maximum(0, np.floor(np.log2(np.maximum(size, 1))).astype(np.int32) - 5)
    mantissa = (size >> (exponent + 1)) & 0x0F
    sign = np.where(x < 0, 0x80, 0)
    code: NDArray[np.uint8] = (~(sign | exponent << 4 | mantissa) & 0xFF).astype(np.uint8)
    return code


_DECODED, _ENCODED = _decoded(), _encoded()


def decode(data: bytes) -> I16:
    """→ [len(data)] samples"""
    return _DECODED[np.frombuffer(data, np.uint8)]


def encode(samples: I16) -> bytes:
    return _ENCODED[np.ascontiguousarray(samples, np.int16).view(np.uint16)].tobytes()
