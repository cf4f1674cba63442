"""A whole recording through a relay: `through` for programs, `voicewire send` for files."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from voicewire.engines.sentence import check

from .. import enroll, files
from ..lane import F32, Samples, check_query_gain, check_voice_strength, to_float, to_int16
from .client import Client


async def through(client: Client, x: Samples, *, block_ms: float = 20.0, realtime: bool = False, progress: Callable[[float], None] | None = None) -> Samples:
    """All of x, [n, channels], through an open client → [n, channels], the declared delay removed."""
    block = max(1, round(block_ms * client.rate / 1000))

    async def feed() -> None:
        begin = time.monotonic()
        for at in range(0, len(x), block):
            if realtime and (early := begin + min(at + block, len(x)) / client.rate - time.monotonic()) > 0:
                await asyncio.sleep(early)
            await client.send(x[at : at + block])
            if progress:
                progress(min(1.0, (at + block) / len(x)))
        await client.stop()

    feeding = asyncio.create_task(feed())
    heard = []
    try:
        while (y := await client.receive()) is not None:
            heard.append(y)
        await feeding
    finally:
        feeding.cancel()
    return np.concatenate(heard)[client.latency_samples :][: len(x)]


def send_file(
    source: Path, target: Path, url: str, *, token: str | None = None, task: str | None = None, enrolled: Path | None = None, talker: int | None = None,
    query: str | None = None, query_gain_db: float | None = None, voice_strength: float = 1.0, realtime: bool = False, as_json: bool = False,
) -> int:  # fmt: skip
    """`voicewire send`: a file through a relay. enrolled: a voiceprint file, or a recording to make one of here. talker: of two unknown ones,
    1 or 2. query: the sound to keep, in words; query_gain_db and voice_strength: see `Stream`. ValueError with one line when it cannot be done."""
    files.check_asked(query, query_gain_db, enrolled, talker)
    check_query_gain(query_gain_db)
    check_voice_strength(voice_strength)
    files.check_writable(target)
    voice = None if enrolled is None else enroll.file_bytes(enrolled)
    usual = next((t for t, what in (("query", query), ("extract", voice), ("separate", talker)) if what is not None), "restore")
    x, rate, subtype = files.read(source)
    whole = subtype == "PCM_16"
    begin = time.monotonic()

    async def go() -> tuple[Samples, Client]:
        client = Client(
            url, rate, channels=x.shape[1], dtype="int16" if whole else "float32", token=token, task=task or usual, voice=voice,
            query=None if query is None else check(query), talker=talker, query_gain_db=query_gain_db, voice_strength=voice_strength, live=False,
            timed=realtime, say=_say,
        )  # fmt: skip
        async with client:
            return await through(client, to_int16(x) if whole else x, block_ms=20 if realtime else 100, realtime=realtime), client

    y, client = asyncio.run(go())
    out: F32 = to_float(y)[0]
    files.write(target, out, rate, subtype)
    took = time.monotonic() - begin
    latency_ms: float = client.ready["latency_ms"]
    report: dict[str, Any] = {"samples": len(y), "sample_rate": rate, "seconds": round(took, 3), "latency_ms": latency_ms, "moves": client.moves}
    report["reconnects"] = client.reconnects
    if client.delays_s:
        p50, p99 = np.percentile(client.delays_s, [50, 99]) * 1e3
        report |= {"there_and_back_p50_ms": round(p50, 2), "there_and_back_p99_ms": round(p99, 2), "delay_ms": round(p50 + latency_ms, 2)}
    if as_json:
        print(json.dumps(report))
    else:
        delay = f"; delay {report['delay_ms']} ms, {report['there_and_back_p50_ms']} of them there and back" if client.delays_s else ""
        print(f"{target}: {len(y) / rate:.1f} s at {rate} Hz in {took:.1f} s{delay}")
    return 0


def _say(line: str) -> None:
    print(f"voicewire: {line}", file=sys.stderr, flush=True)
