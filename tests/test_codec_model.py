"""The codec's modules: the contract, and that the decoder knows nothing but tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from codec_weights import SMALL, tried_codec

from voicewire.engines.codec_config import CodecConfig
from voicewire.engines.contract import TorchSteps, verify_contract
from voicewire.engines.net.codec import Codec, Encoder, centred
from voicewire.engines.net.codec_blocks import ConvBlock, Stack
from voicewire.engines.net.codec_quantise import BEAM, LEARNING_BEAM, Codebook, Quantiser, Told
from voicewire.engines.net.codec_source import LAGS, NOISE_HOPS, Salience, Source, lag_octaves
from voicewire.engines.net.spectrum import stft


def random_input(*shape: int) -> np.ndarray:
    return (0.02 * np.random.default_rng(1).standard_normal(shape)).astype(np.float32)


@pytest.fixture(scope="module")
def codec() -> Codec:
    return tried_codec()


@pytest.mark.parametrize("module", [ConvBlock(8, 4), Stack(8, 3, 2)], ids=["ConvBlock", "Stack"])
def test_parts_keep_the_contract(module: torch.nn.Module) -> None:
    verify_contract(TorchSteps(module), random_input(3, 30, 8))


def test_codec_keeps_the_contract(codec: Codec) -> None:
    x = random_input(3, 60, 160, 2)
    verify_contract(TorchSteps(codec), x)
    verify_contract(TorchSteps(codec.decoder), random_input(3, 30, 2 * SMALL.dim))


def test_encoder_streams_the_same_tokens(codec: Codec) -> None:
    x = torch.from_numpy(random_input(3, 60, 160, 2))
    state, rows = codec.encoder.init_state(3), []
    with torch.no_grad():
        whole = codec.encoder(x)
        for t in range(0, 60, 2):
            tokens, state = codec.encoder.step(x[:, t : t + 2], state)
            rows.append(tokens)
        assert torch.equal(torch.cat(rows, 1), whole)
        assert whole.shape == (3, 30, SMALL.streams) and whole.min() >= 0 and whole.max() < SMALL.codes
        assert len(whole.unique()) > 20, "the test says nothing: tokens hardly differ"
        assert torch.equal(codec.encoder(x[:, :40]), whole[:, :20]), "the future changed a token"


def test_default_codec_keeps_the_contract() -> None:
    torch.manual_seed(0)
    verify_contract(TorchSteps(Codec(CodecConfig())), random_input(3, 16, 160, 2))


def test_nothing_goes_round_the_quantiser(codec: Codec) -> None:
    """Another input that falls on the same tokens gives the same sound, bit for bit; and no gradient reaches the input without straight-through."""
    x = torch.from_numpy(random_input(1, 60, 160, 2))
    with torch.no_grad():
        for size in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
            other = x * (1 + size * torch.randn_like(x))
            if torch.equal(codec.encoder(other), codec.encoder(x)):
                break
        assert not torch.equal(other, x) and torch.equal(codec.encoder(other), codec.encoder(x))
        assert not torch.equal(codec.encoder.features(other)[0], codec.encoder.features(x)[0])
        assert torch.equal(codec(other), codec(x))
    moving = x.clone().requires_grad_()
    assert codec.encoder.features(moving)[0].requires_grad
    y = codec(moving)
    if y.requires_grad:  # the decoder's own weights take gradients; the input must not
        assert torch.autograd.grad(y.sum(), moving, allow_unused=True)[0] is None
    tokens = codec.encoder(x)
    with torch.no_grad():
        for stream in range(SMALL.streams):
            changed = tokens.clone()
            changed[:, 10:, stream] = (changed[:, 10:, stream] + 1) % SMALL.codes
            a, b = codec.decoder(codec.vectors(tokens)), codec.decoder(codec.vectors(changed))
            assert torch.equal(a[:, :20], b[:, :20]) and not torch.allclose(a[:, 20:], b[:, 20:]), f"stream {stream} is not heard"


def test_a_token_not_sent_adds_nothing(codec: Codec) -> None:
    q = codec.encoder.acoustic_vq
    index = torch.tensor([[[3, 5, 7]]])
    less = torch.tensor([[[3, -1, -1]]])
    torch.testing.assert_close(q.decode(less), q.widen(q._books()[0].codes[3])[None, None])
    assert not torch.equal(q.decode(index), q.decode(less))


def taught() -> tuple[Quantiser, torch.Tensor]:
    """A quantiser after thirty steps, and what it has seen: [4, 50, 16]."""
    torch.manual_seed(1)
    q = Quantiser(16, 8, 32, 3)
    x = torch.randn(4, 50, 16)
    for _ in range(30):
        q.train_step(x, torch.full((4,), 3))
    return q, x


def test_training_and_running_quantise_alike() -> None:
    q, x = taught()
    before = [b.codes.clone() for b in q._books()]
    assert all(torch.isfinite(b).all() for b in before)
    trained, found, _, z = q.train_step(x, torch.tensor([3, 3, 1, 0]))
    for new, old in zip(q._books(), before, strict=True):
        new.codes.copy_(old)  # as they were searched
    assert torch.equal(q.encode(z, LEARNING_BEAM), found)
    torch.testing.assert_close(trained[0], q.decode(found)[0])
    torch.testing.assert_close(trained[3], q.widen.bias.expand(50, 16))


def test_the_beam_comes_closer() -> None:
    q, x = taught()
    z = q.project(x).detach()
    rest, greedy = z, torch.zeros_like(z)
    for book in q._books():
        code = book.look_up(book.search(rest))
        rest, greedy = rest - code, greedy + code
    few, many = (float((z - q.summed(q.encode(z, n))).square().mean()) for n in (LEARNING_BEAM, BEAM))
    assert many < few < 0.99 * float((z - greedy).square().mean())


def test_each_layer_comes_closer() -> None:
    torch.manual_seed(1)
    q = Quantiser(16, 8, 64, 3)
    x = torch.randn(8, 200, 16)
    for _ in range(60):
        q.train_step(x, torch.full((8,), 3))
    index, wanted, errors = q.encode(q.project(x)), q.widen(q.project(x)), []
    for layers in (0, 1, 2, 3):
        cut = torch.where(torch.arange(3) < layers, index, -1)
        errors.append(float((q.decode(cut) - wanted).square().mean().detach()))
    assert errors == sorted(errors, reverse=True) and errors[3] < 0.5 * errors[0]


def test_a_token_tells_the_mean_of_what_came_with_it() -> None:
    torch.manual_seed(1)
    told, index = Told(8, 3), torch.arange(600) % 6
    centres = torch.randn(6, 3)
    for _ in range(20):
        z = centres[index] + 0.1 * torch.randn(600, 3)
        told.learn(z, index)
    torch.testing.assert_close(told(torch.arange(6)[:, None]), centres, atol=0.02, rtol=0)
    assert torch.equal(told(torch.tensor([[6], [7]])), torch.zeros(2, 3)), "nothing is known of what was never seen"
    torch.testing.assert_close(told(torch.tensor([[-1]]))[0], centres.mean(0), atol=0.02, rtol=0)
    for _ in range(1200):
        told.learn(torch.ones(1, 3), torch.tensor([2]))
    torch.testing.assert_close(told(torch.tensor([[2]]))[0], torch.ones(3), atol=0.1, rtol=0)
    torch.testing.assert_close(told(torch.tensor([[3]]))[0], centres[3], atol=0.02, rtol=0)


def test_weighing_changes_the_searches_alone(codec: Codec) -> None:
    x = torch.from_numpy(random_input(2, 60, 160, 2))
    weighed = tried_codec()
    tokens = weighed.encoder(x)
    before = weighed.decoder(weighed.vectors(tokens))
    g = torch.randn(500, SMALL.code_dim) * torch.linspace(0.2, 3, SMALL.code_dim)
    weighed.encoder.weigh(g.t() @ g)
    torch.testing.assert_close(weighed.decoder(weighed.vectors(tokens)), before, atol=1e-4, rtol=1e-3)
    q = weighed.encoder.acoustic_vq
    acoustic = weighed.encoder.features(x)[0]
    z, old = q.project(acoustic), codec.encoder.acoustic_vq.project(codec.encoder.features(x)[0])
    torch.testing.assert_close(torch.linalg.solve(q.metric, z, left=False), old, atol=1e-4, rtol=1e-3)
    error, plain = (z.var(1).mean(0), old.var(1).mean(0))
    assert error[SMALL.code_dim - 1] / plain[SMALL.code_dim - 1] > 2 * error[0] / plain[0], "what matters more is coded more finely"
    torch.testing.assert_close(z[..., -1], old[..., -1])
    assert not torch.equal(weighed.encoder(x), tokens)


def test_dead_codes_start_again() -> None:
    torch.manual_seed(1)
    book = Codebook(32, 4)
    z = torch.randn(400, 4)
    for _ in range(5):
        book.learn(z, book.search(z))
    book.codes[:16] = 1e3  # far from everything
    book.count[:16] = 0
    for _ in range(40):
        book.learn(z, book.search(z))
    assert len(book.search(z).unique()) > 28


def test_centred_phases_are_smooth() -> None:
    """A click in the middle of the window has the same phase in all bins."""
    x = torch.zeros(320)
    x[160] = 1
    spec = centred(torch.view_as_real(torch.fft.rfft(x))[:160])
    torch.testing.assert_close(spec, torch.tensor([1.0, 0.0]).expand(160, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(centred(centred(spec)), spec)


def test_pulses_are_what_the_stft_sees() -> None:
    """The spectrum of a drawn pulse train, whose pulses fall on samples, is the one that is made; and phases run on."""
    hz = 125.0  # 128 samples
    x = torch.zeros(1, 16000)
    x[0, 128::128] = 1
    seen = centred(stft(x, 160)[0, :, :160])
    made = Source()(torch.full((1, 100), hz))[0, :, 0]
    scale = (0.01 * hz) ** 0.5 * 160
    torch.testing.assert_close(made[2:90] * scale, 160 * seen[3:91] * scale / (0.01 * hz) ** 0.5, atol=5e-2, rtol=0)


def test_noise_is_white_and_goes_round() -> None:
    source = Source().eval()
    y = source(torch.full((2, 2 * NOISE_HOPS), 100.0))[:, :, 1]
    torch.testing.assert_close(y[:, :NOISE_HOPS], y[:, NOISE_HOPS:])
    power = y[0, :NOISE_HOPS].square().sum(-1).mean(0)
    assert power[2:].mean() == pytest.approx(1, abs=0.02) and power[2:].min() > 0.7 and power[2:].max() < 1.4


def test_salience_peaks_at_the_pitch() -> None:
    salience = Salience()
    candidates = 2.0 ** lag_octaves()
    for hz in (70.0, 100.0, 160.0, 250.0, 380.0):
        turns = hz * torch.arange(16000) / 16000
        x = torch.stack([torch.cos(2 * torch.pi * k * turns) for k in range(1, 9)]).sum(0)
        hops = centred(stft(0.1 * x[None], 160)[:, 40:44, :160])[:, None]
        c = salience(hops).view(6, LAGS)
        apart = 1000 / hz  # ms; the pair that compares best at this period
        pair = 3 if apart < 5 else 4 if apart < 14 else 5
        near = (candidates / hz).log2().abs() < 0.3
        assert candidates[near][c[pair, near].argmax()].item() == pytest.approx(hz, rel=0.03), hz


def test_settings_are_checked() -> None:
    for values, complaint in (({"codes": 1000}, "power of two"), ({"layers": 0}, "at least 1"), ({"dims": 3}, "dims")):
        with pytest.raises(ValueError, match=complaint):
            CodecConfig.from_dict(values)
    assert CodecConfig.from_dict(SMALL.to_dict()) == SMALL
    assert isinstance(Encoder(SMALL).step_size, int) and CodecConfig().streams * CodecConfig().bits * 50 == 2500
