"""The voice converter: its model, its training, its engine and what people use it by. On small models made here; the released one at the end."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from voicewire.engines.contract import Array, TorchSteps, verify_contract
from voicewire.engines.convert_config import ConvertConfig
from voicewire.engines.net.convert import TARGET, Converter, Range

SMALL = ConvertConfig(channels=4, dim=16, acoustic_blocks=1, semantic_blocks=1, decoder_blocks=2, content_dim=3, voice_dim=8, turn_dim=6)

PHASES = 1e-3  # the pitch is heard, not sent: its last bits differ, and with them the phases after some hops


def small() -> Converter:
    torch.manual_seed(0)
    converter = Converter(SMALL).eval()
    with torch.no_grad():
        converter.speaker.turn[2].weight.normal_(std=0.3)
    return converter


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return (0.03 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def test_range_keeps_the_contract() -> None:
    x = np.random.default_rng(1).standard_normal((3, 20, 97)).astype(np.float32)
    x[..., 96] = np.random.default_rng(2).random((3, 20))
    verify_contract(TorchSteps(Range()), x)


def test_converter_keeps_the_contract() -> None:
    verify_contract(TorchSteps(small()), noise(3, 24, 160, 2), tolerance=PHASES)


class Targeted(TorchSteps):
    """Fresh states that have a target already."""

    def __init__(self, converter: Converter, amount: float) -> None:
        super().__init__(converter)
        self.target = {
            "target.voice": noise(1, 8, seed=3),
            "target.octave": np.full((1, 1), 7.5, np.float32),
            "target.amount": np.full((1, 1), amount, np.float32),
        }

    def init_state(self, batch: int) -> dict[str, Array]:
        return super().init_state(batch) | {k: np.repeat(v, batch, 0) for k, v in self.target.items()}

    def _forward(self, x: Array) -> Array:
        with torch.no_grad():
            y: Array = self._module(torch.from_numpy(x), {k: torch.from_numpy(np.repeat(v, len(x), 0)) for k, v in self.target.items()}).numpy()
        return y


@pytest.mark.parametrize("amount", [0.4, 1.0])
def test_converter_with_a_target_keeps_the_contract(amount: float) -> None:
    verify_contract(Targeted(small(), amount), noise(3, 24, 160, 2), tolerance=PHASES)
    assert set(TARGET) == set(Targeted(small(), 1.0).target)
