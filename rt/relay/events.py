"""What passes between a session and its client, whatever the dialect on the wire.

An *adapter* speaks one dialect. The server makes one for every connection, by path (`server.ADAPTERS`):

    receive(message) -> list[Event]         one WebSocket message in; raises ProtocolError for what it cannot use
    send(reply)      -> list[str | bytes]   one Reply or Sound out; [] for what the dialect has no word for

The first event must be a `Start` (an adapter may make one up). Both directions carry `Sound`: [n, channels] samples, int16 or
float32; out as `Start.whole` says. A session answers every Sound with one Sound of the same length (see PROTOCOL.md for which), and the
sequence and capture time of the one it answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from voicewire.engines.query import Query

from ..lane import Samples


class ProtocolError(Exception):
    """The client sent what cannot be used. code: one of PROTOCOL.md's; text: one line that says what to do; fatal: the connection ends."""

    def __init__(self, code: str, text: str, *, fatal: bool = False) -> None:
        super().__init__(text)
        self.code, self.text, self.fatal = code, text, fatal


# -- from the client ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """A stream begins. rate: 8,000 to 48,000 Hz; channels: interleaved ones are mixed, the output is repeated on each. whole: samples are int16
    (else float32), both ways. header: Sounds carry sequence and capture time, and may be late, lost or twice. live: what a slow reader does
    not take is skipped; else the server reads no further until it does. resume: name of a stream left behind on another worker (`moved`), which
    then says task, voice, query, levels and bypass. voice: bytes of the voiceprint file of the talker to extract, or to speak as. query: the
    sound to keep, in words, or made ready, as a session wants it; query_gain_db: change its level by so much instead, and leave the rest (None: keep it
    alone). talker: which of those that the task separate tells apart to keep, from 1. voice_strength: how far to go to the voice, from 0
    to 1, where that is whom to speak as. speech: the client wants to be told when somebody begins to speak, and ends.
    """

    rate: int
    channels: int = 1
    task: str = "restore"
    strength_db: float | None = None
    bypass: bool = False
    whole: bool = True
    header: bool = False
    live: bool = True
    resume: str | None = None
    voice: bytes | None = None
    query: str | Query | None = None
    talker: int | None = None
    query_gain_db: float | None = None
    voice_strength: float = 1.0
    speech: bool = False


class Sound(NamedTuple):
    """Audio, either way. samples: [n, channels]. sequence counts messages from 0 (u32, wraps); capture_us: the client's clock."""

    samples: Samples
    sequence: int | None = None
    capture_us: int = 0
    flags: int = 0


@dataclass(frozen=True)
class Set:
    """Change what is given; a field that is not in `given` stays as it is. Of task, voice, query and talker all are given or none. As in `Start`."""

    given: frozenset[str]
    strength_db: float | None = None
    bypass: bool = False
    task: str = "restore"
    voice: bytes | None = None
    query: str | Query | None = None
    talker: int | None = None
    query_gain_db: float | None = None
    voice_strength: float = 1.0


@dataclass(frozen=True)
class Enroll:
    """Make a voiceprint of the next `seconds` of this stream."""

    seconds: float


@dataclass(frozen=True)
class Clear:
    """Forget all audio that is still inside, and the past."""


@dataclass(frozen=True)
class Mark:
    """Answer with the same name when all audio received before this has been sent back."""

    name: str


@dataclass(frozen=True)
class Stop:
    """The end: send what is still inside, then close."""


@dataclass(frozen=True)
class Move:
    """Leave for another worker: send all that is due, keep the memory under a name, then close."""


Event = Start | Sound | Set | Enroll | Clear | Mark | Stop | Move


# -- to the client -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    """A message without audio. name: one of `ready`, `stats`, `speech`, `lag`, `mark`, `cleared`, `enrolled`, `goaway`, `moved`, `stopped`,
    `error`; fields as in PROTOCOL.md."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)


class Adapter(Protocol):
    """One dialect on one connection; see the top of this file. second_messages: reading a second of its sound is as much work as so many messages more."""

    second_messages: float

    def receive(self, message: str | bytes) -> Sequence[Event]:
        """One message → events. ProtocolError for what cannot be used."""

    def send(self, reply: Reply | Sound) -> Sequence[str | bytes]:
        """One reply → messages."""
