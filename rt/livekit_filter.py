"""A LiveKit noise canceller: what an agent hears is cleaned in its own process, without LiveKit Cloud.

from voicewire.rt.livekit_filter import VoicewireProcessor
session.start(…, room_options=room_io.RoomOptions(audio_input=room_io.AudioInputOptions(noise_cancellation=VoicewireProcessor())))
"""

from __future__ import annotations

import logging

import numpy as np

from voicewire.engines.engine import Engine, open_engine

from .stream import Stream

try:
    from livekit.rtc import AudioFrame, FrameProcessor
except ImportError as e:
    raise ImportError(f"the LiveKit filter needs livekit 1.0.25 or later ({e.name} is missing): pip install 'voicewire[livekit]'") from None

log = logging.getLogger("voicewire.livekit")


class VoicewireProcessor(FrameProcessor[AudioFrame]):  # type: ignore[misc]
    """Frames of any length at 8,000 to 48,000 Hz, every channel by itself; as many samples come out as go in, 30 ms later.

    strength_db: see `Stream`; what is usual suits the recogniser that writes down what an agent hears. bypass: let everything through,
    with the same delay. engine: what to step with, for several processors of one process; None: opens one, which takes a third of a second, so make a
    processor before the call.

    One processor cleans one track at a time; a publication that replaces another begins afresh. LiveKit calls it on the agent's event loop.
    """

    def __init__(self, *, strength_db: float | None = None, bypass: bool = False, engine: Engine | None = None) -> None:
        self._engine = engine or open_engine()
        self._strength_db, self._bypass = strength_db, bypass
        # By (rate, channels): LiveKit passes what was said before the agent joined (`pre_connect_audio`) through between two live frames, at its own rate.
        # None: frames that cannot be processed.
        self._streams: dict[tuple[int, int], Stream | None] = {}
        self._publication: tuple[str, str] | None = None
        Stream(16000, strength_db=strength_db, engine=self._engine).process(np.zeros(640, np.int16))  # the first steps are the slowest: not in the call

    @property
    def enabled(self) -> bool:
        """Always true: where it is false LiveKit passes frames on without asking, 30 ms earlier than those before them. To ask, see `bypass`."""
        return True

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self.bypass = not value

    @property
    def bypass(self) -> bool:
        """Everything is let through, with the same delay. Switching is cross-faded over 10 ms."""
        return self._bypass

    @bypass.setter
    def bypass(self, value: bool) -> None:
        self._bypass = value
        for stream in list(self._streams.values()):
            if stream:
                stream.bypass = value

    def _on_stream_info_updated(self, *, room_name: str, participant_identity: str, publication_sid: str) -> None:
        now = participant_identity, publication_sid
        if self._publication not in (None, now):
            self._streams.clear()  # another voice, and nobody should hear the last 30 ms of the one before
        self._publication = now

    def _process(self, frame: AudioFrame) -> AudioFrame:
        kind = frame.sample_rate, frame.num_channels
        if kind not in self._streams:
            self._streams[kind] = self._open(*kind)
        stream = self._streams[kind]
        if stream is None:
            return frame
        n = frame.num_channels * frame.samples_per_channel  # there may be more in it
        clean = stream.process(np.frombuffer(frame.data, np.int16)[:n].reshape(-1, frame.num_channels))
        return AudioFrame(clean.tobytes(), *kind, frame.samples_per_channel, userdata=frame.userdata)

    def _open(self, rate: int, channels: int) -> Stream | None:
        try:
            return Stream(rate, channels, mode="each", strength_db=self._strength_db, bypass=self._bypass, engine=self._engine)
        except ValueError as e:  # raised, it would be a traceback in the log with every frame
            log.warning("this track is passed on as it is: %s", e)
            return None

    def _close(self) -> None:
        """Forget what is inside. LiveKit may close a processor and use it again: it begins afresh then."""
        self._streams.clear()
        self._publication = None
