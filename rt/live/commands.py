"""The commands of live audio: live, devices, virtual, latency, config, service."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..asked import check_asked, usual_task
from . import config, service, try_command, virtual
from .backend import BACKENDS, DeviceError, open_backend
from .controller import LiveSettings
from .echo import USUAL

if TYPE_CHECKING:
    from rich.console import Console

COMMANDS = ("live", "try", "devices", "virtual", "latency", "config", "service")


def _settings(p: argparse.ArgumentParser, positive: Callable[[str], float], strength: Callable[[str], float]) -> None:
    p.add_argument("--config", type=Path, metavar="FILE", help=f"TOML with a [live] section (default: {config.default_path()}, if it is there)")
    p.add_argument("--in", dest="device_in", metavar="NAME", help="microphone by name; 'virtual': what programs play to the virtual speaker")
    p.add_argument("--out", dest="device_out", metavar="NAME", help="output by name; 'virtual': a microphone 'voicewire' for other programs")
    p.add_argument(
        "--task", help="what to do: restore, extract one talker (default with --enroll), query (default with --query), separate (with --talker), or convert"
    )
    p.add_argument("--enroll", metavar="VOICE", help="the talker to extract, or to speak as: a file of voicewire enroll, or a recording of that talker alone")
    p.add_argument("--voice-strength", type=float, metavar="X", help="convert: how far to go, from 0 (your own voice) to 1 (the other's)")
    p.add_argument("--talker", type=int, metavar="N", help="of two talkers that nobody enrolled keep one, 1 or 2; the other while it runs: keys 1 and 2")
    p.add_argument("--query", metavar="TEXT", help="the sound to keep, in words: 'a dog barking'; other words while it runs: key /")
    p.add_argument(
        "--query-gain", dest="query_gain_db", type=float, metavar="DB", help="keep everything, and change the queried sound by this many dB (-100: take it out)"
    )
    p.add_argument(
        "--strength",
        dest="strength_db",
        type=strength,
        metavar="DB",
        help="take away at most this many dB (restore 20, extract 60, else 40; 100 is without limit)",
    )
    p.add_argument("--backend", choices=BACKENDS, help="sound system (default: PulseAudio/PipeWire if there, else PortAudio)")
    p.add_argument("--period-ms", type=positive, help="block length asked of the devices (10)")
    p.add_argument("--cushion-ms", type=positive, help="audio kept against late steps; grows by itself when needed (10)")
    p.add_argument(
        "--echo", nargs="?", const=USUAL, metavar="NAME",
        help="take out what the loudspeaker says, for calls without headphones ([echo] extra); NAME: of an output, if not the system's",
    )  # fmt: skip
    p.add_argument("--record", metavar="DIR", help="write aligned before and after recordings there")


def add(sub: Any, positive: Callable[[str], float], strength: Callable[[str], float]) -> None:
    """Add the parsers of COMMANDS to the command line's sub-parsers."""
    p = sub.add_parser("live", help="microphone in, clean speech out, for hours: voicewire live --out virtual")
    _settings(p, positive, strength)
    p.add_argument("--seconds", type=positive, help="stop after this long")
    p.add_argument("--quiet", action="store_true", help="print nothing but faults")
    p.add_argument("--json", action="store_true", help="one JSON line a second, and one for every event (speech, speech_ended, and what goes wrong)")

    try_command.add(sub, positive, strength)

    p = sub.add_parser("devices", help="list the devices that live can use")
    p.add_argument("--backend", choices=BACKENDS)
    p.add_argument("--json", action="store_true")

    p = sub.add_parser("virtual", help="make or remove virtual devices that outlive this command")
    p.add_argument("action", choices=("create", "remove"))
    p.add_argument("kind", nargs="?", choices=("microphone", "speaker"), help="default: microphone; of remove: both")

    p = sub.add_parser("latency", help="measure the true delay, microphone to virtual microphone, through the sound server")
    p.add_argument("--seconds", type=positive, default=20.0, help="of each measurement")
    p.add_argument("--period-ms", type=positive, default=10.0)
    p.add_argument("--cushion-ms", type=positive, default=LiveSettings.cushion_ms)
    p.add_argument("--backend", choices=("jack", "pulse"))
    p.add_argument("--json", action="store_true")

    p = sub.add_parser("config", help="check a configuration file")
    p.add_argument("action", choices=("check",))
    p.add_argument("file", type=Path, nargs="?", default=config.default_path())

    p = sub.add_parser("service", help="a systemd user unit: the virtual microphone is there after login")
    p.add_argument("action", choices=("install", "remove", "show"))
    p.add_argument("--config", type=Path, metavar="FILE")


def settings_of(a: argparse.Namespace) -> LiveSettings:
    """The configuration file, with what the command line says on top."""
    path = a.config or (config.default_path() if config.default_path().exists() else None)
    base = config.load(path) if path else LiveSettings()
    if not a.task:
        a.task = usual_task(a.query, a.enroll, a.talker)
    names = (
        "device_in", "device_out", "task", "enroll", "talker", "query", "query_gain_db", "strength_db", "voice_strength", "backend", "period_ms", "cushion_ms",
        "echo", "record",
    )  # fmt: skip
    settings = replace(base, **{n: getattr(a, n) for n in names if getattr(a, n) is not None})
    check_asked(None, None, None, task=settings.task, voice_strength=a.voice_strength, strength_db=a.strength_db)
    return settings


def has_devices() -> bool:
    """Is there an input and an output?"""
    try:
        kinds = {d.kind for d in open_backend().devices()}
    except DeviceError:
        return False
    return kinds >= {"input", "output"}


def start(console: Console) -> None:
    """What `voicewire start` runs where there is a sound device: never the microphone onto its own loudspeaker."""
    from . import view

    view.run(console, LiveSettings(device_out="virtual"), seconds=None, quiet=False, as_json=False)


def run(a: argparse.Namespace, console: Console) -> int:
    if a.command == "live":
        from . import view

        view.run(console, settings_of(a), seconds=a.seconds, quiet=a.quiet, as_json=a.json)
    elif a.command == "try":
        return try_command.run(a, console)
    elif a.command == "devices":
        _devices(a, console)
    elif a.command == "virtual":
        _virtual(a)
    elif a.command == "latency":
        _latency(a, console)
    elif a.command == "config":
        settings = config.load(a.file)
        if settings.enroll and not Path(settings.enroll).is_file():
            raise ValueError(f"{a.file}: enroll: no file {settings.enroll}; make one: voicewire enroll ME.wav -o me.voice")
        print(f"{a.file}: good: {settings}")
    elif a.command == "service":
        _service(a)
    return 0


def _devices(a: argparse.Namespace, console: Console) -> None:
    from rich.table import Table

    backend = open_backend(a.backend)
    devices = backend.devices()
    if a.json:
        print(json.dumps([d.__dict__ for d in devices]))
        return
    table = Table(
        "", "name", "description", "Hz", "channels", box=None, title=f"{backend.name}: {devices[0].api if devices else 'no devices'}", title_justify="left"
    )
    for d in devices:
        table.add_row(f"{d.kind}{' *' if d.default else ''}", d.name, d.description if d.description != d.name else "", str(d.rate), str(d.channels))
    console.print(table)
    console.print(
        "* default. Use names with voicewire live --in NAME --out NAME; --out virtual makes a microphone for other programs.", style="dim", highlight=False
    )


def _virtual(a: argparse.Namespace) -> None:
    virtual.refuse_elsewhere()
    if a.action == "remove":
        n = virtual.remove(kind=a.kind)
        print("removed" if n else "there was none")
        return
    kind = a.kind or "microphone"
    made = virtual.create(kind, virtual.PERSISTENT)
    name, use = (virtual.MICROPHONE, "--out virtual") if kind == "microphone" else (virtual.SPEAKER, "--in virtual")
    print(f"{'made' if made else 'there already'}: {kind} '{name}'; feed it with: voicewire live {use}")


def _latency(a: argparse.Namespace, console: Console) -> None:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from .latency import measure

    with Progress(console=Console(stderr=True), transient=True, disable=a.json or not sys.stderr.isatty()) as bar:
        tasks = {name: bar.add_task(name, total=1.0) for name in ("bare copy", "live")}
        settings = LiveSettings(period_ms=a.period_ms, cushion_ms=a.cushion_ms, backend=a.backend)
        result = measure(a.seconds, settings, lambda name, share: bar.update(tasks[name], completed=share))
    if a.json:
        print(json.dumps(result))
        return
    table = Table("ms", "p50", "p99", "p99.9", "worst", "heard", box=None)
    for name, label in (("copy", "bare copy through the server"), ("live", "voicewire live")):
        r = result[name]
        table.add_row(label, *(f"{r[k]:.1f}" for k in ("p50", "p99", "p999", "worst")), f"{r['n']} of {r['n'] + r['unheard']}")
    table.add_row("ours", *(f"{result['live'][k] - result['copy'][k]:+.1f}" for k in ("p50", "p99", "p999", "worst")))
    console.print(table)
    b = result["budget_ms"]
    console.print(
        "budget, ms: " + " + ".join(f"{k.replace('_', ' ')} {v:.0f}" for k, v in b.items()) + " (devices as the server reports them)", highlight=False
    )
    faults = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in result["counts"].items())
    console.print(f"gaps while measuring: {faults or 'none'}", highlight=False)


def _service(a: argparse.Namespace) -> None:
    arguments = ["--config", str(a.config.resolve())] if a.config else ["--out", "virtual"]
    if a.config:
        config.load(a.config)
    if a.action == "show":
        print(service.text(arguments), end="")
    elif a.action == "install":
        print(service.install(arguments))
    else:
        print(service.remove())
