"""`voicewire file` and its refusals: right samples, right exit code, one line."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from tools.relay_peer import Wire
from voicewire.rt import Stream, files
from voicewire.rt.cli import main


@pytest.fixture
def wav(tmp_path: Path, noisy: np.ndarray) -> Path:
    path = tmp_path / "in.wav"
    sf.write(path, noisy[:40000], 16000, subtype="PCM_16")
    return path


def refuse(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """Run the command, expect exit 2 and exactly one line on standard error; returns it."""
    try:
        code = main([str(a) for a in args])
    except SystemExit as e:
        code = int(e.code or 0)
    out, err = capsys.readouterr()
    assert code == 2, err
    assert out == ""
    assert err.count("\n") == 1 and "Traceback" not in err
    return err


def test_file_is_the_stream(wav: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.wav"
    assert main(["file", str(wav), str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    y, rate = sf.read(out, dtype="float32")
    x, _ = sf.read(wav, dtype="float32")
    assert (rate, len(y)) == (16000, len(x))
    stream = Stream(16000)
    expected = np.concatenate([stream.process(x), stream.flush()])[stream.latency_samples :]
    np.testing.assert_allclose(y, expected, atol=1 / 32000)
    assert report["latency_ms"] == 30.0 and report["frames"] == 125 and report["sample_rate"] == 16000 and report["task"] == "restore"
    assert set(report) >= {"engine", "rtf", "step_p50_ms", "step_p99_ms", "step_p999_ms"}


def test_a_chunk_of_odd_length_before_the_samples(wav: Path, tmp_path: Path) -> None:
    """Is padded to an even one; whether samples are missing is still told."""
    data = wav.read_bytes()
    at = data.index(b"data")
    data = data[:4] + struct.pack("<I", len(data) - 8 + 12) + data[8:at] + b"note" + struct.pack("<I", 3) + b"abc\0" + data[at:]
    odd = tmp_path / "odd.wav"
    odd.write_bytes(data)
    assert files.Recording(odd).samples == 40000
    odd.write_bytes(data[: len(data) // 2])
    with pytest.raises(files.InputError, match="50% of its samples are missing"):
        files.Recording(odd)


def test_options(wav: Path, tmp_path: Path) -> None:
    x, _ = sf.read(wav, dtype="float32")
    a, b, c, d = (tmp_path / f"{n}.wav" for n in "abcd")
    assert main(["file", str(wav), str(a)]) == 0
    assert main(["file", str(wav), str(b), "--block-ms", "3.7"]) == 0
    assert main(["file", str(wav), str(c), "--raw-delay"]) == 0
    assert main(["file", str(wav), str(d), "--strength", "0"]) == 0
    read = lambda p: sf.read(p, dtype="float32")[0]  # noqa: E731
    assert np.array_equal(read(a), read(b))
    np.testing.assert_allclose(read(c)[480:], read(a)[:-480], atol=1e-6)
    np.testing.assert_allclose(read(d), x, atol=1 / 32000)


@pytest.mark.parametrize(
    ("ending", "subtype", "channels", "rate"), [("wav", "FLOAT", 2, 44100), ("flac", "PCM_24", 1, 48000), ("ogg", None, 1, 22050), ("aiff", "PCM_16", 3, 8000)]
)
def test_formats_rates_and_channels(ending: str, subtype: str | None, channels: int, rate: int, tmp_path: Path) -> None:
    x = (0.1 * np.random.default_rng(0).standard_normal((rate // 4, channels))).astype(np.float32)
    a, b = tmp_path / f"in.{ending}", tmp_path / f"out.{ending}"
    sf.write(a, x, rate, subtype=subtype)
    for mode in ("each", "mix"):
        assert main(["file", str(a), str(b), "--channels", mode]) == 0
        info = sf.info(b)
        assert (info.samplerate, info.channels, info.frames) == (rate, channels, sf.info(a).frames)
        assert subtype is None or info.subtype == subtype


def test_one_sample_and_not_finite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, out = tmp_path / "one.wav", tmp_path / "out.wav"
    sf.write(one, np.array([0.5], np.float32), 16000)
    assert main(["file", str(one), str(out)]) == 0
    assert sf.info(out).frames == 1
    sf.write(one, np.full(5000, np.nan, np.float32), 16000, subtype="FLOAT")
    assert main(["file", str(one), str(out)]) == 0
    assert np.isfinite(sf.read(out)[0]).all()
    assert "5000 samples were not finite" in capsys.readouterr().err


def test_refusals(wav: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.wav"
    text, empty, cut, cut_flac, fast = (tmp_path / n for n in ("text.wav", "empty.wav", "cut.wav", "cut.flac", "fast.wav"))
    text.write_text("this is no audio")
    sf.write(empty, np.zeros(0, np.float32), 16000)
    cut.write_bytes(wav.read_bytes()[:30000])
    sf.write(cut_flac, sf.read(wav)[0], 16000)
    cut_flac.write_bytes(cut_flac.read_bytes()[:20000])
    sf.write(fast, np.zeros(1000, np.float32), 96000)
    assert "no file" in refuse(capsys, "file", tmp_path / "nothing.wav", out)
    assert "not audio" in refuse(capsys, "file", text, out)
    assert "folder" in refuse(capsys, "file", tmp_path, out)
    assert "voicewire pipe" in refuse(capsys, "file", "-", out)
    os.mkfifo(tmp_path / "fifo")
    assert "voicewire pipe" in refuse(capsys, "file", tmp_path / "fifo", out)
    assert "no samples" in refuse(capsys, "file", empty, out)
    assert "cut off" in refuse(capsys, "file", cut, out)
    refuse(capsys, "file", cut_flac, out)
    assert "8000 to 48000" in refuse(capsys, "file", fast, out)
    assert "no folder" in refuse(capsys, "file", wav, tmp_path / "no" / "out.wav")
    assert "format" in refuse(capsys, "file", wav, tmp_path / "out.xyz")
    assert "same file" in refuse(capsys, "file", wav, wav)
    assert "strength" in refuse(capsys, "file", wav, out, "--strength", "-3")
    assert "unknown engine" in refuse(capsys, "file", wav, out, "--engine", "abacus")
    assert "planned" in refuse(capsys, "file", wav, out, "--task", "code")
    assert "talker" in refuse(capsys, "file", wav, out, "--task", "extract")
    refuse(capsys, "file", wav)
    refuse(capsys, "sing")
    refuse(capsys)
    refuse(capsys, "bench", "--rate", "12")
    refuse(capsys, "bench", "--streams", "zero")
    assert not out.exists() and not list(tmp_path.glob(".*part"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_output(wav: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    assert "may not be written" in refuse(capsys, "file", wav, folder / "out.wav")


def test_output_that_fails_while_writing(wav: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As root permissions do not stop anybody, but a place that is no place does."""
    if Path("/proc").is_dir():
        refuse(capsys, "file", wav, "/proc/out.wav")


def test_length_costs_no_memory(tmp_path: Path) -> None:
    """Forty seconds of stereo at 48 kHz, 15 MB as floats, are read, streamed and written within a fifth of that."""
    source, target = tmp_path / "long.flac", tmp_path / "out.flac"
    second = (0.1 * np.random.default_rng(0).standard_normal((48000, 2))).astype(np.float32)
    with sf.SoundFile(source, "w", 48000, 2) as f:
        for _ in range(40):
            f.write(second)
    tracemalloc.start()
    recording = files.Recording(source)
    passage = files.Passage(Stream(48000, 2, mode="each", strength_db=0, engine=Wire()))
    with files.Writing(target, 48000, 2, recording.subtype, recording.samples) as out:
        for y in passage.through(recording.blocks(960)):
            out.write(y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6
    assert sf.info(target).frames == recording.samples == passage.report().samples == 40 * 48000
    np.testing.assert_allclose(sf.read(target, stop=48000)[0], sf.read(source, stop=48000)[0], atol=1e-4)


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    path.write_bytes(b"what was there")
    with pytest.raises(RuntimeError), files.Writing(path, 16000, 1) as out:
        out.write(np.zeros((100, 1), np.float32))
        raise RuntimeError
    assert path.read_bytes() == b"what was there" and list(tmp_path.iterdir()) == [path]
    with files.Writing(path, 16000, 1) as out:
        out.write(np.full((100, 1), 0.5, np.float32))
    assert np.array_equal(sf.read(path)[0], np.full(100, 0.5))


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no limit for the size of files here")
@pytest.mark.parametrize("kind", ["wav", "flac", "ogg"])
def test_a_full_disk_is_a_line(wav: Path, tmp_path: Path, kind: str) -> None:
    """A file of the process may be no longer than 4 kB, which is what a full disk is like."""
    out = tmp_path / f"out.{kind}"
    limited = "import resource, sys; from voicewire.rt.cli import main; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", limited, "file", str(wav), str(out)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "could not be written" in done.stderr, done.stderr
    assert not out.exists() and not list(tmp_path.glob(".*part"))


def test_more_than_a_wav_file_can_count(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    with files.Writing(path, 48000, 2, "PCM_16", samples=1 << 31) as out:
        out.write(np.full((100, 2), 0.5, np.float32))
    assert sf.info(path).format == "RF64" and sf.info(path).subtype == "PCM_16"
    assert np.array_equal(files.read(path)[0], np.full((100, 2), 0.5))


def test_mp3_in_blocks_is_mp3_at_once(tmp_path: Path, noisy: np.ndarray) -> None:
    """soundfile seeks after every read, and a seek in an MP3 file spoils the frames after it."""
    path = tmp_path / "in.mp3"
    sf.write(path, noisy[:32000], 16000)
    with sf.SoundFile(path) as f:
        whole = f.read(dtype="float32", always_2d=True)
    for size in (320, 1000, 1 << 16):
        np.testing.assert_allclose(np.concatenate(list(files.Recording(path).blocks(size))), whole, atol=1e-5)


@pytest.mark.parametrize(
    ("source", "subtype", "target", "wanted"), [("mp3", None, "wav", "PCM_16"), ("wav", "IMA_ADPCM", "wav", "PCM_16"), ("wav", "ULAW", "flac", "PCM_16")]
)
def test_codings_of_one_container_do_not_go_into_another(tmp_path: Path, source: str, subtype: str | None, target: str, wanted: str) -> None:
    a, b = tmp_path / f"in.{source}", tmp_path / f"out.{target}"
    sf.write(a, 0.1 * np.random.default_rng(0).standard_normal(8000), 16000, subtype=subtype)
    assert main(["file", str(a), str(b), "--strength", "0"]) == 0
    assert sf.info(b).subtype == wanted and sf.info(b).frames == files.Recording(a).samples


def test_nothing_is_written_over_what_it_is_made_of(wav: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = wav.read_bytes()
    assert "same file" in refuse(capsys, "enroll", wav, "-o", wav)
    assert "same file" in refuse(capsys, "send", wav, wav, "--url", "ws://127.0.0.1:1")
    assert wav.read_bytes() == before
    os.mkfifo(tmp_path / "fifo")
    assert "no file to write to" in refuse(capsys, "codec", "encode", wav, tmp_path / "fifo")
    assert (tmp_path / "fifo").is_fifo()


def test_numbers_without_measure_and_options_without_use(wav: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.wav"
    assert "at most" in refuse(capsys, "file", wav, out, "--block-ms", "1e307")
    assert "convert" in refuse(capsys, "file", wav, out, "--voice-strength", "0.5")
    assert "convert" in refuse(capsys, "send", wav, out, "--voice-strength", "0.5")
    assert main(["file", str(wav), str(out), "--block-ms", "1e9", "--strength", "0"]) == 0
    assert main(["codec", "encode", str(wav), str(tmp_path / "a.tok"), "--variable", "--cap-ms", "1e9"]) == 0


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "ULAW", "ALAW"])
def test_what_is_not_changed_comes_back_as_it_was(subtype: str, tmp_path: Path, noisy: np.ndarray) -> None:
    a, b = tmp_path / "a.wav", tmp_path / "b.wav"
    sf.write(a, np.concatenate([noisy[:8000], np.zeros(8000)]), 16000, subtype)
    x, rate, kept = files.read(a)
    files.write(b, x, rate, kept)
    np.testing.assert_array_equal(files.read(b)[0], x)
    # silence that is not quite: the transforms leave 1e-8 of it
    files.write(b, x + 1e-8 * np.random.default_rng(0).standard_normal(x.shape).astype(np.float32), rate, kept)
    if subtype != "PCM_32":
        np.testing.assert_array_equal(files.read(b)[0], x)
    files.write(b, np.array([[2.0], [-2.0]], np.float32), rate, kept)
    loud = files.read(b)[0]
    assert loud[0] > 0.95 and loud[1] < -0.95  # limited, not wrapped


def test_a_finer_recording_stays_one_where_the_container_can(tmp_path: Path, noisy: np.ndarray) -> None:
    for subtype in ("PCM_24", "PCM_32", "FLOAT"):
        sf.write(tmp_path / "a.wav", noisy[:4000], 16000, subtype)
        assert main(["file", str(tmp_path / "a.wav"), str(tmp_path / "b.flac"), "--strength", "0"]) == 0
        assert sf.info(tmp_path / "b.flac").subtype == "PCM_24"


def test_a_link_stays_one(tmp_path: Path, wav: Path) -> None:
    sf.write(tmp_path / "real.wav", np.zeros(10), 16000)
    (tmp_path / "link.wav").symlink_to(tmp_path / "real.wav")
    assert main(["file", str(wav), str(tmp_path / "link.wav"), "--strength", "0"]) == 0
    assert (tmp_path / "link.wav").is_symlink() and sf.info(tmp_path / "real.wav").frames == sf.info(wav).frames


def test_names_and_options_that_mean_something_else(tmp_path: Path, wav: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "voicewire pipe" in refuse(capsys, "file", wav, "-")
    assert "sound file" in refuse(capsys, "enroll", wav, "-o", tmp_path / "me.wav")
    assert "sound file" in refuse(capsys, "codec", "encode", wav, tmp_path / "talk.flac")
    assert "standard output" in refuse(capsys, "codec", "encode", wav, "-")
    assert "cosine" in refuse(capsys, "codec", "encode", wav, tmp_path / "t.tok", "--variable", "--threshold", "5")
    assert "folder" in refuse(capsys, "file", wav, tmp_path / "out.wav", "--enroll", tmp_path)
    assert "--voice-strength" in refuse(capsys, "file", wav, tmp_path / "out.wav", "--task", "convert", "--enroll", wav, "--strength", "3")
    assert main(["file", str(wav), str(tmp_path / "out.wav"), "--strength", "0.00"]) == 0
