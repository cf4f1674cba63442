"""How late do audio callbacks run beside other Python work, in the same process and in a process of their own?

    python -m tools.bench_callbacks            # a private PipeWire server, or --server pulseaudio

The rows decided where voicewire runs its devices: in a process that does nothing else. Lateness is how much longer than one period
(10 ms) it took from one capture callback to the next; best case 0.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from voicewire.rt.live.backend import Wanted
from voicewire.rt.live.pulse import PulseBackend

from .soak import busy, parse
from .soundserver import KINDS, SoundServer

LOADS = {"none": (), "2 × pure Python, half the time": (busy, busy), "JSON parsing": (parse,), "all three": (busy, busy, parse)}


class _Times:
    def __init__(self, channels: int) -> None:
        self.channels, self.at_s = channels, []

    def capture(self, x: np.ndarray, now_s: float) -> None:
        self.at_s.append(now_s)

    def play(self, n: int) -> np.ndarray:
        return np.zeros((n, self.channels), np.float32)

    def event(self, kind: str) -> None:
        pass


def lateness_ms(seconds: float) -> list[float]:
    """Callbacks in this very process, now → how late each was, ms."""
    made: list[_Times] = []

    def ready(*args: int) -> _Times:
        made.append(_Times(args[3]))
        return made[0]

    session = PulseBackend().open(Wanted("mic", "speaker", 0.01), ready)
    time.sleep(seconds + 2)
    session.close()
    t = np.array(made[0].at_s)
    t = t[t > t[0] + 2]
    return list(1e3 * np.maximum(0, np.diff(t) - np.median(np.diff(t))))


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--server", choices=tuple(KINDS), default="pipewire")
    p.add_argument("--seconds", type=float, default=10.0)
    p.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child:
        print(json.dumps(lateness_ms(a.seconds)))
        return 0
    try:
        server = SoundServer(a.server)
    except RuntimeError as e:
        print(f"bench_callbacks: {e}", file=sys.stderr)
        return 2
    table = Table("other Python work", "callbacks", "p50", "p99", "worst, ms", box=None, title=f"{a.server}: lateness of 10 ms capture callbacks")
    with server:
        os.environ.update(server.env)
        # something must play, or a null device does not run
        player = subprocess.Popen(["pacat", "-d", "mic_feed", "/dev/zero"], env=server.env)
        try:
            for load, threads in LOADS.items():
                ended = threading.Event()
                for work in threads:
                    threading.Thread(target=work, args=(ended,), daemon=True).start()
                rows = {"in the same process": lateness_ms(a.seconds)}
                child = [sys.executable, "-m", "tools.bench_callbacks", "--child", "--seconds", str(a.seconds)]
                rows["in a process of their own"] = json.loads(subprocess.run(child, capture_output=True, text=True, check=True).stdout)
                ended.set()
                for where, late in rows.items():
                    p50, p99, worst = np.percentile(late, [50, 99, 100])
                    table.add_row(load, where, f"{p50:.2f}", f"{p99:.2f}", f"{worst:.2f}")
        finally:
            player.kill()
    Console().print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
