"""`voicewire cluster`: when it grows and shrinks, and a local Ray with two small workers (skipped, with a reason, where Ray is not installed)."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
from relay_tools import wait_for

from voicewire.engines import Engine
from voicewire.engines.convert_engine import GRAPH
from voicewire.engines.query import takes_queries
from voicewire.engines.voiceprint import known
from voicewire.rt import Stream
from voicewire.rt.cli import main
from voicewire.rt.lane import to_int16
from voicewire.rt.relay.client import Client, RelayError
from voicewire.rt.relay.command import add_commands
from voicewire.rt.relay.scale import Sizes, change
from voicewire.rt.relay.workers import configure


@pytest.mark.parametrize(
    ("used", "capacities", "starting", "expected"),
    [
        (0, [], 0, 1),  # too few
        (0, [], 2, 0),
        (0, [10, 10], 0, 0),  # as few as there may be
        (15, [10, 10], 0, 0),
        (16, [10, 10], 0, 1),  # 80 % used
        (16, [10, 10], 1, 0),  # one is on its way
        (40, [10, 10, 10, 10], 0, 0),  # as many as there may be
        (11, [10, 10, 10], 0, 0),
        (10, [10, 10, 10], 0, -1),  # would be half used without one
        (10, [10, 10, 10], 1, 0),
    ],
)
def test_workers_follow_the_slots(used: int, capacities: list[int], starting: int, expected: int) -> None:
    assert change(used, capacities, Sizes(2, 4), starting) == expected


def test_without_ray_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("cluster", "ray_worker"):
        monkeypatch.delitem(sys.modules, f"voicewire.rt.relay.{name}", raising=False)
    assert main(["cluster"]) == 2
    assert capsys.readouterr().err == "voicewire: voicewire cluster needs Ray (ray is missing); pip install 'voicewire[cluster]'\n"


@pytest.mark.parametrize("command", ["serve", "cluster"])
def test_both_servers_offer_all_tasks_when_told_to(command: str) -> None:
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers(dest="command"), float)
    plain, all_tasks = configure(parser.parse_args([command])), configure(parser.parse_args([command, "--tasks"]))
    assert plain.weights is None and plain.converter is None
    assert all_tasks.weights is not None and known(all_tasks.weights) and takes_queries(all_tasks.weights)
    assert all_tasks.converter is not None and (all_tasks.converter / GRAPH).exists()


class Cluster:
    """`voicewire cluster` as a process; `workers`: (address, pid) in the order they came."""

    def __init__(self) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        command = [sys.executable, "-m", "voicewire.rt", "cluster", "--workers", "2", "--max-streams", "3", "--cpus", "0.5", "--port", str(self.port)]
        path = os.pathsep.join([".links", *filter(None, sys.path)])
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})
        self.lines: list[str] = []
        self._reader = threading.Thread(daemon=True, target=lambda: [self.lines.append(line) for line in self.process.stderr or ()])
        self._reader.start()
        assert wait_for(lambda: len(self.workers) == 2 or self.process.poll() is not None, 120) and self.process.poll() is None, self.lines

    @property
    def workers(self) -> list[tuple[str, int]]:
        return [(e["worker"], e["pid"]) for e in map(json.loads, filter(lambda line: '"event": "worker",' in line, self.lines))]

    def one_with_streams(self) -> int:
        """Its process."""
        found: list[int] = []

        def look() -> bool:
            found.extend(pid for address, pid in self.workers if self.used(address))
            return bool(found)

        assert wait_for(look, 10)
        return found[0]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def used(self, address: str) -> float:
        text = urllib.request.urlopen(f"{self.url}/metrics").read().decode()
        return sum(float(line.split()[1]) for line in text.splitlines() if line.startswith(f'voicewire_cluster_streams{{worker="{address}"}}'))

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0, self.lines
        self._reader.join(5)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("ray", reason="Ray is missing: pip install 'voicewire[cluster]'")
    c = Cluster()
    yield c
    c.end()


@contextlib.asynccontextmanager
async def client_of(cluster: Cluster) -> AsyncIterator[Client]:
    """As a client does that is told to come back later: a busy machine makes workers refuse newcomers for five seconds."""
    for _ in range(60):
        client = Client(cluster.url, 16000)
        try:
            await client.__aenter__()
            break
        except RelayError:
            await asyncio.sleep(0.5)
    else:
        raise AssertionError("refused for 30 s")
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_exit(client.__aexit__)
        yield client


async def talk(cluster: Cluster, x: np.ndarray, at_half: Any = None) -> tuple[np.ndarray, int]:
    """x at the speed of sound; → what came back, moves."""
    async with client_of(cluster) as client:

        async def feed() -> None:
            for k in range(0, len(x), 320):
                await client.send(x[k : k + 320])
                await asyncio.sleep(0.02)
                if at_half and k == len(x) // 640 * 320:
                    at_half()
            await client.stop()

        feeding = asyncio.create_task(feed())
        heard = []
        while (y := await client.receive()) is not None:
            heard.append(y)
        await feeding
        return np.concatenate(heard)[:, 0], client.moves


def test_the_door_sends_clients_to_the_emptiest_worker(cluster: Cluster, engine: Engine, noisy: np.ndarray) -> None:
    answer = json.loads(urllib.request.urlopen(f"{cluster.url}/v1/where").read())
    assert any(answer["url"].startswith(f"ws://{address}/v1/stream?ticket=") for address, _ in cluster.workers)
    assert b"<title>voicewire" in urllib.request.urlopen(cluster.url).read()
    x = to_int16(noisy[:32000])

    async def two() -> None:
        async def look() -> list[float]:
            for _ in range(200):
                used = [await asyncio.to_thread(cluster.used, address) for address, _ in cluster.workers]
                if sum(used) == 2:
                    break
                await asyncio.sleep(0.1)
            return used

        *both, used = await asyncio.gather(talk(cluster, x), talk(cluster, x), look())
        assert used == [1, 1], "two clients were not given to two workers"
        want = Stream(16000, engine=engine).process(x)
        assert all(np.array_equal(y[: len(x)], want) for y, _ in both)

    asyncio.run(two())


def test_a_worker_that_is_emptied_gives_its_streams_to_another(cluster: Cluster, engine: Engine, noisy: np.ndarray) -> None:
    x = to_int16(noisy[:96000])

    async def three() -> list[tuple[np.ndarray, int]]:
        return await asyncio.gather(*(talk(cluster, x, (lambda: os.kill(cluster.one_with_streams(), signal.SIGTERM)) if i == 0 else None) for i in range(3)))

    results = asyncio.run(three())
    want = Stream(16000, engine=engine).process(x)
    assert all(np.array_equal(y[: len(x)], want) for y, _ in results), "a stream that moved is not bit for bit the same"
    assert sum(moves for _, moves in results) >= 1
    assert wait_for(lambda: len(cluster.workers) == 3, 60), "no worker took the place of the one that left"


def test_a_worker_that_dies_is_started_again(cluster: Cluster, noisy: np.ndarray) -> None:
    count = len(cluster.workers)

    async def stay() -> None:
        async with client_of(cluster) as client:
            await client.send(np.zeros(320, np.int16))
            await client.receive()
            os.kill(cluster.one_with_streams(), signal.SIGKILL)
            while not client.reconnects:  # through the door, to the other one
                await client.send(np.zeros(320, np.int16))
                await client.receive()

    asyncio.run(stay())
    y, _ = asyncio.run(talk(cluster, to_int16(noisy[:3200])))  # the other one is there at once
    assert len(y) == 3200 + 480
    assert wait_for(lambda: len(cluster.workers) == count + 1, 60), "Ray did not start it again"
