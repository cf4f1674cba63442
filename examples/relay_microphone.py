"""Microphone → relay → speaker, with the true delay shown once a second. Needs PortAudio; use headphones.

voicewire serve &
python examples/relay_microphone.py [ws://127.0.0.1:8765]
"""

import asyncio
import os
import sys

import numpy as np
import sounddevice as sd

from voicewire.rt.relay.client import Client, RelayError

RATE, BLOCK = 48000, 960  # 20 ms, as the relay answers live streams that carry their time
DEPTH = 4  # blocks the speaker may be behind: more is left out, so that a stall does not stay for ever


async def main(url: str = "ws://127.0.0.1:8765") -> None:
    loop = asyncio.get_running_loop()
    said: asyncio.Queue[np.ndarray] = asyncio.Queue(50)
    to_play: list[np.ndarray] = []

    def offer(block: np.ndarray) -> None:
        if not said.full():
            said.put_nowait(block)

    def callback(indata: np.ndarray, outdata: np.ndarray, frames: int, time: object, status: object) -> None:
        loop.call_soon_threadsafe(offer, indata.copy())
        del to_play[:-DEPTH]
        block = to_play.pop(0) if to_play else indata[:0]
        outdata[: len(block)], outdata[len(block) :] = block, 0

    async def report(client: Client, devices_ms: float) -> None:
        while True:
            await asyncio.sleep(1)
            there_and_back = 1e3 * float(np.median(list(client.delays_s)[-100:] or [0]))
            depth = 1e3 * len(to_play) * BLOCK / RATE
            model = client.ready["latency_ms"]
            total = there_and_back + model + depth + devices_ms
            print(f"delay {total:.0f} ms: model {model:.0f}, there and back {there_and_back:.1f}, waiting {depth:.0f}, devices {devices_ms:.0f}")

    async with Client(url, RATE, token=os.environ.get("VOICEWIRE_TOKEN"), timed=True, say=print) as client:
        with sd.Stream(samplerate=RATE, blocksize=BLOCK, channels=1, dtype="int16", latency="low", callback=callback) as io:
            reporting = asyncio.create_task(report(client, 1e3 * sum(io.latency)))

            async def feed() -> None:
                while True:
                    await client.send(await said.get())

            feeding = asyncio.create_task(feed())
            try:
                while (y := await client.receive()) is not None:
                    to_play.append(y)
            finally:
                feeding.cancel()
                reporting.cancel()


try:
    asyncio.run(main(*sys.argv[1:2]))
except (RelayError, sd.PortAudioError) as e:
    raise SystemExit(f"relay_microphone: {e}") from None
except KeyboardInterrupt:
    pass
