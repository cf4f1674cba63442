"""Sound to tokens and back, in blocks of any size: what `voicewire codec` and a relay run on. The delay of both together is 30 ms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voicewire.engines.codec_config import FRAMES_PER_SECOND
from voicewire.engines.codec_engine import CodecEngine
from voicewire.engines.codec_high import extend
from voicewire.engines.codec_odds import Odds
from voicewire.engines.codec_variable import VariableRate, VariableStream
from voicewire.engines.config import CORE_BINS, HOPS_PER_FRAME
from voicewire.engines.stft import BINS, analyse, hop_samples, synthesise

from .codec_format import PACKET_FRAMES, End, Header, Packet, Parser, frames_of, pack_end, pack_packet
from .codec_payload import Sent
from .lane import F32, Samples, to_float

I64 = NDArray[np.int64]
DECODED_FRAMES = 500  # made into sound at once


class _Framed:
    """One channel of sound, in blocks of any size → spectra of whole frames, [1, 2, 160, 2] each."""

    def __init__(self, rate: int) -> None:
        self.hop = hop_samples(rate)
        self.rate, self.samples = rate, 0
        self._tail: F32 = np.zeros((1, self.hop), np.float32)
        self._rest: F32 = np.zeros(0, np.float32)

    def _complete(self, block: Samples) -> Iterator[F32]:
        self.samples += len(block)
        return self._spectra(to_float(block)[0])

    def _last(self) -> Iterator[F32]:
        missing = frames_of(self.samples, self.rate) * HOPS_PER_FRAME * self.hop - self.samples
        return self._spectra(np.zeros(missing, np.float32))

    def _spectra(self, block: F32) -> Iterator[F32]:
        size = HOPS_PER_FRAME * self.hop
        x = np.concatenate([self._rest, block])
        whole = len(x) // size * size
        self._rest = x[whole:].copy()
        for at in range(0, whole, size):
            spec, self._tail = analyse(self._tail, x[None, at : at + size])
            yield spec[:, :, :CORE_BINS]


class TokenEncoder(_Framed):
    """One channel of sound → tokens, frame by frame.

    rate: 8,000 to 48,000 Hz, no resampling; sound above 8 kHz is not coded, the decoder makes it up (codec_high). NaN and infinities are taken for silence.
    """

    def __init__(self, rate: int, engine: CodecEngine) -> None:
        super().__init__(rate)
        self.engine = engine
        self._state = engine.init_encoder(1)

    def process(self, block: Samples) -> tuple[I64, F32]:
        """block: [n] float32 or int16, any n → tokens [frames, streams] and semantic vectors [frames, code_dim] of the frames that are now complete."""
        return self._run(self._complete(block))

    def flush(self) -> tuple[I64, F32]:
        """The frames that the last samples are in."""
        return self._run(self._last())

    def _run(self, spectra: Iterator[F32]) -> tuple[I64, F32]:
        cfg = self.engine.config
        tokens, semantic = [np.zeros((0, cfg.streams), np.int64)], [np.zeros((0, cfg.code_dim), np.float32)]
        for spec in spectra:
            t, s, self._state = self.engine.encode(spec, self._state)
            tokens.append(t)
            semantic.append(s)
        return np.concatenate(tokens), np.concatenate(semantic)


class VariableEncoder(_Framed):
    """One channel of sound → tokens at variable rate, frame by frame, and which of them are sent. See `TokenEncoder`.

    streams: tokens a frame; packet_frames: how many frames are written together, of which the first is always sent.
    """

    def __init__(self, rate: int, engine: CodecEngine, variable: VariableRate, streams: int, packet_frames: int) -> None:
        super().__init__(rate)
        self.engine = engine
        self._stream = VariableStream(variable, engine.search, streams, packet_frames)
        self._state = engine.init_encoder(1)
        self._tokens = np.zeros((1, streams), np.int64)

    def process(self, block: Samples) -> tuple[I64, Sent]:
        """block: [n] float32 or int16, any n → tokens [frames, streams], held ones filled in, and sent [frames] of the frames that are now complete."""
        return self._run(self._complete(block))

    def flush(self) -> tuple[I64, Sent]:
        """The frames that the last samples are in."""
        return self._run(self._last())

    def _run(self, spectra: Iterator[F32]) -> tuple[I64, Sent]:
        tokens, sent = [self._tokens[:0]], []
        for spec in spectra:
            acoustic, semantic, self._state = self.engine.hear(spec, self._state)
            new = self._stream.next(acoustic[0], semantic[0], float(np.square(spec).sum()))
            self._tokens = self._tokens if new is None else new[None]
            tokens.append(self._tokens)
            sent.append(new is not None)
        return np.concatenate(tokens), np.array(sent, bool)


class TokenDecoder:
    """Tokens → sound. The first `hop` samples that come out are from before the first that went in."""

    def __init__(self, rate: int, engine: CodecEngine) -> None:
        self.hop = hop_samples(rate)
        self.rate, self.engine = rate, engine
        self._state = engine.init_decoder(1)
        self._overlap: F32 = np.zeros((1, self.hop), np.float32)

    def process(self, tokens: I64) -> F32:
        """tokens: [frames, streams or fewer], -1 where one is missing → [frames 20 ms] float32."""
        missing = self.engine.config.streams - tokens.shape[1]
        tokens = np.pad(tokens, ((0, 0), (0, missing)), constant_values=-1)
        out = np.zeros((len(tokens), HOPS_PER_FRAME * self.hop), np.float32)
        spec = np.zeros((1, HOPS_PER_FRAME, BINS, 2), np.float32)
        for t in range(len(tokens)):
            spec[:, :, :CORE_BINS], self._state = self.engine.decode(tokens[t : t + 1], self._state)
            if self.hop > CORE_BINS:  # above 16 kHz: there are bins above those that tokens tell of
                extend(spec)
            out[t : t + 1], self._overlap = synthesise(self._overlap, spec)
        return out.reshape(-1)


def streams_within(kbit_s: float, engine: CodecEngine) -> int:
    """How many tokens a frame fit into a bit rate as they are; in files they take less. ValueError where not even the semantic one does."""
    each = FRAMES_PER_SECOND * engine.config.bits / 1000
    streams = int(kbit_s / each + 1e-6)
    if streams < 1:
        raise ValueError(f"{kbit_s:g} kbit/s is too little; the semantic tokens alone take {each:g} kbit/s")
    return min(streams, engine.config.streams)


def encode(
    blocks: Iterable[F32],
    rate: int,
    engine: CodecEngine,
    variable: VariableRate | None = None,
    *,
    streams: int | None = None,
    packet_frames: int = PACKET_FRAMES,
) -> Iterator[bytes]:
    """Blocks of sound → bytes of the token format, a packet at a time. variable: None for constant rate; streams: leave out the last acoustic layers."""
    streams = engine.config.streams if streams is None else streams
    encoder = VariableEncoder(rate, engine, variable, streams, packet_frames) if variable else TokenEncoder(rate, engine)
    header = Header(rate, streams, engine.odds.fingerprint, variable is not None)
    yield header.pack()
    tokens, sent, first = np.zeros((0, streams), np.int64), np.zeros(0, bool), 0

    def packets(whole: bool) -> Iterator[bytes]:
        nonlocal tokens, sent, first
        while len(tokens) >= packet_frames or (whole and len(tokens)):
            here = sent[:packet_frames]
            yield pack_packet(header, Packet(first, tokens[:packet_frames], here), engine.odds)
            first += len(here)
            tokens, sent = tokens[packet_frames:], sent[packet_frames:]

    def take(new: I64, told: NDArray[Any]) -> None:
        """told: which frames are sent, or semantic vectors"""
        nonlocal tokens, sent
        tokens, sent = np.concatenate([tokens, new[:, :streams]]), np.concatenate([sent, told if variable else np.ones(len(new), bool)])

    for block in blocks:
        take(*encoder.process(block))
        yield from packets(False)
    take(*encoder.flush())
    yield from packets(True)
    yield pack_end(End(first, encoder.samples))


def read_tokens(data: bytes, odds: Odds) -> tuple[Header, I64, Sent, int]:
    """A whole token file → (header, tokens [frames, streams], sent [frames], samples). TokenError when it is not whole, or of other weights."""
    parser = Parser(odds)
    packets = list(parser.feed(data))
    end = parser.finish()
    assert parser.header is not None
    if not packets:
        return parser.header, np.zeros((0, parser.header.streams), np.int64), np.zeros(0, bool), end.samples
    return parser.header, np.concatenate([p.tokens for p in packets]), np.concatenate([p.sent for p in packets]), end.samples


def decoded(tokens: I64, rate: int, samples: int, engine: CodecEngine) -> Iterator[F32]:
    """[frames, streams] → blocks of sound, [n] float32 each, `samples` in all, aligned with what was encoded."""
    decoder = TokenDecoder(rate, engine)
    early, left = decoder.hop, samples
    for at in range(0, len(tokens), DECODED_FRAMES):
        y = decoder.process(tokens[at : at + DECODED_FRAMES])[early:][:left]
        early, left = 0, left - len(y)
        yield y


def decode(tokens: I64, rate: int, samples: int, engine: CodecEngine) -> F32:
    """All that is `decoded`: [samples] float32."""
    return np.concatenate([np.zeros(0, np.float32), *decoded(tokens, rate, samples, engine)])
