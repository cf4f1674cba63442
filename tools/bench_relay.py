"""What the relay costs: streams a core, delay and CPU of every message, against real sockets.

    python -m tools.bench_relay --engine wire --streams 100,250          # the server's own work: an engine that changes nothing
    python -m tools.bench_relay --engine echo --streams 100,250          # a plain websockets server that only echoes, to compare with
    python -m tools.bench_relay --engine onnx --streams 1,4,8            # with the model
    python -m tools.bench_relay --engine onnx --streams auto             # the most that keep p99.9 of a step within a frame
    python -m tools.bench_relay --engine onnx --task convert             # with the converter

One server process (`--server-core`), one load process (`--load-core`). Every stream sends 20 ms of 16 kHz s16le every 20 ms, at its own phase.
added: from sending a message to receiving the one that answers it. step: one batched step; frame: from a frame's arrival to the end of its step;
both from the server. CPU is of the server process, all its threads, per message that was answered; kept waiting: how long they were ready to run and
another process had the core, or one of their own: where that is much, the delays are the machine's. late: frames that took longer than a frame.
unseen: answers left out of `added`, because the load process itself did not get its core for 3 ms before it saw them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from importlib.resources import as_file, files
from typing import Any, NamedTuple

import numpy as np
from websockets.exceptions import ConnectionClosed

from tools.relay_peer import Peer, Wire, frame
from voicewire.engines.convert_engine import ConvertEngine
from voicewire.engines.converting import Converting
from voicewire.engines.engine import CONVERT_WEIGHTS, Engine, open_engine
from voicewire.rt import enroll
from voicewire.rt.files import read
from voicewire.rt.realtime import try_realtime
from voicewire.rt.relay.config import Config
from voicewire.rt.relay.limits import Limits
from voicewire.rt.relay.protocol import pack_voice
from voicewire.rt.relay.server import Relay
from voicewire.rt.relay.slots import Batching, StepTime
from voicewire.rt.relay.workers import loop_factory, settle

FRAME_S, RATE = 0.02, 16000
BLIND_S = 0.003
LOOK_S = 0.0003  # the load process looks so often: were it waiting, every answer would have the server wake it, which no client elsewhere asks for


def asked(task: str) -> dict[str, str]:
    """What a stream's `start` says of the task."""
    if task == "restore":
        return {"task": task}
    with as_file(files("voicewire.rt") / "samples" / "other_enrol.flac") as path:
        voice = enroll.of_samples(*read(path)[:2])
    return {"task": task, "voice": pack_voice(voice.to_bytes())}


def serve(engine_name: str, task: str, streams: int, batch: int, wait: float, timed: bool) -> None:
    """The server process: prints its port, and at the end, if timed, the times of its steps."""
    engine: Engine = Wire() if engine_name == "wire" else open_engine(engine_name)
    if task == "convert":
        engine = Converting(engine, ConvertEngine(CONVERT_WEIGHTS))
    times: list[StepTime] = []
    settle()
    try_realtime()  # as a server that has the core for itself would run

    async def main() -> None:
        limits = Limits(late_frames=10**6)  # whoever comes is admitted, however busy this machine is
        relay = Relay(engine, Config(port=0, max_streams=streams, batching=Batching(batch, wait), limits=limits))
        if timed:
            counted = relay.metrics.stepped
            relay.metrics.stepped = lambda t: (times.append(t), counted(t))[1]  # type: ignore[method-assign, func-returns-value]
        await relay.run(ready=lambda port: print(port, flush=True))

    with asyncio.Runner(loop_factory=loop_factory(Config())) as runner:
        runner.run(main())
    if not times:
        return
    times = times[len(times) // 5 :]  # the first fifth is connecting
    step, frame, slots = ([getattr(t, k) for t in times] for k in ("step_s", "oldest_s", "slots"))
    late = sum(t.slots for t in times if t.oldest_s > FRAME_S)
    print(json.dumps({"step": _percentiles(step), "frame": _percentiles(frame), "batch": float(np.mean(slots)), "late": late, "frames": int(np.sum(slots))}))


def echo() -> None:
    """A server process that does nothing but give messages back, in the library's plain way."""
    from websockets.asyncio.server import ServerConnection
    from websockets.asyncio.server import serve as plain_serve

    async def handle(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for message in connection:
                await connection.send('{"event": "ready"}' if isinstance(message, str) else message)

    async def main() -> None:
        async with plain_serve(handle, "127.0.0.1", 0, compression=None) as server:
            ended = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
            print(next(iter(server.sockets)).getsockname()[1], flush=True)
            await ended.wait()

    try_realtime()
    with asyncio.Runner(loop_factory=loop_factory(Config())) as runner:
        runner.run(main())


def _percentiles(seconds: list[float]) -> list[float]:
    """[p50, p99, p99.9, max] in ms"""
    return [round(float(v) * 1e3, 3) for v in np.percentile(seconds, [50, 99, 99.9, 100])]


def _open(port: int, fields: dict[str, str]) -> Peer:
    peer = Peer(port)
    peer.socket.sendall(frame(json.dumps({"event": "start", "rate": RATE, **fields}).encode(), 1))
    while b"ready" not in peer.message()[1]:
        pass
    peer.socket.setblocking(False)
    return peer


class _Cpu(NamedTuple):
    """At one moment: the server's CPU time and waiting time, messages answered."""

    at_s: float
    run_s: float
    waited_s: float
    answered: int


def _cpu(pid: int, answered: int) -> _Cpu:
    run = waited = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/schedstat") as f:
            fields = f.read().split()
        run, waited = run + int(fields[0]), waited + int(fields[1])
    return _Cpu(time.perf_counter(), run * 1e-9, waited * 1e-9, answered)


def load(port: int, pid: int, task: str, streams: int, seconds: float) -> dict[str, Any]:
    """The load process: every stream on its own phase, one thread, frames made beforehand."""
    fields = asked(task)
    peers = [_open(port, fields) for _ in range(streams)]
    sockets = [peer.socket for peer in peers]
    try_realtime()  # what is measured must not be this process
    noise = (1000 * np.random.default_rng(0).standard_normal(int(RATE * FRAME_S))).astype("<i2").tobytes()
    block = frame(noise)
    poll, which = select.epoll(), {s.fileno(): i for i, s in enumerate(sockets)}
    for s in sockets:
        poll.register(s, select.EPOLLIN)
    sent: list[list[float]] = [[] for _ in sockets]
    delays: list[list[float]] = [[] for _ in sockets]
    seen: list[list[bool]] = [[] for _ in sockets]  # by a look that came in time
    total, k, behind = int(seconds / FRAME_S) * streams, 0, 0.0
    begin = look = time.perf_counter()
    end = begin + seconds + 2
    answered, marks, shares = 0, list[_Cpu](), [0.3, 0.8]
    while answered < total and (now := time.perf_counter()) < end:
        if shares and now - begin > shares[0] * seconds:
            shares.pop(0)
            marks.append(_cpu(pid, answered))
        while k < total and begin + k * FRAME_S / streams <= now:
            behind = max(behind, now - (begin + k * FRAME_S / streams))
            sockets[k % streams].send(block)
            sent[k % streams].append(time.perf_counter())
            k += 1
        time.sleep(LOOK_S)
        last_look, look = look, time.perf_counter()
        for fd, _ in poll.poll(0):
            i = which[fd]
            peers[i].fill()
            now = time.perf_counter()
            while got := peers[i].buffered():
                opcode, payload = got
                if opcode == 2 and len(payload) == len(noise):
                    delays[i].append(now - sent[i][len(delays[i])])
                    seen[i].append(look - last_look < BLIND_S)
                    answered += 1
                elif opcode == 9:
                    sockets[i].send(frame(payload, 10))
    flat = [(d, ok) for one, oks in zip(delays, seen, strict=True) for d, ok in list(zip(one, oks, strict=True))[len(one) // 5 :]]
    for s in sockets:
        s.close()
    first, last = marks
    wall, run, waited, done = (b - a for a, b in zip(first, last, strict=True))
    return {
        "messages": answered, "expected": total, "added": _percentiles([d for d, ok in flat if ok]),
        "unseen": round(1 - sum(ok for _, ok in flat) / len(flat), 4), "load_behind_ms": round(behind * 1e3, 1),
        "cpu": round(run / wall, 3), "us_per_message": round(1e6 * run / max(1, done), 1), "waited": round(waited / wall, 3),
    }  # fmt: skip


def run(engine: str, task: str, streams: int, seconds: float, batch: int, wait: float, server_core: int, load_core: int) -> dict[str, Any]:
    """One row of the table."""
    command = [sys.executable, "-m", "tools.bench_relay", "--engine", engine, "--task", task, "--streams", str(streams), "--batch", str(batch)]
    command += ["--wait", str(wait)]
    server = subprocess.Popen(["taskset", "-c", str(server_core), *command, "--role", "serve"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    port = int(server.stdout.readline())
    role = ["--role", "load", "--port", str(port), "--pid", str(server.pid), "--seconds", str(seconds)]
    loader = subprocess.run(["taskset", "-c", str(load_core), *command, *role], stdout=subprocess.PIPE, text=True, check=True)
    name, loop = engine if task == "restore" else f"{engine}, {task}", type(loop_factory(Config())()).__module__
    row: dict[str, Any] = {"engine": name, "loop": loop, "streams": streams, **json.loads(loader.stdout)}
    server.terminate()
    return row | json.loads(server.communicate()[0] or "{}")


def show(row: dict[str, Any]) -> None:
    def three(v: list[float]) -> str:
        return " / ".join(f"{x:.1f}" for x in v[:3])

    if "step" not in row:
        row = row | {"batch": 0.0, "step": [0.0] * 3, "frame": [0.0] * 3, "late": 0, "frames": 0}
    print(
        f"| {row['engine']}, {row['loop'].partition('.')[0]} | {row['streams']} | {row['cpu']:.2f} | {row['us_per_message']:.0f} | {row['waited']:.0%} "
        f"| {three(row['added'])} | {row['batch']:.1f} | "
        f"{three(row['step'])} | {three(row['frame'])} | {row['late']} of {row['frames']} | {row['messages'] / row['expected']:.1%} "
        f"| {row['unseen']:.1%} | {row['load_behind_ms']} |",
        flush=True,
    )


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--engine", default="wire", choices=("wire", "onnx", "echo"))
    p.add_argument("--task", default="restore", choices=("restore", "convert"))
    p.add_argument("--streams", default="100,250", help="like 100,250, or auto")
    p.add_argument("--seconds", type=float, default=20.0)
    p.add_argument("--batch", type=int, default=0, help="slots a step (default: 16 for onnx, 64 for wire)")
    p.add_argument("--wait", type=float, default=0.3, help="share of a frame that a frame may wait for company")
    p.add_argument("--server-core", type=int, default=1)
    p.add_argument("--load-core", type=int, default=0)
    p.add_argument("--json", action="store_true")
    p.add_argument("--role", choices=("serve", "load"), help=argparse.SUPPRESS)
    p.add_argument("--untimed", action="store_true", help=argparse.SUPPRESS)
    p.add_argument("--port", type=int, help=argparse.SUPPRESS)
    p.add_argument("--pid", type=int, help=argparse.SUPPRESS)
    a = p.parse_args()
    batch = a.batch or (16 if a.engine == "onnx" else 64)
    if a.role == "serve" and a.engine == "echo":
        echo()
        return 0
    if a.role == "serve":
        serve(a.engine, a.task, int(a.streams), batch, a.wait, not a.untimed)
        return 0
    if a.role == "load":
        print(json.dumps(load(a.port, a.pid, a.task, int(a.streams), a.seconds)))
        return 0
    rows: list[dict[str, Any]] = []
    if not a.json:
        print(
            "| engine, loop | streams | CPU cores | µs a message | kept waiting | added p50 / p99 / p99.9 ms | batch | step ms | frame ms | late "
            "| answered | unseen | load behind ms |"
        )
        print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    counts = iter(range(1, 512)) if a.streams == "auto" else iter(int(t) for t in a.streams.split(","))
    for n in counts:
        rows.append(run(a.engine, a.task, n, a.seconds, batch, a.wait, a.server_core, a.load_core))
        if not a.json:
            show(rows[-1])
        if a.streams == "auto" and rows[-1]["step"][2] > 1e3 * FRAME_S:
            break
    if a.json:
        print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
