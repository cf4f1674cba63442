"""Which tokens a frame gets at variable rate: those that are near, and cheap after the tokens before them. Squared error and bits are weighed against
each other (rate-distortion optimised quantisation: Chou, Lookabaugh & Gray 1989), by the odds that files are packed with. The decoder knows nothing of it.

The beam search of `net/codec_quantise.py` once more, in NumPy, on the numbers that the encoder has before its own search.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from .codec_odds import Odds
from .engine import F32, EngineError

I64 = NDArray[np.int64]
FILE = "codec.safetensors"
BEAM = 16  # ways followed through the layers, as in the encoder's own search
_TYPES = {"F16": "<f2", "F32": "<f4"}


class Chosen(NamedTuple):
    """tokens: [streams]; heard: [code_dim + 1] the acoustic numbers that they stand for; error: squared, of these."""

    tokens: I64
    heard: F32
    error: float


def _tensors(path: Path) -> dict[str, F32]:
    """What the quantisers are made of, out of a safetensors file: a length (u64), a JSON header with places, numbers."""
    try:
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        found = {}
        for name, told in json.loads(data[8:start]).items():
            if name == "encoder.guess.means" or (name.startswith("encoder.") and ".books." in name and name.endswith(".codes")):
                begin, end = told["data_offsets"]
                found[name] = np.frombuffer(data[start + begin : start + end], _TYPES[told["dtype"]]).reshape(told["shape"]).astype(np.float32)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise EngineError(f"{path} cannot be read, which variable rate needs; export the weights again") from None
    return found


def _least(x: F32, n: int) -> I64:
    """Where in x: [rows, columns], flattened, the n least are, in no order."""
    flat = x.reshape(-1)
    if n == 1:
        return np.array([flat.argmin()])
    if len(x) < n:
        return np.argpartition(flat, min(n, x.size) - 1)[:n]
    # n rows have one each that is no larger than the n-th of the rows' least, so only what is up to that is looked at
    few = np.flatnonzero(flat <= np.partition(x.min(1), n - 1)[n - 1])
    out: I64 = few[np.argpartition(flat[few], n - 1)[:n]]
    return out


class TokenSearch:
    """semantic: [codes, code_dim] codebook; guess: [codes, code_dim + 1] what each semantic token tells of the acoustic numbers; acoustic: [layers, codes,
    code_dim + 1] codebooks. No state: safe to share."""

    def __init__(self, semantic: F32, guess: F32, acoustic: F32, odds: Odds) -> None:
        self._semantic, self._semantic_size = semantic, (semantic * semantic).sum(1)
        self._guess, self._acoustic, self.odds = guess, acoustic, odds
        self._twice, self._size = 2 * acoustic.transpose(0, 2, 1), (acoustic * acoustic).sum(2)

    @classmethod
    def load(cls, folder: Path, layers: int, odds: Odds) -> Self:
        """EngineError where the folder's codec.safetensors is missing or is something else."""
        t = _tensors(folder / FILE)
        try:
            semantic = t["encoder.semantic_vq.books.0.codes"]
            return cls(semantic, t["encoder.guess.means"][: len(semantic)], np.stack([t[f"encoder.acoustic_vq.books.{i}.codes"] for i in range(layers)]), odds)
        except (KeyError, ValueError) as e:
            raise EngineError(f"{folder / FILE} is not what codec_export writes ({e}); export the weights again") from None

    def choose(self, acoustic: F32, semantic: F32, past: I64, price: float, streams: int) -> Chosen:
        """acoustic: [code_dim + 1], semantic: [code_dim] numbers of a frame, as the encoder has them before its search; past: [1, streams, dim] of
        `Odds.past`; price: squared error that a bit is worth; streams: how many tokens are wanted. The semantic token is the nearest whatever it takes."""
        found = np.array([[(self._semantic_size - 2 * (self._semantic @ semantic)).argmin()]])
        rest = acoustic - self._guess[found[:, 0]]
        said, cost = self.odds.add(past, 0, found[:, 0]), (rest * rest).sum(1)
        for k, book in enumerate(self._acoustic[: streams - 1]):
            many = (cost[:, None] + self._size[k]) + np.float32(price) * self.odds.bits(1 + k, said) - rest @ self._twice[k]
            way, code = np.divmod(_least(many, BEAM if k + 2 < streams else 1), len(book))
            cost, rest = many[way, code], rest[way] - book[code]
            found, said = np.concatenate([found[way], code[:, None]], 1), self.odds.add(said[way], 1 + k, code)
        return Chosen(found[0], acoustic - rest[0], float((rest[0] * rest[0]).sum()))
