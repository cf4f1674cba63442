"""`voicewire pipe`: what comes on standard input goes to standard output, cleaned, as many samples, aligned."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voicewire.rt import Stream, pipe

COMMAND = [sys.executable, "-m", "voicewire.rt", "pipe"]


def piped(data: bytes, *args: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*COMMAND, *args], input=data, capture_output=True, timeout=120, check=False)


def test_pipe_is_the_stream(noisy: np.ndarray) -> None:
    x = np.round(noisy[:30001] * 32768).clip(-32768, 32767).astype("<i2")
    done = piped(x.tobytes(), "--rate", "16000")
    assert done.returncode == 0 and done.stderr == b""
    stream = Stream(16000)
    want = np.concatenate([stream.process(x), (stream.flush() * 32768).round().astype("<i2")])[stream.latency_samples :]
    y = np.frombuffer(done.stdout, "<i2")
    assert len(y) == len(x)
    np.testing.assert_allclose(y, want, atol=1)


def test_floats_channels_and_strength() -> None:
    """Nothing taken away: what comes out is what went in, in every channel; half a sample at the end is told."""
    x = (0.1 * np.random.default_rng(0).standard_normal((9000, 2))).astype("<f4")
    done = piped(x.tobytes() + b"abc", "--rate", "44100", "--channels", "2", "--format", "f32", "--strength", "0")
    assert done.returncode == 0
    assert done.stderr.decode().count("\n") == 1 and b"last 3 bytes" in done.stderr
    np.testing.assert_allclose(np.frombuffer(done.stdout, "<f4").reshape(-1, 2), x, atol=1e-5)
    nothing = piped(b"", "--rate", "16000")
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (0, b"", b"")


def test_two_talkers_have_a_channel_each(noisy: np.ndarray) -> None:
    x = (noisy[:8000] * 32767).astype("<i2")
    assert len(piped(x.tobytes(), "--rate", "16000", "--task", "separate").stdout) == 2 * x.nbytes


@pytest.mark.parametrize("block", [False, True])
def test_sound_comes_out_before_the_end(noisy: np.ndarray, block: bool) -> None:
    """Live: half a second in, and all but the delay and a frame comes out while the input stays open; a reader that goes ends it without a word."""
    x = (noisy[:8000] * 32767).astype("<i2")
    blocked = (lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPIPE])) if block else None  # as JACK's library leaves it
    with subprocess.Popen(
        [*COMMAND, "--rate", "16000"], preexec_fn=blocked, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as running:
        assert running.stdin is not None and running.stdout is not None and running.stderr is not None
        running.stdin.write(x.tobytes())
        due, heard = x.nbytes - 2 * 480 - 2 * 320, b""
        while len(heard) < due:
            heard += os.read(running.stdout.fileno(), due - len(heard))
        running.stdout.close()
        with pytest.raises(BrokenPipeError):
            for _ in range(1000):
                running.stdin.write(x.tobytes())
        assert running.wait(30) in (-signal.SIGPIPE, 141) and running.stderr.read() == b""
        running.stdin = None  # is broken, and must not be flushed


@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=400), channels=st.integers(1, 3), kind=st.sampled_from(list(pipe.FORMATS)), cuts=st.lists(st.integers(1, 90), max_size=8))
def test_pieces_of_any_size(data: bytes, channels: int, kind: str, cuts: list[int]) -> None:
    """Samples do not depend on where the pieces are cut; nothing is lost but bytes that are no whole sample."""
    reader, writer = os.pipe()

    def feed() -> None:
        at = 0
        for size in [*cuts, len(data)]:
            os.write(writer, data[at : at + size])
            at += size
        os.close(writer)

    feeding = threading.Thread(target=feed)
    feeding.start()
    dtype = pipe.FORMATS[kind]
    with np.errstate(invalid="ignore"):
        got = [np.zeros((0, channels), np.float32), *pipe.blocks(reader, dtype, channels)]
        feeding.join()
        os.close(reader)
        whole = len(data) // (dtype.itemsize * channels)
        want = np.frombuffer(data, dtype, whole * channels).reshape(whole, channels).astype(np.float32) / (32768 if kind == "s16" else 1)
    np.testing.assert_array_equal(np.concatenate(got), want)


def test_refusals(tmp_path: Path) -> None:
    for args, told in (
        (("--rate", "4000"), b"8000 to 48000"),
        ((), b"--rate"),
        (("--rate", "16000", "--channels", "0"), b"channels"),
        (("--rate", "16000", "--channels", "100000"), b"channels"),
        (("--rate", "16000", "--format", "mp3"), b"--format"),
        (("--rate", "16000", "--enroll", str(tmp_path / "nobody.voice")), b"no file"),
        (("--rate", "16000", "--task", "sing"), b"unknown"),
    ):
        done = piped(b"\0" * 640, *args)
        assert done.returncode == 2 and done.stdout == b"" and done.stderr.count(b"\n") == 1 and told in done.stderr, (args, done.stderr)


def test_a_terminal_is_no_pipe() -> None:
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run([*COMMAND, "--rate", "16000"], stdin=theirs, capture_output=True, timeout=60, check=False)
        assert done.returncode == 2 and done.stderr.count(b"\n") == 1 and b"ffmpeg" in done.stderr
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_ends_that_are_not_there() -> None:
    """A full disk, and standard input or output that was closed: a line each."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*COMMAND, "--rate", "16000"], input=bytes(6400), stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1 and b"takes no more" in done.stderr
    for closed in ("<&-", ">&-"):
        done = subprocess.run(
            ["sh", "-c", f'"$@" {closed}', "sh", *COMMAND, "--rate", "16000"], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 2 and done.stderr.count(b"\n") == 1 and b"ffmpeg" in done.stderr, done.stderr
