"""From the command line to running servers: one process, or several that share a port."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import dataclasses
import functools
import gc
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from voicewire.engines.engine import CONVERT_WEIGHTS, NAMES, TASK_WEIGHTS

from ..files import InputError
from .config import Config, engine_of
from .gate import LOOPBACK, Door
from .limits import Limits
from .onward import check_url, host_of
from .place import Place
from .scale import Sizes
from .server import Relay
from .tls import context

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def configure(a: argparse.Namespace) -> Config:
    """Check what the command line says. InputError with one line."""
    if (a.cert is None) != (a.key is None):
        raise InputError("TLS needs both --cert and --key")
    for path in (a.cert, a.key):
        if path is not None and not path.is_file():
            raise InputError(f"no file {path}")
    context(a.cert, a.key)
    if a.engine not in NAMES:
        raise InputError(f"unknown engine '{a.engine}'; there are: {', '.join(NAMES)}")
    if a.token is not None and not a.token.strip():
        raise InputError("the token is empty; leave --token away to let everyone in")
    if a.tasks and not (TASK_WEIGHTS.is_dir() and CONVERT_WEIGHTS.is_dir()):
        raise InputError("--tasks needs weights that are in the repository and in no wheel: there, pip install -e .")
    onward = getattr(a, "onward", None)
    limits = dataclasses.replace(Limits(), session_s=None if a.max_minutes is None else 60.0 * a.max_minutes, drain_s=float(a.drain_s))
    door = Door(a.token, tuple(o.rstrip("/") for o in a.origin), a.host in LOOPBACK)
    return Config(
        host=a.host, port=a.port, door=door, limits=limits, max_streams=a.max_streams, certificate=a.cert, key=a.key, record=a.record,
        handover=getattr(a, "handover", None), engine=a.engine, weights=TASK_WEIGHTS if a.tasks else None,
        converter=CONVERT_WEIGHTS if a.tasks else None, onward=onward and check_url(onward),
    )  # fmt: skip


def logs() -> None:
    """One JSON object a line on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger("voicewire.relay")
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    root.propagate = False  # wordllama, which reads queries, gives the root logger a handler of its own
    logging.getLogger("websockets").setLevel(logging.CRITICAL)  # clients that vanish are no news


def loop_factory(config: Config) -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop where it is installed (extra `[fast]`): a third less work a message. Not with TLS: there it reads what TlsFirst wants to look at first."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    made: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return asyncio.new_event_loop if config.certificate else made


def settle() -> None:
    """Set this process up to relay: nothing of Python's own may keep the streams waiting."""
    sys.setswitchinterval(5e-4)  # the event loop must not wait long for a step's Python
    # the arrays of a step must not go back to the kernel after it and be cleared anew for the next: that was two thirds of a step of 64 slots' transforms
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_TRIM_THRESHOLD, 256 << 20)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)  # messages make no cycles that are worth looking for after every 700 objects


def run_one(config: Config, place: Place | None = None, ready: Callable[[int], None] | None = None) -> None:
    """This process serves until it is told to end. ready(port): it listens."""
    settle()

    async def main() -> None:
        await Relay(engine_of(config), config).run(place, ready)

    with asyncio.Runner(loop_factory=loop_factory(config)) as runner:
        runner.run(main())


def _announce(config: Config, port: int) -> None:
    scheme = "https" if config.certificate else "http"
    shown = "localhost" if config.door.local else config.host
    if not config.door.local and config.door.token is None:
        print("voicewire: no --token: everyone who reaches this machine may use it", file=sys.stderr)
    if config.record:
        print(f"voicewire: all streams are recorded in {Path(config.record).absolute()}; clients are told so in `ready`", file=sys.stderr)
    if config.onward:
        print(f"voicewire: calls on /twilio and /vonage go on to the bot at {host_of(config.onward)}", file=sys.stderr)
    print(f"voicewire: serving {scheme}://{shown}:{port}/ · Ctrl-C ends", file=sys.stderr)


def cluster(a: argparse.Namespace) -> int:
    try:
        from .cluster import run
    except ImportError as e:
        raise InputError(f"voicewire cluster needs Ray ({e.name} is missing); pip install 'voicewire[cluster]'") from None
    config = configure(a)
    most = a.max_workers or a.workers
    if most < a.workers or a.cpus < 0 or a.gpus < 0:
        raise InputError("--max-workers must be at least --workers, --cpus and --gpus at least 0")
    logs()
    return run(config, Sizes(a.workers, most, a.cpus, a.gpus), a.address, functools.partial(_announce, config))


def serve(a: argparse.Namespace) -> int:
    config = configure(a)
    logs()
    if a.workers == 1:
        run_one(config, ready=functools.partial(_announce, config))
        return 0
    from .door import FrontDoor

    return FrontDoor(config, a.workers, functools.partial(_announce, config)).run()
