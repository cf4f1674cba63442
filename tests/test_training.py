"""The training line on audio made here: pack, mix, train, stop, resume, export, run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from tools import degrade, sounds
from tools.losses import EnhanceLoss, Loudness
from tools.mixer import RATINGS, Mixer
from tools.prepare import main as prepare_main
from tools.prepare import prepare
from tools.recipe import load
from tools.run import adamw, set_rate
from tools.train import main as train_main
from voicewire.engines.config import ModelConfig
from voicewire.engines.contract import EngineSteps, verify_contract
from voicewire.engines.engine import open_engine
from voicewire.engines.export import export
from voicewire.engines.export import main as export_main
from voicewire.engines.net.model import Model

RECIPE = """
[model]
channels = 8
width = 8
bands = 8
mix_groups = 2
blocks = 2
trunk_dim = 16
trunk_layers = 1
trunk_heads = 2
window_frames = 20
[data]
cache = "{cache}"
batch = 2
seconds = 1.0
workers = 0
[train]
warmup_steps = 2
checkpoint_minutes = 0.0
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small cache of voice-like sounds and noise, with and without a manifest, and one broken file."""
    root = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    for speaker in ("anna", "ben"):
        (root / "speech" / speaker).mkdir(parents=True)
        for i in range(3):
            t = np.arange(32000) / 16000
            x = np.clip(np.sin(2 * np.pi * 3 * t), 0, 1) * np.sign(np.sin(2 * np.pi * (110 + 40 * i) * t)) * 0.3
            sf.write(root / "speech" / speaker / f"{i}.wav", x, 16000)
    (root / "noise").mkdir()
    sf.write(root / "noise" / "fan.flac", 0.1 * rng.standard_normal(48000), 48000)
    (root / "noise" / "broken.wav").write_text("no audio")
    (root / "noise" / "manifest.csv").write_text("path,label,snr_db\nfan.flac,fan,\nbroken.wav,nothing,\n")
    out = root / "cache"
    hours = prepare([("speech", root / "speech"), ("noise", root / "noise")], out, 16000, 0, 1)
    assert hours["speech"] == pytest.approx(12 / 3600) and hours["noise"] == pytest.approx(1 / 3600, rel=0.01)
    return out


def test_index_names_speakers(cache: Path) -> None:
    items = json.loads((cache / "index.json").read_text())["items"]
    assert {i["speaker"] for i in items if i["kind"] == "speech"} == {"anna", "ben"}
    assert [i["label"] for i in items if i["kind"] == "noise"] == ["fan"]


def test_prepare_refuses_nonsense(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["prepare", "--out", "x", "voices=/nowhere"])
    assert prepare_main() == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_trees_of_others_work_as_they_are(tmp_path: Path) -> None:
    """LibriSpeech's folders are chapters, its talkers are in the names; what was recorded for the telephone is no clean target; what was derived goes."""
    voice = (0.1 * np.random.default_rng(0).standard_normal(16000)).astype(np.float32)
    names = ("libri/103/1240/103-1240-0000.flac", "libri/103/1241/103-1241-0000.flac", "libri/7/9/7-9-0001.flac", "vctk/p225/a.wav")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        sf.write(tmp_path / name, voice, 16000)
    sf.write(tmp_path / "vctk/p225/b.wav", voice, 8000)
    out = tmp_path / "cache"
    out.mkdir()
    for derived in ("ratings.json", "teacher.npy", "teacher.json", "projection.npz", "mine.txt"):
        (out / derived).write_text("old")
    prepare([("speech", tmp_path / "libri"), ("speech", tmp_path / "vctk")], out, 16000, 0, 1)
    items = {Path(i["file"]).name: i for i in json.loads((out / "index.json").read_text())["items"]}
    assert [items[Path(n).name]["speaker"] for n in names] == ["libri:103", "libri:103", "libri:7", "p225"]
    assert [items[Path(n).name]["group"] for n in names] == ["libri", "libri", "libri", "p225"]
    assert items["a.wav"]["bandwidth_hz"] == 8000 and items["b.wav"]["bandwidth_hz"] == 4000
    assert sorted(p.name for p in out.iterdir()) == ["index.json", "mine.txt", "pcm.npy"]
    mixer = Mixer(out, 1, 1, 1.0)
    assert mixer.describe()["speakers"] == 3 and mixer.describe()["speech"] == round(4 / 3600, 2)


def test_what_cannot_be_packed_is_a_line(tmp_path: Path) -> None:
    folder, out = tmp_path / "speech", tmp_path / "cache"
    folder.mkdir()
    with pytest.raises(ValueError, match="no audio in"):
        prepare([("speech", folder)], out, 16000, 0, 1)
    (folder / "a.wav").write_text("no sound")
    with pytest.raises(ValueError, match="none of 1 files"):
        prepare([("speech", folder)], out, 16000, 0, 1)
    assert not list(out.iterdir())
    (folder / "manifest.csv").write_text("file,speaker\na.wav,me\n")
    with pytest.raises(ValueError, match="no column 'path'"):
        prepare([("speech", folder)], out, 16000, 0, 1)


def test_silence_makes_no_nan(tmp_path: Path) -> None:
    """A recording that is silent for longer than a batch, and then is not."""
    (tmp_path / "speech").mkdir()
    x = np.zeros(16000 * 20, np.float32)
    x[-800:] = 0.5
    sf.write(tmp_path / "speech/a.wav", x, 16000)
    prepare([("speech", tmp_path / "speech")], tmp_path / "cache", 16000, 0, 1)
    mixer = Mixer(tmp_path / "cache", 1, 4, 1.0)
    for i in range(3):
        assert all(np.isfinite(z).all() for z in mixer.batch(i))


def test_rooms_ring_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last milliseconds of a made room are its quietest: nothing that rings before the beginning comes back there."""
    for seed in range(40):
        h = np.abs(degrade.synthetic_room(np.random.default_rng(seed), 16000))
        assert h[-32:].max() < 0.05


def test_batches_are_pure_and_sane(cache: Path) -> None:
    a, b = Mixer(cache, 1, 4, 1.0), Mixer(cache, 1, 4, 1.0)
    seen = []
    for i in range(12):
        mix, target = a.batch(i)
        assert mix.dtype == target.dtype == np.float32 and mix.shape == target.shape == (4, 16000)
        assert np.isfinite(mix).all() and np.isfinite(target).all() and np.abs(mix).max() <= 1
        seen.append((mix, target))
    again = b.batch(7)
    assert np.array_equal(again[0], seen[7][0]) and np.array_equal(again[1], seen[7][1])
    assert not np.array_equal(seen[0][0], seen[1][0])


def test_targets_are_of_what_is_rated_well(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(cache, tmp_path / "rated")
    index = json.loads((cache / "index.json").read_text())
    speech = [i for i in index["items"] if i["kind"] == "speech"]
    best = speech[4]
    ratings = {str(i["start"]): 3.1 if i is best else 1.5 for i in speech[1:]}  # the first is not rated at all
    (tmp_path / "rated" / RATINGS).write_text(json.dumps(ratings))
    mixer = Mixer(tmp_path / "rated", 1, 2, 1.0)
    assert mixer.good == [[[(best["start"], best["samples"])]]]
    assert mixer.describe()["good speech"] == pytest.approx(best["samples"] / mixer.rate / 3600, abs=0.01)
    read: list[int] = []
    monkeypatch.setattr(mixer, "_clip", lambda start, n: read.append(start) or Mixer._clip(mixer, start, n))
    drawn = {}
    for good in (True, False):
        read.clear()
        for i in range(20):
            mixer.speech(np.random.default_rng(i), good=good)
        drawn[good] = {next(k for k, s in enumerate(speech) if 0 <= start - s["start"] < s["samples"]) for start in read}
    assert drawn == {True: {4}, False: set(range(6))}
    assert len(Mixer(cache, 1, 2, 1.0).good) == len(mixer.groups) and "good speech" not in Mixer(cache, 1, 2, 1.0).describe()
    (tmp_path / "rated" / RATINGS).write_text("{}")
    with pytest.raises(ValueError, match="no speech is rated"):
        Mixer(tmp_path / "rated", 1, 2, 1.0)


def test_mixture_and_target_are_aligned(cache: Path) -> None:
    """With noise far below speech the two correlate best at lag zero."""
    mixer, good = Mixer(cache, 3, 1, 1.0), 0
    for i in range(40):
        mix, target = (z[0] for z in mixer.batch(i))
        if (target**2).mean() < 1e-7:
            continue
        lags = np.fft.irfft(np.fft.rfft(mix, 32768) * np.fft.rfft(target, 32768).conj())
        good += int(np.abs(lags).argmax()) == 0
    assert good > 20


@pytest.mark.parametrize("make", sounds.MAKERS, ids=lambda m: m.__name__)
@pytest.mark.parametrize("rate", [16000, 48000])
def test_made_noises(make: sounds.Maker, rate: int) -> None:
    for seed in range(5):
        x = make(np.random.default_rng(seed), rate, rate)
        assert x.shape == (rate,) and x.dtype == np.float32 and np.isfinite(x).all()
        assert 0.5 < np.sqrt((x**2).mean()) < 2


def test_degradations_keep_length_and_sense(cache: Path) -> None:
    rng = np.random.default_rng(0)
    x = sounds.coloured(rng, 16000, 16000) * np.float32(0.1)
    assert np.abs(degrade.clip(rng, x)).max() < np.abs(x).max()
    assert 0 < (degrade.lose_packets(rng, x, 16000) == 0).mean() < 0.5
    spectrum = lambda z: np.abs(np.fft.rfft(z)) ** 2  # noqa: E731
    assert spectrum(degrade.band_limit(rng, x, 16000))[7600:].sum() < 0.1 * spectrum(x)[7600:].sum()
    h = degrade.synthetic_room(rng, 16000)
    assert h[0] == 1 and (degrade.early_part(h, 16000)[1600:] ** 2).sum() < 1e-6
    np.testing.assert_allclose(degrade.convolve(x, np.array([1.0], np.float32)), x, atol=1e-6)


def test_loss_orders_signals(noisy: np.ndarray, clean: np.ndarray) -> None:
    """Perfect < half the noise < noisy, for the whole loss and for the loudness part alone."""
    n, c = (torch.from_numpy(z[16000:64000])[None] for z in (noisy, clean))
    half = c + 0.5 * (n - c)
    loss, loudness = EnhanceLoss(0.5, 0.15), Loudness()
    values = [loss(y, c, n)[0].item() for y in (c, half, n)]
    assert values == sorted(values)
    values = [loudness(y, c).item() for y in (c, half, n)]
    assert values == sorted(values) and values[0] < 0.1
    y = n.clone().requires_grad_()
    loss(y, c, n)[0].backward()
    assert y.grad is not None and torch.isfinite(y.grad).all()
    silent = loss(torch.zeros_like(n), torch.zeros_like(n), n)[0]
    assert torch.isfinite(silent)


def test_only_matrices_decay() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    optimiser = adamw(layer, 1e-3, (0.9, 0.98), 0.5)
    set_rate(optimiser, 0.1)
    for p in layer.parameters():
        p.grad = torch.zeros_like(p)
    optimiser.step()
    for name, now in layer.state_dict().items():
        torch.testing.assert_close(now, before[name] * (0.95 if name == "0.weight" else 1.0))


def test_a_run_with_another_optimiser_is_not_resumed(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE.format(cache=cache))
    run = tmp_path / "run"
    command = ["train", str(run), "--recipe", str(tmp_path / "recipe.toml"), "--steps", "1", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", command)
    assert train_main() == 0
    last = torch.load(run / "last.pt", weights_only=True)
    groups = last["optimiser"]["param_groups"]
    last["optimiser"]["param_groups"] = [groups[0] | {"params": [i for g in groups for i in g["params"]]}]  # one group, as before 2026-11-30
    torch.save(last, run / "last.pt")
    assert train_main() == 2
    assert f"start a new run from it: --init {run / 'last.pt'}" in capsys.readouterr().err


def test_recipes() -> None:
    for path in Path("tools/recipes").glob("*.toml"):
        load(path)


def test_a_recipe_that_does_not_fit_is_not_kept(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, run = tmp_path / "r.toml", tmp_path / "run"
    recipe.write_text('[train]\nlr = "2e-3"\n')
    with pytest.raises(ValueError, match=r"\[train\] lr must be like 0.002, not '2e-3'"):
        load(recipe)
    run.mkdir()
    (run / "recipe.toml").write_text("[data]\nbatch = 3\n")
    (run / "last.pt").write_bytes(b"of another kind")
    recipe.write_text("[data]\nbatch = 2\n")
    monkeypatch.setattr(sys, "argv", ["train", str(run), "--recipe", str(recipe), "--minutes", "0.01"])
    assert train_main() == 2 and capsys.readouterr().err.count("\n") == 1
    assert (run / "recipe.toml").read_text() == "[data]\nbatch = 3\n"


def test_recipe_refuses_unknown_settings(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    for text, complaint in (
        ("[train]\nspeed = 3", "speed"),
        ("[fun]\n", "fun"),
        ("[model]\nchanels = 3", "chanels"),
        ("= 3", "r.toml"),
        ("[model]\nbands = 7\nblocks = 3", "even"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=complaint):
            load(path)


def run(*args: object) -> str:
    done = subprocess.run([sys.executable, "-m", *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_train_stop_resume_export_run(cache: Path, tmp_path: Path) -> None:
    recipe, folder = tmp_path / "small.toml", tmp_path / "run"
    recipe.write_text(RECIPE.format(cache=cache))
    run("tools.train", folder, "--recipe", recipe, "--steps", 3, "--device", "cpu")
    first = torch.load(folder / "last.pt", weights_only=True)
    assert first["step"] == 3
    assert "resumed" in run("tools.train", folder, "--steps", 2, "--device", "cpu")
    second = torch.load(folder / "last.pt", weights_only=True)
    assert second["step"] == 5
    moved = [not torch.equal(first["model"][k], second["model"][k]) for k in first["model"] if "weight" in k]
    assert sum(moved) > 0.8 * len(moved), "training moves no weights"
    high = tmp_path / "high"
    run("tools.train_high", high, "--core", folder / "last.pt", "--cache", cache, "--steps", 2)
    run("voicewire.engines.export", folder / "last.pt", "--high", high / "last.pt", "--out", tmp_path / "weights")
    started = run("tools.train", tmp_path / "warm", "--recipe", recipe, "--init", tmp_path / "weights", "--steps", 1, "--device", "cpu")
    assert "warm start" in started
    x = (0.02 * np.random.default_rng(0).standard_normal((3, 20, 480, 2))).astype(np.float32)
    engines = [open_engine(name, tmp_path / "weights") for name in ("onnx", "torch")]
    outputs = []
    for engine in engines:
        verify_contract(EngineSteps(engine), x)
        outputs.append(engine.step(x[:, :2], engine.init_state(3))[0])
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-5)
    text = (tmp_path / "weights" / "model.onnx").read_bytes()
    assert str(Path.cwd()).encode() not in text, "the exported file tells where it was made"


def test_export_keeps_what_fp16_cannot_hold(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms' variances beyond 65,504 come from long training; weights that are not finite are refused."""
    config = ModelConfig(channels=8, width=8, bands=8, mix_groups=2, blocks=2, trunk_dim=16, trunk_layers=1, trunk_heads=2, window_frames=20)
    torch.manual_seed(0)
    model = Model(config).eval()
    state = model.state_dict()
    state["merge.0.1.running_var"][:] = torch.linspace(1e6, 1e8, 8)
    saved = {"config": config.to_dict(), "ema": state, "step": 1, "hours": 0.0}
    back = export(saved, None, tmp_path / "weights").core
    kept = back.state_dict()
    for name, value in state.items():
        torch.testing.assert_close(kept[name], value, rtol=1e-3, atol=1e-3 * float(value.abs().max()), msg=name)
    state["up.weight"][0, 0] = float("nan")
    torch.save(saved, tmp_path / "bad.pt")
    monkeypatch.setattr(sys, "argv", ["export", str(tmp_path / "bad.pt"), "--out", str(tmp_path / "none")])
    assert export_main() == 2 and "up.weight" in capsys.readouterr().err
