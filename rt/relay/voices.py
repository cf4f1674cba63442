"""The voices of a relay's streams: voiceprints that clients send, and voiceprints made of what they say."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from voicewire.engines.engine import Engine, State, pinned_part
from voicewire.engines.voiceprint import Voiceprint, enrol, known

from ..lane import Samples, to_float
from ..realtime import step_back
from ..stream import check_voice, first_state
from .events import ProtocolError


class Hearing:
    """The next `samples` of a stream, to enroll a voice from."""

    def __init__(self, samples: int) -> None:
        self._blocks: list[Samples] = []
        self._left = samples

    def take(self, x: Samples) -> Samples | None:
        """x: [n]. → all of them, [samples], with the block that completes them."""
        self._blocks.append(x[: self._left].copy())
        self._left -= len(self._blocks[-1])
        return None if self._left else np.concatenate(self._blocks)


class Voices:
    """engine: what steps the streams. folder: its weights, with the encoder of voices where they know any. weights: the fingerprint that voiceprints
    for it carry, None where it knows no voices."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine, self._folder = engine, folder
        self.weights = engine.weights if known(folder) == engine.weights else None
        self._thread = ThreadPoolExecutor(1, "voicewire-enroll", step_back)  # one at a time, and the streams first

    def asked(self, task: str, voice: bytes | None) -> State:
        """What a stream is asked for, as its slot is told (`PcmSlots.pin`). voice: a voiceprint file. ProtocolError `no_voices`, `bad_voice`."""
        if task == "extract":
            self.check()
        if voice is None and task == "extract":
            raise ProtocolError("bad_voice", "the task 'extract' needs the voiceprint of a talker; send one as voice, or make one with the event enroll")
        try:
            talker = None if voice is None else Voiceprint.from_bytes(voice, self._engine.weights)
            check_voice(task, talker, self._engine)
            return pinned_part(first_state(self._engine, 1, task, talker))
        except ValueError as e:
            raise ProtocolError("bad_voice", str(e)) from None

    def check(self) -> None:
        """ProtocolError `no_voices` where the weights know none."""
        if self.weights is None:
            raise ProtocolError("no_voices", "the weights of this server know no voices; there is: restore")

    async def enrol(self, x: Samples, rate: int) -> bytes:
        """x: [samples] of one talker → the voiceprint file. ProtocolError `bad_voice` for less than 1 s of speech. On a thread of its own."""

        def make() -> bytes:
            return enrol(to_float(x)[0], rate, self._folder).to_bytes()

        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, make)
        except ValueError as e:
            raise ProtocolError("bad_voice", str(e)) from None

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
