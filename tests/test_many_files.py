"""`voicewire file` with several files, or a folder of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from voicewire.rt.cli import main

COMMAND = [sys.executable, "-m", "voicewire.rt", "file"]


@pytest.fixture
def talks(tmp_path: Path, noisy: np.ndarray) -> Path:
    """A folder with sounds in two places, one of them cut off, and something else."""
    folder = tmp_path / "talks"
    (folder / "day 2").mkdir(parents=True)
    sf.write(folder / "a.wav", noisy[:16000], 16000)
    sf.write(folder / "day 2" / "b.flac", np.stack([noisy[:8000], noisy[8000:16000]], 1), 16000)
    whole = (folder / "a.wav").read_bytes()
    (folder / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("nothing to hear")
    (folder / ".hidden.wav").write_text("nor here")
    return folder


def files_in(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def refused(capsys: pytest.CaptureFixture[str], *command: object) -> str:
    assert main(["file", *map(str, command)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("voicewire: ")
    return said


def test_a_folder_becomes_a_folder(talks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "clean"
    assert main(["file", str(talks), str(out), "--json"]) == 2  # one is cut off
    said = capsys.readouterr()
    assert said.err == f"voicewire: {talks / 'cut.wav'} is cut off: {said.err.split(': ')[2]}" and "cut.wav is cut off" in said.err
    reports = {r["input"]: r for r in map(json.loads, said.out.splitlines())}
    assert set(reports) == {str(talks / "a.wav"), str(talks / "day 2" / "b.flac")}
    assert reports[str(talks / "day 2" / "b.flac")]["channels"] == 2
    assert files_in(out) == {"a.wav", "day 2/b.flac"}
    for name in files_in(out):
        alone = tmp_path / f"alone{Path(name).suffix}"
        assert main(["file", str(talks / name), str(alone)]) == 0
        assert alone.read_bytes() == (out / name).read_bytes()


def test_new_ones_only(talks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (talks / "cut.wav").unlink()
    out = tmp_path / "clean"
    out.mkdir()
    sf.write(out / "a.wav", np.zeros(10), 16000)
    kept = (out / "a.wav").read_bytes()
    assert main(["file", str(talks), str(out), "--new", "--jobs", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{out}: 1 files, 1 were there already"
    assert (out / "a.wav").read_bytes() == kept
    os.utime(talks / "a.wav", (time.time() + 60,) * 2)  # recorded anew
    assert main(["file", str(talks), str(out), "--new", "--jobs", "1"]) == 0
    assert (out / "a.wav").read_bytes() != kept


def test_several_files(talks: Path, tmp_path: Path) -> None:
    out = tmp_path / "clean"
    assert main(["file", str(talks / "a.wav"), str(talks / "day 2" / "b.flac"), str(out), "--jobs", "2"]) == 0
    assert files_in(out) == {"a.wav", "b.flac"}
    assert main(["file", str(talks / "a.wav"), str(out)]) == 0  # a folder that is there takes a single file, too


def test_what_cannot_be_is_one_line_before_any_work(talks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sf.write(talks / "day 2" / "a.wav", np.zeros(100), 16000)
    assert "both become" in refused(capsys, talks / "a.wav", talks / "day 2" / "a.wav", tmp_path / "out")
    assert "lies in" in refused(capsys, talks, talks / "out")
    assert "lies in" in refused(capsys, talks, talks)
    assert "looks like a file" in refused(capsys, talks, tmp_path / "out.wav")
    assert "is a file" in refused(capsys, talks / "a.wav", talks / "day 2" / "a.wav", talks / "notes.txt")
    assert "same file" in refused(capsys, talks / "a.wav", talks / "day 2" / "b.flac", talks)
    (tmp_path / "empty").mkdir()
    assert "no sound files" in refused(capsys, tmp_path / "empty", tmp_path / "out")
    assert "several files" in refused(capsys, talks / "a.wav", tmp_path / "out.wav", "--new")
    assert "talker" in refused(capsys, talks, tmp_path / "out", "--task", "extract")
    with pytest.raises(SystemExit):
        main(["file", str(talks), str(tmp_path / "out"), "--jobs", "0"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_an_end_leaves_nothing_half_made(end: signal.Signals, tmp_path: Path, noisy: np.ndarray) -> None:
    talks, out = tmp_path / "talks", tmp_path / "clean"
    talks.mkdir()
    for i in range(4):
        sf.write(talks / f"{i}.wav", np.tile(noisy, 1 + 600 * 16000 // len(noisy)), 16000)  # ten minutes: nobody waits for its end
    at_work = subprocess.Popen(
        [*COMMAND, str(talks), str(out), "--jobs", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests that a script runs in the background ignore Ctrl-C, and so would it
    )  # fmt: skip
    try:
        while at_work.poll() is None and len(list(out.glob(".*.part"))) < 2:
            time.sleep(0.05)
        assert at_work.poll() is None
        (os.killpg if end is signal.SIGINT else os.kill)(at_work.pid, end)  # Ctrl-C is for all processes of a terminal
        said = at_work.communicate(timeout=120)
    finally:
        at_work.kill()
    assert (at_work.returncode, *said) == (128 + end, "", "")
    assert files_in(out) == set()


def test_processes_do_not_outlive_the_first(tmp_path: Path, noisy: np.ndarray) -> None:
    talks, out = tmp_path / "talks", tmp_path / "clean"
    talks.mkdir()
    for i in range(2):
        sf.write(talks / f"{i}.wav", np.tile(noisy, 1 + 600 * 16000 // len(noisy)), 16000)
    at_work = subprocess.Popen([*COMMAND, str(talks), str(out), "--jobs", "2"], start_new_session=True)
    try:
        while at_work.poll() is None and len(list(out.glob(".*.part"))) < 2:
            time.sleep(0.05)
    finally:
        at_work.kill()
        at_work.wait()

    def alive() -> bool:
        try:
            os.killpg(at_work.pid, 0)
        except ProcessLookupError:
            return False
        return True

    for _ in range(600):
        if not alive():
            break
        time.sleep(0.1)
    assert not alive()
