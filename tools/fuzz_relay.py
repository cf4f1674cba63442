"""Torment a relay: malformed, oversized, truncated and out-of-order messages, each on a stream that worked a moment ago.

    python -m tools.fuzz_relay --messages 100000               # starts a relay with an engine that changes nothing, watches its memory
    python -m tools.fuzz_relay --messages 1000 --port 8765     # against a running one

Every bad message must be answered by an `error` (or by the end of the connection, where WebSocket itself is broken), every good stream beside
it must get all of its samples, and the server's memory must not grow.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import Any

from tools.relay_peer import Peer, frame

START = {"event": "start", "rate": 16000}
GOOD = b"\0" * 640
FIELDS = ["rate", "channels", "format", "task", "voice", "query", "header", "live", "more"]


def text(value: object) -> bytes:
    return frame((value if isinstance(value, str) else json.dumps(value)).encode(), 1)


def _garbage(r: random.Random) -> str:
    return "".join(r.choice('{}[]",:0123456789abc é\\\u2028') for _ in range(r.randint(0, 40)))


def _base64(r: random.Random) -> str:
    return base64.b64encode(r.randbytes(r.randint(0, 40_000))).decode()


def bad_start(r: random.Random) -> bytes:
    """A first message that must be refused."""
    return r.choice([
        lambda: text(_garbage(r)),
        lambda: text(START | {r.choice(FIELDS): r.choice([-1, 0, 1e9, "x", [], {}, "é" * 500])}),
        lambda: text({"event": r.choice(["set", "stop", "mark", "clear", "", "move"])}),
        lambda: text("[" * r.randint(1, 5000)),
        lambda: frame(r.randbytes(r.randint(0, 300))),
        lambda: frame(b"\xff\xfe" + r.randbytes(5), 1),
    ])()  # fmt: skip


def bad_message(r: random.Random, header: bool) -> bytes:
    """A message that must be refused on a running stream, and leaves it running."""
    return r.choice([
        lambda: text(_garbage(r) + "{"),
        lambda: text(START),
        lambda: text({"event": "set", "strength_db": r.choice([-1, "a", [], 1e99, True])}),
        lambda: text({"event": "set", "task": r.choice(["extract", "convert"]), "voice": r.choice([None, 7, "?", "A" * 200_000, _base64(r)])}),
        lambda: text({"event": "set", "task": "query", "query": r.choice([None, 7, "?", "x" * 201, "the rain", "\ud800 a", _garbage(r)])}),
        lambda: text({"event": "set", "query_gain_db": r.choice([-101, 25, "a", [], 1e99, True])}),
        lambda: text({"event": "set", "voice_strength": r.choice([-0.1, 1.01, "a", [], 1e99, True])}),
        lambda: text({"event": "enroll", "seconds": r.choice([0, 31, -1, 1e99, "5", None])}),
        lambda: text({"event": "mark", "name": r.choice([None, 3, "", "x" * 1000])}),
        lambda: text({"event": r.choice(["dance", "x" * 500, "Start"])}),
        lambda: text({"event": "clear", "more": 1}),
        lambda: frame(b"\xc3\x28", 1),
        lambda: frame(r.randbytes(r.randint(0, 15))) if header else frame(r.randbytes(2 * r.randint(0, 300) + 1)),
        lambda: frame(b"\0", fin=False) + frame(b"", 9) + frame(r.randbytes(2) if not header else b"", 0),
    ])()  # fmt: skip


def broken(r: random.Random) -> bytes:
    """What is no WebSocket, or too long: the connection must end."""
    return r.choice([
        lambda: frame(GOOD, r.choice([3, 4, 5, 6, 7, 11, 12, 13, 14, 15])),
        lambda: struct.pack(">BBQ", 0x82, 255, r.choice([1 << 19, 1 << 40, 1 << 62])) + b"\0\0\0\0",
        lambda: b"\x82\x05hello",  # not masked
        lambda: frame(GOOD, 0),  # a continuation of nothing
        lambda: bytes([0xF2]) + frame(GOOD)[1:],
        lambda: frame(b"x" * 126, 9),  # a ping that is too long
    ])()  # fmt: skip


class Neighbour(threading.Thread):
    """A well-behaved live stream beside the torment; `missing` samples at the end."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._peer, self.over, self.missing = Peer(port), threading.Event(), -1
        self._peer.socket.sendall(text(START))
        self.start()

    def run(self) -> None:
        sent = got = 0
        while not self.over.wait(0.02):
            self._peer.socket.sendall(frame(GOOD))
            sent += len(GOOD)
            while got < sent:
                opcode, payload = self._peer.message()
                got += len(payload) if opcode == 2 else 0
                if opcode == 9:
                    self._peer.socket.sendall(frame(payload, 10))
        self._peer.socket.close()
        self.missing = (sent - got) // 2


def until(peer: Peer, event: str) -> dict[str, Any] | None:
    """The next event of that name; None when the connection ended first."""
    try:
        while True:
            opcode, payload = peer.message()
            if opcode == 1 and (found := json.loads(payload))["event"] == event:
                return dict(found)
            if opcode == 8:
                return None
    except OSError:
        return None


def torment(port: int, messages: int, seed: int = 0) -> Counter[str]:
    """Send so many bad messages to the relay at `port`; → what came of them: `messages`, `ended` (connections), `truncated` messages,
    `unanswered` ones, and how often each error code."""
    r, told = random.Random(seed), Counter[str]()
    peer: Peer | None = None
    header, left = False, 0
    while told["messages"] < messages:
        if peer is None:
            peer, header, left = Peer(port), r.random() < 0.3, r.randint(1, 15)
            if r.random() < 0.1:
                peer.socket.sendall(bad_start(r))
                _note(told, until(peer, "error"), peer)
                peer = None
                continue
            peer.socket.sendall(text(START | {"header": header}))
            if until(peer, "ready") is None:
                peer = None
                time.sleep(0.01)  # the slot of the one before is being freed
                continue
        kind, left = r.random(), left - 1
        if kind < 0.02 or left <= 0:
            peer.socket.sendall(broken(r))
            told["messages"] += 1
            if until(peer, "never") is None:
                told["ended"] += 1
            peer.socket.close()
            peer = None
        elif kind < 0.05:
            whole = frame(GOOD)
            peer.socket.sendall(whole[: r.randint(1, len(whole) - 1)])  # and gone, in the middle of it
            peer.socket.close()
            told["messages"] += 1
            told["truncated"] += 1
            peer = None
        else:
            peer.socket.sendall(bad_message(r, header))
            if not _note(told, until(peer, "error"), peer):
                peer = None
    if peer:
        peer.socket.close()
    return told


def _note(told: Counter[str], error: dict[str, Any] | None, peer: Peer) -> bool:
    told["messages"] += 1
    told["unanswered" if error is None else str(error["code"])] += 1
    if error is None:
        peer.socket.close()
    return error is not None


def rss_mb(pid: int) -> float:
    with open(f"/proc/{pid}/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--messages", type=int, default=100_000)
    p.add_argument("--port", type=int)
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    server = None
    if a.port is None:
        command = [sys.executable, "-m", "tools.bench_relay", "--engine", "wire", "--streams", "8", "--role", "serve", "--untimed"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        a.port = int(server.stdout.readline())
    part, done, begin, sizes = max(1, a.messages // 20), 0, time.monotonic(), []
    total, neighbour = Counter[str](), Neighbour(a.port)
    try:
        while done < a.messages:
            told = torment(a.port, min(part, a.messages - done), a.seed + done)
            done += told["messages"]
            total += told
            if server:
                sizes.append(rss_mb(server.pid))
                print(f"{done} messages, {time.monotonic() - begin:.0f} s, server {sizes[-1]:.1f} MB", file=sys.stderr, flush=True)
    finally:
        neighbour.over.set()
        neighbour.join(10)
        alive = server is None or server.poll() is None
        if server:
            server.terminate()
            server.wait(30)
    seen = {"alive": alive, "neighbour_missed_samples": neighbour.missing, "rss_mb": sizes, "seconds": round(time.monotonic() - begin)}
    print(json.dumps(dict(total) | seen))
    return 0 if alive and total["unanswered"] == 0 == neighbour.missing else 1


if __name__ == "__main__":
    raise SystemExit(main())
