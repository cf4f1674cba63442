"""Speech as tokens over something that carries bytes, and back: python examples/codec.py IN.wav OUT.wav [WEIGHTS]"""

import sys
from pathlib import Path

import soundfile as sf

from voicewire.engines.codec_engine import CODEC_WEIGHTS, CodecEngine
from voicewire.engines.codec_variable import VariableRate
from voicewire.rt.codec import TokenDecoder, encode
from voicewire.rt.codec_format import Parser

if len(sys.argv) < 3:
    raise SystemExit(__doc__)
x, rate = sf.read(sys.argv[1], dtype="float32", always_2d=True)
mono = x.mean(1)
engine = CodecEngine(Path(sys.argv[3]) if len(sys.argv) > 3 else CODEC_WEIGHTS)

microphone = (mono[t : t + 441] for t in range(0, len(mono), 441))  # blocks of any size
wire = encode(microphone, rate, engine, VariableRate(), packet_frames=5)  # a packet every 100 ms; leave VariableRate out for constant rate

parser, decoder, heard, sent = Parser(engine.odds), TokenDecoder(rate, engine), [], 0
for message in wire:
    sent += len(message)
    for packet in parser.feed(message):
        heard.append(decoder.process(packet.tokens))
end = parser.finish()

y = [s for block in heard for s in block][decoder.hop : decoder.hop + end.samples]
sf.write(sys.argv[2], y, rate)
print(f"{end.samples / rate:.1f} s in {sent} bytes: {8 * sent * rate / end.samples / 1000:.2f} kbit/s")
