"""Ways to make one spectrum of what the mask leaves and what the tokens say (DESIGN §3: S = M X + G, the codec's sound as G).

All take x, s, t: [B, hops, 160, 2] spectra of the mixture, behind the mask, and of the tokens' sound. The codec makes phases up, so most use its sizes
alone. The numbers in them were set beforehand, not tuned; those of `Fitted` come from training mixtures.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from voicewire.engines.net.model import POWER, compress

Blend = Callable[[Tensor, Tensor, Tensor], Tensor]
TINY = 1e-8
DEEP = 0.3  # a mask below this is deep


def size(x: Tensor) -> Tensor:
    """[..., 2] → [..., 1]"""
    return x.square().sum(-1, keepdim=True).sqrt()


def resized(s: Tensor, wanted: Tensor) -> Tensor:
    """The phases of s, these sizes."""
    return s * (wanted / (size(s) + TINY))


def added(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """Half of the tokens' sound is added, phases and all, the more the deeper the mask."""
    return s + 0.5 * (1 - size(s) / (DEEP * size(x) + TINY)).clamp_min(0) * t


def floored(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """Where the mask is deep no bin gets quieter than the tokens' sound less 6 dB."""
    deep = size(s) < DEEP * size(x)
    return torch.where(deep, resized(s, torch.maximum(size(s), 0.5 * size(t))), s)


def halfway(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """Geometric mean of both sizes."""
    return resized(s, (size(s) * size(t)).sqrt())


def filtered(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """A post-filter: bins louder than the tokens say are taken half of the way down (in dB), by 12 dB at most."""
    return s * (size(t) / (size(s) + TINY)).clamp(1 / 16, 1).sqrt()


BLENDS: dict[str, Blend] = {"added": added, "floored": floored, "halfway": halfway, "filtered": filtered}


class Fitted:
    """Sizes to the power 0.3 by least squares, bin by bin, from those of s and another spectrum: their own, the smaller one and the geometric mean. The
    other one is the tokens' sound or, to see what the tokens are worth, the mixture."""

    def __init__(self, tokens: bool) -> None:
        self.tokens = tokens
        self.a, self.b = torch.zeros(160, 4, 4, dtype=torch.float64), torch.zeros(160, 4, dtype=torch.float64)

    def _features(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """→ [..., 160, 4]"""
        one, two = size(compress(s)), size(compress(t if self.tokens else x))
        return torch.cat([one, two, torch.minimum(one, two), (one * two).sqrt()], -1)

    def see(self, x: Tensor, s: Tensor, t: Tensor, clean: Tensor) -> None:
        """Examples to fit."""
        f, wanted = self._features(x, s, t).double().flatten(0, 1), size(compress(clean)).double().flatten(0, 1)[..., 0]
        weight = 1 / f[..., 0].square().mean().clamp_min(1e-12)  # every example counts, however loud it is
        self.a += weight * torch.einsum("nbi,nbj->bij", f, f)
        self.b += weight * torch.einsum("nbi,nb->bi", f, wanted)

    def __call__(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        ridge = 1e-4 * self.a.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None] * torch.eye(4)
        w = torch.linalg.solve(self.a + ridge, self.b[..., None])[..., 0]
        told = (self._features(x, s, t).double() * w).sum(-1, keepdim=True).clamp_min(0).float()
        return resized(s, told ** (1 / POWER))
