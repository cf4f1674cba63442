"""Every causal module and every engine keeps the contract (DESIGN §4); a broken one is caught."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from voicewire.engines import Engine, open_engine
from voicewire.engines.config import ModelConfig
from voicewire.engines.contract import EngineSteps, TorchSteps, verify_contract
from voicewire.engines.net.causal import Causal, State
from voicewire.engines.net.fullband import FullBand
from voicewire.engines.net.level import Level
from voicewire.engines.net.model import Model
from voicewire.engines.net.scan import GatedRecurrence, linear_scan, scan_doubling, scan_sequential
from voicewire.engines.net.trunk import Trunk

SMALL = ModelConfig(
    channels=8, width=8, bands=8, mix_groups=2, blocks=2, trunk_dim=16, trunk_layers=2, trunk_heads=2, window_frames=7, prefix_slots=3, high_dim=8
)


def random_input(*shape: int) -> np.ndarray:
    return (0.02 * np.random.default_rng(1).standard_normal(shape)).astype(np.float32)


def shaken(module: Causal) -> Causal:
    """Weights away from their tidy starting values, so that every path carries signal."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return module


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (GatedRecurrence(4, 8), (3, 30, 4, 8)),
        (Trunk(SMALL), (3, 30, 16)),  # 30 frames through a window of 7: the ring wraps four times
        (Model(SMALL), (3, 60, 160, 2)),
        (FullBand(SMALL), (3, 60, 480, 2)),
    ],
    ids=lambda m: type(m).__name__ if isinstance(m, torch.nn.Module) else "",
)
def test_modules_keep_the_contract(module: Causal, shape: tuple[int, ...]) -> None:
    verify_contract(TorchSteps(shaken(module)), random_input(*shape))


class Voiced(Causal):
    """A model asked for one talker: the voice is in the state from the beginning."""

    step_size = 2

    def __init__(self, task: str) -> None:
        super().__init__()
        self.model, self.task = FullBand(replace(SMALL, voice_dim=6, voice_channels=8, recognise=1)), task
        self.voice = torch.randn(1, 6, generator=torch.Generator().manual_seed(0))
        assert self.model.core.who is not None
        torch.nn.init.constant_(self.model.core.who.open.bias, -1.0)  # half closed, so that it counts

    def init_state(self, batch: int) -> State:
        return self.model.init_state(batch, self.task, self.voice.expand(batch, -1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x, self.task, self.voice.expand(len(x), -1))

    def step(self, x: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        return self.model.step(x, state)


def test_a_voice_keeps_the_contract() -> None:
    verify_contract(TorchSteps(shaken(Voiced("extract"))), random_input(3, 60, 480, 2))


def test_a_voice_turns_the_model() -> None:
    """Another voice, another output; no voice is the same as a model that knows none."""
    model = shaken(FullBand(replace(SMALL, voice_dim=6, voice_channels=8, recognise=1))).eval()
    plain = FullBand(SMALL).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k in plain.state_dict()})
    x, voices = torch.from_numpy(random_input(2, 40, 480, 2)), torch.randn(2, 6)
    with torch.no_grad():
        assert torch.equal(model(x), plain(x))
        heard = model(x[:1].expand(2, -1, -1, -1), "extract", voices)
    assert (heard[0] - heard[1]).abs().max() > 1e-3 * heard.abs().max()


def test_level_keeps_the_contract() -> None:
    verify_contract(TorchSteps(Level(2)), np.abs(random_input(3, 60)))


def test_default_model_keeps_the_contract() -> None:
    verify_contract(TorchSteps(shaken(FullBand(ModelConfig()))), random_input(3, 16, 480, 2))


@pytest.mark.parametrize("name", ["onnx", "torch"])
def test_engines_keep_the_contract(name: str) -> None:
    verify_contract(EngineSteps(open_engine(name)), random_input(3, 40, 480, 2))


def test_engines_agree(engine: Engine) -> None:
    """ONNX Runtime against PyTorch, past the point where the attention window is full."""
    reference = open_engine("torch")
    x = random_input(2, 300, 480, 2)
    a, b = engine.init_state(2), reference.init_state(2)
    assert list(a) == list(b)
    for t in range(0, 300, 2):
        ya, a = engine.step(x[:, t : t + 2], a)
        yb, b = reference.step(x[:, t : t + 2], b)
        np.testing.assert_allclose(ya, yb, atol=1e-4 * np.abs(yb).max())


class Peeking(Causal):
    """Looks one step ahead in forward: the kind of mistake the contract exists for."""

    def init_state(self, batch: int) -> State:
        return {"h": torch.zeros(batch, 1)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:, 1:], x[:, :1]], 1)

    def step(self, x: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        return x, state


class Leaking(Peeking):
    """Normalises over the slots."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0, keepdim=True)

    def step(self, x: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        return x - x.mean(0, keepdim=True), state


class Mutating(Peeking):
    """Writes into the state it was given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.cumsum(1)

    def step(self, x: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        state["h"].add_(x[:, 0])
        return state["h"][:, None].clone(), state


@pytest.mark.parametrize(("module", "complaint"), [(Peeking(), "step against forward"), (Leaking(), "leaked"), (Mutating(), "changed its input state")])
def test_broken_modules_are_caught(module: Causal, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        verify_contract(TorchSteps(module), random_input(3, 20, 1))


def test_scan_gradient() -> None:
    a = torch.rand(2, 5, 3, dtype=torch.float64, requires_grad=True)
    b = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    h = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(linear_scan, (a, b, h))


@pytest.mark.parametrize("frames", [1, 2, 3, 16, 37])
def test_both_scans_agree(frames: int) -> None:
    """The one for GPUs and the one for CPUs."""
    a, b, h = torch.rand(2, frames, 3), torch.randn(2, frames, 3), torch.randn(2, 3)
    torch.testing.assert_close(scan_doubling(a, b, h), scan_sequential(a, b, h))


def test_pinned_prefix_is_seen_for_ever() -> None:
    """After the window has wrapped, the task token still changes the output; an empty prefix slot does not."""
    trunk = shaken(Trunk(SMALL)).eval()
    assert isinstance(trunk, Trunk)
    x = torch.from_numpy(random_input(1, 40, 16))

    def run(task: str, junk: float = 0.0) -> torch.Tensor:
        state = trunk.init_state(1, task)
        state["prefix_k"][:, :, 1:] += junk
        for t in range(40):
            y, state = trunk.step(x[:, t : t + 1], state)
        return y

    with torch.no_grad():
        assert (run("restore") - run("extract")).abs().max() > 1e-4
        assert torch.equal(run("restore"), run("restore", junk=3.0))
