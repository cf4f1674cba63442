"""`verify_contract`: the one check every causal module and every engine passes (DESIGN §4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


class Steppable(Protocol):
    """A module behind NumPy arrays: `forward` may be None for engines, which have only `step`."""

    step_size: int
    latency: int
    forward: Callable[[Array], Array] | None
    init_state: Callable[[int], dict[str, Array]]
    step: Callable[[Array, dict[str, Array]], tuple[Array, dict[str, Array]]]


class TorchSteps:
    """A `net.causal.Causal` module as a `Steppable`."""

    def __init__(self, module: Any) -> None:
        import torch

        self._torch, self._module = torch, module.eval()
        self.step_size, self.latency = module.step_size, module.latency
        self.forward: Callable[[Array], Array] | None = self._forward

    def _forward(self, x: Array) -> Array:
        with self._torch.no_grad():
            y: Array = self._module(self._torch.from_numpy(x)).numpy()
        return y

    def init_state(self, batch: int) -> dict[str, Array]:
        with self._torch.no_grad():
            return {k: v.numpy().copy() for k, v in self._module.init_state(batch).items()}

    def step(self, x: Array, state: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        t = self._torch
        with t.no_grad():
            y, new = self._module.step(t.from_numpy(x), {k: t.from_numpy(v) for k, v in state.items()})
        return y.numpy(), {k: v.numpy() for k, v in new.items()}


class EngineSteps:
    """An engine as a `Steppable` (no `forward`)."""

    latency = 0
    step_size = 2
    forward: Callable[[Array], Array] | None = None

    def __init__(self, engine: Any) -> None:
        self.init_state, self.step = engine.init_state, engine.step


def _run(m: Steppable, x: Array, state: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    ys = []
    for t in range(0, x.shape[1], m.step_size):
        y, state = m.step(x[:, t : t + m.step_size], state)
        ys.append(y)
    return np.concatenate(ys, 1), state


def _close(a: Array, b: Array, tolerance: float, what: str) -> None:
    error = float(np.abs(a - b).max()) if a.size else 0.0
    assert np.isfinite(error) and error <= tolerance * max(1.0, float(np.abs(b).max())), f"{what}: differs by {error:.2e}"


def verify_contract(m: Steppable, x: Array, *, tolerance: float = 1e-4) -> None:
    """x: [slots >= 3, time, ...] test input, time a multiple of the step size. Raises AssertionError naming the broken promise.

    step == forward; a change at t leaves everything before t - latency untouched; garbage and NaN in other slots do not leak;
    reset of one slot equals a fresh start and leaves the others alone; the state round-trips through a copy; step is pure.
    """
    assert len(x) >= 3, "verify_contract needs at least three slots"
    rng = np.random.default_rng(0)
    slots, steps = len(x), x.shape[1] // m.step_size
    half = steps // 2 * m.step_size
    fresh = m.init_state(slots)
    for name, value in fresh.items():
        assert len(value) == slots, f"state {name} has no slot axis: {value.shape}"
    whole, _ = _run(m, x, fresh)
    assert np.isfinite(whole).all(), "output is not finite"

    if m.forward is not None:
        _close(whole, m.forward(x), tolerance, "step against forward")
        changed = x.copy()
        changed[:, half:] = rng.standard_normal(changed[:, half:].shape) * x.std()
        before = max(0, half - m.latency)
        _close(m.forward(changed)[:, :before], m.forward(x)[:, :before], tolerance / 10, "a change in the future reached the past")

    first, state = _run(m, x[:, :half], m.init_state(slots))
    kept = {k: v.copy() for k, v in state.items()}
    second, _ = _run(m, x[:, half:], state)
    for name, value in kept.items():
        assert np.array_equal(value, state[name], equal_nan=True), f"step changed its input state {name}"
    _close(np.concatenate([first, second], 1), whole, tolerance, "state kept between two runs")
    again, _ = _run(m, x[:, half:], kept)
    assert np.array_equal(again, second), "a snapshot of the state does not give the same output"

    dirty = x.copy()
    dirty[1] = np.nan
    dirty[2] = 1e6 * rng.standard_normal(dirty[2].shape)
    with np.errstate(all="ignore"):
        leaked, _ = _run(m, dirty, m.init_state(slots))
    assert np.array_equal(leaked[0], whole[0]), "garbage in another slot leaked into slot 0"

    reset = {k: v.copy() for k, v in kept.items()}
    for name, value in m.init_state(slots).items():
        reset[name][1] = value[1]
    after, _ = _run(m, x[:, half:], reset)
    start, _ = _run(m, x[:, half:], m.init_state(slots))
    _close(after[1], start[1], tolerance, "a reset slot is not a fresh start")
    assert np.array_equal(after[0], second[0]), "resetting slot 1 changed slot 0"
