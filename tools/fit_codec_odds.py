"""Fit how likely the codec's tokens are after those before them (`engines/codec_odds.py`), and say what each thing known brings.

    python -m tools.codec_spoken cache/16k-wide --out runs/spoken --hours 2.75     # first, once
    python -m tools.fit_codec_odds runs/spoken --test SPEECH                    # writes odds.npz beside the codec's weights
    python -m tools.fit_codec_odds runs/spoken --test SPEECH --compare          # writes nothing: bits a frame with more and more known

Every clip is learned from twice: frame by frame, and as it is sent at variable rate (thresholds of 0.92 to 0.98, caps of 8 or 16 frames). --test: a folder of
held-out speech (see tools.evaluate_codec), of which only the bits a frame are printed. One pass of some hundred steps, a few minutes of one core.
"""

from __future__ import annotations

import argparse
import time
from decimal import Decimal, getcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from tqdm import tqdm

from voicewire.engines.codec_engine import CODEC_WEIGHTS, CodecEngine
from voicewire.engines.codec_export import load_codec
from voicewire.engines.codec_hold import source_frames
from voicewire.engines.codec_odds import FILE, FINE_BITS, GAPS, POWER_BITS, TOTAL_BITS, UNIT_BITS, Odds
from voicewire.engines.net.codec import Codec

from .codec_spoken import Spoken
from .ending import plainly
from .evaluate import load
from .evaluate_codec import encode, find

DIM = 20
BATCH, RATE, TABLE_RATE = 2048, 0.01, 0.001
NOTHING: frozenset[str] = frozenset()
ALL = frozenset({"same", "before", "now", "earlier"})
STAGES = (
    ("each token by itself", NOTHING),
    ("the token of its stream in the frame before", frozenset({"same"})),
    ("all tokens of the frame before", frozenset({"same", "before"})),
    ("those of this frame so far", frozenset({"now"})),
    ("both", frozenset({"same", "before", "now"})),
    ("and the frame before that", ALL),
)


class Frames(NamedTuple):
    """tokens, before, earlier [frames, streams] int64, -1: none; gap [frames]"""

    tokens: Tensor
    before: Tensor
    earlier: Tensor
    gap: Tensor

    def some(self, index: Tensor) -> Frames:
        return Frames(*(x[index] for x in self))


def sent(tokens: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, ...]:
    """tokens: [frames, streams] of one clip, at: the frames that are sent → what `Frames` holds."""
    t, none = tokens[at], np.full((2, tokens.shape[1]), -1)
    return t, np.concatenate([none[:1], t[:-1]])[: len(t)], np.concatenate([none, t[:-2]])[: len(t)], np.minimum(np.diff(at, prepend=at[0]), GAPS - 1)


def joined(parts: list[tuple[np.ndarray, ...]]) -> Frames:
    return Frames(*(torch.from_numpy(np.concatenate(x)) for x in zip(*parts, strict=True)))


def learnt_from(spoken: Spoken) -> Frames:
    rng, parts = np.random.default_rng(0), []
    for tokens, semantic in spoken.clips():
        parts.append(sent(tokens, np.arange(len(tokens))))
        parts.append(sent(tokens, np.unique(source_frames(semantic, rng.uniform(0.92, 0.98), int(rng.choice([8, 16]))))))
    return joined(parts)


class Model(nn.Module):
    """`Odds` with a gradient. known: what it may look at."""

    def __init__(self, codec: Codec, frames: Frames, known: frozenset[str] = ALL) -> None:
        super().__init__()
        books = [pad(codec.encoder.semantic_vq.books[0].codes, (0, 1)), *(b.codes for b in codec.encoder.acoustic_vq.books)]  # type: ignore[union-attr, arg-type, list-item]
        rows = [pad(b / b.std(), (0, max(0, DIM - b.shape[1])))[:, :DIM] for b in books]  # type: ignore[operator, union-attr]
        torch.manual_seed(0)
        self.rows = nn.Parameter(torch.stack(rows))
        with torch.no_grad():
            self.rows[..., books[1].shape[1] :].normal_(0, 0.05)  # type: ignore[union-attr]
        s, codes, dim = self.rows.shape
        counts = torch.stack([torch.bincount(t, minlength=codes) for t in frames.tokens.t()])
        self.bias = nn.Parameter(((counts + 5.0) / len(frames.tokens)).log())
        self.before, self.earlier, self.now = (nn.Parameter(torch.zeros(s, s, dim, dim)) for _ in range(3))
        self.gap = nn.Parameter(torch.zeros(GAPS, s, dim))
        matrix = torch.zeros(3, s, s, 1, 1)
        matrix[0] += "before" in known
        matrix[0] += torch.eye(s)[..., None, None] * ("same" in known and "before" not in known)
        matrix[1] += "earlier" in known
        matrix[2] = torch.ones(s, s).tril(-1)[..., None, None] * ("now" in known)
        self.matrix = matrix
        self.with_gap = bool(known - {"now"})

    def tables(self) -> dict[str, Tensor]:
        """As in `Odds`, real numbers; logits in nats."""
        b, e, n = self.matrix
        return {
            "rows": self.rows, "bias": self.bias, "before": self.before * b, "earlier": self.earlier * e, "now": self.now * n, "gap": self.gap * self.with_gap,
        }  # fmt: skip

    def bits(self, f: Frames) -> Tensor:
        """Mean bits of each stream, [streams]."""
        t, out = self.tables(), []
        mean = lambda k, x: self.rows[k][x[:, k].clamp_min(0)] * (x[:, k] >= 0)[:, None]  # noqa: E731
        streams = range(len(self.rows))
        before, earlier, now = ([mean(k, x) for k in streams] for x in (f.before, f.earlier, f.tokens))
        for s in streams:
            said = t["gap"][f.gap, s]
            for k in streams:
                said = said + before[k] @ t["before"][s, k] + earlier[k] @ t["earlier"][s, k]
            for k in range(s):
                said = said + now[k] @ t["now"][s, k]
            out.append(cross_entropy(said @ self.rows[s].t() + self.bias[s], f.tokens[:, s]))
        return torch.stack(out) / np.log(2)


def fit(codec: Codec, frames: Frames, epochs: float, known: frozenset[str] = ALL) -> Model:
    model = Model(codec, frames, known)
    slow = [model.rows, model.bias]
    fast = [model.before, model.earlier, model.now, model.gap]
    steps = int(epochs * len(frames.tokens) / BATCH) if known else 0
    optimiser = torch.optim.Adam([{"params": slow, "lr": TABLE_RATE}, {"params": fast, "lr": RATE}], betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda i: 1 - i / max(1, steps))
    order, g = torch.empty(0, dtype=torch.int64), torch.Generator().manual_seed(0)
    for _ in tqdm(range(steps), disable=None):
        if len(order) < BATCH:
            order = torch.cat([order, torch.randperm(len(frames.tokens), generator=g)])
        loss = model.bits(frames.some(order[:BATCH])).sum()
        order = order[BATCH:]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model


def whole_numbers(model: Model) -> dict[str, np.ndarray]:
    """The tables of `Odds`: rows and matrices in a byte a number, scales that bring their products to 2^-14 of a bit."""
    t = {k: v.detach().double().numpy() for k, v in model.tables().items()}
    bit = 1 / np.log(2)
    row_scale = 127 / np.abs(t["rows"]).max((1, 2))  # [streams]
    rows = np.round(t["rows"] * row_scale[:, None, None])
    # matrices read rows as they are stored, so they are divided by those scales; the largest number of all that go to one stream becomes 127
    given = {name: t[name] / row_scale[None, :, None, None] for name in ("before", "earlier", "now")}
    most = np.max([np.abs(m).max((1, 2, 3)) for m in given.values()], 0)
    scale = 127 / np.maximum(most, 1e-9)
    out = {name: np.round(m * scale[:, None, None, None]).astype(np.int8) for name, m in given.items()}
    getcontext().prec = 40
    powers = [int((Decimal(2) ** (POWER_BITS - Decimal(i) / (1 << FINE_BITS))).to_integral_value()) for i in range(1 << FINE_BITS)]
    bias = t["bias"] - t["bias"].max(1, keepdims=True)
    return out | {
        "rows": rows.astype(np.int8), "bias": np.round(bias * bit * (1 << FINE_BITS)).astype(np.int16),
        "gap": np.round(t["gap"] * scale[None, :, None]).astype(np.int32),
        "scale": np.round(65536 * bit * (1 << UNIT_BITS) / row_scale / scale).astype(np.int64), "powers": np.array(powers, np.int64),
    }  # fmt: skip


def counted(odds: Odds, f: Frames) -> np.ndarray:
    """Mean bits of each stream by the whole numbers, [streams]."""
    tokens, out = f.tokens.numpy(), np.zeros(odds.streams)
    for at in range(0, len(tokens), 1000):
        part = Frames(*(x[at : at + 1000] for x in f))
        now, said = part.tokens.numpy(), odds.past(part.before.numpy(), part.earlier.numpy(), part.gap.numpy())
        for s in range(odds.streams):
            out[s] += (TOTAL_BITS - np.log2(odds.counts(s, said)[np.arange(len(now)), now[:, s]])).sum()
            said = odds.add(said, s, now[:, s])
    return out / len(tokens)


@torch.no_grad()
def measured(model: Model, f: Frames) -> np.ndarray:
    """Mean bits of each stream in real numbers, [streams]."""
    bits: np.ndarray = model.bits(f).numpy()
    return bits


def row(name: str, bits: np.ndarray) -> str:
    return f"| {name} | {bits.sum():.2f} | {' | '.join(f'{b:.2f}' for b in bits)} |"


@plainly
def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("spoken", type=Path, help="folder written by tools.codec_spoken")
    p.add_argument("--weights", type=Path, default=CODEC_WEIGHTS)
    p.add_argument("--test", type=Path, help="folder of held-out speech")
    p.add_argument("--compare", action="store_true")
    p.add_argument("--epochs", type=float, default=2.0)
    a = p.parse_args()
    torch.set_num_threads(1)
    begin = time.process_time()
    spoken = Spoken.load(a.spoken)
    codec, engine = load_codec(a.weights), CodecEngine(a.weights)
    if spoken.weights != engine.weights:
        raise ValueError(f"{a.spoken} holds tokens of codec weights {spoken.weights}, not of {engine.weights}; run tools.codec_spoken again")
    frames, tests = learnt_from(spoken), {}
    if a.test:
        heard = [encode(load(path), engine) for path, _ in find(a.test)]
        tests["every frame"] = joined([sent(t, np.arange(len(t))) for t, _ in heard])
        tests["at variable rate, 0.945, 16 frames"] = joined([sent(t, np.unique(source_frames(z, 0.945, 16))) for t, z in heard])
    streams = " | ".join(["semantic", *(f"acoustic {i}" for i in range(1, codec.cfg.streams))])
    print(f"{len(frames.tokens)} frames to learn from\n\n| known; sent | bits a frame | {streams} |")
    print("|---|" + "--:|" * (1 + codec.cfg.streams))
    if a.compare:
        for name, known in STAGES:
            model = fit(codec, frames, a.epochs, known)
            for k, f in tests.items():
                print(row(f"{name}; {k}", measured(model, f)), flush=True)
        return 0
    model = fit(codec, frames, a.epochs)
    tables = whole_numbers(model)
    odds = Odds(engine.weights, tables)
    for k, f in tests.items():
        print(row(f"{k}; as fitted", measured(model, f)))
        print(row(f"{k}; in whole numbers", counted(odds, f)))
    np.savez_compressed(a.weights / FILE, weights=engine.weights, **tables)
    size, minutes = (a.weights / FILE).stat().st_size, (time.process_time() - begin) / 60
    print(f"\n{a.weights / FILE}: {size} bytes, fingerprint {odds.fingerprint}; {minutes:.1f} minutes of CPU")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
