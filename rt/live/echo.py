"""What the loudspeaker says, taken out of the microphone before the model hears it: for calls without headphones.

The canceller is WebRTC's (AEC3), as LiveKit's package brings it (extra `[echo]`): it finds out by itself how late and how changed the loudspeaker
comes back, and follows clocks that drift. Order matters: behind a model that changes the sound from moment to moment no canceller, such as a call
program's own, finds it any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backend import Device, DeviceError, Session, find, pulse_module
from .ring import Ring

F32 = NDArray[np.float32]

USUAL = "default"  # whatever the system plays on
DELAY_MS = 9.0  # of the canceller, which divides the sound into bands; by group delay between 0.2 and 15 kHz
_FAR_RATE = 48000
_PIECE_S = 0.01  # what it takes at a time
_RETRY_S = 2.0


class Canceller:
    """near: [n] samples at `rate` in, all pieces of 10 ms that are whole out; what is left over comes with the next ones."""

    def __init__(self, rate: int) -> None:
        """DeviceError where the package is missing."""
        try:
            from livekit.rtc import AudioFrame
            from livekit.rtc.apm import AudioProcessingModule
        except ImportError:
            raise DeviceError("taking out what the loudspeaker says needs LiveKit's echo canceller: pip install 'voicewire[echo]'") from None
        self._frame, self._apm = AudioFrame, AudioProcessingModule(echo_cancellation=True)
        self.rate, self._piece = rate, round(_PIECE_S * rate)
        self._far_piece = round(_PIECE_S * _FAR_RATE)
        self._far = Ring(_FAR_RATE, 1)
        self._left = np.zeros(0, np.float32)

    def far(self, x: F32) -> None:
        """x: [n, 1] at 48 kHz, what the loudspeaker says; from another thread. More than a second ahead is not kept."""
        self._far.write(x)

    def near(self, x: F32) -> tuple[F32, F32]:
        """x: [n] → (as it came, without the loudspeaker), both [m]; the latter DELAY_MS late."""
        while self._far.fill >= self._far_piece:
            self._apm.process_reverse_stream(self._as_frame(self._far.read(self._far_piece)[:, 0], _FAR_RATE))
        came = np.concatenate([self._left, x])
        whole = len(came) // self._piece * self._piece
        self._left = came[whole:]
        came, out = came[:whole], np.empty(whole, np.float32)
        for at in range(0, whole, self._piece):
            frame = self._as_frame(came[at : at + self._piece], self.rate)
            self._apm.process_stream(frame)
            out[at : at + self._piece] = np.frombuffer(frame.data, np.int16)
        return came, out / np.float32(32768)

    def _as_frame(self, x: F32, rate: int) -> Any:
        pcm = np.rint(np.clip(x, -1.0, 32767 / 32768) * 32768).astype(np.int16)
        return self._frame(bytearray(pcm.tobytes()), rate, 1, len(x))


class _Ears:
    """`Calls` of a session that only listens."""

    def __init__(self, heard: Callable[[F32], None]) -> None:
        self._heard, self.lost = heard, False

    def capture(self, x: F32, now_s: float) -> None:
        self._heard(x[:, :1] if x.shape[1] == 1 else x.mean(1, keepdims=True))

    def play(self, n: int) -> F32:
        raise AssertionError("it only listens")

    def event(self, kind: str) -> None:
        self.lost |= kind == "lost"


class Loudspeaker:
    """Listens to what an output device plays, and goes after it: to the system's new choice, or once a device that was away is back.

    name: an output by name, or "default". heard: called with [n, 1] float32 at 48 kHz from another thread.
    """

    def __init__(self, name: str, heard: Callable[[F32], None], period_s: float) -> None:
        self._name, self._heard, self._period_s = name, heard, period_s
        self._session: Session | None = None
        self._ears = _Ears(heard)
        self._tried_at = -_RETRY_S
        self.hears = ""  # the output that is listened to

    def _find(self, backend: Any) -> Device:
        return find(backend.devices(), "output", None if self._name == USUAL else self._name)

    def open(self) -> None:
        """DeviceError if there is nothing to listen to."""
        backend = listening_backend()
        device = self._find(backend)
        self.close()
        self._ears = _Ears(self._heard)
        self._session = backend.listen(f"{device.name}.monitor", self._period_s, self._ears)
        self.hears = device.name

    def look(self, default: str) -> str:
        """Now and then. default: the system's output as far as known. → what is listened to since, if that is something else than before."""
        moved = self._name == USUAL and default not in ("", self.hears) and not default.startswith("voicewire")
        if self._session and not self._ears.lost and not moved:
            return ""
        if time.monotonic() - self._tried_at < _RETRY_S:
            return ""
        self._tried_at, before = time.monotonic(), self.hears
        try:
            self.open()
        except DeviceError:
            self.close()
        return self.hears if self.hears != before else ""

    def close(self) -> None:
        session, self._session, self.hears = self._session, None, ""
        if session:
            session.close()


def listening_backend() -> Any:
    """The back end that can hear what a loudspeaker plays. DeviceError elsewhere than on PulseAudio and PipeWire."""
    try:
        return pulse_module().PulseBackend()
    except DeviceError as e:
        raise DeviceError(f"what the loudspeaker says can be heard on PulseAudio and PipeWire alone: {e}") from None
