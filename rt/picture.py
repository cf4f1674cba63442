"""A spectrogram picture of two signals, one above the other: before and after. NumPy and Pillow only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

F32 = NDArray[np.float32]
# dark violet to pale yellow, even in lightness (after matplotlib's "inferno", sampled)
_COLOURS = np.array(
    [[0, 0, 4], [31, 12, 72], [85, 15, 109], [136, 34, 106], [186, 54, 85], [227, 89, 51], [249, 140, 10], [249, 201, 50], [252, 255, 164]], float
)
_WIDTH, _HEIGHT, _LEFT, _GAP = 1000, 260, 64, 36


def spectrogram_db(x: F32, rate: int, columns: int) -> F32:
    """[n] → [bins, columns] dB re full scale, 32 ms Hann windows."""
    n = int(0.032 * rate) // 2 * 2
    x = np.pad(x, (n // 2, n))
    starts = np.linspace(0, max(0, len(x) - n), columns).astype(int)
    frames = np.stack([x[s : s + n] for s in starts]) * np.hanning(n)
    db: F32 = (20 * np.log10(np.abs(np.fft.rfft(frames)) / (n / 4) + 1e-6)).T.astype(np.float32)
    return db


def _panel(x: F32, rate: int, top_db: float) -> Image.Image:
    db = spectrogram_db(x, rate, _WIDTH)[::-1]
    level = np.clip((db - (top_db - 80)) / 80, 0, 1) * (len(_COLOURS) - 1)
    low = np.minimum(level.astype(int), len(_COLOURS) - 2)
    rgb = _COLOURS[low] + (level - low)[..., None] * (_COLOURS[low + 1] - _COLOURS[low])
    return Image.fromarray(rgb.astype(np.uint8)).resize((_WIDTH, _HEIGHT))


def before_after(path: Path, before: F32, after: F32, rate: int, labels: tuple[str, str] = ("before", "after")) -> None:
    """Write a PNG with both spectrograms on the same scale, kHz on the left, seconds below."""
    image = Image.new("RGB", (_LEFT + _WIDTH + 20, 2 * (_HEIGHT + _GAP) + 24), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(16)
    top_db = float(np.percentile(spectrogram_db(before, rate, 400), 99.8))
    for i, (x, label) in enumerate(zip((before, after), labels, strict=True)):
        y0 = _GAP - 4 + i * (_HEIGHT + _GAP)
        image.paste(_panel(x, rate, top_db), (_LEFT, y0))
        draw.text((_LEFT, y0 - 24), label, "black", font)
        for khz in range(0, rate // 2000 + 1, max(1, rate // 12000)):
            y = y0 + _HEIGHT * (1 - khz * 2000 / rate)
            draw.line([(_LEFT - 5, y), (_LEFT, y)], "black")
            draw.text((_LEFT - 10, y), f"{khz} kHz", "black", ImageFont.load_default(13), "rm")
    seconds = len(before) / rate
    bottom = _GAP - 4 + 2 * _HEIGHT + _GAP
    for t in np.arange(0, seconds, max(0.5, round(seconds / 10))):
        draw.text((_LEFT + t / seconds * _WIDTH, bottom + 4), f"{t:g} s", "black", ImageFont.load_default(13), "ma")
    image.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)  # a third of the size, no visible loss
