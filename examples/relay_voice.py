"""Speak as somebody else through a relay that has never heard of them: it makes the voiceprint of a recording first, then converts a file.

voicewire serve --tasks &
python examples/relay_voice.py them.wav me.wav me-as-them.wav [ws://127.0.0.1:8765]

Only with the consent of whose voice it is.
"""

import asyncio
import os
import sys

import soundfile as sf

from voicewire.rt.relay.client import Client, RelayError
from voicewire.rt.relay.send import through

TOKEN = os.environ.get("VOICEWIRE_TOKEN")  # where the relay asks for one


async def enroll(path: str, url: str) -> bytes:
    """→ the voiceprint of whoever speaks there, as `voicewire enroll` would write it; the relay keeps nothing of it"""
    x, rate = sf.read(path, dtype="int16", always_2d=True)
    x = x[: 10 * rate, :1]
    async with Client(url, rate, token=TOKEN, live=False) as client:
        await client.enroll(len(x) / rate)

        async def feed() -> None:
            for at in range(0, len(x), rate // 10):
                await client.send(x[at : at + rate // 10])
            while client.enrolled is None:  # its answer is met on the way to the next sound
                await client.send(0 * x[: rate // 10])
                await asyncio.sleep(0.1)

        feeding = asyncio.create_task(feed())
        while client.enrolled is None:
            if await client.receive() is None:
                raise RelayError("the relay ended before it had enrolled the voice")
        await feeding
        return client.enrolled


async def main(them: str, source: str, target: str, url: str = "ws://127.0.0.1:8765") -> None:
    voice = await enroll(them, url)
    x, rate = sf.read(source, dtype="int16", always_2d=True)
    async with Client(url, rate, channels=x.shape[1], task="convert", voice=voice, voice_strength=1.0, token=TOKEN, live=False, say=print) as client:
        y = await through(client, x)
    sf.write(target, y, rate)
    print(f"{len(y)} samples; the voiceprint has {len(voice) / 1e3:.0f} kB")


if len(sys.argv) < 4:
    raise SystemExit(__doc__)
try:
    asyncio.run(main(*sys.argv[1:5]))
except (RelayError, sf.LibsndfileError) as e:
    raise SystemExit(f"relay_voice: {e}") from None
