"""The token format: what goes in comes out, whatever the sizes; what was damaged, cut off or foreign is refused in one line."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voicewire.engines.codec_hold import Holder, agreement, source_frames
from voicewire.rt.codec import read_tokens
from voicewire.rt.codec_format import End, Header, Packet, Parser, TokenError, frames_of, pack_bits, pack_end, pack_packet, unpack_bits

WEIGHTS = "0123456789abcdef"
SEEDS = st.integers(0, 1 << 30)


def make_file(seed: int, packets: int, frames: int, streams: int, bits: int, variable: bool, rate: int = 16000) -> tuple[bytes, np.ndarray, int]:
    """→ (bytes, tokens as they must come out, samples)"""
    rng = np.random.default_rng(seed)
    header, heard, first = Header(rate, streams, bits, WEIGHTS, variable), [], 0
    data = header.pack()
    for _ in range(packets):
        tokens, sent = rng.integers(0, 1 << bits, (frames, streams)), rng.random(frames) < 0.4
        sent[0] = True
        sent |= not variable
        data += pack_packet(header, Packet(first, tokens, sent))
        for t in range(frames):
            heard.append(tokens[t] if sent[t] else heard[-1])
        first += frames
    hop = rate // 100
    samples = max(0, first * 2 * hop - hop - int(rng.integers(0, 2 * hop)))
    assert frames_of(samples, rate) == first
    return data + pack_end(End(first, samples)), np.array(heard), samples


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 16), st.integers(0, 40), SEEDS)
def test_bits_round_trip(bits: int, n: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 1 << bits, n)
    data = pack_bits(values, bits)
    assert len(data) == -(-n * bits // 8)
    np.testing.assert_array_equal(unpack_bits(data, bits, n), values)
    with pytest.raises(TokenError):
        unpack_bits(data + b"\0", bits, n)


def test_bits_refuse_what_does_not_fit() -> None:
    for bad in ([-1], [1024]):
        with pytest.raises(ValueError, match="outside 0 to 1023"):
            pack_bits(np.array(bad), 10)


@settings(max_examples=60, deadline=None)
@given(
    SEEDS,
    st.integers(1, 4),
    st.integers(1, 30),
    st.integers(1, 6),
    st.integers(1, 16),
    st.booleans(),
    st.lists(st.integers(1, 60), max_size=8),
)
def test_files_round_trip_in_any_pieces(seed: int, packets: int, frames: int, streams: int, bits: int, variable: bool, pieces: list[int]) -> None:
    data, heard, samples = make_file(seed, packets, frames, streams, bits, variable)
    header, tokens, sent, n = read_tokens(data)
    assert (header.rate, header.streams, header.bits, header.weights, header.variable, n) == (16000, streams, bits, WEIGHTS, variable, samples)
    np.testing.assert_array_equal(tokens, heard)
    assert len(sent) == packets * frames and (variable or sent.all())
    parser, got, at = Parser(), [], 0
    for size in [*pieces, len(data)]:
        got += [p.tokens for p in parser.feed(data[at : at + size])]
        at += size
    assert parser.finish() == End(packets * frames, samples)
    np.testing.assert_array_equal(np.concatenate(got), heard)


@settings(max_examples=150, deadline=None)
@given(SEEDS, st.booleans(), st.data())
def test_any_damage_is_found(seed: int, variable: bool, data: st.DataObject) -> None:
    whole, _, _ = make_file(seed, 2, 7, 3, 10, variable)
    at = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[at] ^= data.draw(st.integers(1, 255))
    cut = whole[:at]
    longer = whole + bytes([data.draw(st.integers(0, 255))])
    for bad in (bytes(flipped), cut, longer):
        with pytest.raises(TokenError) as e:
            read_tokens(bad)
        assert "\n" not in str(e.value) and len(str(e.value)) > 10


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused(junk: bytes) -> None:
    for data in (junk, Header(16000, 5, 10, WEIGHTS).pack() + junk):
        with pytest.raises(TokenError):
            read_tokens(data)


def test_complaints_say_what_is_wrong() -> None:
    whole, _, _ = make_file(1, 3, 10, 5, 10, False)
    packet = (len(whole) - 32 - 17) // 3
    newer = whole[:8] + b"\2" + whole[9:]
    swapped = whole[:32] + whole[32 + packet : 32 + 2 * packet] + whole[32 : 32 + packet] + whole[32 + 2 * packet :]
    lost = whole[:32] + whole[32 + packet :]
    for bad, complaint in (
        (b"RIFF....WAVE", "not a voicewire token file"),
        (b"", "cut off in its header"),
        (whole[:20], "cut off in its header"),
        (newer, "version 2"),
        (whole[:40], "cut off after 0.0 s"),
        (whole[: 32 + packet + 5], "cut off after 0.2 s"),
        (whole[:-1], "cut off after 0.6 s"),
        (swapped, "frame 0 is missing"),
        (lost, "frame 0 is missing"),
        (whole + whole, "behind its end"),
    ):
        with pytest.raises(TokenError, match=complaint):
            read_tokens(bad)


def test_packets_are_checked_when_written() -> None:
    header, tokens = Header(16000, 2, 10, WEIGHTS, True), np.zeros((3, 2), np.int64)
    for sent in ([False, True, True], [True, True, True]):
        packet = Packet(0, tokens, np.array(sent))
        if sent[0]:
            assert pack_packet(header, packet)
        else:
            with pytest.raises(ValueError, match="begins with one that is sent"):
                pack_packet(header, packet)
    with pytest.raises(ValueError, match="every frame is sent"):
        pack_packet(Header(16000, 2, 10, WEIGHTS), Packet(0, tokens, np.array([True, False, True])))


def test_rate_is_what_is_promised() -> None:
    """Five tokens of ten bits fifty times a second; heads of packets cost 2 %."""
    rng, header = np.random.default_rng(0), Header(16000, 5, 10, WEIGHTS)
    packet = pack_packet(header, Packet(0, rng.integers(0, 1024, (100, 5)), np.ones(100, bool)))
    assert len(packet) == 13 + 625 and 8 * len(packet) / 2 < 1.03 * 2500


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 9))
def test_holding(kinds: list[int], cap: int) -> None:
    """Frames are held while they stay alike, never beyond the cap, and the first of a kind is always sent."""
    vectors = np.eye(4, dtype=np.float32)[kinds]
    source = source_frames(vectors, 0.9, cap)
    for t, s in enumerate(source):
        assert 0 <= t - s < cap and len(set(kinds[s : t + 1])) == 1
        if t and kinds[t] != kinds[t - 1]:
            assert s == t
    runs = np.diff(np.flatnonzero(np.append(np.concatenate([[True], np.diff(kinds) != 0]), True)))
    assert len(np.unique(source)) == sum(-(-int(r) // cap) for r in runs)


def test_holding_is_monotone_and_can_be_switched_off() -> None:
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.standard_normal((300, 8)), 0).astype(np.float32)
    sent = [len(np.unique(source_frames(walk, threshold, 8))) for threshold in (-1.0, 0.5, 0.8, 0.9, 0.95, 0.99, 1.1)]
    assert sent == sorted(sent) and sent[-1] == 300 and sent[0] == -(-300 // 8)
    assert source_frames(np.zeros((5, 8), np.float32), 0.5, 8).tolist() == [0, 1, 2, 3, 4], "silence without a direction agrees with nothing"
    assert agreement(np.full(3, np.nan, np.float32), np.ones(3, np.float32)) == 0
    with pytest.raises(ValueError, match="cap"):
        Holder(0.9, 0)
