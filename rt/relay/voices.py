"""What a relay's streams are asked for beside restoration: voiceprints that clients send, voiceprints made of what they say, and sounds in words."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from voicewire.engines.convert_engine import ConvertEngine
from voicewire.engines.converting import stepper
from voicewire.engines.engine import Engine, EngineError, State, pinned_part
from voicewire.engines.places import places, separates
from voicewire.engines.query import Query, ask, takes_queries
from voicewire.engines.voiceprint import Voiceprint, enrol, known, taken_by

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
    """engine: what steps the streams. folder: its weights, with the encoders of voices and queries where they know any. weights: the fingerprint that
    voiceprints for it carry, None where it knows no voices. queries: whether it takes any. talkers: the places of those it tells apart. converts:
    the fingerprint of the voiceprints to speak as, None where it converts no voices."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine, self._folder = stepper(engine, "restore"), folder
        one = stepper(engine, "convert")
        self._converter = one if isinstance(one, ConvertEngine) else None
        self.weights = engine.weights if known(folder) == engine.weights else None
        self.queries = self.weights is not None and takes_queries(folder)  # a model that takes queries knows voices
        self.talkers = places(folder) if self.weights is not None and separates(folder) else ()
        self.converts = taken_by(self._converter) if self._converter else None
        self._thread = ThreadPoolExecutor(1, "voicewire-enroll", step_back)  # one at a time, and the streams first
        self._words = ThreadPoolExecutor(1, "voicewire-query", step_back)  # milliseconds, which must not wait for an enrolment

    async def prepare(self) -> None:
        """Load what reads words: half a second that streams would hear. Where the package is missing, whoever asks is told."""
        if self.queries:
            with contextlib.suppress(ProtocolError):
                await self.query("a sound")

    def asked(self, task: str, voice: bytes | None, query: Query | None, talker: int | None = None) -> State:
        """What a stream is asked for, as its slot is told (`PcmSlots.pin`). voice: a voiceprint file. ProtocolError `no_voices`, `bad_voice`, `no_queries`,
        `bad_query`, `no_converter`, and `bad_field` for a talker that is not there."""
        if task == "convert":
            return self._converted(voice)
        if task == "extract":
            self.check()
        if task == "query":
            self.check_queries()
        if query is None and task == "query":
            raise ProtocolError("bad_query", "the task 'query' needs to know what to listen for; send a few words as query, like 'a dog barking'")
        if voice is None and task == "extract":
            raise ProtocolError("bad_voice", "the task 'extract' needs the voiceprint of a talker; send one as voice, or make one with the event enroll")
        if task == "separate":
            return self._separated(talker)
        try:
            wanted = query if voice is None else Voiceprint.from_bytes(voice, self._engine.weights)
            check_voice(task, wanted, self._engine)
            return pinned_part(first_state(self._engine, 1, task, wanted))
        except ValueError as e:
            raise ProtocolError("bad_voice" if query is None else "bad_query", str(e)) from None

    def _converted(self, voice: bytes | None) -> State:
        if self._converter is None or self.converts is None:
            raise ProtocolError("no_converter", "this server converts no voices; start it with --tasks, where the repository is installed: pip install -e .")
        if voice is None:
            raise ProtocolError("bad_voice", "the task 'convert' needs a voiceprint of whom to speak as; send one as voice, or make one with the event enroll")
        try:
            return pinned_part(first_state(self._converter, 1, "convert", Voiceprint.from_bytes(voice, self.converts)))
        except ValueError as e:
            raise ProtocolError("bad_voice", str(e)) from None

    def _separated(self, talker: int | None) -> State:
        if not self.talkers:
            raise ProtocolError("no_voices", "the weights of this server separate nobody; there is: restore (with --tasks: more)")
        if talker is None or talker > len(self.talkers):
            raise ProtocolError("bad_field", f"the task 'separate' keeps one of {len(self.talkers)} talkers; say which as talker, from 1")
        return pinned_part(first_state(self._engine, 1, "separate", self.talkers[talker - 1]))

    def check(self) -> None:
        """ProtocolError `no_voices` where the weights know none."""
        if self.weights is None:
            raise ProtocolError("no_voices", "the weights of this server know no voices; there is: restore (with --tasks: more)")

    def check_queries(self) -> None:
        """ProtocolError `no_queries` where the weights take none."""
        if not self.queries:
            raise ProtocolError(
                "no_queries",
                f"the weights of this server take no queries; there is: restore{', extract' if self.weights else ' (with --tasks: more)'}",
            )

    async def query(self, text: str) -> Query:
        """text: words that passed `sentence.check` → the query, for `asked`. ProtocolError `no_queries`; `bad_query` where the server lacks the package that
        reads words. On a thread of its own."""
        self.check_queries()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._words, ask, text, self._folder)
        except (ValueError, EngineError) as e:
            raise ProtocolError("bad_query", f"the server cannot take it: {e}") from None

    async def enrol(self, x: Samples, rate: int) -> Voiceprint:
        """x: [samples] of one talker. ProtocolError `bad_voice` for less than 1 s of speech. On a thread of its own."""

        def make() -> Voiceprint:
            return enrol(to_float(x)[0], rate, self._folder, self._converter)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, make)
        except ValueError as e:
            raise ProtocolError("bad_voice", str(e)) from None

    def close(self) -> None:
        for threads in (self._thread, self._words):
            threads.shutdown(wait=False, cancel_futures=True)
