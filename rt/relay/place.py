"""A worker's place behind the front door: connections come as file descriptors over a Unix socket, counts go back through shared memory."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from ctypes import Array, c_int64
from dataclasses import dataclass, field

GIVEN, ENDED, CAPACITY = 0, 1, 2  # a worker's numbers: connections given (the door writes), ended, streams it takes (the worker writes)
NUMBERS = 3


@dataclass
class Place:
    """One worker's end. counts: all workers' numbers, `NUMBERS` each; every number has one writer."""

    index: int
    counts: Array[c_int64]
    channel: socket.socket
    _tasks: set[asyncio.Task[object]] = field(default_factory=set, init=False)

    def serve(self, loop: asyncio.AbstractEventLoop, capacity: int, protocol: Callable[[], asyncio.Protocol], orphaned: Callable[[], None]) -> None:
        """From now on, take what the door gives. orphaned: called when the door is gone."""
        self.channel.setblocking(False)
        self._set(CAPACITY, capacity)
        loop.add_reader(self.channel.fileno(), self._take, loop, protocol, orphaned)

    def leave(self) -> None:
        """No more. What was given already is still taken, and told that this server is being emptied."""
        self._set(CAPACITY, 0)

    def gone(self) -> None:
        self._set(ENDED, self.counts[self.index * NUMBERS + ENDED] + 1)

    def _set(self, number: int, value: int) -> None:
        self.counts[self.index * NUMBERS + number] = value

    def _take(self, loop: asyncio.AbstractEventLoop, protocol: Callable[[], asyncio.Protocol], orphaned: Callable[[], None]) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self.channel, 64, 64)
        except BlockingIOError:
            return
        if not data:
            loop.remove_reader(self.channel.fileno())
            orphaned()
            return
        for fd in fds:
            connection = socket.socket(fileno=fd)
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = loop.create_task(self._greet(loop, protocol, connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _greet(self, loop: asyncio.AbstractEventLoop, protocol: Callable[[], asyncio.Protocol], connection: socket.socket) -> None:
        try:
            await loop.connect_accepted_socket(protocol, connection)
        except OSError:  # a client that went away
            connection.close()
            self.gone()
