"""demo, bench, doctor and the package as their user meets them."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from PIL import Image

from voicewire.rt import bench, demo, doctor
from voicewire.rt.cli import main
from voicewire.rt.live import commands


def test_demo(tmp_path: Path, clean: np.ndarray, noisy: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "SI-SDR" in out and "spectrogram.png" in out
    after, rate = sf.read(tmp_path / "after.wav", dtype="float32")
    assert (rate, len(after)) == (16000, len(noisy))

    def distance(x: np.ndarray) -> float:
        return float(((x - clean) ** 2).mean())

    assert distance(after) < 0.5 * distance(noisy), "the bundled weights do not clean the bundled recording"
    picture = np.asarray(Image.open(tmp_path / "spectrogram.png").convert("RGB"))
    assert picture.shape[2] == 3 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


@pytest.mark.parametrize(("task", "gain_db"), [("extract", 3.0), ("separate", 3.0), ("query", 5.0)])
def test_demo_of_a_talker_and_of_a_sound(task: str, gain_db: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every row's sound comes out clearer than it went in; two talkers are two files from the same mixture."""
    assert main(["demo", "--task", task, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.count("SI-SDR") == (1 if task == "query" else 2)
    heard, _ = demo.scene(task)
    for wanted in heard.wanted:
        after, _ = sf.read(tmp_path / wanted.file, dtype="float32")
        assert demo.si_sdr_db(after, wanted.target) > demo.si_sdr_db(heard.before, wanted.target) + gain_db, wanted.name
    assert (tmp_path / "spectrogram.png").exists() and (tmp_path / "before.wav").exists()


def test_bench(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--seconds", "0.5", "--streams", "1,2", "--json"]) == 0
    doc = json.loads(capsys.readouterr().out)
    assert [(r["streams"], r["task"]) for r in doc["rows"]][:3] == [(1, "restore"), (1, "restore"), (2, "restore")]
    assert all(0 < r["p50_ms"] <= r["p99_ms"] <= r["p999_ms"] <= r["max_ms"] for r in doc["rows"])
    assert doc["start"]["imports_torch"] is False
    assert main(["bench", "--seconds", "0.2", "--streams", "1"]) == 0
    assert "p99.9" in capsys.readouterr().out


def test_bench_has_a_row_for_every_task_of_the_weights(voice_weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In which the talker, or the sound, is really there."""
    asked: list[float] = []
    monkeypatch.setattr(bench, "weights_for", lambda task: voice_weights)
    monkeypatch.setattr(bench.Stream, "time_steps", lambda stream: asked.append(float(stream._state["trunk.prefix_on"][0, 1])) or [0.001])
    assert main(["bench", "--seconds", "0.1", "--streams", "1", "--json"]) == 0
    assert [(r["kind"], r["task"]) for r in json.loads(capsys.readouterr().out)["rows"]] == [
        ("paced", "restore"), ("hot", "restore"), ("hot", "extract"), ("hot", "separate"), ("hot", "query"),
    ]  # fmt: skip
    assert asked == [0, 0, 1, 1, 1]


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = main(["doctor"]), capsys.readouterr().out
    assert "onnx engine" in out
    busy = "too slow or too busy" in out  # true or not, that is for the machine under the test to say
    assert (code, out.count("FAULT")) == ((1, 1) if busy else (0, 0)), out


def test_doctor_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = main(["doctor", "--json"]), json.loads(capsys.readouterr().out)
    assert all(f["status"] in ("ok", "note", "fault") and f["what"] for f in found)
    assert code == any(f["status"] == "fault" for f in found)
    extras = next(f for f in found if f["what"].startswith("extras:"))
    assert "media" in extras["what"] and "fast" in extras["what"] + extras["advice"], "the tests have PyAV"


def test_extras_that_doctor_knows_are_those_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, (package, _) in doctor.EXTRAS.items():
        assert any(line.startswith(package) for line in project[name])


def test_start_without_a_sound_device_says_so_and_runs_the_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "has_devices", lambda: False)
    assert main(["start"]) == 0
    assert "no sound device" in capsys.readouterr().out
    assert (tmp_path / "demo-out" / "after.wav").exists()


def test_every_folder_is_packaged() -> None:
    """A new sub-folder needs a line in pyproject.toml."""
    import tomllib

    listed = set(tomllib.loads(Path("pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {f"voicewire.{p.parent.as_posix().replace('/', '.')}" for room in ("rt", "engines", "kernels") for p in Path(room).rglob("__init__.py")}
    assert found == listed


def imported(path: Path, root: Path, text: str | None = None) -> set[str]:
    """What a file of the package imports, wherever in it, by its whole name."""
    here, found = ["voicewire", *path.parent.relative_to(root).parts], set()
    for node in ast.walk(ast.parse(path.read_text() if text is None else text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*(here[: len(here) - node.level + 1] if node.level else []), *(node.module or "").split(".")]
            found |= {".".join([*filter(None, base), alias.name]) for alias in node.names}
    return found


def test_imports_run_downwards() -> None:
    """kernels import nothing of ours, engines not rt, the runtime no tools."""
    root = Path(__file__).parent.parent
    for room, allowed in (("kernels", {"kernels"}), ("engines", {"engines", "kernels"}), ("rt", {"rt", "engines", "kernels"})):
        paths = list((root / room).rglob("*.py"))
        assert paths
        for path in paths:
            for name in imported(path, root):
                top, _, rest = f"{name}.".partition(".")
                assert top != "tools" and (top != "voicewire" or rest.split(".")[0] in allowed), f"{path} imports {name}"
    example = root / "engines" / "net" / "example.py"
    assert imported(example, root, "import tools.a\nfrom ..b import c\nfrom ...rt import lane\ndef f():\n    from . import d") == {
        "tools.a", "voicewire.engines.b.c", "voicewire.rt.lane", "voicewire.engines.net.d",
    }  # fmt: skip


def test_module_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "voicewire.rt", "file", "nothing.wav", "out.wav"], capture_output=True, text=True, env={"PYTHONPATH": ".links"}
    )
    assert done.returncode == 2 and done.stderr == "voicewire: no file nothing.wav\n"


def test_examples_run(tmp_path: Path, noisy: np.ndarray) -> None:
    a, b = tmp_path / "in.wav", tmp_path / "out.wav"
    sf.write(a, noisy[:20000], 16000)
    env = {"PYTHONPATH": ".links", "PATH": "/usr/bin:/bin"}
    for args in (["examples/blocks.py", a, b], ["examples/move_a_stream.py", a]):
        done = subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
    assert "same: True" in done.stdout
    assert sf.info(b).frames == 20000
    assert main(["file", str(a), str(tmp_path / "cli.wav")]) == 0
    np.testing.assert_allclose(sf.read(b)[0], sf.read(tmp_path / "cli.wav")[0], atol=1e-4)
