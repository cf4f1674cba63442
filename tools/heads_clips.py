"""What tools.evaluate_heads compares: checkpoints of heads that say tokens, and pairs of which everything is made that is scored."""

from __future__ import annotations

import hashlib
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from voicewire.engines.checkpoint import read_checkpoint
from voicewire.engines.config import CORE_BINS
from voicewire.engines.export import fingerprint
from voicewire.engines.heads_config import HeadsConfig
from voicewire.engines.heads_engine import HeadsEngine, drawn
from voicewire.engines.heads_export import export_heads
from voicewire.engines.net.heads import TokenHeads
from voicewire.engines.net.spectrum import stft
from voicewire.rt.lane import dry_share

from .blends import Blend, Fitted
from .evaluate import Pair, load
from .hear import HOP, Ears, Impression
from .mixer import Mixer
from .train_codec import waveform

FIT_BATCHES = 40
FIT_SEED = 62


@dataclass(frozen=True)
class Heads:
    """A checkpoint of tools.train_heads."""

    name: str
    module: TokenHeads
    version: str
    saved: dict[str, Any]

    @classmethod
    def read(cls, path: Path, ears: Ears) -> Heads:
        """ValueError when it was trained with other models than are here."""
        saved = read_checkpoint(path, "core_weights", "codec_weights", "config", "ema")
        for kind in ("core_weights", "codec_weights"):
            if saved[kind] != ears.doc[kind]:
                raise ValueError(f"{path} was trained with {kind.replace('_', ' ')} {saved[kind]}, here are {ears.doc[kind]}")
        return cls._with(path.parent.name, HeadsConfig.from_dict(saved["config"]), saved)

    @classmethod
    def _with(cls, name: str, cfg: HeadsConfig, saved: dict[str, Any]) -> Heads:
        module = TokenHeads(cfg).eval()
        module.load_state_dict(saved["ema"])
        return cls(name, module, f"{fingerprint(module)} {cfg.central}", saved)

    def central(self) -> Heads:
        """The same weights, deciding for the code nearest to the mean."""
        return self._with(f"{self.name}, nearest to the mean", replace(self.module.cfg, central=True), self.saved)

    def given(self, sound: Impression) -> Tensor:
        return sound.given if self.module.cfg.heard_dim else sound.h

    @torch.no_grad()
    def say(self, sound: Impression, seed: int | None = None, temperature: float = 1.0) -> Tensor:
        """→ tokens [B, frames, streams] at their own frames: where the heads are later, they are heard out. seed: to draw."""
        cfg, x = self.module.cfg, self.given(sound)
        x = torch.cat([x, x[:, -1:].expand(-1, cfg.delay_frames, -1)], 1)
        noise = None
        if seed is not None:
            keys = np.full(len(x), seed, np.uint64)
            steps = [drawn(keys, np.full(len(x), t), temperature, cfg.streams, cfg.codes) for t in range(x.shape[1])]
            noise = torch.from_numpy(np.stack(steps, 1))
        return self.module(x, noise)[:, cfg.delay_frames :]

    def step_ms(self) -> float:
        """CPU time of one step of one slot in ONNX Runtime, median of 300."""
        with tempfile.TemporaryDirectory() as folder:
            export_heads(self.saved, Path(folder))
            engine = HeadsEngine(Path(folder))
            cfg, state, times = engine.config, engine.init_state(1), []
            x = np.zeros((1, cfg.trunk_dim + cfg.heard_dim), np.float32)
            for _ in range(300):
                begin = time.process_time()
                _, state = engine.step(x, state)
                times.append(time.process_time() - begin)
        return 1e3 * float(np.median(times))


class Clip:
    """One pair: what is heard in it, the codec's tokens of what it was made of, and sound out of tokens and blends. Arrays: [samples] float32 at 16 kHz."""

    def __init__(self, pair: Pair, ears: Ears) -> None:
        self.pair, self.ears = pair, ears
        noisy, clean = load(pair.noisy), load(pair.clean)
        n = min(len(noisy), len(clean))
        self.noisy, self.clean = noisy[:n], clean[:n]
        self.sound = ears.hear(torch.from_numpy(self.noisy)[None])
        target = stft(torch.from_numpy(self.clean)[None], HOP)[:, :, :CORE_BINS]
        power = target.square().sum((-1, -2)).view(-1, 2).mean(-1)
        self.speaks = power > 1e-3 * power.max()  # [frames]
        self.of_clean, self.of_mixture, self.of_restored = (ears.tokens(x) for x in (target, self.sound.mixture, self.sound.restored))
        self.content = hashlib.sha256(self.noisy.tobytes() + self.clean.tobytes()).hexdigest()

    def spoken(self, tokens: Tensor) -> Tensor:
        """[1, frames, streams] → [n, streams] of the frames where somebody speaks"""
        return tokens[0, self.speaks[: tokens.shape[1]]]

    @torch.no_grad()
    def spectrum(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.ears.codec.decoder(self.ears.codec.vectors(tokens))
        return y

    def wave(self, spec: Tensor) -> np.ndarray:
        y: np.ndarray = waveform(spec, len(self.noisy))[0].numpy()
        return y

    def with_share(self, spec: Tensor) -> np.ndarray:
        """With the share of the input that restoration leaves in."""
        return self.wave(spec + dry_share(None, False) * (self.sound.mixture - spec))

    def blended(self, blend: Blend, tokens: Tensor) -> np.ndarray:
        """Tokens + mask."""
        return self.with_share(blend(self.sound.mixture, self.sound.restored, self.spectrum(tokens)))


def fitted(cache: Path, ears: Ears, heads: Heads) -> dict[str, Blend]:
    """Blends fitted to sixteen minutes of training mixtures, with the heads' tokens and without."""
    mixer, with_tokens, without = Mixer(cache, FIT_SEED, 4, 6.0), Fitted(True), Fitted(False)
    for i in tqdm(range(FIT_BATCHES), desc="fit", disable=None):
        mix, target = (torch.from_numpy(z) for z in mixer.batch(i))
        sound, clean = ears.hear(mix, fast=True), stft(target, HOP)[:, :, :CORE_BINS]
        with torch.no_grad():
            t = ears.codec.decoder(ears.codec.vectors(heads.say(sound)))
        for k in range(len(mix)):
            for one in (with_tokens, without):
                one.see(sound.mixture[k, None], sound.restored[k, None], t[k, None], clean[k, None])
    return {"least squares": with_tokens, "least squares without tokens": without}
