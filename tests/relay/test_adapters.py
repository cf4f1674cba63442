"""The dialects of Vonage and Twilio against recorded conversations: the examples of their documentation, with sound put in."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voicewire.rt.relay.adapters import Twilio, Vonage
from voicewire.rt.relay.events import Clear, Mark, ProtocolError, Reply, Sound, Start, Stop
from voicewire.rt.relay.mulaw import decode, encode

# https://www.twilio.com/docs/voice/media-streams/websocket-messages, "WebSocket messages from Twilio", in the order of a call
SID = "MZ18ad3ab5a668481ce02b83e7395059f0"
TWILIO_CALL = [
    {"event": "connected", "protocol": "Call", "version": "1.0.0"},
    {
        "event": "start",
        "sequenceNumber": "1",
        "start": {
            "accountSid": "AC9f2c61d07be34a58b1d6e0c4f7a85b23",
            "streamSid": SID,
            "callSid": "CA5e7d10c2948b4f6fa3b7c8d9e0f12364",
            "tracks": ["inbound"],
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
            "customParameters": {"FirstName": "Jane", "LastName": "Doe", "RemoteParty": "Bob"},
        },
        "streamSid": SID,
    },
    {
        "event": "media",
        "sequenceNumber": "3",
        "media": {"track": "inbound", "chunk": "1", "timestamp": "5", "payload": base64.b64encode(bytes(range(160))).decode()},
        "streamSid": SID,
    },
    {"event": "media", "sequenceNumber": "4", "media": {"track": "outbound", "chunk": "2", "timestamp": "5", "payload": "fw=="}, "streamSid": SID},
    {"event": "dtmf", "streamSid": SID, "sequenceNumber": "5", "dtmf": {"track": "inbound_track", "digit": "1"}},
    {"event": "mark", "sequenceNumber": "6", "streamSid": SID, "mark": {"name": "my label"}},
    {
        "event": "stop",
        "sequenceNumber": "7",
        "streamSid": SID,
        "stop": {"accountSid": "AC9f2c61d07be34a58b1d6e0c4f7a85b23", "callSid": "CA5e7d10c2948b4f6fa3b7c8d9e0f12364"},
    },
]

# https://developer.vonage.com/en/voice/voice-api/concepts/websockets, "First message", "Binary audio", "DTMF", "Clear", "Notify"
VONAGE_CALL: list[dict[str, object] | bytes] = [
    {"event": "websocket:connected", "content-type": "audio/l16;rate=16000", "prop1": "value1", "prop2": "value2"},
    np.arange(320, dtype="<i2").tobytes(),
    {"event": "websocket:dtmf", "digit": "5", "duration": 260},
    {"event": "websocket:cleared"},
    {"event": "websocket:notify", "payload": {"customKey": "customValue"}},
]


def test_a_twilio_call() -> None:
    a = Twilio()
    connected, start, media, other, dtmf, mark, stop = ([*a.receive(json.dumps(m))] for m in TWILIO_CALL)
    assert connected == [] and start == [Start(8000)] and other == [] and dtmf == [] and mark == [Mark("my label")] and stop == [Stop()]
    (sound,) = media
    assert isinstance(sound, Sound) and sound.samples.dtype == np.int16 and np.array_equal(sound.samples[:, 0], decode(bytes(range(160))))


def test_what_twilio_hears() -> None:
    a = Twilio()
    for m in TWILIO_CALL[:2]:
        a.receive(json.dumps(m))
    y = decode(bytes(range(240)))[:, np.newaxis]
    sent = [json.loads(m) for m in a.send(Sound(y))]
    assert [m["event"] for m in sent] == ["media", "media"] and all(m["streamSid"] == SID and set(m) == {"event", "streamSid", "media"} for m in sent)
    heard = b"".join(base64.b64decode(m["media"]["payload"]) for m in sent)
    assert np.array_equal(decode(heard), decode(bytes(range(240))))  # (there are two codes for 0)
    assert [len(base64.b64decode(m["media"]["payload"])) for m in sent] == [160, 80]
    assert json.loads(a.send(Reply("mark", {"name": "my label"}))[0]) == {"event": "mark", "streamSid": SID, "mark": {"name": "my label"}}
    assert json.loads(a.send(Reply("cleared", {"samples": 3}))[0]) == {"event": "clear", "streamSid": SID}
    assert a.receive(json.dumps({"event": "clear", "streamSid": SID})) == [Clear()]
    assert all(a.send(Reply(n)) == [] for n in ("ready", "stats", "lag", "goaway", "stopped", "error"))


def test_a_vonage_call() -> None:
    a = Vonage()
    events = [[*a.receive(m if isinstance(m, bytes) else json.dumps(m))] for m in VONAGE_CALL]
    assert events[0] == [Start(16000)] and events[2:] == [[], [], []]
    (sound,) = events[1]
    assert isinstance(sound, Sound) and np.array_equal(sound.samples[:, 0], np.arange(320))
    assert a.send(Sound(np.arange(480, dtype=np.int16)[:, np.newaxis])) == [
        np.arange(320, dtype="<i2").tobytes(),
        np.arange(320, 480, dtype="<i2").tobytes(),
    ]
    # the commands an application gives, https://developer.vonage.com/en/voice/voice-api/concepts/websockets
    assert a.receive('{"action": "clear"}') == [Clear()]
    assert [json.loads(m) for m in a.send(Reply("cleared", {"samples": 0}))] == [{"event": "websocket:cleared"}]
    (mark,) = a.receive('{"action": "notify", "payload": {"customKey": "customValue"}}')
    assert isinstance(mark, Mark)
    assert [json.loads(m) for m in a.send(Reply("mark", {"name": mark.name}))] == [VONAGE_CALL[4]]


@pytest.mark.parametrize("rate", [8000, 16000, 24000])
def test_rates_of_vonage(rate: int) -> None:
    a = Vonage()
    assert a.receive(json.dumps({"event": "websocket:connected", "content-type": f"audio/l16; rate={rate}"})) == [Start(rate)]
    assert [len(m) for m in a.send(Sound(np.zeros((rate // 50, 1), np.int16)))] == [rate // 25]


def test_vonage_without_a_first_message_is_16_khz() -> None:
    first, sound = Vonage().receive(bytes(640))
    assert first == Start(16000) and isinstance(sound, Sound) and len(sound.samples) == 320


@pytest.mark.parametrize(
    ("adapter", "messages", "code"),
    [
        (Vonage, ["not json"], "bad_json"),
        (Vonage, ["[1]"], "bad_json"),
        (Vonage, ['{"event": "websocket:connected", "content-type": "audio/l16;rate=44100"}'], "bad_field"),
        (Vonage, ['{"event": "websocket:connected"}'], "bad_field"),
        (Vonage, ['{"action": "clear"}'], "bad_order"),
        (Vonage, [b"123"], "bad_audio"),
        (Vonage, [json.dumps(VONAGE_CALL[0])] * 2, "bad_order"),
        (Twilio, [b"1234"], "bad_order"),
        (Twilio, ["{"], "bad_json"),
        (Twilio, [json.dumps(TWILIO_CALL[2])], "bad_order"),
        (Twilio, ['{"event": "start"}'], "bad_field"),
        (Twilio, ['{"event": "start", "start": {"streamSid": "x", "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 16000}}}'], "bad_field"),
        (Twilio, [json.dumps(TWILIO_CALL[1]), '{"event": "media", "media": {"payload": "***"}}'], "bad_audio"),
        (Twilio, [json.dumps(TWILIO_CALL[1]), '{"event": "media"}'], "bad_field"),
        (Twilio, [json.dumps(TWILIO_CALL[1]), '{"event": "mark", "mark": {}}'], "bad_field"),
        (Twilio, [json.dumps(TWILIO_CALL[1])] * 2, "bad_order"),
    ],
)
def test_what_cannot_be_used(adapter: type[Vonage] | type[Twilio], messages: list[str | bytes], code: str) -> None:
    a = adapter()
    for m in messages[:-1]:
        a.receive(m)
    with pytest.raises(ProtocolError) as e:
        a.receive(messages[-1])
    assert e.value.code == code and "\n" not in e.value.text


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8), lambda s: st.lists(s, max_size=3) | st.dictionaries(st.text(max_size=8), s, max_size=3)
)
_message = st.binary(max_size=64) | st.text(max_size=64) | _json.map(json.dumps)
for _m in [*TWILIO_CALL, *VONAGE_CALL]:
    if isinstance(_m, dict):
        # one field of a good message replaced by something else
        _message |= st.tuples(st.just(_m), st.sampled_from(sorted(_m)), _json).map(lambda t: json.dumps({**t[0], t[1]: t[2]}))


@given(st.sampled_from([Vonage, Twilio]), st.lists(_message, max_size=12))
@settings(max_examples=150, deadline=None)
def test_anything_is_understood_passed_over_or_refused(adapter: type[Vonage] | type[Twilio], messages: list[str | bytes]) -> None:
    a = adapter()
    for m in messages:
        try:
            events = a.receive(m)
        except ProtocolError as e:
            assert e.text
        else:
            assert all(isinstance(e, Start | Sound | Clear | Mark | Stop) for e in events)


def test_notifications_are_bounded() -> None:
    a = Vonage()
    a.receive(bytes(640))
    with pytest.raises(ProtocolError):
        for _ in range(1000):
            a.receive('{"action": "notify", "payload": {}}')


def test_mu_law() -> None:
    # points of ITU-T G.711, table 2a/2b, scaled from 14 to 16 bits
    known = {0: 0xFF, 8: 0xFE, 120: 0xF0, 32124: 0x80, -32124: 0x00, -8: 0x7E, 32767: 0x80, -32768: 0x00}
    assert [*encode(np.array([*known], np.int16))] == [*known.values()]
    assert np.array_equal(encode(decode(bytes(range(256)))), bytes(c if c != 0x7F else 0xFF for c in range(256)))
    x = np.arange(-32635, 32636, dtype=np.int32)
    error = np.abs(decode(encode(x.astype(np.int16))).astype(int) - x)
    assert (error <= (np.abs(x) + 132) / 31 + 3).all()
