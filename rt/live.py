"""`voicewire live`: microphone in, speech out, through PortAudio. The plain form: no virtual device, no drift control yet."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from rich.console import Console
from rich.live import Live

from .files import InputError
from .stream import Stream


def has_devices() -> bool:
    """Is there a default input and a default output?"""
    try:
        import sounddevice as sd

        sd.query_devices(kind="input")
        sd.query_devices(kind="output")
    except Exception:  # no PortAudio, no server, no device: PortAudio has many ways to say so
        return False
    return True


def _meter(x: float) -> str:
    db = 20 * np.log10(x + 1e-6)
    filled = int(np.clip((db + 60) / 60, 0, 1) * 24)
    return "█" * filled + "·" * (24 - filled) + f" {db:6.1f} dB"


def run(console: Console, *, device_in: str | None, device_out: str | None, strength_db: float | None, seconds: float | None) -> None:
    """Run until Ctrl-C or for `seconds`. InputError when the devices cannot be opened."""
    try:
        import sounddevice as sd
    except OSError:
        raise InputError("no PortAudio library; install it: apt-get install libportaudio2") from None
    try:
        rate = int(sd.query_devices(device_in, "input")["default_samplerate"])
        stream = Stream(rate, strength_db=strength_db)
        peak = np.zeros(2)
        xruns = 0
        gone = threading.Event()

        def callback(indata: Any, outdata: Any, frames: int, time: Any, status: Any) -> None:
            nonlocal xruns
            xruns += bool(status)
            y = stream.process(indata[:, 0])
            outdata[:] = y[:, None]
            peak[:] = np.maximum(peak * 0.9, [np.abs(indata).max(), np.abs(y).max()])

        with sd.Stream(
            samplerate=rate, blocksize=stream.frame_samples // 2, device=(device_in, device_out), channels=1, dtype="float32",
            latency="low", callback=callback, finished_callback=gone.set,
        ) as io, Live(console=console, refresh_per_second=10, transient=True) as view:  # fmt: skip
            console.print(f"live at {rate} Hz; {stream.latency_ms:.0f} ms model + {1e3 * sum(io.latency):.0f} ms devices; Ctrl-C ends", highlight=False)
            waited = 0.0
            while not gone.wait(0.1) and (seconds is None or waited < seconds):
                waited += 0.1
                view.update(f"in  {_meter(peak[0])}\nout {_meter(peak[1])}\nxruns {xruns}")
    except (sd.PortAudioError, ValueError) as e:
        raise InputError(f"the sound devices cannot be used: {e}; see: voicewire doctor") from None
    except KeyboardInterrupt:
        pass
    console.print(f"ended after {stream.frames * 0.02:.1f} s, {xruns} xruns", highlight=False)
