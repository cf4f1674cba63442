"""Token heads: the contract with every switch, teacher forcing against decoding, the delay pattern, drawing, and their training on sound made here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from codec_weights import SMALL, tried_codec
from hypothesis import given, settings
from hypothesis import strategies as st

from voicewire.engines.contract import TorchSteps, verify_contract
from voicewire.engines.heads_config import HeadsConfig
from voicewire.engines.heads_engine import HeadsEngine, drawn
from voicewire.engines.heads_export import export_heads, load_heads
from voicewire.engines.net.heads import TokenHeads, delay, undelay
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
    x, tokens = torch.from_numpy(some(2, 40)), torch.randint(8, (2, 43))
    optimiser = torch.optim.Adam(heads.parameters(), 1e-2)
    wanted = torch.stack([tokens[:, 1 + i : 41 + i] for i in range(3)], -1)
    for _ in range(60):
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
