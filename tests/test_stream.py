"""`Stream`: same samples out as in, a declared delay, no matter how the audio arrives."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voicewire.engines import Engine
from voicewire.engines.engine import F32, State
from voicewire.engines.stft import analyse, hop_samples, synthesise
from voicewire.rt import Stream
from voicewire.rt import clean as cleaned
from voicewire.rt.lane import USUAL_STRENGTH_DB, to_float, to_int16

RATES = [8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000]


class Wire:
    """An engine that changes nothing, so that what the stream itself does is seen exactly."""

    name, weights = "wire", "wire"

    def init_state(self, batch: int, task: str = "restore") -> State:
        return {"count": np.zeros(batch, np.int64)}

    def step(self, x: F32, state: State) -> tuple[F32, State]:
        return x.copy(), {"count": state["count"] + 1}

    advance = step


def noise(n: int, *more: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal((n, *more))).astype(np.float32)


def through(stream: Stream, x: np.ndarray, sizes: list[int]) -> np.ndarray:
    """All of x in blocks of the given sizes, over and over, then the flush, delay removed."""
    out, at, i = [], 0, 0
    while at < len(x):
        n = sizes[i % len(sizes)]
        y = stream.process(x[at : at + n])
        assert y.shape == x[at : at + n].shape
        assert y.dtype == x.dtype
        out.append(y)
        at, i = at + n, i + 1
    out.append(stream.flush().astype(x.dtype))
    return np.concatenate(out)[stream.latency_samples :]


@pytest.mark.parametrize("rate", RATES)
def test_wire_engine_gives_the_input_back(rate: int) -> None:
    """STFT, overlap-add, buffering and delay bookkeeping are exact at every rate; only the top bin of 48 kHz is left out."""
    x = noise(rate)
    y = through(Stream(rate, engine=Wire()), x, [rate // 7])
    error = np.abs(y - x).max()
    assert error < (0.02 if rate == 48000 else 1e-5)


@given(sizes=st.lists(st.integers(0, 5000), min_size=1, max_size=6).filter(any), n=st.integers(1, 9000), rate=st.sampled_from(RATES))
@settings(max_examples=40, deadline=None)
def test_any_blocks_give_the_same_samples(sizes: list[int], n: int, rate: int) -> None:
    x = noise(n)
    assert np.array_equal(through(Stream(rate, engine=Wire()), x, sizes), through(Stream(rate, engine=Wire()), x, [n]))


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_model_output_does_not_depend_on_blocks(rate: int, engine: Engine) -> None:
    x = noise(rate // 2)
    whole = through(Stream(rate, engine=engine), x, [len(x)])
    for sizes in ([1], [rate // 100], [37, 4001, 1]):
        part = x[: rate // 10] if sizes == [1] else x
        np.testing.assert_allclose(through(Stream(rate, engine=engine), part, sizes)[: len(part) - rate // 20], whole[: len(part) - rate // 20], atol=1e-4)


@pytest.mark.parametrize("rate", RATES)
def test_declared_delay_is_the_measured_one(rate: int) -> None:
    """An impulse comes out exactly `latency_samples` later, wherever in a frame it falls; and that is at most 30 ms."""
    for at in (0, 1, rate // 100, rate // 50 - 1, 2 * rate // 50 + 17):
        stream = Stream(rate, engine=Wire())
        x = np.zeros(rate // 4, np.float32)
        x[at] = 1
        y = stream.process(x)
        assert int(np.abs(y).argmax()) == at + stream.latency_samples
    assert Stream(rate, engine=Wire()).latency_ms <= 30.0


def test_a_change_never_reaches_back_further_than_the_delay(engine: Engine) -> None:
    x = noise(16000)
    before = Stream(16000, engine=engine).process(x)
    for at in range(8000, 8320, 53):
        changed = x.copy()
        changed[at:] = noise(16000 - at, seed=1)
        after = Stream(16000, engine=engine).process(changed)
        first = int((after != before).argmax())
        assert first >= at, "output changed before the input did"
    # and the delayed output really does use the whole of it: the look-ahead is not overstated by more than a hop
    assert first <= at + 160


def test_bypass_is_the_delayed_input(engine: Engine) -> None:
    for rate in (16000, 48000):
        x = noise(rate // 2)
        y = through(Stream(rate, bypass=True, engine=engine), x, [333])
        np.testing.assert_allclose(y, x, atol=1e-5)


class Times(Wire):
    """An engine that makes everything `factor` times as loud."""

    def __init__(self, factor: float) -> None:
        self.factor = np.float32(factor)

    def step(self, x: F32, state: State) -> tuple[F32, State]:
        return self.factor * x, state

    advance = step


def test_switching_bypass_does_not_click() -> None:
    """Switching twelve times a second is the cross-fade that the overlapping windows make, and nothing else."""
    frames, hop = 200, 160
    x = (0.5 * np.sin(2 * np.pi * 100 * np.arange(2 * frames * hop) / 16000)).astype(np.float32)
    stream, bypass = Stream(16000, strength_db=np.inf, engine=Times(0.5)), [f % 8 >= 4 for f in range(frames)]
    out = []
    for f in range(frames):
        stream.bypass = bypass[f]
        out.append(stream.process(x[2 * hop * f : 2 * hop * (f + 1)]))
    y = np.concatenate([*out, stream.flush()])[stream.latency_samples :]
    gain = np.repeat([1.0 if b else 0.5 for b in [*bypass, bypass[-1]]], 2)[: 2 * frames + 1, None]  # of each window, two a frame, half a frame early
    rise = np.sin(np.pi * np.arange(hop) / (2 * hop)) ** 2
    np.testing.assert_allclose(y, x * (gain[:-1] * (1 - rise) + gain[1:] * rise).reshape(-1), atol=1e-5)


def test_strength_limits_what_is_taken_away(engine: Engine) -> None:
    x = noise(16000)
    full, ten, none = (through(Stream(16000, strength_db=s, engine=engine), x, [320]) for s in (1000.0, 10.0, 0.0))
    np.testing.assert_allclose(none, x, atol=1e-5)
    g = np.float32(10 ** (-10 / 20))
    np.testing.assert_allclose(ten, full + g * (x - full), atol=1e-5)
    usual, alike = (through(Stream(16000, strength_db=s, engine=engine), x, [320]) for s in (None, USUAL_STRENGTH_DB["restore"]))
    assert np.array_equal(usual, alike)
    with pytest.raises(ValueError, match="strength"):
        Stream(16000, strength_db=-3)


def test_silence_stays_silent(engine: Engine) -> None:
    for rate in (8000, 16000, 48000):
        assert np.abs(through(Stream(rate, engine=engine), np.zeros(rate, np.float32), [480])).max() < 1e-6
    stream = Stream(16000, engine=engine)  # and after speech it becomes silent again
    stream.process(noise(16000))
    assert np.abs(stream.process(np.zeros(160000, np.float32))[80000:]).max() < 2e-4  # -74 dBFS, seconds after full-scale noise


def loudness_db(x: np.ndarray) -> float:
    return 10 * float(np.log10((x.astype(float) ** 2).mean()))


@pytest.fixture(scope="module")
def level_db(engine: Engine, noisy: np.ndarray) -> float:
    """Of what a fresh stream makes of the last two of five seconds."""
    return loudness_db(Stream(16000, engine=engine).process(noisy[:80000])[48000:])


@pytest.mark.parametrize(
    "hostile",
    [
        np.full(4000, np.nan, np.float32), np.full(4000, np.inf, np.float32), np.full(4000, 1.0, np.float32), np.full(4000, 1e30, np.float32),
        np.sign(np.sin(np.arange(4000))).astype(np.float32), np.full(4000, 1e-38, np.float32), np.array([1.0], np.float32),
    ],
    ids=["nan", "inf", "dc", "huge", "square", "denormal", "one sample"],
)  # fmt: skip
def test_hostile_input_never_gives_nan_and_is_forgotten(hostile: np.ndarray, engine: Engine, noisy: np.ndarray, level_db: float) -> None:
    stream = Stream(16000, engine=engine)
    assert np.isfinite(stream.process(hostile)).all()
    y = stream.process(noisy[:80000])
    assert np.isfinite(y).all()
    beyond = np.isfinite(hostile).all() and hostile.max() > 1  # 60 dB louder than any sound: the model needs half a minute to forget that
    assert abs(loudness_db(y[48000:]) - level_db) < (10 if beyond else 1), "seconds later it is still heard"
    if not np.isfinite(hostile).all():
        assert stream.repaired_samples == len(hostile)


def test_int16_in_int16_out(engine: Engine) -> None:
    x = noise(8000)
    a = through(Stream(16000, engine=engine), np.round(x * 32767).astype(np.int16), [320])
    b = through(Stream(16000, engine=engine), (np.round(x * 32767) / 32768).astype(np.float32), [320])
    assert a.dtype == np.int16
    # the flush is float, so compare what came before it
    np.testing.assert_allclose(a[:7000] / 32768, b[:7000], atol=1 / 32768)


def test_what_is_louder_than_full_scale_is_limited() -> None:
    """One more than the largest int16 is the smallest: a sample that wraps is a crack."""
    assert to_int16(np.array([1.0, 2.0, -1.0, -2.0], np.float32)).tolist() == [32767, 32767, -32768, -32768]

    square = np.where(np.arange(8000) // 100 % 2, -32768, 32767).astype(np.int16)
    y = through(Stream(16000, engine=Times(2)), square, [320]).astype(int)
    middle = (np.arange(8000) % 100 > 10) & (np.arange(8000) % 100 < 90)
    assert (np.sign(y[320:-480]) == np.sign(square[320:-480].astype(int)))[middle[320:-480]].all()


def test_channels(engine: Engine) -> None:
    x = noise(4800, 2)
    each = through(Stream(16000, 2, mode="each", engine=engine), x, [777])
    for c in range(2):
        np.testing.assert_allclose(each[:, c], through(Stream(16000, engine=engine), np.ascontiguousarray(x[:, c]), [777]), atol=1e-5)
    mix = through(Stream(16000, 2, engine=engine), x, [777])
    np.testing.assert_array_equal(mix[:, 0], mix[:, 1])
    np.testing.assert_allclose(mix[:, 0], through(Stream(16000, engine=engine), x.mean(1), [777]), atol=1e-5)


def test_empty_blocks_are_fine(engine: Engine) -> None:
    assert Stream(16000, engine=engine).process(np.zeros(0, np.float32)).shape == (0,)
    assert Stream(16000, 2, mode="each", engine=engine).process(np.zeros((0, 2), np.float32)).shape == (0, 2)


def test_reset_and_flush_start_afresh(engine: Engine) -> None:
    x, stream = noise(8000), Stream(16000, engine=engine)
    first = through(stream, x, [320])
    assert np.array_equal(through(stream, x, [320]), first)
    stream.process(noise(1234, seed=5))
    stream.reset()
    assert np.array_equal(through(stream, x, [320]), first)


def test_a_whole_recording_at_once_is_what_a_stream_gives() -> None:
    x = noise(20000, 2)
    stream = Stream(16000, 2, mode="each", strength_db=14)
    by_hand = np.concatenate([stream.process(x), stream.flush()])[stream.latency_samples :]
    np.testing.assert_array_equal(cleaned(x, 16000, strength_db=14), by_hand)
    np.testing.assert_array_equal(cleaned(x[:, 1], 16000, strength_db=14), by_hand[:, 1])
    pcm = (20000 * x).astype(np.int16)
    assert cleaned(pcm, 16000).dtype == np.int16 and cleaned(pcm, 16000).shape == pcm.shape
    assert cleaned(pcm, 16000, task="separate").shape == (20000, 2) and cleaned(x[:0], 16000).shape == (0, 2)
    with pytest.raises(ValueError, match="outside 8000 to 48000"):
        cleaned(x, 96000)


def test_snapshot_moves_a_stream(engine: Engine) -> None:
    x = noise(16000)
    here = Stream(16000, engine=engine)
    here.process(x[:7777])
    data = here.snapshot()
    there = Stream(16000, engine=engine)
    there.restore(data)
    assert np.array_equal(there.process(x[7777:]), here.process(x[7777:]))


@pytest.mark.parametrize("damage", [lambda d: b"", lambda d: b"nonsense", lambda d: d[: len(d) // 2], lambda d: d[:200] + b"\0" * 50 + d[250:]])
def test_damaged_snapshots_are_refused(damage: Any, engine: Engine) -> None:
    stream = Stream(16000, engine=engine)
    stream.process(noise(3000))
    before = stream.snapshot()
    with pytest.raises(ValueError, match="snapshot"):
        stream.restore(damage(before))
    assert stream.snapshot() == before
    with pytest.raises(ValueError, match="rate 16000"):
        Stream(48000, engine=engine).restore(before)


@pytest.mark.parametrize("rate", [0, 7999, 48001, 96000])
def test_rates_outside_are_refused(rate: int) -> None:
    with pytest.raises(ValueError, match="8000 to 48000"):
        Stream(rate)


def test_wrong_arguments_are_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="planned"):
        Stream(16000, task="code", engine=engine)
    with pytest.raises(ValueError, match="unknown"):
        Stream(16000, task="sing", engine=engine)
    with pytest.raises(ValueError, match="does not fit"):
        Stream(16000, engine=engine).process(noise(10, 2))
    with pytest.raises(ValueError, match="int32"):
        Stream(16000, engine=engine).process(np.zeros(10, np.int32))


def test_threads_share_a_stream_safely(engine: Engine) -> None:
    """Two threads push into one stream: every sample comes out once, and nothing breaks."""
    stream, counts = Stream(16000, engine=Wire()), []

    def push() -> None:
        for _ in range(200):
            counts.append(len(stream.process(noise(97))))

    threads = [threading.Thread(daemon=True, target=push) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sum(counts) == 3 * 200 * 97
    assert stream.frames == 3 * 200 * 97 // 320


def test_above_8_khz_is_real_content(clean: np.ndarray, engine: Engine) -> None:
    """48 kHz in gives 48 kHz out: speech whose sibilants reach to 12 kHz (its 4-8 kHz copied up) keeps most of that energy."""
    low = np.fft.rfft(clean[: 16000 * 8])
    full = np.zeros(len(low) * 3, complex)
    full[: len(low)] = low * 3
    full[len(low) : len(low) * 3 // 2] = low[len(low) // 2 : len(low) // 2 + len(low) * 3 // 2 - len(low)] * 3
    x = np.fft.irfft(full)[: 48000 * 8].astype(np.float32)
    y = through(Stream(48000, engine=engine), x, [480])

    def above(z: np.ndarray) -> float:
        return float((np.abs(np.fft.rfft(z))[8500 * 8 : 12000 * 8] ** 2).sum())

    assert above(x) > 0
    assert 0.1 < above(y) / above(x) < 3


def test_stft_round_trip() -> None:
    for rate in RATES:
        hop = hop_samples(rate)
        x = noise(20 * hop).reshape(1, -1)
        tail, overlap, out = np.zeros((1, hop), np.float32), np.zeros((1, hop), np.float32), []
        for i in range(0, 20 * hop, 2 * hop):
            spec, tail = analyse(tail, x[:, i : i + 2 * hop])
            y, overlap = synthesise(overlap, spec)
            out.append(y)
        np.testing.assert_allclose(np.concatenate(out, 1)[:, hop:], x[:, :-hop], atol=1e-5)


def test_importing_the_runtime_needs_no_torch() -> None:
    code = "import voicewire.rt, voicewire.rt.cli, voicewire.rt.bench, voicewire.rt.doctor, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ".links", "PATH": "/usr/bin:/bin"})


def test_snapshots_with_parts_missing_or_wrong_are_refused_and_change_nothing(engine: Engine) -> None:
    stream, x = Stream(16000, engine=engine), noise(5000)
    stream.process(x)
    good = stream.snapshot()
    with np.load(io.BytesIO(good)) as f:
        arrays = {k: f[k] for k in f.files}
    head = json.loads(arrays["head"].tobytes())

    def packed(**changed: np.ndarray | None) -> bytes:
        file = io.BytesIO()
        np.savez(file, **{k: v for k, v in (arrays | changed).items() if v is not None})
        return file.getvalue()

    def as_head(value: object) -> np.ndarray:
        return np.frombuffer(json.dumps(value).encode(), np.uint8)

    some = next(k for k in arrays if k.startswith("state:") and arrays[k].dtype == np.float32)
    wrong = [
        packed(tail=None), packed(tail=arrays["tail"][:, :7]), packed(tail=np.full_like(arrays["tail"], np.nan)), packed(out=arrays["out"][:, :0]),
        packed(overlap=arrays["overlap"].astype(np.float64)), packed(head=as_head([])), packed(head=as_head({k: v for k, v in head.items() if k != "frames"})),
        packed(**{some: arrays[some].astype(np.float64)}), packed(**{some: np.full_like(arrays[some], np.inf)}),
    ]  # fmt: skip
    for data in wrong:
        with pytest.raises(ValueError):
            stream.restore(data)
    other = Stream(16000, engine=engine)
    other.restore(packed())
    np.testing.assert_array_equal(stream.process(x), other.process(x))


def test_what_is_inside_can_be_hushed(engine: Engine, noisy: np.ndarray) -> None:
    stream = Stream(16000, engine=engine)
    twin = Stream(16000, engine=engine)
    for each in (stream, twin):
        each.process(noisy[:24000])
    stream.hush()
    rest, heard = (each.process(np.zeros(each.latency_samples, np.float32)) for each in (stream, twin))
    assert not rest[:160].any() and (rest**2).sum() < 0.1 * (heard**2).sum()  # (the model goes on, and has its own end)


def test_samples_beyond_all_sound_are_counted() -> None:
    y, repaired = to_float(np.array([1e300, -5e3, 0.5, np.nan]))
    assert repaired == 3 and y.tolist() == [0.0, 0.0, 0.5, 0.0]
