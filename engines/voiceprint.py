"""An enrolled voice as a small file: made once from a recording of one talker, bound to the weights it was made with.

It holds what of a stream's state is turned towards the talker: a pinned row of keys and values for the trunk, and gains and offsets of the bands; for the
converter, which speaks as the talker, the voice itself and where its pitch lies. So a voice can be set, taken away or swapped between any two frames, on any
engine. Enrolment runs on ONNX Runtime whatever the engine of the stream is.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from .config import CORE_BINS, HOPS_PER_FRAME, HOPS_PER_SECOND
from .convert_engine import GRAPH, ConvertEngine
from .engine import CONVERT_WEIGHTS, F32, WEIGHTS, Engine, EngineError, State, weights_for
from .samples import to_float
from .stft import analyse, hop_samples

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

VERSIONS = (1, 2)  # 2: knows the pitch, too
VOICE_PARTS = ("k", "v", "gain", "offset")
RECOGNISED = "who.voice"  # in the state of a model that compares whom it lets through with the voice
FRAMES_PER_SECOND = HOPS_PER_SECOND // HOPS_PER_FRAME
LEAST_S, MOST_S = 1.0, 30.0
PAUSE_FRAMES = 10  # 200 ms before and after what is loud enough belong to it
MOST_VALUE = 100.0  # real ones stay below 25; from some hundreds on a stranger's could drive a stream out of float32
ROW = 1  # of the pinned prefix; row 0 is the task
MOST_BYTES = 1 << 20  # of all arrays together: the file may be a stranger's, and what is packed small can be large
PITCHLESS = "the voiceprint does not know how high that voice is, as a conversion needs to; enroll again: voicewire enroll ME.wav -o me.voice"
DAMAGED = "this is not a voicewire voiceprint, or it is damaged; make one: voicewire enroll ME.wav -o me.voice"


def voice_rows(state: State) -> State:
    """What `VOICE_PARTS` are in a state of a model that knows voices, [slots, ...] each."""
    return {"k": state["trunk.prefix_k"][:, :, ROW], "v": state["trunk.prefix_v"][:, :, ROW], "gain": state["gain"], "offset": state["offset"]}


@dataclass(frozen=True)
class Voiceprint:
    """weights: fingerprint of the weights it fits. parts: `VOICE_PARTS`, [1, ...] float32 each. voice: [voice_dim], for comparing talkers, and to speak as one.
    octave: mean pitch, log2 of Hz; None where it was not measured: in files of version 1, without the converter's weights, of a whisper."""

    TALKER: ClassVar[bool] = True  # somebody who can be recognised

    weights: str
    parts: dict[str, NDArray[np.float32]]
    voice: F32
    octave: float | None = field(default=None, kw_only=True)

    def turn(self, state: State) -> None:
        """Turn every slot of the state towards this voice, from its next frame on. ValueError, and nothing is turned, unless it fits the model's sizes."""
        if "target.voice" in state:
            self._speak(state)
            return
        rows = voice_rows(state)
        asked_for = state.get(RECOGNISED)
        if any(self.parts[k].shape != (1, *rows[k].shape[1:]) for k in VOICE_PARTS) or (asked_for is not None and self.voice.shape != asked_for.shape[1:]):
            raise ValueError(DAMAGED)
        if asked_for is not None:
            asked_for[:] = self.voice if self.TALKER else 0
        state["trunk.prefix_k"][:, :, ROW] = self.parts["k"]
        state["trunk.prefix_v"][:, :, ROW] = self.parts["v"]
        state["trunk.prefix_on"][:, ROW] = 1
        state["gain"][:] = self.parts["gain"]
        state["offset"][:] = self.parts["offset"]

    def _speak(self, state: State) -> None:
        """The same in a converter's state."""
        if self.octave is None:
            raise ValueError(PITCHLESS)
        if self.voice.shape != state["target.voice"].shape[1:]:
            raise ValueError(DAMAGED)
        state["target.voice"][:], state["target.octave"][:], state["target.amount"][:] = self.voice, self.octave, 1

    def to_bytes(self) -> bytes:
        file = io.BytesIO()
        about: dict[str, object] = {"voiceprint": VERSIONS[0], "weights": self.weights}
        if self.octave is not None:
            about |= {"voiceprint": VERSIONS[1], "octave": self.octave}
        head = np.frombuffer(json.dumps(about).encode(), np.uint8)
        np.savez_compressed(file, head=head, voice=self.voice, **{k: self.parts[k] for k in VOICE_PARTS})  # type: ignore[arg-type]
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, weights: str) -> Voiceprint:
        """ValueError, one line, unless it is a whole voiceprint made with these weights."""
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as z:
                if sum(i.file_size for i in z.infolist()) > MOST_BYTES:
                    raise ValueError
            with np.load(io.BytesIO(data), allow_pickle=False) as f:
                arrays = {k: f[k] for k in f.files}
            head = json.loads(arrays.pop("head").tobytes())
            version = head["voiceprint"]
            octave = float(head["octave"]) if version == VERSIONS[1] else None
            made = cls(head["weights"], {k: arrays[k] for k in VOICE_PARTS}, arrays["voice"], octave=octave)
            sound = all(a.dtype == np.float32 and (np.abs(a) <= MOST_VALUE).all() for a in (*made.parts.values(), made.voice))
            sound = sound and (octave is None or 5 < octave < 9)  # 32 to 512 Hz
        except Exception:
            raise ValueError(DAMAGED) from None
        if version not in VERSIONS or made.weights != weights:
            raise ValueError("the voiceprint was made with another model; enroll again: voicewire enroll ME.wav -o me.voice")
        if not sound:
            raise ValueError(DAMAGED)
        return made

    @classmethod
    def load(cls, path: Path, weights: str) -> Voiceprint:
        """As `from_bytes`, and OSError when the file cannot be read."""
        try:
            return cls.from_bytes(path.read_bytes(), weights)
        except ValueError as e:
            raise ValueError(f"{path}: {e}") from None


def spoken(x: F32, rate: int) -> F32:
    """[samples] → [frames, 20 ms] in which somebody speaks, short pauses too, `MOST_S` at most. ValueError for less than `LEAST_S` of speech."""
    size = HOPS_PER_FRAME * hop_samples(rate)
    frames = x[: len(x) // size * size].reshape(-1, size)
    frames = frames - frames.mean(dtype=np.float64).astype(np.float32) if len(frames) else frames  # a microphone's direct current is no speech
    power = (frames**2).mean(1)
    loud = np.flatnonzero(power > max(1e-8, 1e-3 * float(np.percentile(power, 95)))) if len(power) else np.zeros(0, np.intp)
    if len(loud) < LEAST_S * FRAMES_PER_SECOND:
        seconds = len(loud) / FRAMES_PER_SECOND
        raise ValueError(f"only {seconds:.1f} s of speech to enroll from; give a recording of one talker with at least {LEAST_S:.0f} s, better 5 to 10")
    kept = np.zeros(len(frames), bool)
    for shift in range(-PAUSE_FRAMES, PAUSE_FRAMES + 1):
        kept[np.clip(loud + shift, loud[0], loud[-1])] = True
    return frames[kept][: round(MOST_S * FRAMES_PER_SECOND)]


def known(folder: Path = WEIGHTS) -> str | None:
    """The fingerprint that voiceprints of these weights carry; None where they know no voices."""
    if not (folder / "voice.onnx").exists():
        return None
    weights: str = json.loads((folder / "model.json").read_text())["weights"]
    return weights


@lru_cache(maxsize=8)
def _session(path: Path, changed_ns: int) -> InferenceSession:
    """changed_ns: so that a file that has been replaced is read again."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_graph(path: Path, x: F32) -> list[F32]:
    """The outputs of one of the weights' small graphs (`export.export_voices`); loaded once."""
    outputs: list[F32] = _session(path, path.stat().st_mtime_ns).run(None, {"x": x})
    return outputs


def turn_parts(voice: F32, folder: Path) -> dict[str, F32]:
    """voice: [1, voice_dim] → `VOICE_PARTS` of a stream that is turned towards it."""
    return dict(zip(VOICE_PARTS, run_graph(folder / "turn.onnx", voice), strict=True))


def fits_conversion() -> str:
    """The fingerprint of the voiceprints to speak as: they are those of the weights that know voices, with whose encoder the converter was trained."""
    return known(weights_for("extract")) or ""


def taken_by(engine: Engine) -> str:
    """The fingerprint of the voiceprints that fit an engine."""
    return fits_conversion() if isinstance(engine, ConvertEngine) else engine.weights


def enrol(x: F32, rate: int, folder: Path | None = None, converter: ConvertEngine | None = None) -> Voiceprint:
    """x: [samples] of one talker, float32 or int16, rate 8,000 to 48,000 Hz → the voiceprint. converter: hears how high that voice is (None: the released
    one, where there is one).

    ValueError for less than 1 s of speech, EngineError where the weights know no voices.
    """
    folder = folder or weights_for("extract")
    weights = known(folder)
    if weights is None:
        raise EngineError("these weights know no voices; for the task 'extract' install from the repository, which has some: pip install -e .")
    frames = spoken(to_float(x)[0], rate)
    hop = hop_samples(rate)
    tails = np.concatenate([np.zeros((1, hop), np.float32), frames[:-1, hop:]])
    spec = analyse(tails, frames)[0][:, :, :CORE_BINS].reshape(1, -1, CORE_BINS, 2)
    (voice,) = run_graph(folder / "voice.onnx", spec)
    if converter is None and (CONVERT_WEIGHTS / GRAPH).exists():
        converter = ConvertEngine(CONVERT_WEIGHTS)
    octave = converter.octave(spec) if converter else None
    return Voiceprint(weights, turn_parts(voice, folder), voice[0], octave=octave)
