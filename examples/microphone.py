"""Microphone in, clean speech to the loudspeaker, in twenty lines. Use headphones. Needs PortAudio (apt-get install libportaudio2).

python examples/microphone.py
"""

import sounddevice as sd

from voicewire.rt import Stream

try:
    rate = int(sd.query_devices(kind="input")["default_samplerate"])
except sd.PortAudioError:
    raise SystemExit("no microphone; voicewire devices lists what there is") from None
stream = Stream(rate)


def callback(indata, outdata, frames, time, status):
    outdata[:, 0] = stream.process(indata[:, 0])


with sd.Stream(samplerate=rate, channels=1, dtype="float32", latency="low", callback=callback):
    print(f"{stream.latency_ms:.0f} ms behind you; Enter for bypass, Ctrl-C to end")
    try:
        while True:
            input()
            stream.bypass = not stream.bypass
            print("bypass" if stream.bypass else "clean")
    except (EOFError, KeyboardInterrupt):
        pass
