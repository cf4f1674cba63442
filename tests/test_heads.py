"""Token heads: the contract with every switch, teacher forcing against decoding, the delay pattern, drawing, and their training on sound made here."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from codec_weights import SMALL, tried_codec, write_weights
from hypothesis import given, settings
from hypothesis import strategies as st

from tools import evaluate_heads, train_heads
from tools.blends import BLENDS, Fitted, size
from tools.hear import Ears, Heard, hear
from tools.mixer import Mixer
from tools.prepare import prepare
from voicewire.engines.config import ModelConfig
from voicewire.engines.contract import TorchSteps, verify_contract
from voicewire.engines.export import export
from voicewire.engines.heads_config import HeadsConfig
from voicewire.engines.heads_engine import HeadsEngine, drawn
from voicewire.engines.heads_export import export_heads, load_heads
from voicewire.engines.net.codec_quantise import LEARNING_BEAM
from voicewire.engines.net.heads import TokenHeads, delay, undelay
from voicewire.engines.net.model import Model
from voicewire.engines.net.spectrum import stft
from voicewire.kernels.sampling import sample

PLAIN = HeadsConfig(
    trunk_dim=12,
    heard_dim=4,
    streams=SMALL.streams,
    codes=SMALL.codes,
    code_dim=SMALL.code_dim + 1,
    dim=16,
    kernel=3,
    depth_dim=16,
    depth_layers=2,
    depth_heads=2,
)
SWITCHES = {
    "plain": PLAIN,
    "feedback": replace(PLAIN, feedback=True),
    "delay": replace(PLAIN, delay_pattern=True),
    "both": replace(PLAIN, feedback=True, delay_pattern=True),
    "foresight": replace(PLAIN, foresight_frames=3),
    "central": replace(PLAIN, central=True),
}
switched = pytest.mark.parametrize("cfg", SWITCHES.values(), ids=SWITCHES.keys())


def made(cfg: HeadsConfig, seed: int = 0) -> TokenHeads:
    """Heads away from their tidy start, that know a codec's codes."""
    torch.manual_seed(seed)
    heads = TokenHeads(cfg)
    heads.take_codes(tried_codec())
    with torch.no_grad():
        for p in heads.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return heads.eval()


def some(b: int, t: int, cfg: HeadsConfig = PLAIN, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((b, t, cfg.trunk_dim + cfg.heard_dim)).astype(np.float32)


@switched
def test_heads_keep_the_contract(cfg: HeadsConfig) -> None:
    heads, x = made(cfg), some(3, 24)
    verify_contract(TorchSteps(heads), x)
    with torch.no_grad():
        tokens = heads(torch.from_numpy(x))
    late = cfg.delay_frames
    assert tokens.shape == (3, 24, cfg.streams) and (tokens[:, :late] == -1).all() and tokens[:, late:].min() >= 0
    assert len(tokens.unique()) > 15, "the test says nothing: tokens hardly differ"


@switched
def test_teacher_forcing_is_decoding(cfg: HeadsConfig) -> None:
    """Taught its own tokens, all frames at once, every one of them is the likeliest: what training sees is what decoding sees, step by step."""
    heads, x = made(cfg), torch.from_numpy(some(2, 20))
    state, rows = heads.init_state(2), []
    with torch.no_grad():
        for t in range(20):
            tokens, state = heads.step(x[:, t : t + 1], state)
            rows.append(tokens)
        decoded = torch.cat(rows, 1)
        own = decoded[:, cfg.delay_frames :]  # by frames
        padded = torch.nn.functional.pad(own, (0, 0, 0, cfg.delay_frames))
        logits, _ = heads.teach(x, padded)
        picked = [heads.depth.pick(logits[:, :, k], k) for k in range(cfg.streams)]
        assert torch.equal(torch.stack(picked, -1), own) and torch.equal(heads(x), decoded)
        for stream in range(cfg.streams - 1):
            other = padded.clone()
            other[:, 10, stream] = (other[:, 10, stream] + 7) % cfg.codes
            moved = (heads.teach(x, other)[0] - logits).abs().amax(-1)
            assert (moved[:, 10, stream + 1 :] > 0).all(), f"later streams do not hear of stream {stream}"
            assert (moved[:, :11, : stream + 1] == 0).all() and (moved[:, :10] == 0).all(), f"stream {stream} is known before it is decided"
            assert bool((moved[:, 11] > 0).any()) == cfg.feedback and (moved[:, 12:] == 0).all()


@switched
def test_when_things_are_seen(cfg: HeadsConfig) -> None:
    """Stream k of a frame sees k frames more with the delay pattern, none without it."""
    heads, x, tokens = made(cfg), torch.from_numpy(some(1, 20)), torch.zeros(1, 20, cfg.streams, dtype=torch.int64)
    changed = x.clone()
    changed[:, 10:] += 1
    with torch.no_grad():
        moved = (heads.teach(changed, tokens)[0] - heads.teach(x, tokens)[0]).abs().amax(-1)[0] > 0
    for k in range(cfg.streams):
        first = 10 - (k if cfg.delay_pattern else 0)
        assert moved[first, k] and not moved[:first, k].any()


def test_dropped_feedback_is_not_heard() -> None:
    heads, x = made(SWITCHES["feedback"]), torch.from_numpy(some(1, 10))
    a, b = (torch.randint(SMALL.codes, (1, 10, SMALL.streams), generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    with torch.no_grad():
        nothing = torch.full_like(a, -1)
        assert torch.equal(heads.teach(x, a, nothing)[0][:, :, 0], heads.teach(x, b, nothing)[0][:, :, 0])
        assert not torch.equal(heads.teach(x, a)[0][:, 1:, 0], heads.teach(x, b)[0][:, 1:, 0])


@given(st.integers(1, 3), st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_delay_pattern_is_undone(batch: int, frames: int, streams: int, seed: int) -> None:
    x = torch.randint(1024, (batch, frames, streams), generator=torch.Generator().manual_seed(seed))
    y = delay(x, -1)
    assert y.shape == (batch, frames + streams - 1, streams) and torch.equal(undelay(y), x)
    assert int((y == -1).sum()) == batch * streams * (streams - 1), "every stream has as many empty places"
    for t in range(frames):
        for k in range(streams):
            assert torch.equal(y[:, t + k, k], x[:, t, k])


def test_foresight_tells_the_tokens_ahead() -> None:
    """Trained alone on a known sequence it names the next three tokens."""
    cfg = SWITCHES["foresight"]
    heads = made(cfg).train()
    torch.manual_seed(0)
    x, tokens = torch.from_numpy(some(1, 20)), torch.randint(8, (1, 23))
    optimiser = torch.optim.Adam(heads.parameters(), 1e-2)
    wanted = torch.stack([tokens[:, 1 + i : 21 + i] for i in range(3)], -1)
    for _ in range(100):
        loss = torch.nn.functional.cross_entropy(heads.foresee(heads.body(x)).flatten(0, 2), wanted.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert (heads.foresee(heads.body(x)).argmax(-1) == wanted).float().mean() > 0.9


@pytest.fixture(scope="module", params=list(SWITCHES))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    heads = made(SWITCHES[request.param])
    export_heads({"config": heads.cfg.to_dict(), "ema": heads.state_dict(), "step": 3, "hours": 0.1, "core_weights": "a", "codec_weights": "b"}, folder)
    return folder


class Steps:
    """The engine for the contract."""

    step_size, latency, forward = 1, 0, None

    def __init__(self, engine: HeadsEngine) -> None:
        self.engine, self.init_state = engine, engine.init_state

    def step(self, x: np.ndarray, state: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        tokens, state = self.engine.step(x[:, 0], state)
        return tokens[:, None], state


def test_engine_keeps_the_contract_and_says_what_pytorch_says(exported: Path) -> None:
    engine, x = HeadsEngine(exported), some(3, 20)
    verify_contract(Steps(engine), x)
    state, rows = engine.init_state(3), []
    for t in range(20):
        tokens, state = engine.step(x[:, t], state)
        rows.append(tokens)
    with torch.no_grad():
        np.testing.assert_array_equal(np.stack(rows, 1), load_heads(exported)(torch.from_numpy(x)).numpy())


def test_drawing(exported: Path) -> None:
    """The same seed draws the same, offline in PyTorch and stepped; another seed, another temperature or another frame draw something else."""
    engine, x = HeadsEngine(exported), some(3, 20)
    if engine.config.central:
        with pytest.raises(ValueError, match="cannot draw"):
            engine.step(x[:, 0], engine.init_state(3), np.zeros(3, np.uint64))
        return
    cfg, seeds = engine.config, np.array([5, 5, 2**60 + 3], np.uint64)
    x[1] = x[0]

    def run(seed: np.ndarray, temperature: float) -> np.ndarray:
        state, rows = engine.init_state(3), []
        for t in range(20):
            tokens, state = engine.step(x[:, t], state, seed, temperature)
            rows.append(tokens)
        return np.stack(rows, 1)

    first = run(seeds, 1.0)
    np.testing.assert_array_equal(first, run(seeds, 1.0))
    np.testing.assert_array_equal(first[0], first[1])
    assert not np.array_equal(first, run(seeds + 1, 1.0)) and not np.array_equal(first, run(seeds, 2.0))
    np.testing.assert_array_equal(run(seeds, 0.0), run(seeds + 1, 0.0))
    noise = np.stack([drawn(seeds, np.full(3, t), 1.0, cfg.streams, cfg.codes) for t in range(20)], 1)
    with torch.no_grad():
        np.testing.assert_array_equal(first, load_heads(exported)(torch.from_numpy(x), torch.from_numpy(noise)).numpy())


def test_drawing_is_the_kernels() -> None:
    """Logits with the noise added have their largest where the kernel's twin draws."""
    rng = np.random.default_rng(0)
    logits, seed, position = rng.standard_normal((6, 64)).astype(np.float32), np.arange(6, dtype=np.uint64), np.arange(6, dtype=np.int64) * 100
    for temperature in (0.0, 0.7, 1.3):
        token, embedded = np.zeros((6, 5), np.int32), np.zeros((6, 1), np.int32)
        given_t = np.full(6, temperature, np.float32)
        on, every = np.ones(6, np.uint8), np.full(6, 64, np.int32)
        sample(logits, np.zeros((64, 1), np.int32), seed, position, given_t, every, on, token, embedded, 2, 5, 64, 1)
        np.testing.assert_array_equal(token[:, 2], (logits + drawn(seed, position, temperature, 5, 64)[:, 2]).argmax(-1))


def test_central_takes_what_lies_in_the_middle() -> None:
    """Between two likely codes the one that lies between them, however unlikely; the codec's own vectors measure it."""
    heads, codec = made(SWITCHES["central"]), tried_codec()
    book = codec.encoder.acoustic_vq.books[1].codes
    a, b = 3, 9
    middle = int((book - (book[a] + book[b]) / 2).square().sum(-1).argmin())
    logits = torch.full((1, SMALL.codes), -30.0)
    logits[0, [a, b]] = 0.0
    assert heads.depth.pick(logits, 2).item() == middle
    logits[0, a] = 20.0
    assert heads.depth.pick(logits, 2).item() == a and made(PLAIN).depth.pick(logits, 2).item() == a


def test_heads_config_refuses() -> None:
    assert HeadsConfig.from_dict(SWITCHES["both"].to_dict()) == SWITCHES["both"]
    for values, complaint in (({"speed": 1}, "speed"), ({"depth_heads": 3}, "divide"), ({"streams": 0}, "at least"), ({"foresight_frames": -1}, "negative")):
        with pytest.raises(ValueError, match=complaint):
            HeadsConfig.from_dict(values)


HEADS_RECIPE = """
[model]
dim = 16
depth_dim = 16
depth_heads = 2
kernel = 3
{more}
[data]
heard = "{heard}"
codec = "{codec}"
batch = 2
seconds = 0.5
workers = 0
[train]
warmup_steps = 2
checkpoint_minutes = 0.0
"""
CORE = ModelConfig(channels=8, width=8, bands=8, mix_groups=2, blocks=2, trunk_dim=16, trunk_layers=1, trunk_heads=2, window_frames=20)


@dataclass(frozen=True)
class Made:
    """Small models, and what they heard in a small cache."""

    core: Path
    codec: Path
    heard: Path
    cache: Path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("small")
    rng = np.random.default_rng(0)
    for speaker in ("anna", "ben"):
        (root / "speech" / speaker).mkdir(parents=True)
        for i in range(3):
            sf.write(root / "speech" / speaker / f"{i}.wav", rng.standard_normal(32000) * np.repeat(rng.random(100), 320) * 0.2, 16000)
    (root / "noise").mkdir()
    sf.write(root / "noise" / "fan.wav", 0.1 * rng.standard_normal(48000), 16000)
    made_ = Made(root / "core", root / "codec", root / "heard", root / "cache")
    prepare([("speech", root / "speech"), ("noise", root / "noise")], made_.cache, 16000, 0, 1)
    torch.manual_seed(0)
    export({"config": CORE.to_dict(), "ema": Model(CORE).state_dict(), "step": 1, "hours": 0.0}, None, made_.core)
    write_weights(made_.codec)
    ears = Ears(made_.core, made_.codec)
    assert hear(made_.cache, made_.heard, 1e9, 8 / 3600, 1.0, 4, 1, ears) == 8
    return made_


def recipe(small: Made, folder: Path, **more: object) -> Path:
    path = folder / "heads.toml"
    lines = "\n".join(f"{k} = {str(v).lower()}" for k, v in more.items())
    path.write_text(HEADS_RECIPE.format(more=lines, heard=small.heard, codec=small.codec))
    return path


def run(tool: Any, monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    monkeypatch.setattr(sys, "argv", [tool.__name__, *map(str, args)])
    code: int = tool.main()
    return code


def test_what_is_heard_fits_its_frames(small: Made) -> None:
    """What is cached is what the models make of the mixer's mixtures, frame by frame; hearing stops and goes on."""
    ears, heard = Ears(small.core, small.codec), Heard(small.heard)
    mix, target = (torch.from_numpy(z) for z in Mixer(small.cache, 1, 4, 1.0).batch(1))
    sound = ears.hear(mix, fast=True)
    spec = stft(target, 160)[:, :, :160]
    assert torch.equal(ears.tokens(spec), ears.codec.encoder(spec))
    tokens = ears.tokens(spec, LEARNING_BEAM)
    for k in range(4):
        clip = heard.clip(4 + k, 3, 40)
        np.testing.assert_array_equal(clip["tokens"], tokens[k, 3:43].numpy())
        for name, value in (("h", sound.h), ("heard", sound.heard)):
            np.testing.assert_allclose(clip[name], value[k, 3:43].numpy(), atol=2e-2, rtol=2e-3)
    latent = ears.codec.encoder.tokens(*ears.codec.encoder.features(sound.restored)[:2])[1]
    torch.testing.assert_close(sound.heard[..., -SMALL.code_dim :], latent)
    assert hear(small.cache, small.heard, 0.0, 8 / 3600, 1.0, 4, 1, ears) == 8, "what is there is kept"


@pytest.mark.parametrize("switch", [{}, {"feedback": True}, {"delay_pattern": True}, {"foresight_frames": 2}], ids=lambda s: next(iter(s), "plain"))
def test_train_stop_resume_export(small: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switch: dict[str, object]) -> None:
    folder, path = tmp_path / "run", recipe(small, tmp_path, heard_dim=2 * SMALL.code_dim + 1, **switch)
    for args, steps in ((["--recipe", path, "--steps", 3], 3), (["--steps", 2], 5)):
        assert run(train_heads, monkeypatch, folder, "--device", "cpu", *args) == 0
        saved = torch.load(folder / "last.pt", weights_only=True)
        assert saved["step"] == steps
    heads = export_heads(saved, tmp_path / "weights")
    assert heads.cfg.trunk_dim == CORE.trunk_dim and heads.cfg.codes == SMALL.codes and HeadsEngine(tmp_path / "weights").config == heads.cfg
    assert run(train_heads, monkeypatch, tmp_path / "on", "--device", "cpu", "--recipe", path, "--init", folder / "last.pt", "--steps", 1) == 0


def test_heads_learn_what_they_are_taught(small: Made, tmp_path: Path) -> None:
    """A few dozen steps on one batch name most of its tokens, each given the ones before."""
    settings = train_heads.load(recipe(small, tmp_path, heard_dim=2 * SMALL.code_dim + 1))
    one = train_heads.Run(tmp_path / "run", settings, "cpu")
    given, tokens = (torch.from_numpy(z) for z in train_heads.Batches(one.heard, settings.data, True, 0)[0])
    optimiser, rows = torch.optim.Adam(one.model.parameters(), 2e-2), []
    for _ in range(80):
        loss, parts = train_heads.losses(one.model, given, tokens, settings.train, None)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rows.append(parts)
    assert rows[-1]["hit_s"] > 0.6 > 0.3 > rows[0]["hit_s"] and rows[-1]["hit_a2"] > 0.5


def test_blends_do_what_they_say() -> None:
    torch.manual_seed(0)
    x, s, t = (torch.randn(2, 6, 160, 2) * k for k in (1.0, 0.5, 0.3))
    s[:, :, 80:] *= 0.01  # a deep mask
    for name, blend in BLENDS.items():
        y = blend(x, s, t)
        assert y.shape == x.shape and torch.isfinite(blend(0 * x, 0 * s, 0 * t)).all(), name
        torch.testing.assert_close(blend(3 * x, 3 * s, 3 * t), 3 * y, atol=1e-4, rtol=1e-4, msg=f"{name} depends on the level")
    same = {"floored", "halfway", "filtered"}
    for name in same:
        torch.testing.assert_close(BLENDS[name](x, s, s.flip(-1)), s, atol=1e-4, rtol=1e-3, msg=f"{name}: tokens that agree change something")
    deep = size(s) < 0.3 * size(x)
    assert torch.equal(BLENDS["added"](s, s, t), s) and (size(BLENDS["floored"](x, s, t)) >= 0.49 * size(t))[deep].all() and deep.any()
    assert (size(BLENDS["filtered"](x, s, t)) <= size(s) * (1 + 1e-5)).all()
    fitted, control = Fitted(True), Fitted(False)
    for _ in range(20):
        x, s, t = (torch.randn(2, 6, 160, 2) for _ in range(3))
        for f in (fitted, control):
            f.see(x, s, t, t)
    error = [(size(f(x, s, t)) - size(t)).square().mean().item() for f in (fitted, control)]
    assert error[0] < 0.01 * error[1], "what tokens tell is not used"


def test_evaluation_compares(small: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    folder = tmp_path / "heads"
    path = recipe(small, tmp_path, heard_dim=2 * SMALL.code_dim + 1, foresight_frames=2)
    assert run(train_heads, monkeypatch, folder, "--device", "cpu", "--recipe", path, "--steps", 2) == 0
    rng = np.random.default_rng(0)
    for kind in ("noisy", "clean"):
        (tmp_path / "pairs" / kind).mkdir(parents=True)
        sf.write(tmp_path / "pairs" / kind / "a.wav", rng.standard_normal(24000) * np.repeat(rng.random(75), 320) * 0.2, 16000)
    given_ = ["--core", small.core, "--codec", small.codec, "--cache", tmp_path / "cache", "--json", tmp_path / "found.json", "--quick"]
    assert run(evaluate_heads, monkeypatch, tmp_path / "pairs", "--heads", folder / "last.pt", *given_) == 0
    out, found = capsys.readouterr().out, json.loads((tmp_path / "found.json").read_text())
    assert "mask + tokens: added" in out and "ceiling" in out
    assert len(found["tokens"]["heads"]) == SMALL.streams + 1 and found["ahead"]["heads"].keys() == {"foresight", "the token of now", "best constant answer"}
    assert all(np.isfinite(list(r.values())).all() for r in found["sounds"].values())


def test_heads_tools_refuse(small: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(tool: Any, complaint: str, *args: object) -> None:
        assert run(tool, monkeypatch, *args) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and complaint in said, said

    refused(train_heads, "heads.toml", tmp_path / "none", "--recipe", tmp_path / "heads.toml")
    refused(train_heads, "heard_dim", tmp_path / "a", "--recipe", recipe(small, tmp_path, heard_dim=3), "--steps", 1, "--device", "cpu")
    write_weights(tmp_path / "other", seed=1)
    path = recipe(replace(small, codec=tmp_path / "other"), tmp_path)
    refused(train_heads, "tools.hear again", tmp_path / "b", "--recipe", path, "--steps", 1, "--device", "cpu")
    refused(evaluate_heads, "noisy/ and clean/", tmp_path, "--heads", tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"tools\.hear CACHE"):
        Heard(tmp_path)
    for file in Path("tools/recipes/heads").glob("*.toml"):
        train_heads.load(file)
