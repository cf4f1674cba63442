"""A sound asked for in words: wordings, mixtures, export, streams, the command line. On a small model made here; what it has learnt does not matter."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from voice_weights import RECIPE, talker

from tools.evaluate_query import Asker, judge, shares_db, table
from tools.queries import Queries, class_of, wordings
from tools.recipe import load
from tools.train import Batches, Run
from voicewire.engines import Engine, open_engine, sentence
from voicewire.engines.config import ModelConfig
from voicewire.engines.engine import EngineError
from voicewire.engines.query import Query, ask
from voicewire.engines.voiceprint import Voiceprint
from voicewire.rt import files
from voicewire.rt.cli import main
from voicewire.rt.live.controller import LiveSettings
from voicewire.rt.live.pipeline import Controls, Log, Meter, Pipeline
from voicewire.rt.live.process import AudioProcess
from voicewire.rt.stream import Stream

wordllama = pytest.importorskip("wordllama", reason="queries in words need the extra query: pip install 'voicewire[query]'")


@pytest.fixture(scope="module")
def bell(voice_weights: Path) -> Query:
    return ask("a bell ringing", voice_weights)


@pytest.fixture(scope="module")
def fan(voice_weights: Path) -> Query:
    return ask("an air conditioner", voice_weights)


def test_unseen_wordings_are_unseen_and_near(capsys: pytest.CaptureFixture[str]) -> None:
    """No wording twice; and the sentences mean something before anything is trained: most unseen ones are nearest to a caption of their own class."""
    table = wordings()
    said = [text for of in table.values() for key in ("captions", "unseen") for text in of[key]]
    assert len(set(said)) == len(said)
    own = [name for name, of in table.items() for _ in of["captions"]]
    captions = sentence.embed([text for of in table.values() for text in of["captions"]])
    unseen = [(name, text) for name, of in table.items() for text in of["unseen"]]
    nearest = (sentence.embed([text for _, text in unseen]) @ captions.T).argmax(1)
    right = np.mean([own[i] == name for i, (name, _) in zip(nearest, unseen, strict=True)])
    assert right > 0.9
    assert all(name in table for of in table.values() for name in of["near"])
    assert all(a in table[b]["near"] for a in table for b in table[a]["near"]), "near holds both ways"
    assert class_of("Rain 03", table) == "rain" and class_of("footsteps on grass", table) == "steps" and class_of("quad damage", table) is None


def test_sentences() -> None:
    v = sentence.embed(["A Dog  barking. ", "a dog barking", "the rain"])
    assert v.shape == (3, sentence.SENTENCE_DIM) and v.dtype == np.float32
    np.testing.assert_allclose((v**2).sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(v[0], v[1], atol=1e-6)
    for text in ("", "  ", "?!", "x" * 201, "half a \ud83d"):
        with pytest.raises(ValueError, match="few words"):
            sentence.check(text)


def test_mixtures_with_a_query(talkers_cache: Path) -> None:
    """The same batch for the same number, of the right shapes and levels; sometimes the sound is not there; what is taken of a recording is audible."""
    a, b = Queries(talkers_cache, 1, 2, 1.0), Queries(talkers_cache, 1, 2, 1.0)
    assert set(a.names) == {"aircon", "bell", "speech"}
    silent = 0
    for i in range(40):
        mix, target, asked = a.query_batch(i)
        assert mix.shape == target.shape == (2, 16000) and asked.shape == (2, sentence.SENTENCE_DIM)
        assert all(z.dtype == np.float32 and np.isfinite(z).all() and np.abs(z).max() <= 1 for z in (mix, target, asked))
        np.testing.assert_allclose((asked**2).sum(1), 1, atol=1e-5)
        silent += int((np.abs(target).max(1) == 0).sum())
        for again, first in zip(b.query_batch(i), (mix, target, asked), strict=True):
            assert np.array_equal(again, first)
    assert 4 <= silent <= 28, "sometimes it is not there"
    rng = np.random.default_rng(0)
    for name in a.names:
        assert all((a.sound(rng, name) ** 2).mean() > 1e-3 for _ in range(10)), name


def test_shares_of_the_tasks(talkers_cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(RECIPE.format(cache=talkers_cache))
    batches = Batches(load(path).data, 0)
    drawn = [batches[i][0] for i in range(120)]
    assert all(20 < drawn.count(task) < 54 for task in ("extract", "query")) and 15 < drawn.count("separate") < 46 and drawn.count("restore") > 8
    for change, complaint in (("query_dim = 256", "query_dim"), ("extract = 0.3", "more than all")):
        path.write_text(RECIPE.format(cache=talkers_cache).replace(change, "extract = 0.8" if change.startswith("extract") else ""))
        with pytest.raises(ValueError, match=complaint):
            Run(tmp_path / "run", load(path), "cpu", None, None)
    with pytest.raises(ValueError, match="voice_dim"):
        ModelConfig(query_dim=256).validate()


def test_a_query_is_the_models_own(voice_weights: Path, voice_engine: Engine, bell: Query, fan: Query) -> None:
    """query.onnx against PyTorch; ONNX and torch engines agree on what comes out."""
    import torch

    from voicewire.engines.export import load_weights

    model = load_weights(voice_weights).core
    assert model.asked is not None
    with torch.no_grad():
        state = model.init_state(1, "query", model.asked(torch.from_numpy(sentence.embed(["a bell ringing"]))))
    np.testing.assert_allclose(bell.parts["gain"], state["gain"], atol=1e-5)
    np.testing.assert_allclose(bell.parts["offset"], state["offset"], atol=1e-5)
    np.testing.assert_allclose(bell.parts["k"], state["trunk.prefix_k"][:, :, 1], atol=1e-5)
    assert bell.text == "a bell ringing" and bell.weights == voice_engine.weights
    x = talker(300, 1.0)
    one, two = (Stream(16000, task="query", voice=bell, engine=e).process(x) for e in (voice_engine, open_engine("torch", voice_weights)))
    np.testing.assert_allclose(one, two, atol=1e-4)
    assert not np.allclose(one, Stream(16000, task="query", voice=fan, engine=voice_engine).process(x), atol=1e-5), "the words make no difference"


def test_another_query_midstream(voice_engine: Engine, bell: Query, fan: Query, voices: tuple[Voiceprint, Voiceprint]) -> None:
    """From the next frame on, without a click; from and to the other tasks; a snapshot carries the query."""
    x = talker(210, 1.5) + talker(900, 1.5)
    one = Stream(16000, task="query", voice=bell, engine=voice_engine).process(x)
    stream = Stream(16000, task="query", voice=bell, engine=voice_engine)
    head = stream.process(x[:8000])
    assert np.array_equal(head, one[:8000])
    moved = Stream(16000, task="query", voice=fan, engine=voice_engine)
    moved.restore(stream.snapshot())
    np.testing.assert_array_equal(moved.process(x[8000:]), one[8000:])
    stream.ask("query", fan)
    tail = stream.process(x[8000:16000])
    np.testing.assert_array_equal(tail[:320], one[8000:8320])  # what was done already
    assert not np.array_equal(tail[320:], one[8320:16000])
    assert np.abs(np.diff(tail)).max() <= 2 * np.abs(np.diff(x)).max(), "a click"
    stream.ask("extract", voices[0])
    stream.process(x[16000:])
    stream.ask("restore")
    stream.reset()
    np.testing.assert_array_equal(stream.process(x), Stream(16000, engine=voice_engine).process(x))


def test_louder_quieter_and_not_at_all(voice_engine: Engine, bell: Query) -> None:
    """Output = input + (gain - 1) * what is found, all with the same delay; 0 dB changes nothing; bypass goes before."""
    x = talker(210, 1.0, 48000) + talker(900, 1.0, 48000)

    def run(**how: Any) -> np.ndarray:
        y: np.ndarray = Stream(48000, task="query", voice=bell, engine=voice_engine, **how).process(x)
        return y

    dry, found = run(bypass=True), run(strength_db=200.0)
    np.testing.assert_allclose(run(query_gain_db=0.0), dry, atol=1e-5)
    np.testing.assert_allclose(run(query_gain_db=-100.0), dry - found, atol=1e-4)
    np.testing.assert_allclose(run(query_gain_db=6.0), dry + (10**0.3 - 1) * found, atol=1e-4)
    assert np.array_equal(run(query_gain_db=-100.0, bypass=True), dry)
    assert np.abs(found).max() > 1e-3, "nothing was found, so nothing was tested"
    stream = Stream(48000, engine=voice_engine, query_gain_db=-100.0)  # means nothing to another task
    np.testing.assert_array_equal(stream.process(x), Stream(48000, engine=voice_engine).process(x))
    for bad in (-101, 25, float("nan")):
        with pytest.raises(ValueError, match="query_gain_db"):
            stream.query_gain_db = bad


def test_tasks_and_queries_that_do_not_fit(voice_engine: Engine, engine: Engine, bell: Query, voices: tuple[Voiceprint, Voiceprint], tmp_path: Path) -> None:
    for task, voice, complaint in (
        ("query", None, "in words"), ("query", voices[0], "in words"), ("extract", bell, "know the talker"), ("restore", bell, "takes no query"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=complaint):
            Stream(16000, task=task, voice=voice, engine=voice_engine)
    with pytest.raises(ValueError, match="ask again"):
        Stream(16000, task="query", voice=bell, engine=engine)
    with pytest.raises(EngineError, match="take no queries"):
        ask("a dog barking", tmp_path)


def test_without_the_package(voice_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "wordllama":
            raise ImportError("no", name=name)
        return really(name, *rest)

    sentence._words.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EngineError, match=r"voicewire\[query\]") as e:
        ask("a dog barking", voice_weights)
    assert "\n" not in str(e.value)


def test_live_takes_other_words(voice_weights: Path, bell: Query, monkeypatch: pytest.MonkeyPatch) -> None:
    """The audio process: words at the start and later; what is refused changes nothing and is told."""
    import voicewire.rt.live.process as process

    monkeypatch.setattr(process, "open_engine", lambda **_: open_engine("onnx", voice_weights))
    monkeypatch.setattr(process, "ask", lambda text: ask(text, voice_weights))
    settings = LiveSettings(task="query", query="a bell ringing", query_gain_db=-20.0)
    p = AudioProcess(settings.__dict__)
    assert isinstance(p.controls, Controls) and p.controls.voices["query"].text == "a bell ringing" and p.controls.query_gain_db == -20.0  # type: ignore[attr-defined]
    lines = [{"set": {"task": "restore", "query": "the rain"}}, {"set": {"task": "query"}}, {"set": {"task": "extract"}}]
    monkeypatch.setattr("sys.stdin", [json.dumps(line) for line in lines])
    p._commands()
    assert p.controls.task == "query" and p.controls.voices["query"].text == "the rain"  # type: ignore[attr-defined]
    p._ask("?")
    assert p.controls.voices["query"].text == "the rain" and p.log.counts["query_refused"] == 1  # type: ignore[attr-defined]
    for bad in ({"query": " "}, {"query_gain_db": 90.0}):
        with pytest.raises(ValueError):
            LiveSettings(**bad)  # type: ignore[arg-type]


def test_the_pipeline_asks_for_what_is_wanted(voice_engine: Engine, bell: Query, fan: Query) -> None:
    """Controls are read once a block: other words, other task, gain."""
    controls, stream = Controls(None, "query", {"query": bell}, -20.0), Stream(16000, engine=voice_engine)
    pipeline = Pipeline(stream, 1, 16000, 1, period_s=0.01, cushion_s=0.01, controls=controls, log=Log(), meter=Meter(), lost=lambda: None, recorder=None)
    try:
        x = talker(200, 0.1)
        for task, voice in (("query", bell), ("query", fan), ("restore", None), ("query", fan)):
            controls.task, controls.voices = task, {"query": voice or fan}
            pipeline._model(x)
            assert stream.task == task and stream.voice is voice and stream.query_gain_db == -20.0
    finally:
        pipeline.close()


def test_the_command_line(tmp_path: Path, voice_weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    sf.write(tmp_path / "in.wav", talker(200, 0.5), 16000)
    one, out = str(tmp_path / "in.wav"), str(tmp_path / "out.wav")
    for args in (
        ["--task", "query"],
        ["--query", "!"],
        ["--query", "rain", "--enroll", one],
        ["--query-gain", "-20"],
    ):
        assert main(["file", one, out, *args]) == 2, args
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.startswith("voicewire: "), error
    assert not (tmp_path / "out.wav").exists()
    import voicewire.engines.engine as engines
    import voicewire.engines.query as query

    really, asked = engines.open_engine, query.ask
    monkeypatch.setattr(engines, "open_engine", lambda name, *_: really(name, voice_weights))
    monkeypatch.setattr(query, "ask", lambda text: asked(text, voice_weights))
    assert main(["file", one, out, "--query", "a bell ringing", "--query-gain", "0"]) == 0
    np.testing.assert_allclose(files.read(tmp_path / "out.wav")[0][:, 0], talker(200, 0.5), atol=2e-4)


def test_the_evaluation_tells_right_from_wrong(voice_weights: Path, voice_engine: Engine) -> None:
    """Its numbers on streams that are known: an oracle in the place of the model."""
    rng = np.random.default_rng(0)
    target, other = talker(200, 3.0), 0.1 * rng.standard_normal(48000).astype(np.float32)
    assert shares_db(target + 0.1 * other, target, other) == pytest.approx((0, -20), abs=0.5)

    class Oracle(Asker):
        def run(self, x: np.ndarray, text: str, query_gain_db: float | None = None) -> np.ndarray:
            y = 0.01 * x if np.allclose(x, other) else (target if text != "fan" else other) + 0.01 * x
            return y if query_gain_db is None else x - y

        def changed(self, x: np.ndarray, first: str, then: str, at: int) -> np.ndarray:
            return np.concatenate([self.run(x, first)[:at], self.run(x, then)[at:]])

    row = judge(Oracle(voice_engine, voice_weights), target + other, target, "bell", "fan", ["ring", "chime"])
    assert row["gain_db"] > 20 and row["unseen_gain_db"] == row["gain_db"] and row["changed_gain_db"] > 20 and row["taken_out_gain_db"] > 20
    assert row["target_left_db"] < -35 and row["other_left_db"] < -35 and row["wrong_gain_db"] < -20 and row["absent_db"] == pytest.approx(-40, abs=1)
    assert table([row]).count("\n") == 11
    real = judge(Asker(voice_engine, voice_weights), target + other, target, "a bell ringing", "an air conditioner", ["a chime"])
    assert all(np.isfinite(v) for v in real.values())
