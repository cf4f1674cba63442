"""Ctrl-C as a terminal sends it: to the whole group of processes at once. (`live` has its own in test_live_servers.)"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from relay_tools import wait_for

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="no groups of processes here")


def ctrl_c(*arguments: str, errors: Path, when: Callable[[], bool]) -> tuple[int, str]:
    """Of `voicewire …`, stopped when that is so: its exit code, and what it said on standard error, which goes to that file."""
    with errors.open("wb") as f:
        process = subprocess.Popen(
            [sys.executable, "-m", "voicewire.rt", *arguments], env={**os.environ, "PYTHONPATH": ".links"}, stdout=subprocess.DEVNULL, stderr=f,
            start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a script's background job ignores Ctrl-C
        )  # fmt: skip
    try:
        assert wait_for(lambda: when() or process.poll() is not None, 120) and process.poll() is None, errors.read_text()
        os.killpg(process.pid, signal.SIGINT)
        code = process.wait(60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return code, errors.read_text()


@pytest.mark.parametrize("workers", [1, 2])
def test_serve_ends_in_peace(workers: int, tmp_path: Path) -> None:
    said = tmp_path / "said"
    code, text = ctrl_c(
        "serve", "--port", "0", "--max-streams", "2", "--workers", str(workers), errors=said, when=lambda: said.read_text().count('"listen"') == workers
    )
    assert code == 0 and "Traceback" not in text, text
    assert text.count('"event": "stop"') == workers, "a worker was cut off"


def test_file_leaves_nothing_half_done(tmp_path: Path) -> None:
    sf.write(tmp_path / "in.wav", np.zeros(16000 * 120, np.float32), 16000)
    code, text = ctrl_c(
        "file", "--realtime", str(tmp_path / "in.wav"), str(tmp_path / "out.wav"), errors=tmp_path / "said", when=lambda: any(tmp_path.glob(".out.wav.*.part"))
    )
    assert code == 130 and "Traceback" not in text, text
    assert {p.name for p in tmp_path.iterdir()} == {"in.wav", "said"}
