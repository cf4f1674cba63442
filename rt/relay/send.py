"""A whole recording through a relay: `through` for programs, `voicewire send` for files."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from voicewire.engines.sentence import check

from .. import asked, enroll, files
from ..lane import Samples, check_query_gain, check_voice_strength, to_float, to_int16
from .client import PATIENCE_S, Client
from .dial import Busy

BUSY_S = 2.0  # between two tries to come in


async def stream_through(client: Client, blocks: Iterable[Samples], *, realtime: bool = False) -> AsyncGenerator[Samples, None]:
    """Blocks [n, channels], any n, through an open client → [m, channels] each, the declared delay removed, in all as many samples."""
    fed, given, early = 0, 0, client.latency_samples  # of what comes back the first `early` samples are left out

    async def feed() -> None:
        nonlocal fed
        begin = time.monotonic()
        for x in blocks:
            if realtime and (ahead := begin + (fed + len(x)) / client.rate - time.monotonic()) > 0:
                await asyncio.sleep(ahead)
            fed += len(x)
            await client.send(x)
        await client.stop()

    async def receive() -> Samples | None:
        """The next block; what went wrong with feeding, if that is what there is."""
        hearing = asyncio.ensure_future(client.receive())
        try:
            await asyncio.wait((hearing, feeding), return_when=asyncio.FIRST_COMPLETED)
            if not hearing.done():
                await feeding
            return await hearing
        finally:
            hearing.cancel()

    feeding = asyncio.create_task(feed())
    try:
        while (y := await receive()) is not None:
            late = y[early:]
            early -= len(y) - len(late)
            late = late[: fed - given]
            given += len(late)
            yield late
        await feeding
    finally:
        feeding.cancel()


async def through(client: Client, x: Samples) -> Samples:
    """All of x, [n, channels], through an open client → [n, channels], the declared delay removed."""
    size = max(1, client.rate // 50)
    return np.concatenate([y async for y in stream_through(client, (x[at : at + size] for at in range(0, len(x), size)))])


async def abreast(ways: Sequence[AsyncGenerator[Samples, None]]) -> AsyncGenerator[Samples, None]:
    """Blocks [n, 1] of every way, each in its own sizes → blocks [n, ways], as far as all have come. Who is behind is heard next."""
    held: list[Samples] = [np.zeros((0, 1), np.int16)] * len(ways)
    open_ways = set(range(len(ways)))
    while open_ways:
        i = min(open_ways, key=lambda i: len(held[i]))
        y = await anext(ways[i], None)
        if y is None:
            open_ways.discard(i)
        else:
            held[i] = np.concatenate([held[i], y]) if len(held[i]) else y
        n = min(map(len, held))
        if n:
            yield np.concatenate([h[:n] for h in held], 1)
            held = [h[n:] for h in held]


async def _come_in(client: Client) -> None:
    """A file can wait until there is room."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            await client.__aenter__()
            return
        except Busy as e:
            if time.monotonic() > end:
                raise
            _say(f"{e}; trying again")
        await asyncio.sleep(BUSY_S)


def send_file(
    source: Path, target: Path, url: str, *, token: str | None = None, task: str | None = None, enrolled: Path | None = None, talker: int | None = None,
    query: str | None = None, query_gain_db: float | None = None, voice_strength: float | None = None, strength_db: float | None = None, mix: bool = False,
    realtime: bool = False, as_json: bool = False,
) -> int:  # fmt: skip
    """`voicewire send`: a file through a relay, every channel in a stream of its own, or mixed. enrolled: a voiceprint file, or a recording to make one of
    here. talker: of two unknown ones, 1 or 2. query: the sound to keep, in words; the other numbers: see `Stream`. ValueError with one line when it cannot be
    done."""
    asked.check_asked(query, query_gain_db, enrolled, talker, task=task, voice_strength=voice_strength, strength_db=strength_db)
    check_query_gain(query_gain_db)
    strength = check_voice_strength(1.0 if voice_strength is None else voice_strength)
    files.check_writable(target)
    files.check_apart(source, target)
    voice = None if enrolled is None else enroll.file_bytes(enrolled)
    usual = asked.usual_task(query, voice, talker) or "restore"
    recording = files.opened(source)
    rate, whole = recording.rate, recording.subtype == "PCM_16"
    size = max(1, rate * (20 if realtime else 100) // 1000)
    together = mix or recording.channels == 1
    bar = Progress(console=Console(stderr=True), transient=True, disable=as_json or not sys.stderr.isatty())
    begin, samples = time.monotonic(), 0

    def client() -> Client:
        return Client(
            url, rate, channels=recording.channels if together else 1, dtype="int16" if whole else "float32", token=token, task=task or usual, voice=voice,
            query=None if query is None else check(query), talker=talker, query_gain_db=query_gain_db, voice_strength=strength, strength_db=strength_db,
            live=False, timed=realtime, say=_say,
        )  # fmt: skip

    def blocks(channel: int) -> Iterator[Samples]:
        for x in recording.blocks(size):
            y = x if together else x[:, channel : channel + 1]
            yield to_int16(y) if whole else y

    async def go() -> list[Client]:
        nonlocal samples
        clients = [client() for _ in range(1 if together else recording.channels)]
        async with AsyncExitStack() as open_:
            for one in clients:
                await _come_in(one)
                open_.push_async_exit(one.__aexit__)
            with files.writing(target, rate, recording.channels, recording.subtype, recording.samples, recording) as out, bar:
                shown = bar.add_task(source.name, total=recording.samples)
                ways = [await open_.enter_async_context(aclosing(stream_through(one, blocks(i), realtime=realtime))) for i, one in enumerate(clients)]
                async with aclosing(ways[0] if together else abreast(ways)) as cleaned:
                    async for y in cleaned:
                        out.write(to_float(y)[0])
                        samples += len(y)
                        bar.update(shown, completed=samples)
        return clients

    clients = asyncio.run(go())
    took = time.monotonic() - begin
    latency_ms: float = clients[0].ready["latency_ms"]
    report: dict[str, Any] = {"samples": samples, "sample_rate": rate, "seconds": round(took, 3), "latency_ms": latency_ms}
    report |= {"moves": sum(c.moves for c in clients), "reconnects": sum(c.reconnects for c in clients)}
    if delays_s := [d for c in clients for d in c.delays_s]:
        p50, p99 = np.percentile(delays_s, [50, 99]) * 1e3
        report |= {"there_and_back_p50_ms": round(p50, 2), "there_and_back_p99_ms": round(p99, 2), "delay_ms": round(p50 + latency_ms, 2)}
    if as_json:
        print(json.dumps(report))
    else:
        delay = f"; delay {report['delay_ms']} ms, {report['there_and_back_p50_ms']} of them there and back" if delays_s else ""
        print(f"{target}: {samples / rate:.1f} s at {rate} Hz in {took:.1f} s{delay}")
    return 0


def _say(line: str) -> None:
    print(f"voicewire: {line}", file=sys.stderr, flush=True)
