"""The command line. Exit codes: 0 done; 2 bad arguments or input, with one line on standard error; 1 anything else."""

from __future__ import annotations

import argparse
import contextlib
import errno
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from voicewire.engines.engine import EngineError

from . import codec_command, enroll, file_command, pipe
from .live import commands as live_commands
from .live import set_command
from .live.backend import DeviceError
from .parser import Parser
from .relay.command import add_commands as add_relay

MOST = 1e9  # of anything that is asked for by a number


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None
    if not 0 < value <= MOST:
        raise argparse.ArgumentTypeError(f"{text} must be a number above 0, at most {MOST:.0e}")
    return value


def _strength(text: str) -> float:
    with contextlib.suppress(ValueError):
        if float(text) == 0:
            return 0.0
    return _positive(text)


def _streams(text: str) -> tuple[int, ...]:
    try:
        values = tuple(int(t) for t in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of numbers like 1,2,4") from None
    if not values or min(values) < 1 or max(values) > 4096:
        raise argparse.ArgumentTypeError("streams must be 1 to 4,096")
    return values


class _Version(argparse.Action):
    def __call__(self, *_: object) -> NoReturn:
        from importlib import metadata

        try:
            print("voicewire", metadata.version("voicewire"))
        except metadata.PackageNotFoundError:
            print("voicewire, from its source tree, not installed")
        raise SystemExit(0)


def _parser() -> argparse.ArgumentParser:
    p = Parser(prog="voicewire", description="Real-time speech processing: noisy speech in, clean speech out, 30 ms later.")
    p.add_argument("--version", action=_Version, nargs=0, help="which this is")
    sub = p.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    file_command.add(sub, _positive, _strength)
    pipe.add(sub, _strength)

    d = sub.add_parser("demo", help="a bundled recording, before and after: sound files, spectrogram, table")
    d.add_argument(
        "--task",
        choices=("restore", "extract", "separate", "convert", "query"),
        default="restore",
        help="noise, two talkers, the same unknown, one who speaks as the other, or a telephone that rings",
    )
    d.add_argument("--out", type=Path, default=Path("demo-out"))

    live_commands.add(sub, _positive, _strength)
    set_command.add_options(sub.add_parser("set", help=set_command.HELP))

    b = sub.add_parser("bench", help="measure step time, real-time factor and memory here")
    b.add_argument("--engine", default="onnx", help="onnx (default), torch; auto, tensorrt, torch-cuda: every way to step on a GPU, side by side")
    b.add_argument("--rate", type=int, default=16000)
    b.add_argument("--seconds", type=_positive, default=20.0, help="audio time of each row")
    b.add_argument("--streams", type=_streams, help="how many at once (default: 1,2,4,8; on a GPU up to 4096)")
    b.add_argument("--json", action="store_true")

    u = sub.add_parser("build", help="make the engines of an NVIDIA GPU before they are needed, and compare them with the reference")
    u.add_argument("--precision", choices=("fp32", "fp16", "bf16"), default="fp16", help="of matrix products (default: fp16)")
    u.add_argument("--streams", type=_streams, default=(64,), help="for up to so many at once, 1 to 4096 (default: 64)")

    add_relay(sub, _strength)
    enroll.add(sub, _positive)
    codec_command.add(sub, _positive)
    h = sub.add_parser("doctor", help="check this machine and say what to do")
    h.add_argument("--json", action="store_true", help="one JSON list: status (ok, note, fault), what, advice")
    sub.add_parser("start", help="live if there is a sound device, else the demo (what `make run` runs)")
    return p


def _run(a: argparse.Namespace) -> int:
    if a.command == "file":
        return file_command.run(a)
    if a.command == "pipe":
        return pipe.run(a)
    if a.command == "set":  # (`__main__` takes a shorter way)
        return set_command.run(a)
    if a.command == "codec":
        return codec_command.run(a)
    if a.command in ("serve", "cluster", "send"):
        from .relay import command

        return command.run(a)
    from rich.console import Console

    console = Console(markup=False)  # names of files and devices may look like markup
    if a.command == "enroll":
        return enroll.run(a, console)
    if a.command == "demo":
        from . import demo

        demo.run(a.out, console, a.task)
    elif a.command == "bench":
        from voicewire.engines.stft import hop_samples

        from . import bench, bench_gpu

        hop_samples(a.rate)
        if a.engine in bench_gpu.CHOSEN:
            bench_gpu.run(console, engine=a.engine, seconds=a.seconds, streams=a.streams, as_json=a.json)
        else:
            bench.run(console, engine=a.engine, rate=a.rate, seconds=a.seconds, streams=a.streams or (1, 2, 4, 8), as_json=a.json)
    elif a.command == "build":
        from . import build

        return build.run(console, precision=a.precision, streams=max(a.streams))
    elif a.command == "doctor":
        from . import doctor

        return doctor.run(Console(), a.json)
    elif a.command in live_commands.COMMANDS:
        return live_commands.run(a, console)
    elif a.command == "start":
        from . import demo

        if live_commands.has_devices():
            live_commands.start(console)
        else:
            console.print("no sound device here (voicewire doctor says why), so the demo runs instead of live audio", highlight=False)
            demo.run(Path("demo-out"), console)
    return 0


def _end(number: int, _: object) -> NoReturn:
    """As Ctrl-C: what is half written goes."""
    raise SystemExit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    if argv is None and hasattr(signal, "SIGPIPE"):  # of a program of our own; not of whoever calls this
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if argv is None:
        for name in ("SIGTERM", "SIGHUP"):
            if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is signal.SIG_DFL:  # nohup: not that one
                signal.signal(getattr(signal, name), _end)
    a = _parser().parse_args(argv)
    try:
        return _run(a)
    except (ValueError, EngineError, DeviceError) as e:
        print(f"voicewire: {e}", file=sys.stderr)
        return 2
    except OSError as e:
        named = f"{e.filename}: " if e.filename else ""
        said = f"no file {e.filename}" if isinstance(e, FileNotFoundError) and e.filename else f"{named}{e.strerror or e}"
        print(f"voicewire: {said}{'; --port chooses another' if e.errno == errno.EADDRINUSE else ''}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception as e:  # a fault of ours: one line for the user, everything with python -X dev
        if sys.flags.dev_mode:
            raise
        print(f"voicewire: internal fault: {type(e).__name__}: {e} (python -X dev -m voicewire.rt … shows where)", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
