"""The audio encoder: what it keeps, the scale of its latents, and which samples a token depends on."""

import pytest
import torch

from streamchar.codecs.spectrogram import FLOOR, Spectrogram, mel_bank
from streamchar.codecs.vocoder import Vocoder, VocoderError
from streamchar.config.codecs import VocoderConfig

CONFIG = VocoderConfig(dim=16, layers=1, ffn=16, mels=8)
TOKEN = 1000
REACH = TOKEN + CONFIG.n_fft - CONFIG.hop


def vocoder(channels=6):
    torch.manual_seed(0)
    return Vocoder(CONFIG, channels, TOKEN).requires_grad_(False)


def low_rank(rng, rank, examples=400):
    size = CONFIG.mels * TOKEN // CONFIG.hop
    strengths = torch.linspace(3, 0.5, rank, dtype=torch.float64)
    factors = torch.randn(examples, rank, generator=rng, dtype=torch.float64) * strengths
    return factors @ torch.randn(rank, size, generator=rng, dtype=torch.float64) + 5.0


def test_all_variance_is_kept_of_data_of_as_many_dimensions(rng):
    spectrogram, data = Spectrogram(CONFIG, 6, TOKEN), low_rank(rng, 6)
    assert spectrogram.fit(data) == pytest.approx(1.0, abs=1e-9)
    latents = spectrogram.project(data.float()).double()
    # Nothing is lost: the data are a linear map of the latents.
    design = torch.cat((latents, torch.ones(len(latents), 1, dtype=torch.float64)), 1)
    restored = design @ torch.linalg.lstsq(design, data).solution
    assert (restored - data).norm() / data.norm() < 1e-5


def test_the_share_kept_is_that_of_the_leading_components(rng):
    data = torch.randn(2000, CONFIG.mels * 4, generator=rng, dtype=torch.float64)
    data[:, :3] *= 10
    kept = Spectrogram(CONFIG, 3, TOKEN).fit(data)
    variance = torch.linalg.eigvalsh(torch.cov(data.T)).flip(0)
    assert kept == pytest.approx(float(variance[:3].sum() / variance.sum()), rel=1e-9)


def test_latents_have_mean_zero_and_mean_square_one(rng):
    spectrogram, data = Spectrogram(CONFIG, 6, TOKEN), low_rank(rng, 12)
    spectrogram.fit(data)
    latents = spectrogram.project(data.float())
    assert latents.mean(0).abs().max() < 1e-3
    assert latents.square().mean().item() == pytest.approx(1.0, rel=0.01)
    # Loud components stay louder than faint ones, by less than they were.
    spread = latents.std(0)
    variance = torch.linalg.eigvalsh(torch.cov(data.T)).flip(0)[:6]
    torch.testing.assert_close((spread[0] / spread[-1]).double(), (variance[0] / variance[-1]) ** 0.25)


@pytest.mark.parametrize("shape", [(TOKEN,), (1, 2 * TOKEN + 1), (1, 0), (1, 1, TOKEN)], ids=str)
def test_recordings_that_are_no_whole_tokens_are_refused(shape):
    with pytest.raises(VocoderError, match=r"audio must be \[batch, a multiple of 1000\]"):
        vocoder().encode(torch.zeros(shape))


@pytest.mark.parametrize("token", [0, 2, 4])
def test_a_token_depends_on_its_own_windows_alone(token, rng):
    model = vocoder()
    audio = torch.randn(1, 5 * TOKEN, generator=rng) * 0.1
    latents = model.encode(audio)
    first, last = token * TOKEN, min(token * TOKEN + REACH, audio.shape[1])
    outside = audio.clone()
    outside[:, :first] = torch.randn(1, first, generator=rng)
    outside[:, last:] = torch.randn(1, audio.shape[1] - last, generator=rng)
    torch.testing.assert_close(model.encode(outside)[:, token], latents[:, token], rtol=1e-4, atol=1e-5)
    # The window falls to zero at its ends, so a sample near them is heard only when it is loud.
    for sample in (first + 30, last - 31):
        inside = audio.clone()
        inside[:, sample] += 1000.0
        assert (model.encode(inside)[:, token] - latents[:, token]).abs().max() > 0.01


def test_silence_is_the_floor_and_the_end_is_silent():
    model = vocoder()
    silent = model.spectrogram.log_mel(torch.zeros(1, 2 * TOKEN), 24000)
    assert torch.equal(silent, torch.full_like(silent, FLOOR).log())


def test_filters_cover_the_spectrum_and_follow_a_tone():
    bank = mel_bank(CONFIG.mels, CONFIG.n_fft, 24000)
    assert bank.shape == (CONFIG.mels, CONFIG.bins)
    assert (bank[:, 1:-1].sum(0) > 0).all()
    time = torch.arange(4 * TOKEN) / 24000
    loudest = []
    for hertz in (200.0, 1000.0, 4000.0, 9000.0):
        energies = vocoder().spectrogram.log_mel(torch.sin(2 * torch.pi * hertz * time)[None], 24000)
        loudest.append(int(energies[0, 1, : CONFIG.mels].argmax()))
    assert loudest == sorted(set(loudest))


def test_components_point_the_same_way_whatever_the_library_returns(rng, monkeypatch):
    examples = torch.randn((400, 4 * CONFIG.mels), generator=rng)
    eigh, bases = torch.linalg.eigh, []
    for signs in (1, -1):
        monkeypatch.setattr(torch.linalg, "eigh", lambda x, s=signs: (eigh(x)[0], s * eigh(x)[1]))
        spectrogram = Spectrogram(CONFIG, 16, 4 * CONFIG.hop)
        spectrogram.fit(examples)
        bases.append(spectrogram.basis)
    assert torch.equal(*bases)
    assert (bases[0].sum(1) > 0).all()
