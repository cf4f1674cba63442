"""How the state of a slot lies on a device: attention rings and counter by themselves, all else in two packs of float32 words.

`moving` is what every step writes anew (level, past, recurrences: 29 kB; 31 more where a voice is recognised), `fixed` what is pinned (prefix: 37 kB; a
voice's gains). One tensor each, so that writing back is one copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..engine import PINNED, State

MOVING, FIXED = "moving", "fixed"
RINGS = ("trunk.k", "trunk.v")
POS = "trunk.pos"
AT = "trunk.at"  # the place in the rings of this step's rows


@dataclass(frozen=True)
class Part:
    """A state inside a pack: [slots, *shape] at `offset` words."""

    offset: int
    words: int
    shape: tuple[int, ...]


class Layout:
    """first: the state of a fresh slot, [1, ...] each. ValueError unless it is all zeros but for what is pinned: that is how the step resets it."""

    def __init__(self, first: State) -> None:
        for name, value in first.items():
            if value.any() and name not in PINNED:
                raise ValueError(f"the state {name} does not begin at zero")
        self.first = first
        self.packs: dict[str, dict[str, Part]] = {MOVING: {}, FIXED: {}}
        for name, value in first.items():
            if name not in (*RINGS, POS):
                pack = self.packs[FIXED if name in PINNED else MOVING]
                at = sum(p.words for p in pack.values())
                pack[name] = Part(at, int(np.prod(value.shape[1:])), value.shape[1:])

    def words(self, pack: str) -> int:
        return sum(p.words for p in self.packs[pack].values())

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]]:
        """The arrays on the device: name → shape of a slot, type."""
        f32 = np.dtype(np.float32)
        alone = {n: (self.first[n].shape[1:], self.first[n].dtype) for n in (POS, *RINGS)}
        return {**alone, **{pack: ((self.words(pack),), f32) for pack in self.packs}}

    def pack(self, state: State) -> State:
        """[n, ...] each → the device's arrays, [n, ...] each; of only some of the states the arrays that they fill."""
        n = len(next(iter(state.values())))
        alone = {name: state[name] for name in (POS, *RINGS) if name in state}
        full = {pack: parts for pack, parts in self.packs.items() if all(name in state for name in parts)}
        return {**alone, **{pack: np.concatenate([state[name].reshape(n, -1) for name in parts], 1) for pack, parts in full.items()}}

    def unpack(self, arrays: State) -> State:
        """The inverse of `pack`, views where it can; of only some of the arrays only their states."""
        state: State = {}
        for name in self.first:
            for pack, parts in self.packs.items():
                if name in parts and pack in arrays:
                    p = parts[name]
                    state[name] = arrays[pack][:, p.offset : p.offset + p.words].reshape(-1, *p.shape)
            if name in arrays:
                state[name] = arrays[name]
        return state
