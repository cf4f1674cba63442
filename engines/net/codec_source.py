"""What the codec's decoder shapes into speech: a pulse train at the voice's pitch, and noise. And how the encoder sees the pitch.

Harmonics whose phases run on from hop to hop need not be learned or sent (source and filter, as LPC vocoders; neural: DDSP, Engel et al. 2020);
only the pitch is, inside the tokens. Both sources are spectra like the codec's own: 20 ms square-root Hann, bins 50 Hz apart, phases from the middle.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..config import CORE_BINS, HOPS_PER_FRAME, HOPS_PER_SECOND
from .causal import Causal, State

LOWEST_HZ, HIGHEST_HZ = 55, 420
PULSES = 4  # on either side of the middle: 10 ms at 420 Hz
NOISE_HOPS = 200  # the noise repeats after 2 s
BIN_HZ = 50.0
PARTS = 4096  # of a Hz, in which the pitch is counted
CYCLE = PARTS * HOPS_PER_SECOND


def pulses(hz: Tensor, phase: Tensor) -> Tensor:
    """Spectrum of a pulse train. hz, phase: [...] pitch, and cycles done at the middle of the window → [..., 160, 2], mean power about 1."""
    j = torch.arange(-PULSES, PULSES + 2, device=hz.device, dtype=hz.dtype)
    t = (j - phase[..., None]) / hz[..., None]  # seconds from the middle
    inside = (100 * t).clamp(-1, 1)
    weight = torch.cos(inside * (math.pi / 2)) / (0.01 * hz[..., None]).sqrt()
    f = BIN_HZ * torch.arange(CORE_BINS, device=hz.device, dtype=hz.dtype)
    turn = 2 * math.pi * t[..., None] * f
    w = weight[..., None, :]
    return torch.stack([(w @ torch.cos(turn))[..., 0, :], -(w @ torch.sin(turn))[..., 0, :]], -1)


def white_noise() -> Tensor:
    """[NOISE_HOPS, 160, 2]: white noise as the STFT sees it, going round; mean power 1 a bin."""
    n = 160
    x = torch.randn(NOISE_HOPS * n, generator=torch.Generator().manual_seed(6))
    frames = torch.cat([x, x[:n]]).unfold(0, 2 * n, n) * torch.hann_window(2 * n).sqrt()
    spec = torch.view_as_real(torch.fft.rfft(frames))[:, :CORE_BINS] / math.sqrt(n)
    return spec * (1.0 - 2.0 * (torch.arange(CORE_BINS) % 2))[:, None]


class Source(Causal):
    """hz: [B, hops] float32 pitch (hops even) → pulses and noise [B, hops, 2, 160, 2].

    State: `turns` [B, 1] int64, parts of Hz summed up over hops, modulo one cycle at the middle of the last hop: whole numbers, so that long streams and
    different machines do not drift apart; `hop` [B, 1] int64 place in the noise. No gradient reaches the pitch from here.
    """

    step_size = HOPS_PER_FRAME

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", white_noise().half().float(), persistent=False)  # as the exported file keeps it
        self.table: Tensor

    def init_state(self, batch: int) -> State:
        return {"turns": torch.zeros(batch, 1, dtype=torch.int64), "hop": torch.zeros(batch, 1, dtype=torch.int64)}

    def _made(self, speed: Tensor, turns: Tensor, place: Tensor) -> Tensor:
        return torch.stack([pulses(speed / PARTS, turns / CYCLE), self.table[place]], 2)

    @torch.no_grad()
    def forward(self, hz: Tensor) -> Tensor:
        b, n = hz.shape
        speed = (hz * PARTS).round().long()
        first = torch.randint(NOISE_HOPS, (b, 1), device=hz.device) if self.training else torch.zeros(b, 1, dtype=torch.int64, device=hz.device)
        return self._made(speed, speed.cumsum(1) % CYCLE, (first + torch.arange(n, device=hz.device)) % NOISE_HOPS)

    @torch.no_grad()
    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        speed = (x * PARTS).round().long()
        first = (state["turns"] + speed[:, :1]) % CYCLE
        second = (first + speed[:, 1:]) % CYCLE
        place = state["hop"] + torch.arange(HOPS_PER_FRAME, device=x.device)
        y = self._made(speed, torch.cat([first, second], 1), place % NOISE_HOPS)
        return y, {"turns": second, "hop": (state["hop"] + HOPS_PER_FRAME) % NOISE_HOPS}


LAGS = 96
PITCH_BINS = 40  # up to 2 kHz: above, periods are too rarely exact
# hops of this frame (2, 3) and the one before (0, 1); windows 10 ms apart compare best at lags about 10 ms, so these cover all periods
_PAIRS = ((2, 2), (2, 1), (2, 0), (3, 3), (3, 2), (3, 1))


class Salience(nn.Module):
    """How periodic the last 40 ms are, at 96 pitches: correlations between hops, from their compressed (thus whitened) spectra.

    x: [B, T, 4, 160, 2] centred hops, this frame's last → [B, T, 6 · 96], three pairs for each hop of this frame.
    """

    size = len(_PAIRS) * LAGS

    def __init__(self) -> None:
        super().__init__()
        period = 2.0 ** -lag_octaves()
        f = BIN_HZ * torch.arange(PITCH_BINS)[:, None]
        turns = [2 * math.pi * f * (period - 0.01 * (i - j)) for i, j in _PAIRS]
        self.register_buffer("waves", torch.stack([torch.cat([t.cos(), -t.sin()]) for t in turns]).half().float(), persistent=False)
        self.waves: Tensor

    def forward(self, x: Tensor) -> Tensor:
        x = x[..., :PITCH_BINS, :].float()
        a, b = x[:, :, [i for i, _ in _PAIRS]], x[:, :, [j for _, j in _PAIRS]]
        product = torch.cat([(a * b).sum(-1), a[..., 1] * b[..., 0] - a[..., 0] * b[..., 1]], -1)  # a times b's conjugate: [B, T, 6, 80]
        power = x.square().sum(-1).mean(2).sum(-1) + 1e-3
        c = torch.einsum("btpf,pfl->btpl", product, self.waves)
        return (c / power[:, :, None, None]).flatten(2)


def lag_octaves() -> Tensor:
    """[96] pitches that are compared, log2 of Hz."""
    return torch.linspace(math.log2(LOWEST_HZ), math.log2(HIGHEST_HZ), LAGS)


class PitchEar(nn.Module):
    """x as `Salience` → log-probabilities of the pitch of the two hops of each frame, [B, T, 2, 96]. Begins as the sum of the three pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.salience = Salience()
        self.weigh = nn.Linear(self.salience.size, HOPS_PER_FRAME * LAGS)
        with torch.no_grad():
            self.weigh.weight.mul_(0.2)
            self.weigh.weight.view(HOPS_PER_FRAME, LAGS, HOPS_PER_FRAME, 3, LAGS)[[0, 1], :, [0, 1]] += 4 * torch.eye(LAGS)[:, None]

    def judge(self, salience: Tensor) -> Tensor:
        """[B, T, 6 · 96] of `Salience` → as `forward`."""
        y: Tensor = self.weigh(salience).float()
        return y.view(*salience.shape[:2], HOPS_PER_FRAME, LAGS).log_softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.judge(self.salience(x))


def most_likely(pitch: Tensor) -> Tensor:
    """[B, T, 2, 96] log-probabilities of `PitchEar` → [B, T, 1] pitch in octaves about their middle: the mean of what is nearly as likely as the best."""
    octaves = lag_octaves().to(pitch.device)
    return ((4 * pitch.mean(2)).softmax(-1) * (octaves - octaves.mean())).sum(-1, keepdim=True)
