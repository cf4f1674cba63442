"""Small codec weights made on the fly, for the tests that need an engine: random, with codebooks that have met some sound."""

from __future__ import annotations

from pathlib import Path

import torch

from voicewire.engines.codec_config import CodecConfig
from voicewire.engines.codec_export import export_codec
from voicewire.engines.net.codec import Codec
from voicewire.engines.net.spectrum import stft

SMALL = CodecConfig(channels=4, dim=16, kernel=3, acoustic_blocks=1, semantic_blocks=1, decoder_blocks=2, codes=64, layers=3, code_dim=8, teacher_dim=64)


def tried_codec(seed: int = 0, config: CodecConfig = SMALL) -> Codec:
    """Weights away from their tidy start, codes spread over what noise of changing loudness looks like."""
    torch.manual_seed(seed)
    codec = Codec(config)
    with torch.no_grad():
        for p in codec.parameters():
            p.add_(0.1 * torch.randn_like(p))
        x = 0.1 * torch.randn(8, 16000) * torch.rand(8, 1) * (torch.rand(8, 100, 1) * torch.ones(160)).reshape(8, 16000)
        acoustic, semantic, _, _ = codec.encoder.features(stft(x, 160)[:, :, :160])
        keep = torch.full((8,), config.layers)
        for _ in range(3):
            codec.encoder.semantic_vq.train_step(semantic, keep)
            codec.encoder.acoustic_vq.train_step(acoustic, keep)
    return codec.eval()


def write_weights(folder: Path, seed: int = 0) -> Path:
    codec = tried_codec(seed)
    export_codec({"config": codec.cfg.to_dict(), "ema": codec.state_dict(), "step": 3, "hours": 0.0, "teacher_lag": 1}, folder)
    return folder
