"""The codec's training line on audio made here, with a teacher made here: cache features, mix, train, stop, resume, export, judge."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from codec_weights import SMALL

from tools import evaluate_codec, teach, train_codec
from tools.codec_losses import CodecLoss, mel_bank, pitch_loss, semantic_loss, third_octaves
from tools.codec_mixer import CodecMixer
from tools.codec_primitives import NONE, SCENES, Primitives
from tools.codec_recipe import load
from tools.discriminator import Discriminator
from tools.pitch import pitch, pitch_of_one
from tools.prepare import prepare
from voicewire.engines.codec_engine import CodecEngine
from voicewire.engines.codec_export import export_codec
from voicewire.engines.net.codec import Codec
from voicewire.rt import codec as stream

RECIPE = """
[model]
{model}
[data]
cache = "{cache}"
teacher = "{cache}"
batch = 2
seconds = 1.0
workers = 0
[train]
warmup_steps = 2
checkpoint_minutes = 0.0
hold = 0.5
adversarial = 0.1
adversarial_from_step = 4
judge_channels = 4
"""


def shape_code(x: np.ndarray) -> np.ndarray:
    """A stand-in for the teacher: 512 numbers a frame, all from the samples of that frame alone."""
    frames = x[: len(x) // 320 * 320].reshape(-1, 32, 10)
    parts = np.sqrt((frames**2).mean(-1))
    parts /= np.linalg.norm(parts, axis=1, keepdims=True) + 1e-4  # the mixer draws levels; a shape stays
    basis = np.random.default_rng(0).standard_normal((32, 512))
    return (parts @ basis).astype(np.float32)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    for speaker in ("anna", "ben", "cleo"):
        (root / "speech" / speaker).mkdir(parents=True)
        for i in range(20):
            x = rng.standard_normal(160000) * np.repeat(rng.random(500), 320) * 0.2
            sf.write(root / "speech" / speaker / f"{i}.flac", x, 16000)
    (root / "noise").mkdir()
    sf.write(root / "noise" / "fan.flac", 0.1 * rng.standard_normal(48000), 16000)
    out = root / "cache"
    prepare([("speech", root / "speech"), ("noise", root / "noise")], out, 16000, 0, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teach, "teacher_features", shape_code)
        patch.setattr(teach, "FIT_FRAMES", 20000)
        patch.setattr(teach, "SAVE_EVERY", 7)
        assert 0 < teach.teach(out, out, 0.0) < 60, "it stops when the time is up"
        assert teach.teach(out, out, 1e9) == 60, "and goes on where it stopped"
        assert teach.teach(out, out, 1e9) == 60
    return out


@pytest.fixture(scope="module")
def recipe(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.toml"
    path.write_text(RECIPE.format(cache=cache, model="\n".join(f"{k} = {v}" for k, v in SMALL.to_dict().items())))
    return path


def test_features_fit_their_frames(cache: Path) -> None:
    """What is cached for a clip is what the teacher heard in it, and what the mixer hands out belongs to the speech beside it."""
    teacher, projection = teach.Teacher.load(cache), teach.Projection.load(cache)
    assert 0.9 < projection.explained <= 1.0001
    mixer = CodecMixer(cache, 1, 2, 2.0, teacher, 1.0)
    start, (first, n) = next(iter(teacher.clips.items()))
    clip = mixer._clip(start, n * 320)
    np.testing.assert_allclose(teacher.frames[first : first + n], projection(shape_code(clip)[:n]), atol=0.02)
    rng = np.random.default_rng(0)
    for _ in range(5):
        x = mixer.speech(rng)
        features, known = mixer._heard[-1]
        wanted = projection(shape_code(x)[: len(features)])
        assert known.any() and (x.reshape(-1, 320)[~known] == 0).all()
        error = [np.median(np.abs(np.roll(wanted, shift, 0) - features)[known, :32]) for shift in (0, 1, -1)]
        assert error[0] < 0.2 * min(error[1:]), error


def test_batches_are_pure_and_know_who_is_meant(cache: Path) -> None:
    teacher = teach.Teacher.load(cache)
    a, b = (CodecMixer(cache, 1, 3, 1.0, teacher, 0.7) for _ in range(2))
    for i in (4, 5):
        for x, y in zip(a.taught_batch(i), b.taught_batch(i), strict=True):
            np.testing.assert_array_equal(x, y)
    mix, target, features, known, heard, primitives, scene = a.taught_batch(6)
    assert primitives.shape == (3, 50, 3) and scene.shape == (3,) and set(scene) <= set(range(len(SCENES)))
    assert mix.shape == target.shape == (3, 16000) and features.shape == (3, 50, teach.DIM) and known.shape == (3, 50) and heard.shape == (3, 100)
    assert not CodecMixer(cache, 1, 3, 1.0, None, 0.7).taught_batch(0)[3].any(), "no teacher, nothing known"


def test_places_are_not_told() -> None:
    """The same speech at another place of the window has other features, but not after the projection."""
    rng = np.random.default_rng(0)
    place = np.cumsum(rng.standard_normal((400, 128)), 0)
    basis = rng.standard_normal((80, 128))
    said = [rng.standard_normal((int(rng.integers(50, 400)), 80)) @ basis for _ in range(60)]
    projection = teach.Projection.fit([s + place[: len(s)] for s in said], [rng.random(len(s)) < 0.9 for s in said])
    word = rng.standard_normal((30, 80)) @ basis

    def heard(at: int) -> np.ndarray:
        rest = rng.standard_normal((at, 80)) @ basis
        return projection(np.concatenate([rest, word]) + place[: at + 30])[at:]

    def alike(a: np.ndarray, b: np.ndarray) -> float:
        return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean())

    assert alike(heard(0), heard(150)) > 0.95
    assert alike((word + place[:30]) @ projection.basis, (word + place[150:180]) @ projection.basis) < 0.9, "there is nothing to take off"
    assert alike(heard(0), heard(150)[::-1]) < 0.3


def test_speech_is_where_it_is_loud() -> None:
    x = np.concatenate([np.zeros(3200), 0.1 * np.ones(3200), 0.001 * np.ones(3200)]).astype(np.float32)
    assert teach.speaks(x).tolist() == [False] * 10 + [True] * 10 + [False] * 10


def test_scenes_are_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixer, rng, x = CodecMixer(cache, 1, 1, 1.0, None, 0.0), np.random.default_rng(0), 0.1 * np.ones(16000, np.float32)
    assert mixer.scene(1.01 * x, x) == SCENES.index("clean")
    assert mixer.scene(2 * x, x) == SCENES.index("noise"), "clipped, for example"
    mixer.room(rng)
    assert mixer.scene(2 * x, x) == SCENES.index("reverberation")
    mixer.noise(rng, "made")
    assert mixer.scene(2 * x, x) == SCENES.index("noise")
    mixer.noise(rng, "music")
    assert mixer.scene(2 * x, x) == SCENES.index("music") and mixer.scene(x, x) == SCENES.index("clean")
    seen = {int(s) for i in range(12) for s in mixer.taught_batch(i)[-1]}
    assert {SCENES.index("clean"), SCENES.index("noise")} <= seen


def test_primitives_are_learned_from_what_tells_them() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    heaps = 5 * rng.standard_normal((100, 8)).astype(np.float32)
    primitives = Primitives(8, 8)
    primitives.begin((heaps[rng.integers(0, 100, 5000)] + 0.01 * rng.standard_normal((5000, 8))).astype(np.float16))
    features, known = torch.from_numpy(heaps[rng.integers(0, 100, (2, 60))]), torch.ones(2, 60, dtype=torch.bool)
    known[1] = False
    content = primitives.content(features, known, 2)
    assert (content[0, :2] == NONE).all() and (content[1] == NONE).all()
    assert torch.equal(content[0, 2:], primitives.content(features, known, 0)[0, :-2]) and (content[0, 2:] >= 0).all()
    late = torch.nn.functional.pad(features, (0, 0, 2, 0))[:, :60]
    voice = torch.where(torch.arange(60) % 3 > 0, (late[..., 0] > 0).long() + 1, NONE)
    answers = {"content": content, "pitch": voice, "energy": torch.randint(0, 4, (2, 60)), "scene": torch.full((2, 60), NONE)}
    optimiser = torch.optim.Adam(primitives.parameters(), 0.05)
    rows = []
    for _ in range(60):
        loss, parts = primitives(late, answers)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rows.append(parts)
    assert rows[-1]["right_content"] > 0.9 and rows[-1]["right_pitch"] > 0.8 and rows[-1]["right_energy"] < 0.6 and "right_scene" not in rows[-1]
    assert primitives(late, {k: torch.full_like(v, NONE) for k, v in answers.items()})[0] == 0


def test_teach_refuses(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["teach", str(tmp_path)])
    assert teach.main() == 2 and capsys.readouterr().err.count("\n") == 1
    with pytest.raises(ValueError, match="no teacher features"):
        teach.Teacher.load(tmp_path)
    np.savez(tmp_path / "projection.npz", mean=np.zeros(512), basis=np.zeros((512, 64)), explained=0.5)
    with pytest.raises(ValueError, match="older"):
        teach.Projection.load(tmp_path)


def test_sound_loss_orders_sounds(clean: np.ndarray, noisy: np.ndarray) -> None:
    c, n = (torch.from_numpy(z[16000:64000])[None] for z in (clean, noisy))
    loss = CodecLoss(1.0, 0.1, 0.5)
    values = [loss(y, c)[0].item() for y in (c, c + 0.3 * (n - c), n, torch.zeros_like(c))]
    assert values == sorted(values) and values[0] < 0.05
    quiet = [loss(0.01 * y, 0.01 * c)[0].item() for y in (c + 0.3 * (n - c), n)]
    assert quiet == pytest.approx(values[1:3], rel=0.05), "how loud a talker is must not matter"
    silent = torch.zeros_like(c).requires_grad_()
    total = loss(silent, torch.zeros_like(c))[0]
    total.backward()
    assert torch.isfinite(total) and silent.grad is not None and torch.isfinite(silent.grad).all()
    bank = mel_bank(512, 64)
    assert bank.shape == (257, 64) and torch.allclose(bank.sum(0), torch.ones(64)) and (bank >= 0).all()
    thirds = third_octaves(512)
    assert thirds.shape == (257, 15) and (thirds.sum(0) >= 1).all() and thirds.sum(1).max() == 1


def test_pitch_of_one_talker_is_not_sought_where_hum_and_whistles_are() -> None:
    t = np.arange(4 * 16000) / 16000
    hz = 150 * 2 ** (0.15 * np.sin(2 * np.pi * 0.7 * t))
    phase = 2 * np.pi * np.cumsum(hz) / 16000
    voice = sum(np.sin(k * phase) / k for k in range(1, 8))
    talks = (t % 1) < 0.6
    hum = sum(np.sin(2 * np.pi * k * 56 * t) for k in (1, 2, 3, 4))
    whistle = np.sin(2 * np.pi * 410 * t)
    x = (0.1 * np.where(talks, voice, np.where(t < 2, hum, whistle))).astype(np.float32)
    once, twice = pitch(x), pitch_of_one(x)
    inside = talks[::160] & talks[np.minimum(np.arange(len(once)) * 160 + 800, len(x) - 1)] & talks[np.maximum(np.arange(len(once)) * 160 - 800, 0)]
    assert (once > 380).mean() > 0.1 and ((once > 0) & (once < 70)).mean() > 0.1
    assert not (twice > 300).any() and not ((twice > 0) & (twice < 70)).any()
    np.testing.assert_allclose(twice[inside], hz[::160][inside], rtol=0.02)
    assert not pitch_of_one(np.zeros(1600, np.float32)).any()


def test_pitch_is_found() -> None:
    t = np.arange(32000) / 16000
    hz = 120 * 2 ** (0.5 * np.sin(2 * np.pi * t))
    turns = np.cumsum(hz) / 16000
    voice = sum(np.cos(2 * np.pi * k * turns) / k for k in range(1, 20)).astype(np.float32) * 0.1
    noise = np.random.default_rng(0).standard_normal(32000).astype(np.float32)
    voice[24000:] = 0
    found = pitch(voice + 0.003 * noise)
    assert found.shape == (200,)
    np.testing.assert_allclose(found[3:147], hz[480:23520:160], rtol=0.005)
    assert (found[153:] == 0).all() and (pitch(noise) == 0).mean() > 0.8 and not pitch(np.zeros(1600, np.float32)).any()


def test_pitch_loss_counts_voice_alone() -> None:
    heard = torch.tensor([[100.0, 200.0, 0.0, 0.0]])
    told = torch.tensor([[200.0, 200.0, 77.0, 300.0]], requires_grad=True)
    loss, wrong = pitch_loss(told, heard)
    loss.backward()
    assert loss.item() == pytest.approx(0.5) and wrong == 0.5
    assert told.grad is not None and told.grad[0, 0] > 0 and not told.grad[0, 2:].any()
    assert pitch_loss(told, 0 * heard)[0] == 0


def test_semantic_loss_knows_the_lag() -> None:
    torch.manual_seed(0)
    features, known = torch.randn(2, 40, 8), torch.ones(2, 40, dtype=torch.bool)
    late = torch.cat([torch.zeros(2, 2, 8), features[:, :-2]], 1)
    loss, cosine = semantic_loss(late, features, known, 2)
    assert cosine > 0.999 and loss < 1e-3
    assert semantic_loss(late, features, known, 0)[1] < 0.5
    known[:, 20:] = False
    late[:, 22:] = 0
    assert semantic_loss(late, features, known, 2)[1] > 0.999, "what is not known must not count"
    assert torch.isfinite(semantic_loss(late, features, known & False, 2)[0])


def test_discriminator_tells_and_teaches() -> None:
    torch.manual_seed(0)
    d = Discriminator(4)
    optimiser = torch.optim.Adam(d.parameters(), 3e-3)
    t = torch.arange(2400) / 16000
    real, made = torch.sin(2 * torch.pi * 300 * t).expand(2, -1) * 0.1, 0.1 * torch.randn(2, 2400)
    first = d.judge(real, made).item()
    for _ in range(30):
        loss = d.judge(real, made)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert d.judge(real, made).item() < 0.8 * first
    y = made.clone().requires_grad_()
    fool, match = d.deceive(real, y)
    (fool + match).backward()
    assert y.grad is not None and y.grad.abs().sum() > 0
    assert d.deceive(real, real)[1] == 0


def test_recipes(tmp_path: Path) -> None:
    for path in Path("tools/recipes/codec").glob("*.toml"):
        load(path)
    bad = tmp_path / "r.toml"
    for text, complaint in (("[train]\nspeed = 3", "speed"), ("[fun]\n", "fun"), ("[model]\ncodes = 1000", "power of two"), ("= 3", "r.toml")):
        bad.write_text(text)
        with pytest.raises(ValueError, match=complaint):
            load(bad)


def test_codes_follow_what_they_are_taught(recipe: Path, tmp_path: Path) -> None:
    """A few dozen steps on one batch bring the sound closer."""
    settings = load(recipe)
    run = train_codec.Run(tmp_path / "run", settings, "cpu")
    mixer = CodecMixer(Path(settings.data.cache), 1, 2, 1.0, teach.Teacher.load(Path(settings.data.teacher)), 1.0)
    batch = [torch.from_numpy(z) for z in mixer.taught_batch(0)]
    objective = train_codec.Objective(settings.train, SMALL.layers, "cpu", 0)
    rows = [run.one_step(objective, batch)[0] for _ in range(30)]
    assert all(np.isfinite(list(r.values())).all() for r in rows)
    assert np.mean([r["mel"] for r in rows[-5:]]) < 0.9 * np.mean([r["mel"] for r in rows[:3]])
    assert {"judge", "fool", "match"} <= rows[-1].keys() and "judge" not in rows[0]


def test_what_is_made_of_the_semantic_token_alone_is_listened_to(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `alone = 1` the sound says nothing of the acoustic layers, and all of it is compared with what a recogniser hears in the original."""

    class Ear(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.unfold(1, 320, 320).square().mean(-1, keepdim=True).repeat(1, 1, 4) * torch.arange(1.0, 5.0)

    monkeypatch.setattr(train_codec, "Hearing", Ear)
    settings = load(recipe)
    heard = {}
    for alone in (0.0, 1.0):
        run = train_codec.Run(tmp_path / f"run{alone}", settings, "cpu")
        mixer = CodecMixer(Path(settings.data.cache), 1, 2, 1.0, teach.Teacher.load(Path(settings.data.teacher)), 1.0)
        batch = [torch.from_numpy(z) for z in mixer.taught_batch(0)]
        t = replace(settings.train, alone=alone, words=1.0, full_layers=1.0, hold=0.0)
        objective = train_codec.Objective(t, SMALL.layers, "cpu", 0)
        loss, made, real, _, parts = objective(run.model, run.primitives, *batch)
        plain = train_codec.Objective(replace(t, words=0.0), SMALL.layers, "cpu", 0)
        again = train_codec.Run(tmp_path / f"again{alone}", settings, "cpu")
        without = plain(again.model, again.primitives, *batch)
        assert loss.item() == pytest.approx(without[0].item() + parts["misheard"], rel=1e-4) and without[4]["misheard"] == 0
        assert objective._misheard(real, real).item() < 1e-6 < objective._misheard(made, real).item() == pytest.approx(parts["misheard"])
        said = run.model.encoder.acoustic_vq.narrow.weight, run.model.encoder.semantic_vq.narrow.weight
        heard[alone] = [bool(g.abs().sum() > 0) for g in torch.autograd.grad(made.square().sum(), said)]
    assert heard == {0.0: [True, True], 1.0: [False, True]}


def test_train_stop_resume_export_run(recipe: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder, weights = tmp_path / "run", tmp_path / "weights"
    for args, steps in ((["--recipe", str(recipe), "--steps", "3"], 3), (["--steps", "2"], 5)):
        monkeypatch.setattr(sys, "argv", ["train_codec", str(folder), "--device", "cpu", *args])
        assert train_codec.main() == 0
        saved = torch.load(folder / "last.pt", weights_only=True)
        assert saved["step"] == steps
    assert "resumed" in capsys.readouterr().out
    first = Codec(SMALL).state_dict()
    assert sum(not torch.equal(first[k], saved["model"][k]) for k in first if "weight" in k) > 0.8 * len([k for k in first if "weight" in k])
    codec = export_codec(saved, weights)
    for init in (weights, folder / "last.pt"):
        warm = train_codec.Run(tmp_path / f"from-{init.name}", load(recipe), "cpu", init)
        state, book = warm.model.state_dict(), warm.model.encoder.acoustic_vq.books[0]
        same = [k for k in saved["ema"] if k.startswith(("encoder", "decoder")) and "books" not in k and not k.endswith("guess.count")]
        assert all(torch.allclose(state[k], saved["ema"][k], atol=2e-3) for k in same)
        assert torch.allclose(book.codes, saved["ema"]["encoder.acoustic_vq.books.0.codes"], atol=1e-2) and torch.equal(book.codes, book.total)
    engine = CodecEngine(weights)
    x = (0.1 * np.random.default_rng(0).standard_normal(16000)).astype(np.float32)
    _, tokens, _, samples = stream.read_tokens(b"".join(stream.encode([x], 16000, engine)), engine.odds)
    offline, reference = train_codec.reconstruct(codec, torch.from_numpy(x)[None])
    np.testing.assert_array_equal(tokens, reference[0].numpy())
    # the harmonics' phases are sums of pitches: roundings of torch and ONNX Runtime add up in them
    np.testing.assert_allclose(stream.decode(tokens, 16000, samples, engine), offline[0].detach().numpy(), atol=5e-3 * offline.abs().max().item())

    monkeypatch.setattr(teach, "teacher_features", shape_code)
    clips = [evaluate_codec.Clip("a", x, [], evaluate_codec.encode(x, engine)[0])]
    cosine = evaluate_codec.semantic_cosine(clips, engine, cache, weights)
    assert set(cosine) == {"clean", "5 dB"} and all(-1 <= v <= 1 for v in cosine.values())
    rows = {s.name: s.run(clips[0]) for s in evaluate_codec.systems(engine)}
    assert all(len(y) == len(x) and np.isfinite(y).all() and bits > 0 for y, bits in rows.values())
    assert rows["as recorded"][0] is x
    if "Opus 6 kbit/s" in rows:
        assert 4000 < rows["Opus 6 kbit/s"][1] < 9000


def test_train_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["train_codec", str(tmp_path / "none")])
    assert train_codec.main() == 2 and capsys.readouterr().err.count("\n") == 1
    monkeypatch.setattr(sys, "argv", ["evaluate_codec", str(tmp_path), "--weights", str(tmp_path)])
    assert evaluate_codec.main() == 2 and capsys.readouterr().err.count("\n") == 1
