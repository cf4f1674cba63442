"""The converter as it comes: a reader speaks as another, in time and in tune, and the voiceprints are those it was trained with."""

from __future__ import annotations

import json
from importlib.resources import as_file, files

import numpy as np
import pytest
import soundfile as sf

from tools.pitch import pitch
from voicewire.engines.convert_engine import GRAPH, ConvertEngine
from voicewire.engines.convert_export import load_converter, voice_encoder
from voicewire.engines.engine import CONVERT_WEIGHTS, TASK_WEIGHTS
from voicewire.engines.export import fingerprint
from voicewire.engines.voiceprint import enrol
from voicewire.rt import files as audio
from voicewire.rt.stream import Stream

pytestmark = pytest.mark.skipif(not (CONVERT_WEIGHTS / GRAPH).exists(), reason="no converter weights here: they lie in the repository, not in wheels")


def test_a_reader_speaks_as_another() -> None:
    with as_file(files("voicewire.rt") / "samples") as folder:
        reader, other = (sf.read(folder / f"{name}.flac", dtype="float32") for name in ("clean", "other_enrol"))
    x, rate = reader
    assert rate == other[1] == 16000
    theirs = enrol(other[0], rate)
    y = audio.process(x[:, None], Stream(rate, task="convert", voice=theirs))[0][:, 0]
    own, now = enrol(x, rate), enrol(y, rate)
    assert len(y) == len(x)
    assert now.voice @ theirs.voice > now.voice @ own.voice, "the voice is nearer theirs"
    assert theirs.octave and own.octave and now.octave
    assert abs(now.octave - theirs.octave) < 0.25 < abs(own.octave - theirs.octave), "as high as theirs, to three semitones"
    before, after = pitch(x), pitch(y)
    both = (before > 0) & (after > 0)
    assert both.mean() > 0.3 and np.corrcoef(np.log2(before[both]), np.log2(after[both]))[0, 1] > 0.7, "the reader's melody"
    assert abs(10 * np.log10((y**2).mean() / (x**2).mean())) < 4, "as loud as the reader"


def test_weights_fit_each_other() -> None:
    about = json.loads((CONVERT_WEIGHTS / "convert.json").read_text())
    assert fingerprint(load_converter(CONVERT_WEIGHTS)) == ConvertEngine(CONVERT_WEIGHTS).weights == about["weights"]
    assert voice_encoder(TASK_WEIGHTS) == about["voice_encoder"], "the voiceprints are made by the encoder that the converter was trained with"
    assert sum(f.stat().st_size for f in CONVERT_WEIGHTS.iterdir()) < 4.2e6
