"""The parser of the command line: what is wrong with its arguments is said in one line."""

from __future__ import annotations

import argparse
import sys

TYPE_CHECKING = False  # as in `voicewire.rt`
if TYPE_CHECKING:
    from typing import NoReturn


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:  # one line instead of usage and a line
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)
