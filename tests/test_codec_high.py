"""What the decoder makes up above 8 kHz: the levels it says, nothing below, nothing out of nothing."""

from __future__ import annotations

import numpy as np
import pytest

from tools import fit_codec_high
from voicewire.engines.codec_high import LINES, band_levels_db, extend, low_levels_db


def spectrum(seed: int = 0) -> np.ndarray:
    spec = np.zeros((3, 2, 481, 2), np.float32)
    spec[:, :, :160] = 0.01 * np.random.default_rng(seed).standard_normal((3, 2, 160, 2)) * np.linspace(2, 0.1, 160)[:, None]
    return spec


def test_levels_follow_the_lines() -> None:
    spec = spectrum()
    before = spec.copy()
    extend(spec)
    np.testing.assert_array_equal(spec[:, :, :160], before[:, :, :160])
    low = low_levels_db(spec)
    wanted = low[..., 1:] + LINES[:, 0] + LINES[:, 1] * (low[..., :1] - low[..., 1:])
    np.testing.assert_allclose(band_levels_db(spec[:, :, :480]), wanted, atol=0.05)
    assert not spec[:, :, 480].any()
    louder = 10 * before
    extend(louder)
    np.testing.assert_allclose(louder, 10 * spec, rtol=1e-3, atol=1e-5)


def test_silence_stays_silent() -> None:
    spec = np.zeros((1, 2, 481, 2), np.float32)
    extend(spec)
    assert not spec.any()
    spec[:, :, 100] = 1e-3  # one bin alone: bands without a source stay empty
    extend(spec)
    assert np.isfinite(spec).all() and np.abs(spec[:, :, 160:]).max() < 0.1


def test_fit_finds_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise whose high bands were made by `extend` gives the table back."""
    from voicewire.engines.stft import synthesise

    rng = np.random.default_rng(3)
    overlap, blocks = np.zeros((1, 480), np.float32), []
    for _ in range(150):
        spec = np.zeros((1, 2, 481, 2), np.float32)
        spec[:, :, :160] = rng.standard_normal((1, 2, 160, 2)) * np.geomspace(1, rng.uniform(0.05, 1), 160)[:, None]
        extend(spec)
        y, overlap = synthesise(overlap, spec)
        blocks.append(y[0])
    found = fit_codec_high.fit([np.concatenate(blocks)])
    assert found.shape == LINES.shape
    assert np.abs(found[:12, 0] - LINES[:12, 0]).max() < 2.0, "within what windows that overlap smear"
