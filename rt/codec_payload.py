"""The frames of a packet as one large whole number: asymmetric numeral systems (Duda 2009), never cut into words, as Python's integers are of any length.

Written from the last token to the first, so that they are read in the order in which they were spoken, each with odds that depend on those before it in the
packet. The number takes as many bits as the odds say and one or two bytes more.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from voicewire.engines.codec_odds import TOTAL_BITS, Odds

Tokens = NDArray[np.int64]
Sent = NDArray[np.bool_]
MASK = (1 << TOTAL_BITS) - 1
LONGEST = 16
AT_ONCE = 32  # frames: what is counted for them fits into a cache


class Holds:
    """How likely the next frame is held, learned from those of the packet so far, apart for every time that tokens were held already: Krichevsky-Trofimov."""

    def __init__(self) -> None:
        self._seen = [[1, 1] for _ in range(LONGEST)]  # in halves: sent, held
        self._run = 0

    def _sent(self) -> int:
        """What "sent" counts out of 2^20."""
        sent, held = self._seen[min(self._run, LONGEST - 1)]
        return (sent << TOTAL_BITS) // (sent + held)

    def symbol(self, held: bool) -> tuple[int, int]:
        """(what it counts, what comes before it) of the next frame's being held or sent"""
        sent = self._sent()
        return (MASK + 1 - sent, sent) if held else (sent, 0)

    def held(self, place: int) -> bool:
        return place >= self._sent()

    def learn(self, held: bool) -> None:
        self._seen[min(self._run, LONGEST - 1)][held] += 2
        self._run = self._run + 1 if held else 0


class _Number:
    """A whole number that symbols are pushed on and taken from, last in, first out."""

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def push(self, count: int, below: int) -> None:
        """A symbol of `count` out of 2^20, `below` of which come before it."""
        whole, rest = divmod(self.value, count)
        self.value = (whole << TOTAL_BITS) + below + rest

    def peek(self) -> int:
        return self.value & MASK

    def take(self, count: int, below: int) -> None:
        self.value = count * (self.value >> TOTAL_BITS) + (self.value & MASK) - below


def _frames(tokens: Tokens, at: NDArray[np.int64], odds: Odds) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """tokens: [n, streams] of the frames sent, at: [n] when → what each token counts, and all codes before it: [n, streams] twice."""
    n, streams = tokens.shape
    before, earlier = np.full_like(tokens, -1), np.full_like(tokens, -1)
    before[1:], earlier[2:] = tokens[:-1], tokens[:-2]
    said = odds.past(before, earlier, np.diff(at, prepend=at[0]))
    counts, below = np.zeros_like(tokens), np.zeros_like(tokens)
    for s in range(streams):
        for part in (slice(t, t + AT_ONCE) for t in range(0, n, AT_ONCE)):
            here, all_counts = tokens[part, s, None], odds.counts(s, said[part])
            counts[part, s] = np.take_along_axis(all_counts, here, 1)[:, 0]
            below[part, s] = np.take_along_axis(all_counts.cumsum(1), here, 1)[:, 0] - counts[part, s]
        said = odds.add(said, s, tokens[:, s])
    return counts, below


def pack_frames(tokens: Tokens, sent: Sent, odds: Odds, variable: bool) -> bytes:
    """tokens: [frames, streams or fewer], of which those `sent`: [frames] bool are written, the first always → bytes."""
    if tokens.min() < 0 or tokens.max() >= odds.codes:
        raise ValueError(f"a token is outside 0 to {odds.codes - 1}")
    at = np.flatnonzero(sent)
    counts, below = (x.tolist() for x in _frames(tokens[sent], at, odds))
    symbols: list[tuple[int, int]] = []
    holds, written = Holds(), 0
    for t, here in enumerate(sent.tolist()):
        if variable and t:
            symbols.append(holds.symbol(not here))
            holds.learn(not here)
        if here:
            symbols += zip(counts[written], below[written], strict=True)
            written += 1
    number = _Number()
    for symbol in reversed(symbols):
        number.push(*symbol)
    return number.value.to_bytes((number.value.bit_length() + 7) // 8, "big")


def unpack_frames(data: bytes, frames: int, streams: int, odds: Odds, variable: bool) -> tuple[Tokens, Sent]:
    """Inverse of `pack_frames`: (tokens [frames, streams], held ones filled in; sent [frames]). ValueError where something is left over or missing."""
    number, holds = _Number(int.from_bytes(data, "big")), Holds()
    tokens, sent = np.zeros((frames, streams), np.int64), np.ones(frames, bool)
    none = np.full((1, streams), -1, np.int64)
    before, earlier, last = none, none, 0
    for t in range(frames):
        if variable and t:
            held = holds.held(number.peek())
            number.take(*holds.symbol(held))
            holds.learn(held)
            if held:
                sent[t], tokens[t] = False, tokens[t - 1]
                continue
        said = odds.past(before, earlier, np.array([t - last]))
        for s in range(streams):
            ends = odds.counts(s, said)[0].cumsum()
            code = int(ends.searchsorted(number.peek(), "right"))
            below = int(ends[code - 1]) if code else 0
            number.take(int(ends[code]) - below, below)
            tokens[t, s] = code
            said = odds.add(said, s, tokens[t : t + 1, s])
        before, earlier, last = tokens[t : t + 1], before, t
    if number.value or data[:1] == b"\0":
        raise ValueError("something is left over")
    return tokens, sent
