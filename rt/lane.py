"""The sample side of a stream: blocks of any size become whole frames, processed frames become as many samples as came in.

`Stream` steps its frames at once; the relay hands them to a scheduler that steps many streams together. Both use what is here, so
their output is the same, bit for bit.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from voicewire.engines.config import HOPS_PER_FRAME
from voicewire.engines.stft import hop_samples, latency_samples, synthesise

F32 = NDArray[np.float32]
Samples = NDArray[np.generic]

# restore: a twentieth of the input stays: more of the speech's quiet ends, fewer word errors, better PESQ and DNSMOS than without (TRAINING_LOG).
# extract: what stays of the other talkers would be words
USUAL_STRENGTH_DB = {"restore": 26.0, "extract": 40.0}
LOUDEST = 1e3  # beyond +-1,000 times full scale is no sound: keep the arithmetic finite


def to_float(x: Samples) -> tuple[F32, int]:
    """float32 or int16, any shape → (float32 with full scale 1.0, samples that were not finite and became 0). ValueError for other types."""
    if x.dtype == np.int16:
        return x.astype(np.float32) / np.float32(32768), 0
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"samples of type {x.dtype} are not supported; give float32 or int16")
    y, repaired = x.astype(np.float32), 0
    bad = ~np.isfinite(y)
    if bad.any():
        repaired = int(bad.sum())
        y = np.where(bad, np.float32(0), y)
    return np.clip(y, -LOUDEST, LOUDEST), repaired


def to_int16(y: F32) -> NDArray[np.int16]:
    """float32, full scale 1.0 → int16, rounded and limited."""
    z = np.rint(y * np.float32(32768))
    np.maximum(z, -32768, out=z)
    np.minimum(z, 32767, out=z)
    out: NDArray[np.int16] = z.astype(np.int16)
    return out


def dry_share(strength_db: float | None, bypass: bool, task: str = "restore") -> float:
    """How much of the input is mixed back in: 1 for bypass. strength_db: None is the task's `USUAL_STRENGTH_DB`."""
    if bypass:
        return 1.0
    return float(10 ** (-(USUAL_STRENGTH_DB[task] if strength_db is None else strength_db) / 20))


def check_strength(strength_db: float | None) -> float | None:
    """The strength as a float. ValueError unless it is None or at least 0 dB."""
    if strength_db is None:
        return None
    if not strength_db >= 0:
        raise ValueError(f"strength must be 0 dB (change nothing) or more, not {strength_db}")
    return float(strength_db)


def finish(overlap: F32, spec: F32, speech: F32, dry: F32) -> tuple[F32, F32]:
    """Spectra back to samples. overlap: [B, hop]; spec: [B, 2, 481, 2] of the input; speech: [B, 2, 480, 2] from the engine;
    dry: [B] shares of the input to keep → ([B, 2 hop] samples, new overlap).

    A new share starts with its frame; the overlapping windows make the cross-fade.
    """
    bins = min(overlap.shape[1] + 1, spec.shape[2])  # those above are not in the output
    rows = np.flatnonzero(dry)
    if not len(rows) and bins <= speech.shape[2]:
        return synthesise(overlap, speech)
    clean = np.zeros((*spec.shape[:2], bins, 2), np.float32)
    clean[:, :, : speech.shape[2]] = speech[:, :, :bins]  # 24 kHz itself is nobody's speech
    if len(rows):
        at = rows if len(rows) < len(dry) else slice(None)
        share = spec[at, :, :bins] - clean[at]
        share *= dry[at, None, None, None]
        clean[at] += share
    return synthesise(overlap, clean)


class Lane:
    """Two queues of samples, [rows, n]. Not thread-safe; its owner sees to that.

    push(x) gives the whole frames that x completes; every one must come back, processed, by `give`, in order. pull(n) takes n samples out:
    after all frames were given, as many are there as were pushed, `latency_samples` late (the engine's overlap included). Arrays that fit are
    passed on as they are, so nobody may write into what was pushed or given.
    """

    def __init__(self, rows: int, rate: int, dtype: type[np.float32] | type[np.int16] = np.float32) -> None:
        self.rows, self.rate, self._dtype = rows, rate, dtype
        self.hop = hop_samples(rate)
        self.frame_samples = HOPS_PER_FRAME * self.hop
        self.latency_samples = latency_samples(rate)
        self.reset()

    def reset(self) -> None:
        self.incoming: Samples = np.zeros((self.rows, 0), self._dtype)
        # one frame is collected before the first step, whose output is one hop older than its input
        self.outgoing = np.zeros((self.rows, self.frame_samples), self._dtype)

    @property
    def outgoing(self) -> Samples:
        """What `pull` has not taken yet."""
        return np.concatenate([np.zeros((self.rows, 0), self._dtype), *self._chunks], 1)

    @outgoing.setter
    def outgoing(self, samples: Samples) -> None:
        self._chunks: deque[Samples] = deque()
        self.available = 0  # samples that `pull` can take now
        self.give(samples)

    def push(self, x: Samples) -> list[Samples]:
        """x: [rows, n] → frames of [rows, frame_samples]"""
        size = self.frame_samples
        waiting = self.incoming.shape[1]
        if not waiting and x.shape[1] == size:
            return [x]
        held = np.concatenate([self.incoming, x], 1) if waiting else x
        whole = held.shape[1] // size * size
        self.incoming = held[:, whole:].copy()
        return [held[:, at : at + size] for at in range(0, whole, size)]

    def give(self, frame: Samples) -> None:
        if frame.shape[1]:
            self._chunks.append(frame)
            self.available += frame.shape[1]

    def pull(self, n: int) -> Samples:
        """n: at most `available`"""
        self.available -= n
        chunks = self._chunks
        if n and chunks[0].shape[1] == n:
            return chunks.popleft()
        taken: list[Samples] = [np.zeros((self.rows, 0), self._dtype)]
        while n:
            first = chunks.popleft()
            taken.append(first[:, :n])
            if first.shape[1] > n:
                chunks.appendleft(first[:, n:])
            n -= taken[-1].shape[1]
        return np.concatenate(taken, 1)
