"""The LiveKit filter with LiveKit's own frames, and behind LiveKit's own AudioStream."""

from __future__ import annotations

import asyncio
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tools.relay_peer import Wire
from voicewire.engines import Engine
from voicewire.engines.engine import State
from voicewire.rt.lane import USUAL_STRENGTH_DB
from voicewire.rt.stream import Stream

rtc = pytest.importorskip("livekit.rtc", reason="livekit is missing: pip install 'voicewire[livekit]'")

from voicewire.rt.livekit_filter import VoicewireProcessor  # noqa: E402  (needs livekit)

F32, I16 = NDArray[np.float32], NDArray[np.int16]
RATE = 24000  # what an agent asks for if nothing is said


def through(processor: VoicewireProcessor, x: I16, rate: int, sizes: list[int]) -> I16:
    """x: [n, channels] in frames of these sizes, over and over → what comes back, the same shape."""
    heard, at, k = [], 0, 0
    while at < len(x):
        block = x[at : at + sizes[k % len(sizes)]]
        frame = processor._process(rtc.AudioFrame(block.tobytes(), rate, x.shape[1], len(block), userdata={"at": at}))
        assert isinstance(frame, rtc.AudioFrame) and (frame.sample_rate, frame.num_channels) == (rate, x.shape[1])
        assert frame.samples_per_channel == len(block) and frame.userdata == {"at": at}
        heard.append(np.frombuffer(frame.data, np.int16).reshape(block.shape))
        at, k = at + len(block), k + 1
    return np.concatenate(heard)


def sine(n: int, channels: int = 1) -> I16:
    x: I16 = np.round(6000 * np.sin(np.arange(n)[:, None] / (9 + 2 * np.arange(channels)))).astype(np.int16)
    return x


@pytest.mark.parametrize(("rate", "channels"), [(RATE, 1), (16000, 2)])
def test_what_comes_out_is_what_a_stream_gives(engine: Engine, noisy: F32, rate: int, channels: int) -> None:
    x = np.round(noisy[: 16000 * channels] * 32767).astype(np.int16).reshape(-1, channels)
    expected = Stream(rate, channels, mode="each", engine=engine).process(x)
    assert np.array_equal(through(VoicewireProcessor(engine=engine), x, rate, [rate // 20]), expected)
    assert np.array_equal(through(VoicewireProcessor(engine=engine, strength_db=None), x[:4800], rate, [7, 480, 1]), Stream(
        rate, channels, mode="each", engine=engine).process(x[:4800]))  # fmt: skip


@given(sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=6), channels=st.integers(1, 2), rate=st.sampled_from([8000, RATE, 48000]))
@settings(max_examples=20, deadline=None)
def test_frames_of_any_length_are_the_input_delayed(sizes: list[int], channels: int, rate: int) -> None:
    x, late = sine(6000, channels), rate * 30 // 1000
    y = through(VoicewireProcessor(engine=Wire()), x, rate, sizes)
    assert not y[:late].any() and np.abs(y[late:].astype(int) - x[:-late]).max() <= 1


def test_switching_off_is_click_free_and_keeps_the_delay(engine: Engine) -> None:
    """On a tone every jump would be seen: a sample after another differs by as much as in the tone itself, give or take rounding and the cross-fade."""
    x = sine(RATE * 2)
    steepest = np.abs(np.diff(x[:, 0].astype(int))).max()
    p = VoicewireProcessor(engine=engine)
    heard = []
    for k, part in enumerate(np.split(x, 8)):
        p.enabled = k % 2 == 0
        assert p.enabled and p.bypass == (k % 2 == 1)  # LiveKit is to go on asking
        heard.append(through(p, part, RATE, [1200]))
    y = np.concatenate(heard)[:, 0].astype(int)
    assert np.abs(np.diff(y)).max() <= 1.1 * steepest
    at = RATE // 4 + 2 * 720  # well inside the first part that is let through
    assert np.abs(y[at : at + 2400] - x[at - 720 : at + 2400 - 720, 0]).max() <= 1
    assert np.abs(y[4000:6000] - x[4000 - 720 : 6000 - 720, 0]).max() > 10  # while it is on, something is done


def test_what_was_said_before_the_agent_came_does_not_touch_the_live_track() -> None:
    """`pre_connect_audio` passes through between two live frames, at another rate."""
    p, live, before = VoicewireProcessor(engine=Wire()), sine(RATE), sine(48000)
    y = [through(p, live[:12000], RATE, [1200])]
    early = through(p, before, 48000, [4800])
    y.append(through(p, live[12000:], RATE, [1200]))
    assert np.abs(np.concatenate(y)[720:].astype(int) - live[:-720]).max() <= 1 and np.abs(early[1440:].astype(int) - before[:-1440]).max() <= 1


def test_another_publication_begins_afresh_and_so_does_a_closed_processor() -> None:
    p, x = VoicewireProcessor(engine=Wire()), sine(2400)

    def info(identity: str, sid: str) -> None:
        p._on_stream_info_updated(room_name="room", participant_identity=identity, publication_sid=sid)

    info("ann", "TR_1")
    first = through(p, x, RATE, [1200])
    info("ann", "TR_1")  # is said again with every change of the room's credentials
    assert through(p, x, RATE, [1200])[:720].any()
    info("bob", "TR_2")
    assert np.array_equal(through(p, x, RATE, [1200]), first)
    p._close()
    p._close()
    assert np.array_equal(through(p, x, RATE, [1200]), first)


def test_a_rate_that_cannot_be_processed_is_passed_on_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    p, x = VoicewireProcessor(engine=Wire()), sine(9600)
    assert np.array_equal(through(p, x, 96000, [960]), x)
    assert [r.levelname for r in caplog.records] == ["WARNING"] and "96000" in caplog.text


class Half(Wire):
    """An engine that takes away half, and no time: LiveKit sends frames in real time, whether they are taken or not."""

    def step(self, x: F32, state: State) -> tuple[F32, State]:
        return x / 2, {"count": state["count"] + 1}

    advance = step


def test_behind_livekits_own_audio_stream(caplog: pytest.LogCaptureFixture) -> None:
    """A local track needs no server. LiveKit asks about `enabled` there, and closes the processor in the end."""
    n, came = RATE // 100, []
    x = sine(200 * n)[:, 0]

    class Noted(VoicewireProcessor):
        def _process(self, frame: rtc.AudioFrame) -> rtc.AudioFrame:
            came.append(np.frombuffer(frame.data, np.int16))  # where the machine is late, LiveKit puts silence in
            return super()._process(frame)

    async def agent() -> I16:
        source = rtc.AudioSource(RATE, 1)
        track = rtc.LocalAudioTrack.create_audio_track("microphone", source)
        p = Noted(engine=Half())
        p.enabled = False
        stream = rtc.AudioStream(track, sample_rate=RATE, num_channels=1, frame_size_ms=50, noise_cancellation=p)

        async def speak() -> None:
            for at in range(0, len(x), n):
                await source.capture_frame(rtc.AudioFrame(x[at : at + n].tobytes(), RATE, 1, n))

        speaking, heard = asyncio.create_task(speak()), []
        async for event in stream:
            heard.append(np.frombuffer(event.frame.data, np.int16))
            if len(heard) == 10:
                p.enabled = True
            if len(heard) == 20:
                break
        speaking.cancel()
        await stream.aclose()
        await source.aclose()
        assert not p._streams  # closed
        return np.concatenate(heard)

    y = asyncio.run(asyncio.wait_for(agent(), 60)).astype(float)
    assert "Frame processing failed" not in caplog.text and len(y) == 20 * 1200
    z = np.concatenate(came).astype(float)
    assert np.abs(z).max() == 6000 and not y[:720].any()  # delayed from the first sample on, although it was off
    assert np.abs(y[720:12000] - z[: 12000 - 720]).max() <= 1
    kept = (1 + 10 ** (-USUAL_STRENGTH_DB["restore"] / 20)) / 2  # a share of what is taken away stays
    assert np.abs(y[13200:] - kept * z[13200 - 720 : 24000 - 720]).max() <= 1


def test_without_livekit_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "livekit.rtc", None)
    monkeypatch.delitem(sys.modules, "voicewire.rt.livekit_filter")
    with pytest.raises(ImportError, match=r"pip install 'voicewire\[livekit\]'"):
        import voicewire.rt.livekit_filter  # noqa: F401
