"""How likely each token is after those before it: the codec's own small model of its tokens, by which files are packed. Whole numbers only, so every machine
gets the same odds and reads what another one wrote.

Log-linear: every code of every stream has a row of `dim` numbers. Rows of the frame before, of the one before that and of the tokens of this frame that are
known already go through a matrix each and are added up; a code is the likelier the more its own row agrees with the sum. (The first columns began as the
codebooks themselves: codes near to what is expected are likely, as with a predictor and Gaussian errors.) Fitted by `tools.fit_codec_odds`, kept in
`odds.npz` beside the codec's weights. Without that file all codes are equally likely.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .codec_config import CodecConfig
from .engine import F32, EngineError

I64 = NDArray[np.int64]
FILE = "odds.npz"
TOTAL_BITS = 20  # odds of a token are out of 2^20: fewer would cost more in rare codes, more would cost more at the end of a packet
POWER_BITS = 24  # what the likeliest code weighs before all are brought to that sum
GAPS = 17  # frames since the last one that was sent, up to 16; 0: there is none
FINE_BITS, UNIT_BITS = 6, 14  # powers of two are told apart to 1/64 of a bit; logits are kept to 2^-14
_MOST = 1 << 30
_DEEP = 40  # a code this many bits behind the likeliest has no weight but the one that all have


def _fingerprint(weights: str, tables: dict[str, NDArray[Any]]) -> str:
    h = hashlib.sha256(weights.encode())
    for name in sorted(tables):
        h.update(f"{name} {tables[name].shape} ".encode() + tables[name].astype("<i8").tobytes())
    return h.hexdigest()[:16]


class Odds:
    """tables, integers: rows [streams, codes, dim], bias [streams, codes], before, earlier and now [streams, streams, dim, dim] (of stream k for stream l at
    [l, k]), gap [17, streams, dim], scale [streams], powers [64].

    fingerprint: of these and of the weights, 16 hexadecimal digits; it binds token files.
    """

    def __init__(self, weights: str, tables: dict[str, NDArray[Any]]) -> None:
        t = {k: v.astype(np.int64) for k, v in tables.items()}
        self.streams, self.codes, dim = t["rows"].shape
        self.fingerprint = _fingerprint(weights, tables)
        # in float64 for the fast product of matrices, which is exact: whole numbers, and below 2^53 whatever the order of the sum
        self._rows, self._bias = t["rows"].transpose(0, 2, 1).astype(np.float64), t["bias"] << (UNIT_BITS - FINE_BITS)
        self._scale, self._gap, self._powers = t["scale"], t["gap"], t["powers"]
        self._real_rows = (self._rows * (self._scale[:, None, None] / 2.0 ** (16 + UNIT_BITS))).astype(np.float32)
        self._real_bias = (t["bias"] / (1 << FINE_BITS)).astype(np.float32)
        # what each code of each stream adds for each stream; -1, the last row, adds nothing
        known = np.concatenate([t["rows"], np.zeros((self.streams, 1, dim), np.int64)], 1)
        self._before, self._earlier, self._now = (np.einsum("kcd,lkde->kcle", known, t[name], optimize=True) for name in ("before", "earlier", "now"))

    @classmethod
    def even(cls, weights: str, streams: int, codes: int) -> Self:
        """All codes are equally likely."""
        each = np.zeros((streams, streams, 1, 1), np.int64)
        tables = {"rows": np.zeros((streams, codes, 1)), "bias": np.zeros((streams, codes)), "before": each, "earlier": each, "now": each}
        return cls(weights, tables | {"gap": np.zeros((GAPS, streams, 1)), "scale": np.zeros(streams), "powers": np.full(1 << FINE_BITS, 1 << POWER_BITS)})

    @classmethod
    def load(cls, folder: Path, config: CodecConfig, weights: str) -> Self:
        """EngineError where odds.npz is of other weights, or is none."""
        path = folder / FILE
        if not path.exists():
            return cls.even(weights, config.streams, config.codes)
        try:
            with np.load(path, allow_pickle=False) as f:
                tables = {k: f[k] for k in f.files}
            fits = str(tables.pop("weights")) == weights
            odds = cls(weights, tables)
        except Exception as e:  # zip, npy and shape errors have no common base
            raise EngineError(f"{path} cannot be read ({type(e).__name__}); write it again: python -m tools.fit_codec_odds") from None
        if not fits or (odds.streams, odds.codes) != (config.streams, config.codes):
            raise EngineError(f"{path} is of other codec weights; delete it, or write it again: python -m tools.fit_codec_odds")
        return odds

    def past(self, before: I64, earlier: I64, gap: I64) -> I64:
        """before, earlier: [n, streams] tokens of the frame sent last and of the one sent before it, -1 where there is none; gap: [n] frames since the
        former → what they say [n, streams, dim]."""
        found = self._gap[np.minimum(gap, GAPS - 1)]
        for k in range(before.shape[1]):
            found = found + self._before[k, before[:, k]] + self._earlier[k, earlier[:, k]]
        return found

    def add(self, said: I64, stream: int, tokens: I64) -> I64:
        """What is said once the tokens [n] of one stream of this frame are known, too: [n, streams, dim]"""
        found: I64 = said + self._now[stream, tokens]
        return found

    def counts(self, stream: int, said: I64) -> I64:
        """said: [n, streams, dim] → how likely each code of `stream` is: [n, codes], at least 1, 2^20 in all."""
        wanted = (said[:, stream] * self._scale[stream] >> 16).clip(-_MOST, _MOST).astype(np.float64)
        logits = (wanted @ self._rows[stream]).astype(np.int64) + self._bias[stream]
        behind = (logits.max(1, keepdims=True) - logits) >> (UNIT_BITS - FINE_BITS)
        weight = self._powers[behind & ((1 << FINE_BITS) - 1)] >> np.minimum(behind >> FINE_BITS, _DEEP)
        counts: I64 = 1 + weight * ((1 << TOTAL_BITS) - self.codes) // weight.sum(1, keepdims=True)
        rows = np.arange(len(counts))
        counts[rows, weight.argmax(1)] += (1 << TOTAL_BITS) - counts.sum(1)
        return counts

    def bits(self, stream: int, said: I64) -> F32:
        """said: [n, streams, dim] → what each code of `stream` takes, [n, codes] bits: about what `counts` says, in real numbers, so not to pack by."""
        likely = said[:, stream].astype(np.float32) @ self._real_rows[stream] + self._real_bias[stream]
        likely -= likely.max(1, keepdims=True)
        found: F32 = np.minimum(np.log2(np.exp2(likely).sum(1, keepdims=True)) - likely, np.float32(TOTAL_BITS))
        return found
