"""The sample side of a stream: blocks of any size become whole frames, processed frames become as many samples as came in.

`Stream` steps its frames at once; the relay hands them to a scheduler that steps many streams together. Both use what is here, so
their output is the same, bit for bit.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from voicewire.engines.config import HOPS_PER_FRAME, TASKS
from voicewire.engines.samples import F32, Samples, to_float, to_int16
from voicewire.engines.stft import hop_samples, latency_samples

__all__ = [
    "F32",
    "LIVE_STRENGTH_DB",
    "QUERY_GAIN_DB",
    "USUAL_STRENGTH_DB",
    "Lane",
    "Samples",
    "check_query_gain",
    "check_strength",
    "check_task",
    "check_voice_strength",
    "dry_share",
    "to_float",
    "to_int16",
]

BUILT_TASKS = ("restore", "extract", "separate", "convert", "query")
# restore: a sixth of the input stays, and with it the quiet ends of speech: a recogniser reads more than in the input itself (TRAINING_LOG).
# extract, query: what stays of the other talkers would be words, and of other sounds what nobody asked for; a gate that closes closes on silence
USUAL_STRENGTH_DB = {"restore": 16.0, "extract": 60.0, "query": 40.0, "separate": 40.0}
LIVE_STRENGTH_DB = USUAL_STRENGTH_DB | {"restore": 20.0}  # where people listen: DNSMOS likes it better, a recogniser less
QUERY_GAIN_DB = (-100, 24)  # the lowest takes the sound out


def dry_share(strength_db: float | None, bypass: bool, task: str = "restore", query_gain_db: float | None = None) -> float:
    """How much of the input is mixed back in, as `stft.finish` takes it: 1 for bypass. strength_db: None is the task's `USUAL_STRENGTH_DB`.
    query_gain_db: of the task `query`, which then keeps everything and changes the queried sound; None: keeps that alone."""
    if bypass:
        return 1.0
    if task == "convert":  # two voices at once would be a choir: `Stream.voice_strength` instead
        return 0.0
    if task == "query" and query_gain_db is not None:
        return -float(10 ** (query_gain_db / 20))
    return float(10 ** (-(USUAL_STRENGTH_DB[task] if strength_db is None else strength_db) / 20))


def check_task(task: str) -> str:
    """The task, or ValueError with a line that says which there are."""
    if task not in BUILT_TASKS:
        raise ValueError(f"task '{task}' is {'planned, not built' if task in TASKS else 'unknown'}; there are: {', '.join(BUILT_TASKS)}")
    return task


def check_strength(strength_db: float | None) -> float | None:
    """The strength as a float. ValueError unless it is None or at least 0 dB."""
    if strength_db is None:
        return None
    if not strength_db >= 0:
        raise ValueError(f"strength must be 0 dB (change nothing) or more, not {strength_db}")
    return float(strength_db)


def check_voice_strength(voice_strength: float) -> float:
    """How far to go towards another voice, as a float. ValueError unless it is from 0 (the talker's own voice) to 1 (the other's)."""
    if not 0 <= voice_strength <= 1:
        raise ValueError(f"voice_strength must be from 0 (the talker's own voice) to 1 (the voiceprint's), not {voice_strength}")
    return float(voice_strength)


def check_query_gain(query_gain_db: float | None) -> float | None:
    """The change as a float. ValueError unless it is None or from -100 dB (taken out) to 24 dB."""
    if query_gain_db is None:
        return None
    low, high = QUERY_GAIN_DB
    if not low <= query_gain_db <= high:
        raise ValueError(f"query_gain_db must be {low} (taken out) to {high} dB, not {query_gain_db}")
    return float(query_gain_db)


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
