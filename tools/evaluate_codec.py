"""The codec on held-out speech: quality with each layer more and each stream less, rate and quality at variable rate, codes in use, Opus beside it.

    python -m tools.evaluate_codec SPEECH --weights FOLDER [--teacher CACHE] [--limit N] [--quick]

SPEECH is a folder with a manifest.csv (`path`, and where known `text`), or any folder of audio. Everything runs through the streaming engine, the variable
rate through the token format. Rates are of whole files, heads and checksums included; Opus is counted without a container. --quick leaves out words and
speakers. --pauses puts a second of quiet noise behind every two seconds, as in talk that is not read. With --teacher (written by tools.teach) also the
cosine of what the semantic tokens tell to the teacher's features, clean and at 5 dB.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from voicewire.engines.codec_config import FRAMES_PER_SECOND
from voicewire.engines.codec_engine import CODEC_WEIGHTS, CodecEngine
from voicewire.engines.codec_variable import VariableRate
from voicewire.rt import codec
from voicewire.rt.codec_format import PACKET_FRAMES, End, Header, Packet, pack_end, pack_packet

from . import metrics, sounds
from .ending import plainly
from .evaluate import load
from .prepare import AUDIO

RATE = metrics.RATE
PRICES = (0.002, 0.005, VariableRate.price, 0.014, 0.024)


@dataclass
class Clip:
    name: str
    x: np.ndarray
    said: list[str]
    tokens: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))


@dataclass
class System:
    """name, and what makes (sound, bits sent) of a clip. words: whether word errors and speakers are scored."""

    name: str
    run: Callable[[Clip], tuple[np.ndarray, float]]
    words: bool = False


def find(folder: Path) -> Iterable[tuple[Path, str]]:
    if (folder / "manifest.csv").exists():
        with (folder / "manifest.csv").open(newline="") as f:
            for row in csv.DictReader(f):
                path = folder / row["path"]
                # a manifest may count its paths from the folder above
                yield path if path.exists() else folder.parent / row["path"], row.get("text") or ""
    else:
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in AUDIO:
                yield path, ""


def words(text: str) -> list[str]:
    return "".join(c if c.isalnum() or c == "'" else " " for c in text.lower()).split()


def with_pauses(x: np.ndarray) -> np.ndarray:
    """A second of noise at -60 dB re full scale behind every two seconds of speech."""
    rng = np.random.default_rng(len(x))
    parts = [x[at : at + 2 * RATE] for at in range(0, len(x), 2 * RATE)]
    return np.concatenate([p for part in parts for p in (part, 0.001 * rng.standard_normal(RATE))]).astype(np.float32)


def encode(x: np.ndarray, engine: CodecEngine, rate: int = RATE) -> tuple[np.ndarray, np.ndarray]:
    encoder = codec.TokenEncoder(rate, engine)
    tokens, semantic = zip(encoder.process(x), encoder.flush(), strict=True)
    return np.concatenate(tokens), np.concatenate(semantic)


def through(x: np.ndarray, engine: CodecEngine, variable: VariableRate | None) -> tuple[np.ndarray, float, np.ndarray]:
    """Through a file → (sound, bits of the file, which frames it holds tokens of [frames] bool)."""
    data = b"".join(codec.encode([x], RATE, engine, variable))
    _, tokens, sent, samples = codec.read_tokens(data, engine.odds)
    return codec.decode(tokens, RATE, samples, engine), 8.0 * len(data), sent


def held(c: Clip, sent: np.ndarray, engine: CodecEngine) -> tuple[np.ndarray, float]:
    """Through a file of variable rate in which the clip's tokens of the frames `sent` are written → (sound, bits of the file)."""
    header = Header(RATE, engine.config.streams, engine.odds.fingerprint, True)
    data = [header.pack()]
    for t in range(0, len(sent), PACKET_FRAMES):
        here = sent[t : t + PACKET_FRAMES].copy()
        here[0] = True
        data.append(pack_packet(header, Packet(t, c.tokens[t : t + PACKET_FRAMES], here), engine.odds))
    data.append(pack_end(End(len(sent), len(c.x))))
    _, tokens, _, samples = codec.read_tokens(b"".join(data), engine.odds)
    return codec.decode(tokens, RATE, samples, engine), 8.0 * sum(map(len, data))


def opus(x: np.ndarray, bit_rate: int) -> tuple[np.ndarray, float]:
    """libopus through PyAV, voice, 20 ms frames, aligned with what went in."""
    import av

    encoder: Any = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.layout, encoder.format, encoder.bit_rate = RATE, "mono", "flt", bit_rate
    encoder.options = {"application": "voip", "vbr": "off", "frame_duration": "20"}
    encoder.open()
    decoder: Any = av.CodecContext.create("libopus", "r")
    decoder.sample_rate, decoder.layout = 48000, "mono"
    packets = []
    padded = np.append(x, np.zeros(RATE // 10, np.float32)).astype(np.float32)
    for at in range(0, len(padded) - 319, 320):
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(padded[None, at : at + 320]), format="flt", layout="mono")
        frame.sample_rate, frame.pts = RATE, at
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    bits = 8.0 * sum(p.size for p in packets)
    heard = np.concatenate([f.to_ndarray().reshape(-1) for p in packets for f in decoder.decode(p)]).astype(np.float32)
    import soxr

    y = soxr.resample(heard, 48000, RATE)
    if y.dtype != np.float32 or np.abs(y).max() > 2:
        y = y / 32768
    spectrum = np.fft.rfft(y, 1 << 20) * np.fft.rfft(x, 1 << 20).conj()
    lag = int(np.fft.irfft(spectrum)[: RATE // 10].argmax())  # the coder's own delay
    y = y[lag:]
    return np.pad(y, (0, max(0, len(x) - len(y))))[: len(x)].astype(np.float32), bits


def systems(engine: CodecEngine) -> list[System]:
    layers, bits = engine.config.layers, engine.config.bits

    def cut(keep: Callable[[int], bool]) -> Callable[[Clip], tuple[np.ndarray, float]]:
        streams = np.array([keep(i) for i in range(1 + layers)])

        def run(c: Clip) -> tuple[np.ndarray, float]:
            return codec.decode(np.where(streams, c.tokens, -1), RATE, len(c.x), engine), float(len(c.tokens) * bits * streams.sum())

        return run

    def constant(c: Clip) -> tuple[np.ndarray, float]:
        return through(c.x, engine, None)[:2]

    def variable(price: float) -> Callable[[Clip], tuple[np.ndarray, float]]:
        return lambda c: through(c.x, engine, VariableRate(price))[:2]

    def decimated(price: float) -> Callable[[Clip], tuple[np.ndarray, float]]:
        """As many frames as are sent at this price of a bit, evenly spread, with the nearest tokens."""

        def run(c: Clip) -> tuple[np.ndarray, float]:
            n = through(c.x, engine, VariableRate(price))[2].sum()
            at = np.arange(len(c.tokens)) * n // len(c.tokens)
            return held(c, np.diff(at, prepend=-1) > 0, engine)

        return run

    rows = [System("as recorded", lambda c: (c.x, 16.0 * len(c.x)), True), System("constant rate, whole", constant, True)]
    rows += [System(f"semantic + {n} acoustic", cut(lambda i, n=n: i <= n), n == 0) for n in range(layers)]  # type: ignore[misc]
    rows += [System(f"no semantic, {layers} acoustic", cut(lambda i: i > 0), True)]
    rows += [System(f"variable, {p:g}", variable(p), p == VariableRate.price) for p in PRICES]
    rows += [System(f"fixed decimation, as {p:g}", decimated(p)) for p in PRICES]
    try:
        import av

        if "libopus" in av.codecs_available:
            rows.append(System("Opus 6 kbit/s", lambda c: opus(c.x, 6000), True))
    except ModuleNotFoundError:
        print("without PyAV there is no Opus to compare with: pip install 'voicewire[opus]'", file=sys.stderr)
    return rows


def judge(system: System, clips: list[Clip], quick: bool, bar: Any) -> dict[str, float]:
    pesq, stoi, speaker, bits, errors, count, cpu = [], [], [], 0.0, 0, 0, 0.0
    for c in clips:
        begin = time.process_time()
        y, n = system.run(c)
        cpu += time.process_time() - begin
        bits += n
        pesq.append(metrics.pesq_wb(y, c.x))
        stoi.append(metrics.stoi(y, c.x))
        if system.words and not quick:
            errors, count = errors + metrics.word_errors(metrics.transcribe(y), c.said), count + len(c.said)
            speaker.append(metrics.speaker_similarity(y, c.x))
        bar.update()
    seconds = sum(len(c.x) for c in clips) / RATE
    nan = float("nan")
    return {
        "kbit/s": bits / seconds / 1000, "PESQ": float(np.mean(pesq)), "STOI": float(np.mean(stoi)), "WER": 100 * errors / count if count else nan,
        "SPK": float(np.mean(speaker)) if speaker else nan, "rtf": cpu / seconds,
    }  # fmt: skip


def semantic_cosine(clips: list[Clip], engine: CodecEngine, folder: Path, weights: Path) -> dict[str, float]:
    """Mean cosine of what the semantic tokens tell to the teacher's centred features, where there is speech; and a constant answer's, as a floor."""
    import torch

    from voicewire.engines.codec_export import load_codec

    from .teach import Projection, teacher_features

    model, projection = load_codec(weights), Projection.load(folder)
    lag = json.loads((weights / "codec.json").read_text())["teacher_lag"]
    rng, found = np.random.default_rng(5), {"clean": [], "5 dB": []}  # type: dict[str, list[np.ndarray]]
    for c in clips:
        noise = sounds.any_sound(rng, len(c.x), RATE)
        noisy = c.x + noise * np.float32(np.sqrt((c.x**2).mean() / (noise**2).mean()) * 10 ** (-5 / 20))
        wanted = projection(teacher_features(c.x[: 30 * RATE]))
        loud = np.array([(c.x[t : t + 320] ** 2).mean() for t in range(0, len(c.x) - 319, 320)])[:1500]
        speaks = loud > 1e-3 * loud.max()
        for name, tokens in (("clean", c.tokens), ("5 dB", encode(noisy.astype(np.float32), engine)[0])):
            with torch.no_grad():
                told = model.taught(torch.from_numpy(tokens)[None])[0].numpy()
            n = min(len(told) - lag, len(speaks))
            a, b = told[lag : lag + n][speaks[:n]], wanted[:n][speaks[:n]]
            found[name].append((a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1) + 1e-9))
    return {name: float(np.concatenate(v).mean()) for name, v in found.items()}


def table(result: dict[str, dict[str, float]]) -> str:
    lines = ["| | kbit/s | PESQ-WB | STOI | WER % | speaker | CPU / audio |", "|---|--:|--:|--:|--:|--:|--:|"]
    show = lambda v, digits: "" if np.isnan(v) else f"{v:.{digits}f}"  # noqa: E731
    for name, r in result.items():
        numbers = (show(r["kbit/s"], 2), show(r["PESQ"], 2), show(r["STOI"], 3), show(r["WER"], 1), show(r["SPK"], 3), show(r["rtf"], 3))
        lines.append(f"| {name} | {' | '.join(numbers)} |")
    return "\n".join(lines)


@plainly
def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("speech", type=Path)
    p.add_argument("--weights", type=Path, default=CODEC_WEIGHTS)
    p.add_argument("--teacher", type=Path, help="folder written by tools.teach")
    p.add_argument("--limit", type=int, help="only so many clips, spread over the folder")
    p.add_argument("--quick", action="store_true", help="no word errors, no speakers")
    p.add_argument("--pauses", action="store_true")
    p.add_argument("--systems", help="only rows that contain one of these, comma-separated")
    p.add_argument("--json", type=Path, help="write the numbers here")
    a = p.parse_args()
    engine = CodecEngine(a.weights)
    listed = list(find(a.speech))
    if not listed:
        raise ValueError(f"no audio in {a.speech}")
    if a.limit:
        listed = [listed[i] for i in np.unique(np.linspace(0, len(listed) - 1, a.limit).round().astype(int))]
    clips = []
    for path, text in tqdm(listed, desc="encode", disable=None):
        x = with_pauses(load(path)) if a.pauses else load(path)
        clips.append(Clip(path.name, x, words(text), encode(x, engine)[0]))
        if not text and not a.quick:
            clips[-1].said = metrics.transcribe(x)
    rows = [s for s in systems(engine) if not a.systems or any(w in s.name for w in a.systems.split(","))]
    with tqdm(total=len(rows) * len(clips), unit="clip", disable=None) as bar:
        result = {s.name: judge(s, clips, a.quick, bar) for s in rows}
    tokens = np.concatenate([c.tokens for c in clips])
    use = [len(np.unique(t)) / engine.config.codes for t in tokens.T]
    perplexity = []
    for t in tokens.T:
        share = np.bincount(t) / len(t)
        perplexity.append(float(np.exp(-(share[share > 0] * np.log(share[share > 0])).sum())))
    cosine = semantic_cosine(clips, engine, a.teacher, a.weights) if a.teacher else {}
    print(table(result))
    print(f"\n{len(clips)} clips, {len(tokens) / FRAMES_PER_SECOND:.0f} s; weights {engine.weights}")
    print("codes used, semantic and acoustic: " + ", ".join(f"{u:.0%} (perplexity {q:.0f})" for u, q in zip(use, perplexity, strict=True)))
    for name, value in cosine.items():
        print(f"cosine to the teacher, {name}: {value:.3f}")
    if a.json:
        a.json.write_text(json.dumps({"systems": result, "use": use, "perplexity": perplexity, "cosine": cosine}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
