"""A pipecat audio filter: what a bot hears is cleaned in its own process, without a server.

from voicewire.rt.relay.pipecat_filter import VoicewireFilter
transport = SomeTransport(params=TransportParams(audio_in_enabled=True, audio_in_filter=VoicewireFilter()))
"""

from __future__ import annotations

import asyncio

import numpy as np

from voicewire.engines.engine import Engine

from ..stream import Stream

try:
    from pipecat.audio.filters.base_audio_filter import BaseAudioFilter
    from pipecat.frames.frames import FilterControlFrame, FilterEnableFrame
except ImportError as e:
    raise ImportError(f"the pipecat filter needs pipecat ({e.name} is missing): pip install 'voicewire[pipecat]'") from None


class VoicewireFilter(BaseAudioFilter):  # type: ignore[misc]
    """Mono, 16 bits, at the transport's rate; as many samples come out as go in, 30 ms later.

    strength_db: see `Stream`; what is usual suits the recogniser that writes down what a bot hears. A `FilterEnableFrame(False)` lets
    everything through with the same delay.
    """

    def __init__(self, *, strength_db: float | None = None, engine: Engine | None = None) -> None:
        self._strength_db, self._engine = strength_db, engine
        self._stream: Stream | None = None
        self._enabled = True

    async def start(self, sample_rate: int) -> None:
        """ValueError for a rate that cannot be processed."""
        self._stream = await asyncio.to_thread(Stream, sample_rate, strength_db=self._strength_db, bypass=not self._enabled, engine=self._engine)

    async def stop(self) -> None:
        self._stream = None

    async def process_frame(self, frame: FilterControlFrame) -> None:
        if isinstance(frame, FilterEnableFrame):
            self._enabled = frame.enable
            if self._stream:
                self._stream.bypass = not frame.enable

    async def filter(self, audio: bytes) -> bytes:
        if self._stream is None:
            return audio
        # the step of a frame takes milliseconds: not in the bot's event loop
        clean = await asyncio.to_thread(self._stream.process, np.frombuffer(audio, np.int16))
        return clean.tobytes()
