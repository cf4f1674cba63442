"""Codebooks: nearest neighbour, learned as running means of what falls on them (VQ-VAE with EMA, van den Oord et al. 2017), residual layers
(SoundStream, Zeghidour et al. 2021), codes that nobody uses started again from what is seen now (Dhariwal et al. 2020).

Entries are narrow (32 numbers): a linear layer brings features down before the search and up after it, which keeps codes in use (DAC, Kumar et al. 2023).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

DECAY = 0.98
MEAN_DECAY = 0.995  # of what was seen, a step: rare tokens' means are of many steps
DEAD = 0.1  # share of an even use below which a code starts again
FRESH = 0.2  # what a code that starts again is counted as: unused, it is dead again after 35 steps
RESTART_STEPS = 10
WEIGHED = 0.6  # how much of the measure of errors is their effect; the rest is their size
BEAM = 16  # ways followed through the layers; the nearest code of the first layer is not always the best beginning
LEARNING_BEAM = 4  # in training, where the search is a third of a step even so


class Codebook(nn.Module):
    """z: [..., code_dim] float32 → index [...] int64. Buffers only: codes move by running means, not by gradients."""

    def __init__(self, codes: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randn(codes, dim))
        self.register_buffer("count", torch.zeros(codes))
        self.register_buffer("total", torch.zeros(codes, dim))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.codes: Tensor
        self.count: Tensor
        self.total: Tensor
        self.steps: Tensor

    def begin(self) -> None:
        """Go on from codes that were loaded without what they are means of."""
        self.count.fill_(1.0)
        self.total.copy_(self.codes)
        self.steps.fill_(1)

    def search(self, z: Tensor) -> Tensor:
        """Nearest code by squared distance; the term that all codes share is left out."""
        distance = self.codes.square().sum(-1) - 2 * (z @ self.codes.t())
        return distance.argmin(-1)

    def look_up(self, index: Tensor) -> Tensor:
        """[...] → [..., code_dim]; an index below 0 means "not sent" and gives zeros."""
        sent = (index >= 0).to(self.codes.dtype)[..., None]
        return self.codes[index.clamp_min(0)] * sent

    @torch.no_grad()
    def learn(self, z: Tensor, index: Tensor) -> None:
        """Move the codes towards the vectors z: [N, code_dim] that chose them."""
        if self.steps == 0:  # start from what is there
            self._restart(torch.ones_like(self.count, dtype=torch.bool), z)
            index = self.search(z)
        n = len(self.codes)
        self.count.mul_(DECAY).add_(torch.bincount(index, minlength=n).to(z.dtype), alpha=1 - DECAY)
        self.total.mul_(DECAY).index_add_(0, index, z, alpha=1 - DECAY)
        used = self.count > 1e-4
        self.codes.copy_(torch.where(used[:, None], self.total / self.count.clamp_min(1e-4)[:, None], self.codes))
        self.steps += 1
        if self.steps % RESTART_STEPS == 0:
            self._restart(self.count < DEAD * len(z) / n, z)

    def _restart(self, dead: Tensor, z: Tensor) -> None:
        pick = torch.randint(len(z), (len(self.codes),), device=z.device)
        fresh = z[pick] + 0.01 * z.std() * torch.randn_like(self.codes)
        count = FRESH * len(z) / len(self.codes)
        self.codes.copy_(torch.where(dead[:, None], fresh, self.codes))
        self.count.masked_fill_(dead, count)
        self.total.copy_(torch.where(dead[:, None], fresh * count, self.total))


class Told(nn.Module):
    """What a token tells of numbers that it does not code: their mean where it was chosen (the conditional codebook's centre), learned as running means.

    index: [..., 1] int64 → [..., dim] float32; below 0, "not sent": the mean of all. Buffers only.
    """

    def __init__(self, codes: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(codes + 1, dim))  # the last one: of all
        self.register_buffer("count", torch.zeros(codes + 1))
        self.means: Tensor
        self.count: Tensor

    def begin(self) -> None:
        """Go on from means that were loaded without how much they are means of."""
        self.count.fill_(1.0)

    def forward(self, index: Tensor) -> Tensor:
        last = len(self.means) - 1
        return self.means[torch.where(index < 0, last, index)[..., 0]]

    @torch.no_grad()
    def learn(self, z: Tensor, index: Tensor) -> None:
        """z: [N, dim] that came with the tokens [N]. A mean moves by as much as is new of what it is of."""
        share = torch.zeros(len(self.means), len(z), device=z.device, dtype=z.dtype)
        share[index, torch.arange(len(z), device=z.device)] = 1.0
        share[-1] = 1.0
        new = share.sum(1)
        self.count.mul_(MEAN_DECAY).add_(new)
        self.means.add_((share @ z - new[:, None] * self.means) / self.count.clamp_min(1e-3)[:, None])


class Quantiser(nn.Module):
    """Residual codebooks between a narrowing and a widening linear layer.

    x: [B, T, dim + told] → index [B, T, layers]; index → [B, T, dim]. What leaves `decode` depends on the indices alone.
    told: numbers at the end of x that are coded as they are, as finely as they are large.
    """

    def __init__(self, dim: int, code_dim: int, codes: int, layers: int, told: int = 0) -> None:
        super().__init__()
        self.dim = dim
        self.norm = nn.LayerNorm(dim)
        self.narrow, self.widen = nn.Linear(dim, code_dim), nn.Linear(code_dim + told, dim)
        # every number varies by one: else the commitment shrinks them all away under codes that stay behind
        self.spread = nn.BatchNorm1d(code_dim, affine=False)
        # in these coordinates all errors are as bad for the ear; told numbers stay as they are
        self.register_buffer("metric", torch.eye(code_dim + told))
        self.metric: Tensor
        self.heard: Tensor | None = None  # of the last training step, for its gradient
        self.books = nn.ModuleList(Codebook(codes, code_dim + told) for _ in range(layers))

    def _books(self) -> list[Codebook]:
        return [cast(Codebook, b) for b in self.books]

    def project(self, x: Tensor) -> Tensor:
        """What is searched for: [B, T, dim + told] → [B, T, code_dim + told]."""
        z: Tensor = self.spread(self.narrow(self.norm(x[..., : self.dim]).float()).transpose(1, 2)).transpose(1, 2)
        return torch.cat([z, x[..., self.dim :]], -1) @ self.metric

    def encode(self, z: Tensor, beam: int = BEAM) -> Tensor:
        """[B, T, code_dim + told] of `project` → [B, T, layers] int64: of the layers' sums the nearest that a beam search finds."""
        rest, error, found = z[..., None, :], torch.zeros_like(z[..., :1]), z.new_zeros((*z.shape[:-1], 1, 0), dtype=torch.int64)
        for book in self._books():
            size = book.codes.square().sum(-1) - 2 * (rest @ book.codes.t())  # [..., beam, codes]: by how much each changes the error
            many = (error[..., None] + size).flatten(-2)
            error, best = many.topk(min(beam, many.shape[-1]), -1, largest=False)
            way, index = best // len(book.codes), best % len(book.codes)
            rest = rest.gather(-2, way[..., None].expand(*way.shape, z.shape[-1])) - book.codes[index]
            found = torch.cat([found.gather(-2, way[..., None].expand(*way.shape, found.shape[-1])), index[..., None]], -1)
        return found[..., 0, :]

    def summed(self, index: Tensor) -> Tensor:
        """[B, T, layers] int64 → [B, T, code_dim + told]; layers given as -1 add nothing."""
        z = self._books()[0].look_up(index[..., 0])
        for i, book in enumerate(self._books()[1:], 1):
            z = z + book.look_up(index[..., i])
        return z

    def decode(self, index: Tensor, guess: Tensor | None = None) -> Tensor:
        """[B, T, layers] int64 → [B, T, dim]. guess: what was taken off before the search."""
        z = self.summed(index)
        y: Tensor = self.widen(z if guess is None else z + guess)
        return y

    def train_step(self, x: Tensor, keep: Tensor, guess: Tensor | None = None, heard: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Training only: quantise with straight-through gradients and teach the codebooks.

        keep: [B] layers to use of each example (quantiser dropout; 0: none). guess: [B, T, code_dim + told] taken off before the search, heard: what is
        added afterwards (the same unless the stream it comes from is dropped). → (y [B, T, dim], index [B, T, layers], commitment loss, z of `project`).
        """
        z = self.project(x)
        rest, q, loss = z if guess is None else z - guess, torch.zeros_like(z), z.new_zeros(())
        index = self.encode(rest.detach(), LEARNING_BEAM)
        for i, book in enumerate(self._books()):
            found = index[..., i]
            code = book.look_up(found)
            book.learn(rest.detach().flatten(0, 1), found.flatten())  # after: what is heard in training is what would be heard in use
            loss = loss + mse_loss(rest, code)
            used = (keep > i)[:, None, None].to(z.dtype)
            q = q + code * used
            rest = rest - code
        some = (keep > 0)[:, None, None].to(z.dtype)
        q = q if heard is None else q + heard
        self.heard = (z - z.detach()) * some + q.detach()
        if self.heard.requires_grad:
            self.heard.retain_grad()
        y: Tensor = self.widen(self.heard)
        return y, index, loss, z

    @torch.no_grad()
    def weigh(self, sensitivity: Tensor) -> Tensor:
        """Measure errors by what they do to the loss from now on. sensitivity: [code_dim, code_dim] mean outer product of the loss's gradients at
        the numbers. Codes and layers are turned along, so that only the searches change. → the turn [code_dim + told, code_dim + told]."""
        n = len(sensitivity)
        mixed = (1 - WEIGHED) * torch.eye(n, device=sensitivity.device) + WEIGHED * sensitivity / sensitivity.diag().mean()
        turn = torch.eye(len(self.metric), device=sensitivity.device)
        turn[:n, :n] = torch.linalg.cholesky(mixed)
        for book in self._books():
            book.codes.copy_(book.codes @ turn)
            book.total.copy_(book.total @ turn)
        self.widen.weight.copy_(torch.linalg.solve(turn, self.widen.weight.t()).t())
        self.metric.copy_(self.metric @ turn)
        return turn


def correlation(z: Tensor) -> Tensor:
    """How much the numbers of z: [B, T, code_dim] of `project` tell of each other (VICReg, Bardes et al. 2022): mean over them of the sum of squared
    correlations with the others (before `metric`). Left alone most of them tell the loudness again, and the bits of the later layers are spent on nothing."""
    z = z.flatten(0, 1)
    c = z.t() @ z / len(z)
    return (c - c.diag().diag()).square().sum() / len(c)
