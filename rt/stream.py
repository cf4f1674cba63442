"""`Stream`: audio in blocks of any size, speech out, the same number of samples, a fixed delay later."""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Sequence
from itertools import repeat
from typing import Literal, cast

import numpy as np

from voicewire.engines.convert_engine import ConvertEngine
from voicewire.engines.energies import energies_of
from voicewire.engines.engine import PINNED, Engine, State, open_engine, weights_for
from voicewire.engines.places import Place, places, share_out
from voicewire.engines.query import Query
from voicewire.engines.stft import analyse, finish, hop_samples
from voicewire.engines.voiceprint import Voiceprint, taken_by

from .lane import F32, Lane, Samples, check_query_gain, check_strength, check_task, check_voice_strength, dry_share, to_float, to_int16
from .snapshot import kind, pack, unpack
from .speech import Heard, Turn, packed, turn, unpacked
from .speech import step as step_speech

ChannelMode = Literal["mix", "each"]

RESTORES_ONLY = "(a stream that began without a voice or a query has weights that only restore: begin it with one)"
VOICE_OF_ANOTHER = f"the voiceprint was made with another model; enroll again: voicewire enroll ME.wav -o me.voice {RESTORES_ONLY}"


def check_voice(task: str, voice: Voiceprint | None, engine: Engine) -> None:
    """ValueError unless the task has the voice or the query it needs, made with the engine's weights."""
    query, place = isinstance(voice, Query), isinstance(voice, Place)
    if task == "separate" and not place:
        raise ValueError("the task 'separate' takes no voiceprint and no query; choose the task 'extract' or 'query'")
    if place and task != "separate":
        raise ValueError(f"the task '{task}' takes no place among talkers; that is for the task 'separate'")
    if isinstance(engine, ConvertEngine) and task != "convert":
        raise ValueError(f"the weights in use only convert voices; for the task '{task}' begin another stream")
    if task == "convert" and not isinstance(engine, ConvertEngine):
        raise ValueError("the task 'convert' has weights of its own; begin a stream with it (the repository has the weights: pip install -e .)")
    if task == "convert" and (voice is None or query):
        raise ValueError("the task 'convert' needs to know whose voice to speak in; make a voiceprint: voicewire enroll THEM.wav -o them.voice")
    if task == "extract" and (voice is None or query):
        raise ValueError("the task 'extract' needs to know the talker; make a voiceprint: voicewire enroll ME.wav -o me.voice")
    if task == "query" and not query:
        raise ValueError("the task 'query' needs to know what to listen for, in words: --query 'a dog barking'")
    if voice is not None and task not in ("extract", "query", "separate", "convert"):
        raise ValueError(f"the task '{task}' takes no {'query' if query else 'voiceprint'}; choose the task '{'query' if query else 'extract'}'")
    if place and voice is not None and voice.weights != engine.weights:
        raise ValueError(f"the engine's weights separate nobody {RESTORES_ONLY}")
    if voice is not None and voice.weights != taken_by(engine):
        raise ValueError(f"the query was made with another model; ask again {RESTORES_ONLY}" if query else VOICE_OF_ANOTHER)


AMOUNT = "target.amount"  # of a converter's state


def aimed(state: State, voice_strength: float) -> State:
    """The state, or the pinned part of one, with `voice_strength` in it, where it is a converter's."""
    return state if AMOUNT not in state else state | {AMOUNT: np.full_like(state[AMOUNT], voice_strength)}


def first_state(engine: Engine, slots: int, task: str, voice: Voiceprint | None) -> State:
    """What a stream starts with."""
    state = engine.init_state(slots, task)
    if voice is not None:
        voice.turn(state)
    return state


class Stream:
    """One live stream through the model.

        stream = Stream(48000)
        for block in microphone:                 # float32 or int16, [n] or [n, channels], any n
            speaker.write(stream.process(block)) # same shape and type, `latency_samples` later
        rest = stream.flush()                    # what is still inside

    rate: 8,000 to 48,000 Hz. channels: how many `process` gets. mode: "mix" treats them as one (output repeated on each),
    "each" runs every channel by itself. strength_db: the most that may be taken away (None: 16, for extract 60, for query and separate 40; 0: nothing).
    bypass: the input itself, with the same delay. task: "restore"; "extract" with, as `voice`, the voiceprint of the talker to keep; "query" with the `Query`
    for a sound to keep; "separate" gives both talkers a channel each, [n, 2] whatever `channels`, or with one `Place` as `voice` that talker alone; "convert"
    with the voiceprint of the talker to speak as, and voice_strength: how far to go there (0: the own voice, 1: the other's). `ask` changes task and voice
    while the stream runs. query_gain_db: do not keep the queried sound alone: leave everything as it is and change that
    sound by so many dB (-100: take it out, 6: twice as loud; None: keep it alone). strength_db, bypass, query_gain_db and voice_strength may be set at any
    time; the change is cross-faded over one hop.

    Thread-safe: every method may be called from any thread; calls are serialised by a lock. NaN and infinities in the input are
    replaced by silence and counted in `repaired_samples`. ValueError, with one line, for what cannot be processed.
    """

    def __init__(
        self,
        rate: int,
        channels: int = 1,
        *,
        task: str = "restore",
        voice: Voiceprint | Sequence[Place] | None = None,
        mode: ChannelMode = "mix",
        strength_db: float | None = None,
        query_gain_db: float | None = None,
        voice_strength: float = 1.0,
        bypass: bool = False,
        engine: Engine | None = None,
    ) -> None:
        hop_samples(rate)  # refuses rates that cannot be processed
        if channels < 1:
            raise ValueError(f"channels must be at least 1, not {channels}")
        check_task(task)
        if mode not in ("mix", "each"):
            raise ValueError(f"channel mode '{mode}' is unknown; there are: mix, each")
        self.engine: Engine = engine or open_engine(weights=weights_for(task))
        if task == "separate" and voice is None:
            voice = places()
        self._everybody = () if voice is None or isinstance(voice, Voiceprint) else tuple(voice)
        for wanted in self._everybody:
            check_voice(task, wanted, self.engine)
        self.voice = voice if isinstance(voice, Voiceprint) else None
        if not self._everybody:
            check_voice(task, self.voice, self.engine)
        if self._everybody and mode == "each" and channels > 1:
            raise ValueError("the task 'separate' gives a channel to every talker of one mixture; mix the input's channels: --channels mix")
        self.rate, self.channels, self.task, self.mode = rate, channels, task, mode
        self.outputs = len(self._everybody) or channels  # channels of what comes out
        self.strength_db, self.query_gain_db, self.bypass = strength_db, query_gain_db, bypass
        self._slots = len(self._everybody) or (1 if mode == "mix" else channels)
        self._lane, self._voice_strength = Lane(self._slots, rate), check_voice_strength(voice_strength)
        self.latency_samples, self.frame_samples = self._lane.latency_samples, self._lane.frame_samples
        self._lock, self._state = threading.RLock(), cast(State, {})
        self.reset()

    @property
    def latency_ms(self) -> float:
        return 1e3 * self.latency_samples / self.rate

    @property
    def strength_db(self) -> float | None:
        return self._strength_db

    @strength_db.setter
    def strength_db(self, value: float | None) -> None:
        self._strength_db = check_strength(value)

    @property
    def query_gain_db(self) -> float | None:
        return self._query_gain_db

    @query_gain_db.setter
    def query_gain_db(self, value: float | None) -> None:
        self._query_gain_db = check_query_gain(value)

    @property
    def voice_strength(self) -> float:
        return self._voice_strength

    @voice_strength.setter
    def voice_strength(self, value: float) -> None:
        value = check_voice_strength(value)
        with self._lock:
            self._voice_strength = value
            self._state = aimed(self._state, self._voice_strength)

    def reset(self) -> None:
        """As freshly made: forget the past and all that is inside."""
        with self._lock:
            if self._everybody:
                states = [first_state(self.engine, 1, self.task, place) for place in self._everybody]
                self._state = {k: np.concatenate([state[k] for state in states]) for k in states[0]}
            else:
                self._state = aimed(first_state(self.engine, self._slots, self.task, self.voice), self._voice_strength)
            self._lane.reset()
            self._tail = np.zeros((self._slots, self._lane.hop), np.float32)
            self._overlap = np.zeros((self._slots, self._lane.hop), np.float32)
            self.frames = 0
            self.repaired_samples = 0
            self.step_seconds: array[float] | None = None
            self._speech = (Heard(),) * self._slots
            self._turns: list[Turn] | None = None

    def ask(self, task: str, voice: Voiceprint | None = None) -> None:
        """Another task, talker or sound, from the next frame on. What was heard is not forgotten; the overlapping windows make the cross-fade.
        ValueError for what the stream's weights or channels do not allow."""
        if self._everybody:
            raise ValueError("a stream that gives every talker a channel goes on so; begin another stream, or give `separate` one talker: voice=place(1)")
        check_voice(check_task(task), voice, self.engine)
        fresh = first_state(self.engine, self._slots, task, voice)
        with self._lock:
            fresh = aimed(fresh, self._voice_strength)
            self.task, self.voice = task, voice
            self._state = {k: fresh[k] if k in PINNED else v.copy() for k, v in self._state.items()}  # the engine may give its rows to others

    def hush(self) -> None:
        """What is inside, and has not come out, becomes silence; the model goes on remembering. Nobody speaks any more."""
        with self._lock:
            before, self._speech = self._speech, tuple(heard._replace(run=0, on=False) for heard in self._speech)
            self._tell(before)
            self._lane.incoming, self._lane.outgoing = np.zeros_like(self._lane.incoming), np.zeros_like(self._lane.outgoing)
            self._tail, self._overlap = np.zeros_like(self._tail), np.zeros_like(self._overlap)

    def time_steps(self) -> array[float]:
        """Start collecting the seconds every step takes; returns the array that grows."""
        with self._lock:
            self.step_seconds = array("d")
            return self.step_seconds

    @property
    def speaking(self) -> bool:
        """Whether somebody speaks in the last frame that was processed, in any channel; see speech.py. False for the tasks query and convert."""
        return any(self.speaking_in)

    @property
    def speaking_in(self) -> tuple[bool, ...]:
        """The same channel by channel, one where channels are mixed."""
        return tuple(channel.on for channel in self._speech)

    def time_speech(self) -> list[Turn]:
        """Start collecting where speech begins and ends in the output; returns the list that grows, see `speech.spans`."""
        with self._lock:
            self._turns = []
            return self._turns

    def process(self, block: Samples) -> Samples:
        """block: [n] or [n, channels], float32 (full scale 1.0) or int16 → same shape and type ([n, outputs] where every talker has a channel)."""
        x = np.asarray(block)
        if x.ndim not in (1, 2) or (x.ndim == 1 and self.channels != 1) or (x.ndim == 2 and x.shape[1] != self.channels):
            raise ValueError(f"block of shape {x.shape} does not fit a stream of {self.channels} channel(s): give [n, channels]")
        with self._lock:
            y = self._push(self._to_slots(x))
        return self._from_slots(y, x)

    def flush(self) -> Samples:
        """The last `latency_samples` of output, float32; the stream is reset afterwards and may be used again.

        Shape [latency_samples] for one channel, else [latency_samples, outputs].
        """
        shape = (self.latency_samples,) if self.channels == 1 else (self.latency_samples, self.channels)
        with self._lock:
            rest = self.process(np.zeros(shape, np.float32))
            self.reset()
        return rest

    # -- inside --------------------------------------------------------------------------------------------------------
    def _to_slots(self, x: Samples) -> F32:
        y, repaired = to_float(x)
        self.repaired_samples += repaired
        y = y.reshape(len(y), self.channels).T
        if self._everybody:
            return np.repeat(y.mean(0, keepdims=True), self._slots, 0)
        return y.mean(0, keepdims=True) if self.mode == "mix" else np.ascontiguousarray(y)

    def _from_slots(self, y: F32, like: Samples) -> Samples:
        if self._everybody:
            z = y.T
        else:
            z = (np.repeat(y, self.channels, 0) if self.mode == "mix" else y).T.reshape(like.shape)
        return to_int16(z) if like.dtype == np.int16 else z.astype(like.dtype)

    def _push(self, x: F32) -> F32:
        for frame in self._lane.push(x):
            self._lane.give(self._step(cast(F32, frame)))
        return cast(F32, self._lane.pull(x.shape[1]))

    def _step(self, frame: F32) -> F32:
        started = time.perf_counter()
        spec, self._tail = analyse(self._tail, frame)
        speech, self._state = self.engine.advance(np.ascontiguousarray(spec[:, :, :-1]), self._state)
        self._hear(spec, speech)
        if self._everybody:
            speech = share_out(spec, speech)
        dry = np.full(self._slots, dry_share(self._strength_db, self.bypass, self.task, self._query_gain_db), np.float32)
        y, self._overlap = finish(self._overlap, spec, speech, dry)
        self.frames += 1
        if self.step_seconds is not None:
            self.step_seconds.append(time.perf_counter() - started)
        return y

    def _hear(self, spec: F32, speech: F32) -> None:
        before = self._speech
        self._speech = tuple(step_speech(energies_of(spec[i], speech[i]), heard, self.task) for i, heard in enumerate(before))
        self._tell(before)

    def _tell(self, before: tuple[Heard, ...]) -> None:
        if self._turns is not None:
            found = map(turn, range(self._slots), before, self._speech, repeat(self.frame_samples))
            self._turns += [each for each in found if each]

    # -- moving a stream -----------------------------------------------------------------------------------------------
    def snapshot(self) -> bytes:
        """Everything the stream remembers; `restore` on a stream of the same shape continues bit for bit."""
        with self._lock:
            edge = {"tail": self._tail, "overlap": self._overlap, "in": self._lane.incoming, "out": self._lane.outgoing}
            head = self._kind() | {"frames": self.frames, "repaired_samples": self.repaired_samples}
            return pack(head, self._state, edge | {"speech": packed(self._speech)})

    def _kind(self) -> dict[str, object]:
        return kind(self.engine.weights, self.rate, self.channels, self.task, self.mode)

    def restore(self, data: bytes) -> None:
        """Continue from a `snapshot`. ValueError if it is damaged or of another kind of stream; the stream is then unchanged."""
        head, state, edge = unpack(data, self._kind(), self._state)
        heard = unpacked(edge, self._slots, head["frames"])
        with self._lock:
            self._speech = heard
            self._state, self._tail, self._overlap = state, edge["tail"], edge["overlap"]
            if AMOUNT in state:
                self._voice_strength = float(state[AMOUNT][0, 0])
            self._lane.incoming, self._lane.outgoing = edge["in"], edge["out"]
            self.frames, self.repaired_samples = head["frames"], head["repaired_samples"]
