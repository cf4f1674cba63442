"""Codec tokens as audio: frames of 20 ms, 5 tokens of 10 bits each with the default weights, packed without heads. 2.5 kbit/s in messages of four frames.

A message can be read without the one before it, so a lost one costs its own frames and no more. Both ends need the same weights.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from voicewire.engines.codec_config import FRAMES_PER_SECOND
from voicewire.engines.codec_engine import CODEC_WEIGHTS, CodecEngine
from voicewire.engines.engine import EngineError

from ..codec import TokenDecoder, TokenEncoder
from ..codec_format import TokenError, pack_bits, unpack_bits
from ..lane import Samples, to_int16
from .events import ProtocolError

MOST_FRAMES = 10  # a message: they are decoded where they arrive, while all others wait
SECOND_MESSAGES = 10.0 * FRAMES_PER_SECOND  # see `events.Adapter`


@cache
def shared_engine() -> CodecEngine:
    """One for all streams; it keeps no state."""
    return CodecEngine(CODEC_WEIGHTS)


class Tokens:
    """Decoder and encoder of one stream. weights: fingerprint of the client's codec. ProtocolError where it is another than ours, or we have none.

    Answers carry as many frames a message as the first message that came. Every way through the codec is one hop (10 ms) late.
    """

    def __init__(self, rate: int, channels: int, weights: str) -> None:
        if channels != 1:
            raise ProtocolError("bad_field", "tokens are of one channel")
        try:
            self._engine = shared_engine()
        except EngineError as e:
            raise ProtocolError("unsupported", f"this server has no tokens: {e}; or send s16le", fatal=True) from None
        if weights != self._engine.weights:
            raise ProtocolError("bad_field", f"weights must be those of this server's codec, {self._engine.weights}; others cannot read its tokens")
        self._decoder, self._encoder = TokenDecoder(rate, self._engine), TokenEncoder(rate, self._engine)
        self._bits, self._streams = self._engine.config.bits, self._engine.config.streams
        self._frames: int | None = None
        self._held = np.zeros((0, self._streams), np.int64)

    def decode(self, payload: bytes | memoryview) -> Samples:
        """Whole frames → [n, 1] int16."""
        frames = 8 * len(payload) // (self._bits * self._streams)
        if not 1 <= frames <= MOST_FRAMES:
            raise ProtocolError(
                "bad_audio", f"a message holds 1 to {MOST_FRAMES} frames of {self._streams} tokens of {self._bits} bits, not {len(payload)} bytes"
            )
        try:
            tokens = unpack_bits(bytes(payload), self._bits, frames * self._streams)
        except TokenError:
            raise ProtocolError("bad_audio", f"{len(payload)} bytes are not whole frames of tokens, filled up with zeros to a whole byte") from None
        if self._frames is None:
            self._frames = frames
        return to_int16(self._decoder.process(tokens.reshape(frames, self._streams)))[:, None]

    def encode(self, y: Samples) -> list[bytes]:
        """[n, 1] int16 → the messages that are full."""
        self._held = np.concatenate([self._held, self._encoder.process(y[:, 0])[0]])
        size, messages = self._frames or 1, []
        while len(self._held) >= size:
            messages.append(pack_bits(self._held[:size], self._bits))
            self._held = self._held[size:]
        return messages

    def flush(self) -> list[bytes]:
        """What is left, and the frames that the last samples are in."""
        left = np.concatenate([self._held, self._encoder.flush()[0]])
        self._held = left[:0]
        return [pack_bits(left, self._bits)] if len(left) else []
