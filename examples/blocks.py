"""Clean a sound file block by block, as live audio would come.

python examples/blocks.py noisy.wav clean.wav
"""

import sys

import numpy as np
import soundfile as sf

from voicewire.rt import Stream

if len(sys.argv) != 3:
    raise SystemExit(__doc__)
source, target = sys.argv[1:]
with sf.SoundFile(source) as audio_in:
    stream = Stream(audio_in.samplerate, audio_in.channels, mode="each")
    with sf.SoundFile(target, "w", audio_in.samplerate, audio_in.channels) as audio_out:
        late = stream.latency_samples  # the first samples out are older than the file: leave them away
        for block in audio_in.blocks(audio_in.samplerate // 100, dtype="float32"):
            y = stream.process(block)
            audio_out.write(y[late:])
            late = max(0, late - len(y))
        audio_out.write(stream.flush()[late:])
print(f"{target}: delay {stream.latency_ms:.0f} ms removed, peak {np.abs(sf.read(target)[0]).max():.2f}")
