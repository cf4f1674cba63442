"""The dialects of telephone platforms where a bot gets the answers (onward.py): the platform's own messages, in their order, only their sound another."""

from __future__ import annotations

import base64
import json
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from .adapters import Twilio, Vonage
from .events import Adapter, Event, Mark, ProtocolError, Reply, Sound, Start
from .mulaw import encode
from .protocol import json_object

MOST_KEPT = 1 << 20  # bytes of a call that wait for the model; a second of it has some 15,000


class Passing(Adapter, Protocol):
    """A dialect whose answers are for the bot. Every message becomes one Sound or one Mark, so every answer is for the oldest message that has none."""

    def rest(self) -> Sequence[str | bytes]:
        """The words that have had no answer; there will be none."""


class Kept:
    """Messages of the platform until their turn comes: sound waits for the model, and words for the sound before them."""

    def __init__(self) -> None:
        self._messages: deque[str | bytes] = deque()
        self._bytes = 0
        self._started = False
        self._early: list[Event] = []  # of what came before the stream began

    def pass_on(self, message: str | bytes, meant: Sequence[Event]) -> Sequence[Event]:
        """meant: what the dialect understands by it. → events, one of which is answered by the message."""
        self._bytes += len(message)
        if self._bytes > MOST_KEPT:
            raise ProtocolError("bad_order", f"{MOST_KEPT} bytes wait for their turn already", fatal=True)
        self._messages.append(message)
        event = next((e for e in meant if isinstance(e, Sound)), Mark("word"))
        if self._started:
            return [event]
        self._early.append(event)
        start = next((e for e in meant if isinstance(e, Start)), None)
        if start is None:
            return []
        self._started = True
        return [start, *self._early]

    def take(self) -> str | bytes:
        message = self._messages.popleft()
        self._bytes -= len(message)
        return message

    def rest(self) -> list[str | bytes]:
        left = list(self._messages)
        self._messages.clear()
        return left


class TwilioOnward(Twilio):
    """Media of the inbound track go on with another `media.payload`."""

    def __init__(self) -> None:
        super().__init__()
        self._kept = Kept()

    def receive(self, message: str | bytes) -> Sequence[Event]:
        if isinstance(message, str) and self._sid is not None and json_object(message).get("event") != "media":
            return self._kept.pass_on(message, ())  # a word, whatever it says
        return self._kept.pass_on(message, super().receive(message))

    def send(self, reply: Reply | Sound) -> Sequence[str | bytes]:
        if isinstance(reply, Sound):
            m = json.loads(self._kept.take())
            m["media"]["payload"] = base64.b64encode(encode(reply.samples[:, 0].astype(np.int16, copy=False))).decode()
            return [json.dumps(m, separators=(",", ":"))]
        return [self._kept.take()] if reply.name == "mark" else []

    def rest(self) -> Sequence[str | bytes]:
        return [m for m in self._kept.rest() if json.loads(m).get("event") != "media"]


class VonageOnward(Vonage):
    """Binary messages go on with as many other samples."""

    def __init__(self) -> None:
        super().__init__()
        self._kept = Kept()

    def receive(self, message: str | bytes) -> Sequence[Event]:
        if isinstance(message, str) and self._start is not None:
            return self._kept.pass_on(message, ())
        return self._kept.pass_on(message, super().receive(message))

    def send(self, reply: Reply | Sound) -> Sequence[str | bytes]:
        if isinstance(reply, Sound):
            self._kept.take()
            return [reply.samples.astype("<i2", copy=False).tobytes()]
        return [self._kept.take()] if reply.name == "mark" else []

    def rest(self) -> Sequence[str | bytes]:
        return [m for m in self._kept.rest() if isinstance(m, str)]


PASSING: dict[str, Callable[[], Passing]] = {"/twilio": TwilioOnward, "/vonage": VonageOnward}
