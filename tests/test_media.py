"""Films and phone recordings: the sound cleaned, everything else as it was, in its place."""

from __future__ import annotations

import builtins
import json
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import samplerate
import soundfile as sf
from film_tools import FPS, heard, lag_ms, make, packets
from test_files import refuse

from tools.relay_peer import Wire
from voicewire.rt import Stream, files, media
from voicewire.rt.cli import main

RATE, SECONDS = 16000, 2.4


@pytest.fixture(scope="module")
def voice(noisy: np.ndarray) -> np.ndarray:
    return np.asarray(noisy[: round(SECONDS * RATE), None], np.float32)


@pytest.fixture(scope="module")
def cleaned(voice: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """What `voicewire file` makes of it as a WAV file."""
    folder = tmp_path_factory.mktemp("wav")
    sf.write(folder / "in.wav", voice, RATE)
    assert main(["file", str(folder / "in.wav"), str(folder / "out.wav")]) == 0
    return sf.read(folder / "out.wav", dtype="float32")[0]


def in_place(path: Path, cleaned: np.ndarray, start_s: float = 0.0) -> None:
    y = heard(path, RATE)[:, 0]
    lag, alike = lag_ms(y[round(start_s * RATE) :], cleaned, RATE)
    assert abs(lag) <= 1 and alike > 0.95, (lag, alike)
    assert np.abs(y[: max(0, round(start_s * RATE) - 500)]).max(initial=0) < 0.01


@pytest.mark.parametrize("pair", ["mp4 mp4", "mkv mkv", "mp4 mkv", "mkv mp4", "mov m4v", "webm webm", "ts mp4", "avi mov"])
def test_the_picture_is_copied_and_the_sound_is_in_its_place(
    pair: str, voice: np.ndarray, cleaned: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = pair.split()
    a, b = make(tmp_path / f"in.{source}", [voice], RATE, seconds=SECONDS, start_s=7.0 if source == "ts" else 0.0), tmp_path / f"out.{target}"
    assert main(["file", str(a), str(b), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and json.loads(out)["sample_rate"] == (48000 if source == "webm" else RATE)
    before, after = packets(a), packets(b)
    assert [x for _, x in before] == [x for _, x in after] and len(after) == SECONDS * FPS
    begin = before[0][0] - after[0][0]
    np.testing.assert_allclose([t for t, _ in before], [t + begin for t, _ in after], atol=0.0011)
    in_place(b, cleaned, after[0][0])
    with av.open(str(a)) as x, av.open(str(b)) as y:
        assert abs(x.duration - y.duration) / 1e6 <= 1 / FPS + (1024 / RATE if "matroska" in y.format.name + x.format.name else 0)  # (priming, too)
        assert y.metadata.get("title", y.metadata.get("TITLE")) == "A talk" or source == "ts"
        assert y.streams.audio[0].codec_context.name == ("opus" if target == "webm" else "aac")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([a.name, b.name])


@pytest.mark.parametrize(("kind", "start_s"), [("mp4", 0.5), ("mkv", 1.237), ("webm", 0.5)])
def test_sound_that_begins_later(kind: str, start_s: float, voice: np.ndarray, cleaned: np.ndarray, tmp_path: Path) -> None:
    a, b = make(tmp_path / f"in.{kind}", [voice], RATE, seconds=SECONDS + 1, sound_start_s=start_s), tmp_path / f"out.{kind}"
    assert main(["file", str(a), str(b)]) == 0
    in_place(b, cleaned, start_s)
    assert [x for _, x in packets(a)] == [x for _, x in packets(b)] and packets(b)[0][0] < 0.03


def test_a_picture_that_begins_later(voice: np.ndarray, cleaned: np.ndarray, tmp_path: Path) -> None:
    a, b = make(tmp_path / "in.mp4", [voice], RATE, seconds=SECONDS, start_s=1.0, sound_start_s=-1.0), tmp_path / "out.mp4"
    assert main(["file", str(a), str(b)]) == 0
    in_place(b, cleaned)
    assert packets(a) == packets(b)


@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_a_gap_keeps_what_follows_in_place(kind: str, voice: np.ndarray, cleaned: np.ndarray, tmp_path: Path) -> None:
    a, b, c = make(tmp_path / f"in.{kind}", [voice], RATE, seconds=SECONDS, hole=(1.0, 1.5)), tmp_path / f"out.{kind}", tmp_path / "out.wav"
    assert main(["file", str(a), str(b)]) == 0
    assert main(["file", str(a), str(c)]) == 0
    for y in (heard(b, RATE)[:, 0], sf.read(c, dtype="float32")[0]):
        lag, alike = lag_ms(y[round(1.6 * RATE) :], cleaned[round(1.6 * RATE) :], RATE)
        assert abs(lag) <= 1 and alike > 0.9, (lag, alike)
        assert np.abs(y[round(1.2 * RATE) : round(1.4 * RATE)]).max() < 0.02
    assert abs(len(sf.read(c)[0]) - len(voice)) < 2048


def test_a_phones_recording_and_back(voice: np.ndarray, cleaned: np.ndarray, tmp_path: Path) -> None:
    a, b, c = make(tmp_path / "in.m4a", [voice], RATE), tmp_path / "out.wav", tmp_path / "out.m4a"
    assert main(["file", str(a), str(b)]) == 0
    y, rate = sf.read(b, dtype="float32")
    assert (rate, len(y)) == (RATE, len(voice)) and sf.info(b).subtype == "PCM_16"
    assert abs(lag_ms(y, cleaned, RATE)[0]) <= 1
    assert main(["file", str(a), str(c)]) == 0
    in_place(c, cleaned)
    with av.open(str(c)) as out:
        assert out.metadata["title"] == "A talk" and out.metadata["major_brand"] == "M4A " and out.streams.audio[0].duration == len(voice)
    assert main(["file", str(b), str(c)]) == 0  # (a sound file into .m4a)


@pytest.mark.parametrize(("kind", "sound"), [("aac", "aac"), ("mov", "alac"), ("mka", "flac"), ("mkv", "ac3"), ("mov", "pcm_s24le")])
def test_other_codings(kind: str, sound: str, voice: np.ndarray, tmp_path: Path) -> None:
    rate = 48000 if sound == "ac3" else RATE
    x = np.repeat(voice, rate // RATE, 0)
    a = make(tmp_path / f"in.{kind}", [x], rate, sound=sound)
    y, found, _ = files.read(a)
    assert found == rate and abs(len(y) - len(x)) < 2100
    y = y[1024:] if kind == "aac" else y  # (nothing there says how long its beginning is)
    lag, alike = lag_ms(y[:, 0], x[:, 0], rate)
    assert abs(lag) < (6 if sound == "ac3" else 0.1) and alike > 0.98, (lag, alike)
    if sound in ("alac", "flac", "pcm_s24le"):
        np.testing.assert_allclose(y, x, atol=1 / 30000)


def test_channels_and_rates(voice: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = voice[:RATE, 0]
    left_right = np.stack([samplerate.resample(x, 3, "sinc_fastest") for x in (second, 0.3 * second[::-1])], 1).astype(np.float32)
    a = make(tmp_path / "in.mp4", [left_right], 48000, seconds=1.0)
    for mode, ending in (("each", "mp4"), ("mix", "mkv")):
        b = tmp_path / f"out.{ending}"
        assert main(["file", str(a), str(b), "--channels", mode, "--strength", "0"]) == 0
        y = heard(b, 48000)
        assert y.shape[1] == 2
        for i in range(2):
            wanted = left_right[:, i] if mode == "each" else left_right.mean(1)
            assert lag_ms(y[:, i], wanted, 48000)[1] > 0.98
    six = np.repeat(left_right[:24000], 3, 1) * np.array([1, 0.8, 0.6, 0, 0.4, 0.2], np.float32)
    a = make(tmp_path / "six.mkv", [six], 48000, seconds=0.5)
    assert main(["file", str(a), str(tmp_path / "six.mp4"), "--strength", "0"]) == 0
    y = heard(tmp_path / "six.mp4", 48000)
    assert [lag_ms(y[:, i], six[:, i], 48000)[1] > 0.95 for i in range(6) if i != 3] == [True] * 5
    for rate, ending in ((44100, "webm"), (18900, "m4a"), (8000, "mp4")):  # rates that the coding does not have, or barely
        x = np.interp(np.arange(rate) / rate, np.arange(RATE) / RATE, voice[:RATE, 0]).astype(np.float32)
        sf.write(tmp_path / "in.wav", x, rate)
        b = tmp_path / f"rate.{ending}"
        assert main(["file", str(tmp_path / "in.wav"), str(b), "--strength", "0"]) == 0
        lag, alike = lag_ms(heard(b, rate)[:, 0], x, rate)
        assert abs(lag) < 0.3 and alike > 0.95, (rate, ending, lag, alike)
    fast = make(tmp_path / "fast.mkv", [np.zeros((9600, 1), np.float32)], 96000, sound="flac")
    capsys.readouterr()
    assert "8000 to 48000" in refuse(capsys, "file", fast, tmp_path / "out.wav")


def test_tracks_that_are_kept_and_left_out(voice: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second sound track and subtitles are copied; what a container cannot hold is named. Chapters stay."""
    a = make(tmp_path / "two.mkv", [voice, voice[::-1]], RATE, seconds=SECONDS)
    source = tmp_path / "in.mkv"
    with av.open(str(a)) as film, av.open(str(source), "w") as out:
        targets = {s.index: out.add_stream_from_template(s, opaque=True) for s in film.streams}
        words = out.add_mux_stream("subrip") if hasattr(out, "add_mux_stream") else None
        if words is not None:
            out.set_chapters([{"id": 1, "start": 0, "end": 1500, "time_base": av.time_base and film.streams[0].time_base, "metadata": {"title": "First"}}])
        out.start_encoding()
        if words is not None:
            said = av.Packet(b"Hello")
            said.pts = said.dts = 500
            said.duration, said.time_base, said.stream = 800, film.streams[0].time_base, words
            out.mux(said)
        for p in film.demux():
            if p.size:
                p.stream = targets[p.stream_index]
                out.mux(p)
    b, c = tmp_path / "out.mkv", tmp_path / "out.mp4"
    assert main(["file", str(source), str(b)]) == 0
    assert capsys.readouterr().err == ""
    assert [x for _, x in packets(source, "audio", 1)] == [x for _, x in packets(b, "audio", 1)]
    assert [x for _, x in packets(source, "audio", 0)] != [x for _, x in packets(b, "audio", 0)]
    assert main(["file", str(source), str(c)]) == 0
    err = capsys.readouterr().err
    with av.open(str(source)) as x, av.open(str(b)) as y:
        assert [s.type for s in x.streams] == [s.type for s in y.streams]
        assert [s.metadata.get("language") for s in x.streams] == [s.metadata.get("language") for s in y.streams]
        if words is not None:
            assert packets(source, "subtitle") == packets(b, "subtitle")
            assert [h["metadata"]["title"] for h in y.chapters()] == ["First"]
            assert "track 3 (subtitle)" in err and err.count("\n") == 1


def test_a_phone_held_upright_stays_upright(voice: np.ndarray, tmp_path: Path) -> None:
    """The matrix of the picture's track in MP4 says which way is up."""
    a = make(tmp_path / "in.mp4", [voice[:RATE]], RATE, seconds=1.0)
    data = bytearray(a.read_bytes())
    at = data.index(b"\0\1\0\0" + bytes(12) + b"\0\1\0\0" + bytes(12) + b"\x40\0\0\0", data.index(b"tkhd"))
    upright = b"".join(n.to_bytes(4, "big", signed=True) for n in (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30))
    data[at : at + 36] = upright
    a.write_bytes(data)
    assert main(["file", str(a), str(tmp_path / "out.mp4")]) == 0
    assert upright[:20] in (tmp_path / "out.mp4").read_bytes()


def test_what_apple_plays(voice: np.ndarray, tmp_path: Path) -> None:
    try:
        av.Codec("libx265", "w")
    except ValueError:
        pytest.skip("this PyAV has no x265")
    a = make(tmp_path / "in.mkv", [voice[:RATE]], RATE, seconds=1.0, picture="libx265")
    assert main(["file", str(a), str(tmp_path / "out.mp4")]) == 0
    assert b"hvc1" in (tmp_path / "out.mp4").read_bytes()
    assert [x for _, x in packets(a)] == [x for _, x in packets(tmp_path / "out.mp4")]


def test_media_refusals(voice: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.mp4"
    mute = make(tmp_path / "mute.mp4", [], RATE, seconds=1.0)
    assert "has no sound" in refuse(capsys, "file", mute, out)
    film = make(tmp_path / "in.mp4", [voice], RATE, seconds=SECONDS)
    assert "same file" in refuse(capsys, "file", film, film)
    tail, fast, mkv = (tmp_path / n for n in ("tail.mp4", "fast.mp4", "cut.mkv"))
    tail.write_bytes(film.read_bytes()[:30000])
    assert "cut off" in refuse(capsys, "file", tail, out)
    first = make(tmp_path / "first.mp4", [voice], RATE, seconds=SECONDS, options={"movflags": "faststart"})
    fast.write_bytes(first.read_bytes()[:-9000])
    assert "cut off" in refuse(capsys, "file", fast, out)
    mkv.write_bytes(make(tmp_path / "whole.mkv", [voice], RATE, seconds=SECONDS).read_bytes()[:-9000])
    assert "cut off" in refuse(capsys, "file", mkv, out)
    text = tmp_path / "text.mp4"
    text.write_text("this is no film")
    assert "not audio" in refuse(capsys, "file", text, out)
    text.write_bytes(b"")
    refuse(capsys, "file", text, out)
    text.write_bytes(film.read_bytes()[:40] + os.urandom(3000))
    refuse(capsys, "file", text, out)
    assert ".mkv" in refuse(capsys, "file", make(tmp_path / "in.webm", [voice], RATE, seconds=1.0), out)
    assert "no folder" in refuse(capsys, "file", film, tmp_path / "no" / "out.mp4")
    nine = tmp_path / "nine.wav"
    sf.write(nine, np.zeros((1000, 9), np.float32), RATE)
    assert "channels" in refuse(capsys, "file", nine, out)
    assert not out.exists() and not list(tmp_path.glob(".*part"))


def test_any_cut_is_read_or_one_line(voice: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Broadcasts and ADTS say nothing of their length: what is there is cleaned, and never is there a traceback."""
    for kind in ("ts", "aac", "avi", "webm", "mp4"):
        data = make(tmp_path / f"in.{kind}", [voice[:RATE]], RATE, seconds=0.0 if kind == "aac" else 1.0).read_bytes()
        for share in (0.02, 0.6):
            a, b = tmp_path / f"cut.{kind}", tmp_path / ("out.wav" if kind == "aac" else f"out.{'mkv' if kind in ('ts', 'avi') else kind}")
            a.write_bytes(data[: round(share * len(data))])
            code = main(["file", str(a), str(b), "--strength", "0"])
            err = capsys.readouterr().err
            assert code in (0, 2) and (code == 0 or (err.count("\n") == 1 and "internal" not in err)), err
            assert code == 0 or share < 0.5 or kind in ("mp4", "webm"), err
            b.unlink(missing_ok=True)
    assert not list(tmp_path.glob(".*part"))


def test_damaged_packets_are_silence(voice: np.ndarray, cleaned: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make(tmp_path / "in.mp4", [voice], RATE, seconds=SECONDS), tmp_path / "out.mp4"
    data = bytearray(a.read_bytes())
    for time_s, packet in packets(a, "audio"):
        if 1.0 < time_s < 1.3:
            data[(at := data.index(packet)) : at + len(packet)] = b"\xff" * len(packet)
    a.write_bytes(data)
    assert main(["file", str(a), str(b)]) == 0
    assert "damaged packets" in capsys.readouterr().err
    y = heard(b, RATE)[:, 0]
    lag, alike = lag_ms(y[round(1.6 * RATE) :], cleaned[round(1.6 * RATE) :], RATE)
    assert abs(lag) <= 1 and alike > 0.9


def test_without_pyav(voice: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    film, wav = make(tmp_path / "in.mp4", [voice], RATE, seconds=1.0), tmp_path / "in.wav"
    sf.write(wav, voice, RATE)
    usual = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "av":
            raise ImportError(name)
        return usual(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "pip install 'voicewire[media]'" in refuse(capsys, "file", film, tmp_path / "out.wav")
    assert "pip install 'voicewire[media]'" in refuse(capsys, "file", wav, tmp_path / "out.m4a")
    assert main(["file", str(wav), str(tmp_path / "out.wav"), "--strength", "0"]) == 0


def test_other_commands_read_films(voice: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film = make(tmp_path / "in.mp4", [voice], RATE, seconds=1.0)
    assert main(["enroll", str(film), "-o", str(tmp_path / "me.voice")]) == 0
    assert main(["codec", "encode", str(film), str(tmp_path / "a.tok")]) == 0
    assert main(["codec", "decode", str(tmp_path / "a.tok"), str(tmp_path / "back.m4a")]) == 0
    assert len(heard(tmp_path / "back.m4a", RATE)) >= len(voice)


def test_a_folder_of_films(voice: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "talks").mkdir()
    make(tmp_path / "talks/a.mp4", [voice], RATE, seconds=1.0)
    make(tmp_path / "talks/b.m4a", [voice], RATE)
    make(tmp_path / "talks/mute.mkv", [], RATE, seconds=1.0)
    assert main(["file", str(tmp_path / "talks"), str(tmp_path / "clean"), "--strength", "0", "--jobs", "1"]) == 2
    assert "mute.mkv has no sound" in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "clean").iterdir()) == ["a.mp4", "b.m4a"]
    assert packets(tmp_path / "talks/a.mp4") == packets(tmp_path / "clean/a.mp4")
    assert {e[1:] for e in media.CONTAINERS} <= files.ENDINGS


def test_length_of_a_film_costs_no_memory(tmp_path: Path) -> None:
    """Ten seconds of stereo at 48 kHz, 4 MB as floats, within a quarter of that."""
    x = np.tile((0.1 * np.random.default_rng(0).standard_normal((48000, 2))).astype(np.float32), (10, 1))
    source, target = make(tmp_path / "in.mkv", [x], 48000, seconds=10.0), tmp_path / "out.mkv"
    tracemalloc.start()
    recording = files.opened(source)
    passage = files.Passage(Stream(48000, 2, mode="each", strength_db=0, engine=Wire()))
    with files.writing(target, 48000, 2, recording.subtype, recording.samples, recording) as out:
        for y in passage.through(recording.blocks(960)):
            out.write(y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6, peak
    assert recording.samples == passage.report().samples and abs(recording.samples - 10 * 48000) < 1024
    assert [x for _, x in packets(source)] == [x for _, x in packets(target)]


def test_an_error_or_ctrl_c_leaves_what_was_there(voice: np.ndarray, tmp_path: Path) -> None:
    source, path = make(tmp_path / "in.mp4", [voice], RATE, seconds=1.0), tmp_path / "out.mp4"
    path.write_bytes(b"what was there")
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), files.writing(path, RATE, 1, source=files.opened(source)) as out:
            out.write(np.zeros((5000, 1), np.float32))
            raise error
        assert path.read_bytes() == b"what was there" and len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no limit for the size of files here")
@pytest.mark.parametrize(("kind", "most"), [("mp4", 4096), ("mkv", 20000)])
def test_a_full_disk_is_a_line(voice: np.ndarray, tmp_path: Path, kind: str, most: int) -> None:
    source, out = make(tmp_path / ("in.webm" if kind == "webm" else "in.mp4"), [voice], RATE, seconds=SECONDS), tmp_path / f"out.{kind}"
    limited = (
        f"import resource, sys; from voicewire.rt.cli import main; resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most})); sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", limited, "file", str(source), str(out)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "could not be written" in done.stderr, done.stderr
    assert not out.exists() and not list(tmp_path.glob(".*part"))


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg to make and to read a film")
@pytest.mark.parametrize("kind", ["mp4", "mov", "mkv"])
def test_ffmpeg_on_the_other_side(kind: str, voice: np.ndarray, cleaned: np.ndarray, tmp_path: Path) -> None:
    """Another version of FFmpeg makes the film and plays the result."""
    wav, a, b, c = tmp_path / "in.wav", tmp_path / f"in.{kind}", tmp_path / f"out.{kind}", tmp_path / "heard.wav"
    sf.write(wav, voice, RATE)
    ffmpeg = lambda *args: subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, args)], check=True, timeout=120)  # noqa: E731
    ffmpeg("-f", "lavfi", "-i", f"testsrc=size=128x96:rate={FPS}:duration={SECONDS}", "-i", wav, "-c:v", "mpeg4", "-bf", "2", "-c:a", "aac", a)
    assert main(["file", str(a), str(b)]) == 0
    before, after = packets(a), packets(b)
    assert [x for _, x in before] == [x for _, x in after]
    ffmpeg("-copyts", "-i", b, "-af", "aresample=async=1:first_pts=0", c)
    y = sf.read(c, dtype="float32")[0]
    lag, alike = lag_ms(y[round(after[0][0] * RATE) :], cleaned, RATE)  # (ffmpeg 5's picture is late by the priming in Matroska)
    assert abs(lag) <= 1 and alike > 0.95, (lag, alike)
