"""A file through a relay, with nothing but the client class: send blocks, take blocks, stop.

voicewire serve &
python examples/relay_file.py noisy.wav clean.wav [ws://127.0.0.1:8765]
"""

import asyncio
import os
import sys

import soundfile as sf

from voicewire.rt.relay.client import Client, RelayError
from voicewire.rt.relay.send import through

TOKEN = os.environ.get("VOICEWIRE_TOKEN")  # where the relay asks for one


async def main(source: str, target: str, url: str = "ws://127.0.0.1:8765") -> None:
    x, rate = sf.read(source, dtype="int16", always_2d=True)
    async with Client(url, rate, channels=x.shape[1], token=TOKEN, live=False, say=print) as client:
        y = await through(client, x)
    sf.write(target, y, rate)
    print(f"{len(y)} samples, {client.ready['latency_ms']} ms of delay removed")


if len(sys.argv) < 3:
    raise SystemExit(__doc__)
try:
    asyncio.run(main(*sys.argv[1:4]))
except (RelayError, sf.LibsndfileError) as e:
    raise SystemExit(f"relay_file: {e}") from None
