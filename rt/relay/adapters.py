"""Dialects of telephone platforms, so that their WebSockets talk to the relay unchanged. What each message means: PROTOCOL.md.

Vonage Voice API, https://developer.vonage.com/en/voice/voice-api/concepts/websockets (path `/vonage`)
Twilio Media Streams, https://www.twilio.com/docs/voice/media-streams/websocket-messages (path `/twilio`)

Both may be spoken from either end: by the platform, or by an application that would connect to the platform (a bot).
Words we do not know are passed over, since both platforms add some now and then; what is no JSON at all is an error.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..lane import Samples
from .events import Clear, Event, Mark, ProtocolError, Reply, Sound, Start, Stop
from .mulaw import decode, encode
from .protocol import MAX_NAME, json_object

VONAGE_RATES = (8000, 16000, 24000)
TWILIO_RATE = 8000
_BLOCKS_PER_S = 50  # sound goes out in blocks of 20 ms


def _blocks(samples: Samples, rate: int) -> list[Samples]:
    n = rate // _BLOCKS_PER_S
    return [samples[at : at + n] for at in range(0, len(samples), n)]


class Vonage:
    """Binary L16, little endian, mono, 20 ms a message; JSON events and commands.

    Starts at `websocket:connected` with the rate its content-type names; a client that sends audio first is taken to mean 16 kHz.
    """

    second_messages = 0.0

    def __init__(self) -> None:
        self._start: Start | None = None
        self._marks: dict[str, Any] = {}  # payloads of `notify` that wait for their turn
        self._counted = 0

    def receive(self, message: str | bytes) -> Sequence[Event]:
        if isinstance(message, str):
            return self._text(json_object(message))
        if len(message) % 2:
            raise ProtocolError("bad_audio", f"{len(message)} bytes are not whole samples of 16 bits")
        sound = Sound(np.frombuffer(message, "<i2").reshape(-1, 1))
        return [sound] if self._start else [self._begin(16000), sound]

    def _begin(self, rate: int) -> Start:
        self._start = Start(rate)
        return self._start

    def _text(self, message: dict[str, Any]) -> Sequence[Event]:
        if message.get("event") == "websocket:connected":
            if self._start:
                raise ProtocolError("bad_order", "this connection has started already; open another for another stream")
            return [self._begin(_vonage_rate(message.get("content-type")))]
        if not self._start:
            raise ProtocolError(
                "bad_order", 'the first message must be {"event": "websocket:connected", "content-type": "audio/l16;rate=16000"} or audio', fatal=True
            )
        if message.get("action") == "clear":
            return [Clear()]
        if message.get("action") == "notify":
            if len(self._marks) >= MAX_NAME:
                raise ProtocolError("bad_order", f"{MAX_NAME} notifications are waiting already")
            name = str(self._counted)
            self._counted += 1
            self._marks[name] = message.get("payload")
            return [Mark(name)]
        return []

    def send(self, reply: Reply | Sound) -> Sequence[str | bytes]:
        if isinstance(reply, Sound):
            rate = self._start.rate if self._start else 16000
            return [b.astype("<i2", copy=False).tobytes() for b in _blocks(reply.samples, rate)]
        if reply.name == "cleared":
            return [json.dumps({"event": "websocket:cleared"})]
        if reply.name == "mark":
            return [json.dumps({"event": "websocket:notify", "payload": self._marks.pop(reply.fields["name"], None)})]
        return []


def _vonage_rate(content_type: object) -> int:
    kind, _, rest = str(content_type).replace(" ", "").lower().partition(";")
    rate = rest.removeprefix("rate=")
    if kind != "audio/l16" or not rate.isdigit() or int(rate) not in VONAGE_RATES:
        known = " or ".join(f"audio/l16;rate={r}" for r in VONAGE_RATES)
        raise ProtocolError("bad_field", f"content-type must be {known}, not {str(content_type)[:MAX_NAME]}", fatal=True)
    return int(rate)


class Twilio:
    """JSON text only: base64 µ-law, 8 kHz, mono. Only the inbound track is processed, and sent back as media to play."""

    second_messages = 0.0

    def __init__(self) -> None:
        self._sid: str | None = None

    def receive(self, message: str | bytes) -> Sequence[Event]:
        if isinstance(message, bytes):
            raise ProtocolError("bad_order", "media streams are text; binary messages are not understood")
        m = json_object(message)
        name = m.get("event")
        if self._sid is None:
            if name == "connected":
                return []
            if name != "start":
                raise ProtocolError("bad_order", "the first messages must be connected and start", fatal=True)
            return [self._begin(m)]
        if name == "start":
            raise ProtocolError("bad_order", "this connection has started already; open another for another stream")
        if name == "media":
            return _media(m.get("media"))
        if name == "mark":
            mark = m.get("mark")
            label = mark.get("name") if isinstance(mark, dict) else None
            if not isinstance(label, str) or not 0 < len(label) <= MAX_NAME:
                raise ProtocolError("bad_field", f"mark.name must be a text of 1 to {MAX_NAME} characters")
            return [Mark(label)]
        if name == "clear":
            return [Clear()]
        return [Stop()] if name == "stop" else []

    def _begin(self, m: dict[str, Any]) -> Start:
        start = m.get("start")
        if not isinstance(start, dict):
            raise ProtocolError("bad_field", "start must be an object", fatal=True)
        sid = start.get("streamSid", m.get("streamSid"))
        if not isinstance(sid, str) or not 0 < len(sid) <= MAX_NAME:
            raise ProtocolError("bad_field", f"start.streamSid must be a text of 1 to {MAX_NAME} characters", fatal=True)
        form = start.get("mediaFormat", {})
        want = {"encoding": "audio/x-mulaw", "sampleRate": TWILIO_RATE, "channels": 1}
        if not isinstance(form, dict) or any(form.get(k, v) != v for k, v in want.items()):
            raise ProtocolError("bad_field", f"start.mediaFormat must be {json.dumps(want)}", fatal=True)
        self._sid = sid
        return Start(TWILIO_RATE)

    def send(self, reply: Reply | Sound) -> Sequence[str | bytes]:
        if isinstance(reply, Sound):
            blocks = _blocks(reply.samples[:, 0], TWILIO_RATE)
            return [self._say("media", media={"payload": base64.b64encode(encode(b.astype(np.int16, copy=False))).decode()}) for b in blocks]
        if reply.name == "mark":
            return [self._say("mark", mark={"name": reply.fields["name"]})]
        return [self._say("clear")] if reply.name == "cleared" else []

    def _say(self, event: str, **fields: Any) -> str:
        return json.dumps({"event": event, "streamSid": self._sid, **fields})


def _media(media: object) -> Sequence[Event]:
    if not isinstance(media, dict) or not isinstance(media.get("payload"), str):
        raise ProtocolError("bad_field", "media.payload must be a text")
    if media.get("track", "inbound") != "inbound":
        return []
    try:
        data = base64.b64decode(media["payload"], validate=True)
    except (binascii.Error, ValueError):
        raise ProtocolError("bad_audio", "media.payload is not base64") from None
    return [Sound(decode(data).reshape(-1, 1))]
