"""Our own dialect, `/v1/stream`: JSON text and raw binary audio, checked field by field. Pure functions and one small adapter."""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from voicewire.engines.sentence import check
from voicewire.engines.stft import hop_samples
from voicewire.engines.voiceprint import LEAST_S, MOST_S

from ..lane import QUERY_GAIN_DB, Samples, check_task
from .events import Clear, Enroll, Event, Mark, Move, ProtocolError, Reply, Set, Sound, Start, Stop

HEADER = struct.Struct("<IQI")  # sequence, capture time in µs, flags
MAX_CHANNELS = 8
MAX_NAME = 128  # characters of a mark
MAX_VOICE = 1 << 17  # characters of a voiceprint in base64; they have about 40,000
ENROLL_S = 8.0
FORMATS = ("s16le", "f32le", "opus", "tokens")
_SET = {"event", "strength_db", "bypass", "task", "voice", "query", "talker", "query_gain_db", "voice_strength"}
_START = _SET | {"rate", "format", "channels", "header", "live", "resume", "weights", "speech"}
_ASKED = {"task", "voice", "query", "talker"}
MAX_TALKERS = 8


def pack_header(sequence: int, capture_us: int, flags: int = 0) -> bytes:
    """16 bytes, little endian; the sequence wraps at 2^32."""
    return HEADER.pack(sequence & 0xFFFFFFFF, capture_us & 0xFFFFFFFFFFFFFFFF, flags & 0xFFFFFFFF)


def unpack_header(message: bytes) -> tuple[int, int, int, memoryview]:
    """→ (sequence, capture_us, flags, payload)"""
    if len(message) < HEADER.size:
        raise ProtocolError("bad_header", f"with header, a binary message starts with {HEADER.size} bytes; this one has {len(message)}")
    return (*HEADER.unpack_from(message), memoryview(message)[HEADER.size :])


# -- JSON, field by field ----------------------------------------------------------------------------------------------


def json_object(text: str) -> dict[str, Any]:
    """ProtocolError `bad_json` for text that is none."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise ProtocolError("bad_json", "a text message must be one JSON object") from None
    if not isinstance(message, dict):
        raise ProtocolError("bad_json", "a text message must be one JSON object")
    return message


def _whole(message: dict[str, Any], key: str, default: int | None, low: int, high: int) -> int:
    value = message.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ProtocolError("bad_field", f"{key} must be a whole number from {low} to {high}")
    return value


def _flag(message: dict[str, Any], key: str, default: bool) -> bool:
    value = message.get(key, default)
    if not isinstance(value, bool):
        raise ProtocolError("bad_field", f"{key} must be true or false")
    return value


def _text(message: dict[str, Any], key: str, default: str | None) -> str:
    value = message.get(key, default)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME:
        raise ProtocolError("bad_field", f"{key} must be a text of 1 to {MAX_NAME} characters")
    return value


def _level(message: dict[str, Any], key: str, low: int, high: int) -> float | None:
    value = message.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high or not math.isfinite(value):
        raise ProtocolError("bad_field", f"{key} must be null or a number from {low} to {high}")
    return float(value)


def _strength(message: dict[str, Any]) -> float | None:
    return _level(message, "strength_db", 0, 1000)


def _query_gain(message: dict[str, Any]) -> float | None:
    return _level(message, "query_gain_db", *QUERY_GAIN_DB)


def _voice_strength(message: dict[str, Any]) -> float:
    value = _level(message, "voice_strength", 0, 1)
    return 1.0 if value is None else value


def pack_voice(voice: bytes) -> str:
    """A voiceprint file as it is sent."""
    return base64.b64encode(voice).decode()


def _task(message: dict[str, Any]) -> tuple[str, bytes | None, str | None, int | None]:
    """→ (task, voiceprint file, words, talker): a voice alone asks for `extract`, words alone for `query`, a talker alone for `separate`. Whether it is a
    voiceprint is not looked at here."""
    voice, query, talker = message.get("voice"), message.get("query"), message.get("talker")
    usual = [task for task, what in (("extract", voice), ("query", query), ("separate", talker)) if what is not None]
    if len(usual) > 1:
        raise ProtocolError("bad_field", "voice, query and talker are several tasks; give one of them")
    try:
        task = check_task(_text(message, "task", (usual or ["restore"])[0]))
    except ValueError as e:
        raise ProtocolError("bad_field", str(e)) from None
    if query is not None and task != "query":
        raise ProtocolError("bad_query", f"the task '{task}' takes no query; ask for the task 'query', or leave query away")
    if voice is not None and task not in ("extract", "convert"):
        raise ProtocolError("bad_voice", f"the task '{task}' takes no voice; ask for the task 'extract' or 'convert', or leave voice away")
    if talker is not None and task != "separate":
        raise ProtocolError("bad_field", f"the task '{task}' takes no talker; ask for the task 'separate', or leave talker away")
    number = None if talker is None else _whole(message, "talker", None, 1, MAX_TALKERS)
    return task, None if voice is None else _voice(voice), None if query is None else _query(query), number


def _query(query: Any) -> str:
    try:
        return check(query if isinstance(query, str) else "")
    except ValueError as e:
        raise ProtocolError("bad_query", str(e)) from None


def _voice(voice: Any) -> bytes:
    if not isinstance(voice, str) or len(voice) > MAX_VOICE:
        raise ProtocolError("bad_voice", f"voice must be a voiceprint file in base64, at most {MAX_VOICE} characters; make one with the event enroll")
    try:
        return base64.b64decode(voice, validate=True)
    except (binascii.Error, ValueError):
        raise ProtocolError("bad_voice", "voice is not base64; send the bytes of a voiceprint file that way, or make one with the event enroll") from None


def _known(message: dict[str, Any], known: set[str]) -> None:
    if extra := sorted(set(message) - known):
        raise ProtocolError("bad_field", f"unknown field {extra[0][:MAX_NAME]!r} in {message['event']}; there are: {', '.join(sorted(known))}")


def parse_start(message: dict[str, Any]) -> tuple[Start, str]:
    """→ (what to start, format of its audio)"""
    _known(message, _START)
    rate = _whole(message, "rate", None, 8000, 48000)
    hop_samples(rate)
    kind = _text(message, "format", "s16le")
    if kind not in FORMATS:
        raise ProtocolError("bad_field", f"format must be one of {', '.join(FORMATS)}")
    if (kind == "tokens") != ("weights" in message):
        raise ProtocolError("bad_field", "weights, the fingerprint of the codec's, goes with the format tokens, and with no other")
    channels = _whole(message, "channels", 1, 1, MAX_CHANNELS)
    resume = None if message.get("resume") is None else _text(message, "resume", None)
    task, voice, query, talker = _task(message)
    start = Start(
        rate, channels, task, _strength(message), _flag(message, "bypass", False), kind != "f32le",
        _flag(message, "header", False), _flag(message, "live", True), resume, voice, query, talker, _query_gain(message), _voice_strength(message),
        _flag(message, "speech", False),
    )  # fmt: skip
    return start, kind


def _parse_set(message: dict[str, Any]) -> Set:
    _known(message, _SET)
    given = frozenset(message) - {"event"}
    if not given:
        raise ProtocolError("bad_field", f"set needs one of: {', '.join(sorted(_SET - {'event'}))}")
    asked = "task" in given or any(message.get(key) is not None for key in _ASKED)
    given = given | _ASKED if asked else given - _ASKED
    return Set(given, _strength(message), _flag(message, "bypass", False), *_task(message), _query_gain(message), _voice_strength(message))


def _parse_enroll(message: dict[str, Any]) -> Enroll:
    _known(message, {"event", "seconds"})
    seconds = message.get("seconds", ENROLL_S)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not LEAST_S <= seconds <= MOST_S:
        raise ProtocolError("bad_field", f"seconds must be a number from {LEAST_S:.0f} to {MOST_S:.0f}")
    return Enroll(float(seconds))


def parse_control(message: dict[str, Any]) -> Event:
    """A JSON object after `start` → event."""
    name = message["event"]
    if name == "set":
        return _parse_set(message)
    if name == "enroll":
        return _parse_enroll(message)
    if name == "mark":
        _known(message, {"event", "name"})
        return Mark(_text(message, "name", None))
    plain: dict[str, Callable[[], Event]] = {"clear": Clear, "stop": Stop, "move": Move}
    if name in plain:
        _known(message, {"event"})
        return plain[name]()
    if name == "start":
        raise ProtocolError("bad_order", "this connection has started already; open another for another stream")
    raise ProtocolError("unknown_event", f"unknown event {name[:MAX_NAME]!r}; there are: set, enroll, clear, mark, move, stop")


# -- audio -------------------------------------------------------------------------------------------------------------


class Codec(Protocol):
    """Binary messages ↔ samples [n, channels]."""

    def decode(self, payload: bytes | memoryview) -> Samples:
        """ProtocolError for what is no audio of this format."""

    def encode(self, y: Samples) -> Sequence[bytes]:
        """Messages that are full."""

    def flush(self) -> Sequence[bytes]:
        """What is left at the end."""


class Raw:
    """Interleaved PCM, `s16le` or `f32le`."""

    def __init__(self, kind: str, channels: int) -> None:
        self._type = np.dtype("<i2" if kind == "s16le" else "<f4")
        self._channels, self._size = channels, self._type.itemsize * channels

    def decode(self, payload: bytes | memoryview) -> Samples:
        n, rest = divmod(len(payload), self._size)
        if rest:
            raise ProtocolError("bad_audio", f"{len(payload)} bytes are not whole samples: a sample of all channels has {self._size} bytes")
        return np.ndarray((n, self._channels), self._type, payload)  # frombuffer and reshape at once

    def encode(self, y: Samples) -> Sequence[bytes]:
        return (y.astype(self._type, copy=False).tobytes(),)

    def flush(self) -> Sequence[bytes]:
        return ()


class V1:
    """The adapter of `/v1/stream`. Text: JSON. Binary: audio, after a 16-byte header if `start` said so."""

    def __init__(self) -> None:
        self._start: Start | None = None
        self._codec: Codec
        self.second_messages = 0.0
        self._next: tuple[int, int] | None = None  # sequence and capture time that the next message would have

    def receive(self, message: str | bytes) -> Sequence[Event]:
        if isinstance(message, str):
            return [self._control(json_object(message))]
        if self._start is None:
            raise ProtocolError("bad_order", 'the first message must be text: {"event": "start", "rate": ...}', fatal=True)
        if not self._start.header:
            return [Sound(self._codec.decode(message))]
        sequence, capture_us, flags, payload = unpack_header(message)
        return [Sound(self._codec.decode(payload), sequence, capture_us, flags)]

    def _control(self, message: dict[str, Any]) -> Event:
        if not isinstance(message.get("event"), str):
            raise ProtocolError("bad_json", 'a text message must be a JSON object with a text field "event"')
        if self._start is not None:
            return parse_control(message)
        if message["event"] != "start":
            raise ProtocolError("bad_order", "the first message must be start", fatal=True)
        start, kind = parse_start(message)
        if kind == "opus":
            from .opus import Opus

            self._codec = Opus(start.rate, start.channels)
        elif kind == "tokens":
            from .tokens import SECOND_MESSAGES, Tokens

            self.second_messages = SECOND_MESSAGES
            self._codec = Tokens(start.rate, start.channels, _text(message, "weights", None))
        else:
            self._codec = Raw(kind, start.channels)
        self._start = start
        return start

    def send(self, reply: Reply | Sound) -> Sequence[str | bytes]:
        if isinstance(reply, Reply):
            text = json.dumps({"event": reply.name, **reply.fields})
            if reply.name != "stopped":
                return [text]
            rest = self._codec.flush()
            if self._next is not None:
                sequence, capture_us = self._next
                rest = [pack_header(sequence + i, capture_us) + m for i, m in enumerate(rest)]
            return [*rest, text]
        messages = self._codec.encode(reply.samples)
        if reply.sequence is None:
            return messages
        assert self._start is not None
        self._next = reply.sequence + 1, reply.capture_us + len(reply.samples) * 1_000_000 // self._start.rate
        return [pack_header(reply.sequence, reply.capture_us, reply.flags) + m for m in messages]
