"""What listeners think as a loss: networks made here, in the layout of the two of speechmos (which CI does not install), by ONNX Runtime and by PyTorch."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tools import opinion, rate
from tools.losses import EnhanceLoss
from tools.metrics import MOS_FITTED
from tools.opinion import _P808, _P835, ASKED, Listeners, disliked
from tools.recipe import load
from tools.words import mel_bank

SAMPLES = 16000


def write_network(path: Path, pooled: tuple[bool, ...], ratings: int, bands: int, waves: bool) -> None:
    """Few channels; begins with a Fourier transform of its own where `waves`: x [1, 320 blocks of samples in two rows] as speechmos lays it out."""
    rng = np.random.default_rng(len(pooled))
    nodes, weights = [], []

    def weight(name: str, *shape: int, scale: float) -> str:
        weights.append(numpy_helper.from_array((scale * rng.standard_normal(shape)).astype(np.float32), name))
        return name

    if waves:
        for part in ("real", "imag"):
            nodes.append(helper.make_node("Conv", ["x", weight(f"stft-{part}", bands, 320, 1, scale=0.05)], [part], kernel_shape=[1]))
            nodes.append(helper.make_node("Mul", [part, part], [f"{part}2"]))
        nodes += [helper.make_node("Add", ["real2", "imag2"], ["power"]), helper.make_node("Log", ["power"], ["natural"])]
        weights.append(numpy_helper.from_array(np.float32(np.log(10)), "ten"))
        nodes += [helper.make_node("Div", ["natural", "ten"], ["log"]), helper.make_node("Transpose", ["log"], ["turned"], perm=[0, 2, 1])]
    weights.append(numpy_helper.from_array(np.array([1]), "one"))
    nodes.append(helper.make_node("Unsqueeze", ["turned" if waves else "x", "one"], ["y"]))
    y, channels = "y", 1
    for i, pool in enumerate(pooled):
        names = [weight(f"conv{i}/kernel", 4, channels, 3, 3, scale=0.3), weight(f"conv{i}/bias", 4, scale=0.1)]
        nodes.append(helper.make_node("Conv", [y, *names], [f"c{i}"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        y, channels = f"r{i}", 4
        if pool:
            nodes.append(helper.make_node("MaxPool", [y], [f"p{i}"], kernel_shape=[2, 2], strides=[2, 2]))
            y = f"p{i}"
    nodes.append(helper.make_node("ReduceMax", [y], ["most"], axes=[2, 3], keepdims=0))
    y = "most"
    for i, size in enumerate((8, 8, ratings)):
        names = [weight(f"dense{i}/MatMul/resource", 4 if i == 0 else 8, size, scale=0.5), weight(f"dense{i}/BiasAdd/resource:0", size, scale=0.1)]
        nodes.append(helper.make_node("MatMul", [y, names[0]], [f"m{i}"]))
        nodes.append(helper.make_node("Add", [f"m{i}", names[1]], [f"a{i}"]))
        nodes.append(helper.make_node("Relu", [f"a{i}"], [f"d{i}"]))
        y = f"d{i}" if i < 2 else f"a{i}"
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, None, None])
    graph = helper.make_graph(nodes, "listener", [x], [helper.make_tensor_value_info(y, TensorProto.FLOAT, [None, ratings])], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mos")
    write_network(folder / "sig_bak_ovr.onnx", _P835, 3, 161, waves=True)
    write_network(folder / "model_v8.onnx", _P808, 1, 120, waves=False)
    return folder


@pytest.fixture
def listeners(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Listeners:
    monkeypatch.setattr(opinion, "mos_folder", lambda: folder)
    return Listeners()


@pytest.fixture
def sounds() -> torch.Tensor:
    torch.manual_seed(3)
    return 0.05 * torch.randn(2, SAMPLES)


def test_networks_say_what_onnxruntime_says(folder: Path, listeners: Listeners, sounds: torch.Tensor) -> None:
    run = lambda name, x: ort.InferenceSession(folder / name, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]  # noqa: E731
    blocks = sounds.unfold(1, 320, 160).transpose(1, 2).numpy()
    raw = run("sig_bak_ovr.onnx", blocks)
    fitted = np.stack([np.polyval(c, raw[:, i]) for i, c in enumerate(MOS_FITTED)], 1)
    np.testing.assert_allclose(listeners.three(sounds).numpy(), fitted, rtol=1e-4, atol=1e-4)
    spec = torch.stft(sounds, 321, 160, window=torch.hann_window(321), pad_mode="constant", return_complex=True).abs().square()
    mel = (mel_bank(120, 321) @ spec).transpose(1, 2).numpy()
    decibels = 10 * np.log10(mel / mel.max((1, 2), keepdims=True))
    np.testing.assert_allclose(listeners.quality(sounds).numpy(), run("model_v8.onnx", (decibels + 40) / 40)[:, 0], rtol=1e-4, atol=1e-4)
    assert not list(listeners.parameters())


def test_other_networks_are_refused(folder: Path, tmp_path: Path) -> None:
    write_network(tmp_path / "other.onnx", (True, False), 1, 120, waves=False)
    with pytest.raises(ValueError, match="not the network that is known here"):
        opinion._Network(tmp_path / "other.onnx", _P808)


def test_only_what_is_worse_than_clean_counts(listeners: Listeners, sounds: torch.Tensor) -> None:
    assert disliked(listeners, sounds, sounds).abs().max() == 0
    other = 0.05 * torch.randn_like(sounds)
    there, back = disliked(listeners, other, sounds), disliked(listeners, sounds, other)
    better = listeners.quality(other) > listeners.quality(sounds)
    # whichever of two is liked more costs nothing in P.808, so at most one way costs there; P.835 is that of the first few, the same for all
    worse = (listeners.three(sounds[:ASKED]) - listeners.three(other[:ASKED])).relu().mean()
    torch.testing.assert_close(there[better], worse.expand(int(better.sum())))
    assert (there + back > 0).all()
    y = sounds.clone().requires_grad_()
    (listeners.quality(y).sum() + listeners.three(y).sum()).backward()
    assert y.grad is not None and torch.isfinite(y.grad).all() and y.grad.abs().max() > 0


def test_the_loss_weighs_it(listeners: Listeners, sounds: torch.Tensor) -> None:
    c = sounds
    y = c + 0.05 * torch.randn_like(c)
    torch.manual_seed(1)
    total, parts = EnhanceLoss(0.5, 0.0, opinion=0.3)(y, c, c)
    without = EnhanceLoss(0.5, 0.0)(y, c, c)[0]
    assert parts["disliked"] > 0 and (total - without).item() == pytest.approx(0.3 * parts["disliked"], rel=0.02)


def test_where_nobody_speaks_nobody_is_asked(listeners: Listeners, sounds: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    y, clean = sounds + 0.05 * torch.randn_like(sounds), sounds * torch.tensor([[0.0], [1.0]])  # the first of the batch says nothing
    loss, asked, three = EnhanceLoss(0.5, 0.0, opinion=0.3), [], Listeners.three
    assert loss.listeners is not None
    monkeypatch.setattr(Listeners, "three", lambda self, x: asked.append(x) or three(self, x))
    assert loss(y, clean, y)[1]["disliked"] > 0
    assert [len(x) for x in asked] == [1, 1] and asked[0].square().mean() > 1e-4  # clean and restored, of the one who speaks
    asked.clear()
    assert "disliked" not in loss(y, 0 * clean, y)[1] and not asked


def test_recogniser_and_listeners_take_turns(listeners: Listeners, sounds: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.losses.Hearing", lambda: lambda x: x[:, : x.shape[1] // 320 * 320].unflatten(1, (-1, 320))[:, :, :16] * 30)
    loss = EnhanceLoss(0.5, 0.0, words=0.5, opinion=0.3)
    y = sounds + 0.05 * torch.randn_like(sounds)
    asked = [loss(y, sounds, sounds)[1] for _ in range(20)]
    assert all(("misheard" in parts) != ("disliked" in parts) for parts in asked)
    assert 2 < sum("misheard" in parts for parts in asked) < 18


def test_every_clip_of_speech_is_rated(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(opinion, "mos_folder", lambda: folder)
    pcm = (8000 * np.random.default_rng(5).standard_normal(200_000)).clip(-32768, 32767).astype(np.int16)
    np.save(tmp_path / "pcm.npy", pcm)
    spans = [("speech", 0, 30_000), ("noise", 30_000, 20_000), ("speech", 50_000, 120_000), ("speech", 170_000, 300)]
    items = [{"kind": kind, "start": start, "samples": samples} for kind, start, samples in spans]
    (tmp_path / "index.json").write_text(json.dumps({"rate": 16000, "items": items}))
    monkeypatch.setattr(sys, "argv", ["rate", str(tmp_path)])
    assert rate.main() == 0
    ratings = json.loads((tmp_path / "ratings.json").read_text())
    assert set(ratings) == {"0", "50000"}  # too short a clip is not rated, noise neither
    x = torch.from_numpy(pcm[86_000:134_000].astype(np.float32))[None]  # three seconds from the middle, at one loudness
    assert ratings["50000"] == pytest.approx(float(Listeners().three(x * 0.05 / x.square().mean().sqrt())[0, 2]), abs=0.03)
    (tmp_path / "index.json").write_text(json.dumps({"rate": 48000, "items": items}))
    assert rate.main() == 2
    assert "packed at 48000 Hz" in capsys.readouterr().err


def test_recipe_takes_it() -> None:
    assert load(Path(__file__).parent.parent / "tools/recipes/opinion-cpu.toml").train.opinion == 0.2
