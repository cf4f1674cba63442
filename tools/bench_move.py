"""How long a live stream is without sound when its worker is emptied: two workers, live clients, SIGTERM to one worker.

    python -m tools.bench_move --streams 4 --seconds 8              # serve --workers 2
    python -m tools.bench_move --streams 4 --seconds 8 --cluster    # cluster --workers 2, on a local Ray

gap: the longest time between two answers of a stream, less the 20 ms between messages; and no sample may be missing. Streams that stayed show what this machine
does anyway. Clients and both workers get real-time priority if that may be had, the worker that is started in place of the emptied one does not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np

from voicewire.rt.realtime import PRIORITY, try_realtime
from voicewire.rt.relay.client import Client

FRAME_S = 0.02


async def _talk(url: str, seconds: float) -> tuple[int, float, bool]:
    """→ (moves, gap in s, all samples came)"""
    async with Client(url, 16000) as client:
        block, n = np.zeros(320, np.int16), int(seconds / FRAME_S)

        async def feed() -> None:
            begin = time.monotonic()
            for k in range(n):
                await asyncio.sleep(max(0.0, begin + k * FRAME_S - time.monotonic()))
                await client.send(block)
            await client.stop()

        feeding = asyncio.create_task(feed())
        got, last, gap = 0, 0.0, 0.0
        while (y := await client.receive()) is not None:
            now = time.monotonic()
            if got > 50 * 320:  # the first second is connecting
                gap = max(gap, now - last - FRAME_S)
            got, last = got + len(y), now
        await feeding
        return client.moves, gap, got == n * 320 + client.latency_samples


def _realtime(pid: int) -> None:
    """For a running process: its event loop before its other threads."""
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            os.sched_setscheduler(int(task), os.SCHED_FIFO, os.sched_param(PRIORITY if int(task) == pid else PRIORITY - 1))


async def _all(url: str, streams: int, seconds: float, pid: int) -> list[tuple[int, float, bool]]:
    asyncio.get_running_loop().call_later(seconds / 2, os.kill, pid, signal.SIGTERM)
    return await asyncio.gather(*(_talk(url, seconds) for _ in range(streams)))


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--streams", type=int, default=4)
    p.add_argument("--seconds", type=float, default=8.0)
    p.add_argument("--port", type=int, default=8799)
    p.add_argument("--cluster", action="store_true")
    a = p.parse_args()
    kind = ["cluster", "--cpus", "0.5"] if a.cluster else ["serve"]
    command = [sys.executable, "-m", "voicewire.rt", *kind, "--workers", "2", "--port", str(a.port), "--max-streams", str(a.streams)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    pids: list[int] = []
    while len(pids) < 2:
        line = server.stderr.readline()
        if f'"event": "{"worker" if a.cluster else "listen"}",' in line:
            pids.append(json.loads(line)["pid"])
    threading.Thread(target=server.stderr.read, daemon=True).start()
    for pid in pids:
        _realtime(pid)
    try_realtime()
    results = asyncio.run(_all(f"ws://127.0.0.1:{a.port}", a.streams, a.seconds, pids[0]))
    server.send_signal(signal.SIGTERM)
    server.wait(60)
    for moved in (True, False):
        gaps = [1e3 * gap for moves, gap, _ in results if bool(moves) is moved]
        if gaps:
            print(f"{'moved' if moved else 'stayed'}: {len(gaps)} streams, gap ms median {np.median(gaps):.1f}, longest {max(gaps):.1f}")
    print(f"samples missing in {sum(not whole for *_, whole in results)} of {len(results)} streams")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
