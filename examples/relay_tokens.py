"""A file through a relay at 2.5 kbit/s: speech goes out as tokens, restored speech comes back as tokens. Some messages may be lost on the way there.

voicewire serve &
python examples/relay_tokens.py noisy.wav clean.wav [ws://127.0.0.1:8765] [lost, %]
"""

import json
import os
import random
import sys

import numpy as np
import soundfile as sf
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from voicewire.engines.codec_engine import CodecEngine
from voicewire.rt.codec import TokenDecoder, TokenEncoder
from voicewire.rt.codec_format import pack_bits, unpack_bits
from voicewire.rt.relay.protocol import pack_header, unpack_header

FRAMES = 4  # a message: 80 ms, 25 bytes

if len(sys.argv) < 3:
    raise SystemExit(__doc__)
source, target, url, lost = [*sys.argv[1:], "ws://127.0.0.1:8765", "0"][:4] if len(sys.argv) == 3 else [*sys.argv[1:], "0"][:4]
x, rate = sf.read(source, dtype="float32", always_2d=True)
engine = CodecEngine()
streams, bits = engine.config.streams, engine.config.bits
encoder, decoder = TokenEncoder(rate, engine), TokenDecoder(rate, engine)
tokens = np.concatenate([encoder.process(x.mean(1))[0], encoder.flush()[0]])
messages = [pack_bits(tokens[t : t + FRAMES], bits) for t in range(0, len(tokens), FRAMES)]

start = {"event": "start", "rate": rate, "format": "tokens", "weights": engine.weights, "header": True, "live": False}
token = os.environ.get("VOICEWIRE_TOKEN")  # where the relay asks for one
try:
    socket = connect(url.removesuffix("/v1/stream").rstrip("/") + "/v1/stream", additional_headers={"Authorization": f"Bearer {token}"} if token else None)
except (OSError, WebSocketException) as e:
    raise SystemExit(f"relay_tokens: no relay at {url} ({e})") from None
with socket:
    socket.send(json.dumps(start))
    ready = json.loads(socket.recv())
    if ready["event"] == "error":
        raise SystemExit(f"relay_tokens: {ready['text']}")
    sent = 0
    for i, message in enumerate(messages):
        if i in (0, len(messages) - 1) or random.random() >= float(lost) / 100:
            socket.send(pack_header(i, 80_000 * i) + message)
            sent += len(message)
    socket.send('{"event": "stop"}')
    heard = [decoder.process(unpack_bits(bytes(m), bits, 8 * len(m) // (bits * streams) * streams).reshape(-1, streams))
             for m in (unpack_header(m)[3] for m in socket if isinstance(m, bytes))]  # fmt: skip

# both ways through the codec add a hop each to the relay's own delay
y = np.concatenate(heard)[ready["latency_samples"] + 2 * decoder.hop :]
sf.write(target, y, rate)
print(f"{len(x) / rate:.1f} s in {sent} bytes, {8 * sent * rate / len(x) / 1000:.2f} kbit/s; {len(y) / rate:.1f} s came back")
