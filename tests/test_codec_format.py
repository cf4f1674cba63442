"""The token format: what goes in comes out, whatever the sizes; what was damaged, cut off or foreign is refused in one line."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voicewire.engines.codec_hold import agreement, source_frames
from voicewire.engines.codec_odds import FINE_BITS, GAPS, POWER_BITS, TOTAL_BITS, Odds
from voicewire.rt.codec import read_tokens
from voicewire.rt.codec_format import PACKET_FRAMES, End, Header, Packet, Parser, TokenError, frames_of, pack_bits, pack_end, pack_packet, unpack_bits
from voicewire.rt.codec_payload import pack_frames, unpack_frames

WEIGHTS = "0123456789abcdef"
SEEDS = st.integers(0, 1 << 30)


def made_odds(seed: int, streams: int, codes: int, dim: int = 3) -> Odds:
    """Odds of no sense, from even to so uneven that most codes are at their least."""
    rng = np.random.default_rng(seed)
    matrix = lambda: rng.integers(-127, 128, (streams, streams, dim, dim))  # noqa: E731
    tables = {
        "rows": rng.integers(-127, 128, (streams, codes, dim)), "bias": rng.integers(-2000, 1, (streams, codes)), "before": matrix(), "earlier": matrix(),
        "now": matrix() * np.tri(streams, streams, -1, dtype=int)[..., None, None], "gap": rng.integers(-9999, 10000, (GAPS, streams, dim)),
        "scale": rng.integers(0, 10 ** rng.integers(1, 6), streams), "powers": np.round(2.0 ** (POWER_BITS - np.arange(1 << FINE_BITS) / (1 << FINE_BITS))),
    }  # fmt: skip
    return Odds(WEIGHTS, tables)


def make_file(seed: int, packets: int, frames: int, odds: Odds, variable: bool, rate: int = 16000) -> tuple[bytes, np.ndarray, int]:
    """→ (bytes, tokens as they must come out, samples)"""
    rng = np.random.default_rng(seed)
    header, heard, first = Header(rate, odds.streams, odds.fingerprint, variable), [], 0
    data = header.pack()
    for _ in range(packets):
        tokens, sent = rng.integers(0, odds.codes, (frames, odds.streams)), rng.random(frames) < 0.4
        sent[0] = True
        sent |= not variable
        data += pack_packet(header, Packet(first, tokens, sent), odds)
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
    st.integers(1, 11),
    st.booleans(),
    st.lists(st.integers(1, 60), max_size=8),
)
def test_files_round_trip_in_any_pieces(seed: int, packets: int, frames: int, streams: int, bits: int, variable: bool, pieces: list[int]) -> None:
    odds = made_odds(seed, streams, 1 << bits)
    data, heard, samples = make_file(seed, packets, frames, odds, variable)
    header, tokens, sent, n = read_tokens(data, odds)
    assert (header.rate, header.streams, header.fingerprint, header.variable, n) == (16000, streams, odds.fingerprint, variable, samples)
    np.testing.assert_array_equal(tokens, heard)
    assert len(sent) == packets * frames and (variable or sent.all())
    parser, got, at = Parser(odds), [], 0
    for size in [*pieces, len(data)]:
        got += [p.tokens for p in parser.feed(data[at : at + size])]
        at += size
    assert parser.finish() == End(packets * frames, samples)
    np.testing.assert_array_equal(np.concatenate(got), heard)


@settings(max_examples=150, deadline=None)
@given(SEEDS, st.booleans(), st.data())
def test_any_damage_is_found(seed: int, variable: bool, data: st.DataObject) -> None:
    odds = made_odds(seed, 3, 64)
    whole, _, _ = make_file(seed, 2, 7, odds, variable)
    at = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[at] ^= data.draw(st.integers(1, 255))
    cut = whole[:at]
    longer = whole + bytes([data.draw(st.integers(0, 255))])
    for bad in (bytes(flipped), cut, longer):
        with pytest.raises(TokenError) as e:
            read_tokens(bad, odds)
        assert "\n" not in str(e.value) and len(str(e.value)) > 10


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused(junk: bytes) -> None:
    odds = Odds.even(WEIGHTS, 5, 1024)
    for data in (junk, Header(16000, 5, odds.fingerprint).pack() + junk):
        with pytest.raises(TokenError):
            read_tokens(data, odds)


def test_complaints_say_what_is_wrong() -> None:
    odds, other = Odds.even(WEIGHTS, 5, 1024), made_odds(0, 5, 1024)
    whole, _, _ = make_file(1, 3, 10, odds, False)
    packet = (len(whole) - 24 - 12) // 3
    older, newer = (whole[:8] + version + whole[9:] for version in (b"\1", b"\3"))
    swapped = whole[:24] + whole[24 + packet : 24 + 2 * packet] + whole[24 : 24 + packet] + whole[24 + 2 * packet :]
    lost = whole[:24] + whole[24 + packet :]
    large = whole[:24] + (PACKET_FRAMES + 1).to_bytes(2, "little") + whole[26:]
    for bad, complaint in (
        (b"RIFF....WAVE", "not a voicewire token file"),
        (b"", "cut off in its header"),
        (whole[:20], "cut off in its header"),
        (older, "version 1 .* reads version 2; encode the sound again"),
        (newer, "version 3"),
        (whole[:40], "cut off after 0.0 s"),
        (whole[: 24 + packet + 5], "cut off after 0.2 s"),
        (whole[:-1], "cut off after 0.6 s"),
        (swapped, "damaged after 0.0 s: a checksum is wrong, or something is missing"),
        (lost, "damaged after 0.0 s: a checksum is wrong, or something is missing"),
        (large, "neither a packet nor the end"),
        (make_file(1, 1, 3, other, False)[0], f"made with codec weights {other.fingerprint}"),
        (whole + whole, "behind its end"),
    ):
        with pytest.raises(TokenError, match=complaint):
            read_tokens(bad, odds)


def test_packets_are_checked_when_written() -> None:
    odds, tokens = Odds.even(WEIGHTS, 2, 1024), np.zeros((3, 2), np.int64)
    header, constant = Header(16000, 2, odds.fingerprint, True), Header(16000, 2, odds.fingerprint)
    for sent in ([False, True, True], [True, True, True]):
        packet = Packet(0, tokens, np.array(sent))
        if sent[0]:
            assert pack_packet(header, packet, odds)
        else:
            with pytest.raises(ValueError, match="begins with one that is sent"):
                pack_packet(header, packet, odds)
    with pytest.raises(ValueError, match="every frame is sent"):
        pack_packet(constant, Packet(0, tokens, np.array([True, False, True])), odds)
    long = np.zeros((PACKET_FRAMES + 1, 2), np.int64)
    with pytest.raises(ValueError, match="1 to 500 frames"):
        pack_packet(constant, Packet(0, long, np.ones(len(long), bool)), odds)
    for bad in (-1, 1024):
        with pytest.raises(ValueError, match="outside 0 to 1023"):
            pack_packet(constant, Packet(0, np.full((1, 2), bad), np.ones(1, bool)), odds)


def test_even_odds_take_whole_bits() -> None:
    """Five tokens of ten bits fifty times a second; the head of a packet is 8 bytes."""
    rng, odds = np.random.default_rng(0), Odds.even(WEIGHTS, 5, 1024)
    assert (odds.counts(0, odds.past(*np.full((2, 3, 5), -1), np.zeros(3, np.int64))) == 1 << TOTAL_BITS - 10).all()
    packet = pack_packet(Header(16000, 5, odds.fingerprint), Packet(0, rng.integers(0, 1024, (100, 5)), np.ones(100, bool)), odds)
    assert 8 + 625 <= len(packet) <= 8 + 627


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 5), st.integers(1, 9))
def test_what_is_likely_takes_as_few_bits_as_its_odds_say(seed: int, streams: int, bits: int) -> None:
    """Tokens are drawn by the odds; the payload has the bits that their counts are worth, to three and a half bytes."""
    rng, odds = np.random.default_rng(seed), made_odds(seed, streams, 1 << bits)
    tokens, worth, none = np.zeros((40, streams), np.int64), 0.0, np.full((2, streams), -1)
    for t in range(len(tokens)):
        before, earlier = (tokens[t - k][None] if t >= k else none[:1] for k in (1, 2))
        said = odds.past(before, earlier, np.array([min(t, 1)]))
        for s in range(streams):
            counts = odds.counts(s, said)[0]
            assert counts.sum() == 1 << TOTAL_BITS and counts.min() >= 1
            tokens[t, s] = np.searchsorted(counts.cumsum(), rng.integers(0, 1 << TOTAL_BITS), "right")
            worth += TOTAL_BITS - np.log2(counts[tokens[t, s]])
            said = odds.add(said, s, tokens[t : t + 1, s])
    data = pack_frames(tokens, np.ones(40, bool), odds, False)
    assert worth - 24 <= 8 * len(data) <= worth + 28  # (last tokens that leave the number at zero are free: one message in 2^n saves n bits)
    back, sent = unpack_frames(data, 40, streams, odds, False)
    np.testing.assert_array_equal(back, tokens)
    assert sent.all()


def test_holding_alike_takes_few_bits() -> None:
    """Every eighth frame sent: the flags are learnt, and take less than a third of a bit a frame."""
    odds, sent = Odds.even(WEIGHTS, 1, 2), np.arange(400) % 8 == 0
    data = pack_frames(np.zeros((400, 1), np.int64), sent, odds, True)
    assert 8 * len(data) < 50 + 28 + 400 / 3
    tokens, back = unpack_frames(data, 400, 1, odds, True)
    np.testing.assert_array_equal(back, sent)
    assert not tokens.any()


def test_what_is_left_over_is_found() -> None:
    odds = Odds.even(WEIGHTS, 2, 64)
    data = pack_frames(np.full((4, 2), 63), np.ones(4, bool), odds, False)
    for bad in (b"\0" + data, b"\1" + data, data + data):
        with pytest.raises(ValueError, match="left over"):
            unpack_frames(bad, 4, 2, odds, False)


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
