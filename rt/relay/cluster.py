"""`voicewire cluster`: relay workers that Ray places on machines, starts again and multiplies, and a front door that tells every client which one has room.

Audio goes straight from client to worker. Through Ray go counts, twice a second, and the memory of a stream that moves. The door ends, all ends:
its process owns the workers.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlencode

import ray
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from voicewire.engines.engine import WEIGHTS
from voicewire.engines.places import separates
from voicewire.engines.query import takes_queries
from voicewire.engines.voiceprint import fits_conversion, known

from ..files import InputError
from .admission import RETRY_S
from .config import Config
from .gate import Gate
from .ray_worker import Keeper, Status, Worker
from .scale import Sizes, change
from .server import ADAPTERS
from .tickets import issue
from .tls import TlsFirst, context

POLL_S = 0.5
SILENT_S = 3.0  # a worker that has not answered for so long gets no newcomers
CALM_S = 60.0  # a worker that is not needed is emptied after so long
RESTART_S = 1.0  # and started at most so often
STORE_BYTES = 80 << 20  # of Ray's object store; streams that move are all that is in it
log = logging.getLogger("voicewire.relay")


@dataclass(eq=False)
class Known:
    """A worker as the door knows it."""

    actor: Any
    status: Status | None = None
    pid: int = 0  # the last one that was told of
    heard: float = field(default_factory=time.monotonic)
    sent: int = 0  # clients, since its last status

    @property
    def ready(self) -> bool:
        return self.status is not None and not self.status.draining and time.monotonic() - self.heard < SILENT_S

    @property
    def busy(self) -> bool:
        return self.status is not None and self.status.busy

    @property
    def free(self) -> int:
        return self.status.capacity - self.status.used - self.sent if self.status and self.ready else 0

    @property
    def share(self) -> float:
        return 1 - self.free / self.status.capacity if self.status else 1.0


class Cluster:
    """`await run()` serves until SIGTERM; then all workers are emptied. ready(port): the door listens."""

    def __init__(self, config: Config, sizes: Sizes, ready: Callable[[int], None]) -> None:
        self._config, self._sizes, self._ready = config, sizes, ready
        self._secret = secrets.token_bytes(32)
        self._known: list[Known] = []
        self._ending = asyncio.Event()
        self._calm_since = 0.0
        self._keeper_name = f"keeper-{secrets.token_hex(8)}"
        self._keeper: Any = ray.remote(num_cpus=0)(Keeper).options(name=self._keeper_name).remote()
        self._started = 0.0
        registry = self._registry = CollectorRegistry()
        self._streams = Gauge("voicewire_cluster_streams", "Streams of a worker", ["worker"], registry=registry)
        self._capacity = Gauge("voicewire_cluster_streams_max", "Streams a worker admits", ["worker"], registry=registry)
        self._refused = Counter("voicewire_cluster_refused_total", "Clients turned away at the door", ["reason"], registry=registry)
        self._gate = Gate(
            config.door, ADAPTERS, state=self._state, room=lambda moving: 0.0 if self._choose(moving) else RETRY_S, metrics=self._metrics,
            refused=lambda r: self._refused.labels(r).inc(), elsewhere=self._send, voices=known(config.weights or WEIGHTS),
            queries=takes_queries(config.weights or WEIGHTS), talkers=separates(config.weights or WEIGHTS),
            converts=fits_conversion() if config.converter else None,
        )  # fmt: skip

    # -- clients -------------------------------------------------------------------------------------------------------
    def _state(self) -> str:
        if self._ending.is_set():
            return "this cluster is being emptied"
        return "" if any(w.ready for w in self._known) else "no worker is ready yet; come back in a moment"

    def _choose(self, moving: bool) -> Known | None:
        """The worker with the smallest share of its slots used, if it has room. moving: a busy one takes those that another had admitted."""
        return min((w for w in self._known if w.free > 0 and (moving or not w.busy)), key=lambda w: w.share, default=None)

    def _send(self, path: str) -> str:
        """→ the address of a stream for somebody who was let in."""
        worker = self._choose(False) or self._choose(True)
        assert worker and worker.status  # `room` has just said so
        worker.sent += 1
        scheme = "wss" if self._config.certificate else "ws"
        return f"{scheme}://{worker.status.address}{path}?{urlencode({'ticket': issue(self._secret)})}"

    def _metrics(self) -> bytes:
        self._streams.clear()
        self._capacity.clear()
        for w in self._known:
            if w.status:
                self._streams.labels(w.status.address).set(w.status.used)
                self._capacity.labels(w.status.address).set(w.status.capacity)
        return generate_latest(self._registry)

    # -- workers -------------------------------------------------------------------------------------------------------
    def _start(self) -> None:
        door = replace(self._config.door, tickets=self._secret)
        config = replace(self._config, port=0, door=door, host="127.0.0.1" if door.local else "0.0.0.0")
        self._started = time.monotonic()
        options = {"num_cpus": self._sizes.cpus, "num_gpus": self._sizes.gpus, "max_restarts": -1}
        actor: Any = ray.remote(**options)(Worker)
        self._known.append(Known(actor.remote(config, self._keeper_name)))

    async def _ask(self, worker: Known) -> None:
        try:
            status: Status | None = await asyncio.wait_for(worker.actor.status.remote(), SILENT_S)
        except ray.exceptions.ActorDiedError:
            self._remove(worker, "died")
        except (ray.exceptions.RayError, TimeoutError):
            worker.status = None  # Ray is starting it again
        else:
            if status and worker.pid != status.pid:
                worker.pid = status.pid
                self._say("worker", worker=status.address, pid=status.pid, max_streams=status.capacity)
            worker.status, worker.heard, worker.sent = status, time.monotonic(), 0
            if status and status.over:
                ray.kill(worker.actor)
                self._remove(worker, "emptied")

    def _remove(self, worker: Known, why: str) -> None:
        self._known.remove(worker)
        self._say("worker ended", why=why, worker=worker.status.address if worker.status else None)

    async def _look_after(self) -> None:
        """Ask all workers how they are; start what is wanted, empty what is not."""
        for _ in range(self._sizes.least):
            self._start()
        while self._known or not self._ending.is_set():
            await asyncio.gather(*(self._ask(w) for w in list(self._known)))
            if not self._ending.is_set():
                self._scale()
            await asyncio.sleep(POLL_S)

    def _scale(self) -> None:
        ready = [w for w in self._known if w.ready]
        starting = sum(w.status is None for w in self._known)
        used = sum(w.status.capacity if w.busy else w.status.used + w.sent for w in ready if w.status)
        wanted = change(used, [w.status.capacity for w in ready if w.status], self._sizes, starting)
        if wanted > 0 and time.monotonic() - self._started > RESTART_S:
            self._start()
        if wanted >= 0:
            self._calm_since = time.monotonic()
        elif time.monotonic() - self._calm_since > CALM_S:
            min(ready, key=lambda w: w.share).actor.drain.remote()
            self._calm_since = time.monotonic()

    def _end(self) -> None:
        self._ending.set()
        for w in self._known:
            if w.status:
                w.actor.drain.remote()
            else:
                ray.kill(w.actor)

    def _say(self, event: str, **fields: Any) -> None:
        log.info(json.dumps({"time": round(time.time(), 3), "event": event, **fields}))

    async def run(self) -> None:
        loop, limits = asyncio.get_running_loop(), self._config.limits
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        tls = context(self._config.certificate, self._config.key)

        def check(connection: ServerConnection, request: Request) -> Response | None:
            return self._gate.check(request)

        async def nobody(connection: ServerConnection) -> None:
            await connection.close()  # the gate has an answer for everybody

        def accept(protocol: ServerProtocol, server: Server, **options: Any) -> asyncio.Protocol:
            connection = ServerConnection(protocol, server, **options)
            return connection if tls is None else TlsFirst(connection, tls, limits.start_timeout_s, lambda: None)

        async with serve(
            nobody, self._config.host, self._config.port, compression=None, process_request=check, create_connection=accept,  # type: ignore[arg-type]
            open_timeout=limits.start_timeout_s, server_header="voicewire", max_size=limits.message_bytes,
        ) as server:  # fmt: skip
            port = next(iter(server.sockets)).getsockname()[1]
            self._ready(port)
            self._say("door", port=port, tls=tls is not None, token=self._config.door.token is not None)
            await self._look_after()


def connect(address: str | None, cpus: float) -> None:
    """To a Ray cluster that runs, or to one on this machine that ends with this process."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(address, namespace="voicewire", logging_level=logging.ERROR)
        else:
            # a small store: in containers /dev/shm often has 64 MB, and Ray then uses /tmp
            cores = max(cpus, os.cpu_count() or 1)
            ray.init(num_cpus=cores, include_dashboard=False, object_store_memory=STORE_BYTES, namespace="voicewire", logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError) as e:
        raise InputError(f"no Ray cluster at {address or 'this machine'}: {' '.join(str(e).split())[:200]}") from None


def run(config: Config, sizes: Sizes, address: str | None, ready: Callable[[int], None]) -> int:
    connect(address, sizes.most * sizes.cpus)

    async def main() -> None:
        await Cluster(config, sizes, ready).run()

    try:
        asyncio.run(main())
    finally:
        ray.shutdown()
    return 0
