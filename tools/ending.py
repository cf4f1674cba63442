"""How the commands of this folder end: bad input is one line and exit code 2, Ctrl-C a line and 130; never a traceback."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

from voicewire.engines.engine import EngineError

P = ParamSpec("P")


def plainly(main: Callable[P, int]) -> Callable[P, int]:
    """For a tool's `main`: what it raises about its input, files, engine or missing packages is said in one line that begins with the tool's name."""
    name = Path(main.__code__.co_filename).stem

    @functools.wraps(main)
    def command(*args: P.args, **options: P.kwargs) -> int:
        try:
            return main(*args, **options)
        except (ValueError, OSError, EngineError, ModuleNotFoundError) as e:
            print(f"{name}: {e}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print(f"{name}: stopped", file=sys.stderr)
            return 130

    return command
