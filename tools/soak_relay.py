"""A bad network for ten minutes, in real time, on a real server: does anything grow?

    python -m tools.soak_relay --minutes 10 --streams 2 [--loss 0.1] [--jitter-ms 40] [--engine onnx]

Every stream sends the bundled noisy voice in messages of 20 ms with header; each is lost with the given probability, or late by 0 … jitter ms. A
server process with the model; from its `stats` and its size, every second: audio owed, how long the jitter buffer waits, what is lost, memory. Compared are the
second tenth of the time and the last.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from importlib.resources import as_file, files

import numpy as np
import soundfile as sf
from websockets.asyncio.client import connect

from tools.fuzz_relay import rss_mb
from voicewire.rt.lane import to_int16
from voicewire.rt.realtime import try_realtime
from voicewire.rt.relay.protocol import HEADER, pack_header

RATE, PACKET, FRAME_S = 16000, 320, 0.02


async def talk(port: int, x: np.ndarray, seconds: float, loss: float, jitter_s: float, seed: int) -> dict[str, list[float]]:
    """One stream; → what it was told each second, and its true delay then (ms, without the model's)."""
    told: dict[str, list[float]] = {name: [] for name in ("owed_ms", "hold_ms", "lost", "delay_ms")}
    rng, loop, delays = np.random.default_rng(seed), asyncio.get_running_loop(), list[float]()
    async with connect(f"ws://127.0.0.1:{port}/v1/stream", compression=None, proxy=None, max_size=None) as ws:
        await ws.send(json.dumps({"event": "start", "rate": RATE, "header": True}))

        async def hear() -> None:
            async for message in ws:
                if isinstance(message, bytes):
                    delays.append(1e3 * time.monotonic() - HEADER.unpack_from(message)[1] / 1e3)
                elif (event := json.loads(message))["event"] == "stats" and delays:
                    for name in ("owed_ms", "hold_ms", "lost"):
                        told[name].append(event[name])
                    told["delay_ms"].append(float(np.mean(delays)))
                    delays.clear()

        hearing, sending = asyncio.create_task(hear()), set[asyncio.Task[None]]()
        begin = time.monotonic()

        async def late(message: bytes, after_s: float) -> None:
            await asyncio.sleep(after_s)
            await ws.send(message)

        for k in range(int(seconds / FRAME_S)):
            await asyncio.sleep(max(0.0, begin + (k + 1) * FRAME_S - time.monotonic()))
            if rng.random() >= loss:
                at = k * PACKET % (len(x) - PACKET)
                captured_us = round((begin + k * FRAME_S) * 1e6)
                task = loop.create_task(late(pack_header(k, captured_us) + x[at : at + PACKET].tobytes(), rng.uniform(0, jitter_s)))
                sending.add(task)
                task.add_done_callback(sending.discard)
        await asyncio.gather(*sending)
        hearing.cancel()
    return told


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--minutes", type=float, default=10.0)
    p.add_argument("--streams", type=int, default=2)
    p.add_argument("--loss", type=float, default=0.1)
    p.add_argument("--jitter-ms", type=float, default=40.0)
    p.add_argument("--engine", default="onnx", choices=("wire", "onnx"))
    a = p.parse_args()
    command = [sys.executable, "-m", "tools.bench_relay", "--engine", a.engine, "--streams", str(a.streams), "--role", "serve", "--untimed"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    port = int(server.stdout.readline())
    with as_file(files("voicewire.rt") / "samples" / "noisy.flac") as path:
        x = to_int16(sf.read(path, dtype="float32")[0])
    sizes: list[float] = []

    async def both() -> list[dict[str, list[float]]]:
        async def watch() -> None:
            while True:
                sizes.append(rss_mb(server.pid))
                await asyncio.sleep(1)

        watching = asyncio.create_task(watch())
        streams = [talk(port, x, 60 * a.minutes, a.loss, a.jitter_ms / 1e3, seed) for seed in range(a.streams)]
        results = await asyncio.gather(*streams)
        watching.cancel()
        return results

    try_realtime()  # what is late must be late by what was drawn
    results = asyncio.run(both())
    server.terminate()
    server.wait(30)

    def then_and_now(values: list[float]) -> list[float]:
        tenth = max(1, len(values) // 10)
        return [round(float(np.median(v)), 2) for v in (values[tenth : 2 * tenth], values[-tenth:])]

    seen = {name: then_and_now([float(np.mean(v)) for v in zip(*(r[name] for r in results), strict=False)]) for name in ("owed_ms", "hold_ms", "delay_ms")}
    most = {f"most_{name}": round(max(max(r[name]) for r in results), 1) for name in ("owed_ms", "hold_ms", "delay_ms")}
    lost = sum(r["lost"][-1] for r in results) / (a.streams * 60 * a.minutes / FRAME_S)
    print(json.dumps({"minutes": a.minutes, "streams": a.streams, **seen, **most, "lost_share": round(lost, 4), "rss_mb": then_and_now(sizes)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
