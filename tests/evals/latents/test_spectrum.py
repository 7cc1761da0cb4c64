"""Histograms and samples in one pass, held against those of all activations at once."""

import pytest
import torch
from torch.testing import assert_close

from sae_kit.evals.latents.firings import Firings
from sae_kit.evals.latents.spectrum import N_BINS, N_RANGES, Spectrum

N_POS, N_ROWS, D_SAE = 8, 256, 5


def code():
    """Of very different sizes, growing with the text, so that bins have to be joined."""
    generator = torch.Generator().manual_seed(2)
    dense = torch.rand(N_ROWS, D_SAE, generator=generator)
    dense *= torch.logspace(-3, 1, N_ROWS)[:, None] * torch.tensor([1.0, 10, 0.1, 300, 1])
    dense = dense.where(torch.rand(N_ROWS, D_SAE, generator=generator) < 0.6, 0.0)
    dense[:, 4] = 0.0
    return dense


def scores():
    return torch.randperm(N_ROWS, generator=torch.Generator().manual_seed(7)).float()


def streamed(dense, batch_rows):
    spectrum = Spectrum(D_SAE, scores(), n_samples=2, n_before=1, n_after=1)
    places = torch.arange(N_ROWS)
    for x, at in zip(dense.split(batch_rows), places.split(batch_rows), strict=True):
        spectrum.update(Firings.of(x, at, N_POS))
    return spectrum


@pytest.fixture(scope="module", params=[8, 64, 256])
def spectrum(request):
    return streamed(code(), request.param)


def test_the_largest_activation_lies_in_the_upper_half_of_the_bins(spectrum):
    largest = code().amax(0)
    assert torch.equal(spectrum.largest, largest)
    bins = largest[:4] / spectrum.widths[:4]
    assert ((bins >= N_BINS / 2) & (bins < N_BINS)).all()
    assert torch.equal(spectrum.widths.log2(), spectrum.widths.log2().round())


def test_counts_are_those_of_a_histogram_of_all_activations(spectrum):
    dense = code()
    for latent in range(D_SAE):
        active = dense[:, latent][dense[:, latent] > 0]
        bins = (active / spectrum.widths[latent]).long()
        assert torch.equal(spectrum.counts[latent], bins.bincount(minlength=N_BINS))
    assert_close(spectrum.sum, dense.double().sum(0))


def test_samples_are_the_places_of_highest_score_in_each_range(spectrum):
    dense, drawn = code(), scores()
    place = spectrum.samples.place.view(D_SAE, N_RANGES, 2)
    for latent in range(D_SAE):
        ranges = (dense[:, latent] / spectrum.widths[latent]).long() // (N_BINS // N_RANGES)
        for number in range(N_RANGES):
            inside = ((ranges == number) & (dense[:, latent] > 0)).nonzero().flatten()
            best = inside[drawn[inside].argsort(descending=True)][:2].tolist()
            assert place[latent, number].tolist() == best + [-1] * (2 - len(best))


def test_a_sample_is_uniform_over_the_firings_of_its_range():
    """Equal activations everywhere: over many draws, each place is kept equally often."""
    dense = torch.zeros(N_ROWS, D_SAE)
    dense[:, 0] = 1.0
    n_draws, kept = 200, torch.zeros(N_ROWS)
    for seed in range(n_draws):
        drawn = torch.randperm(N_ROWS, generator=torch.Generator().manual_seed(seed)).float()
        spectrum = Spectrum(D_SAE, drawn, n_samples=16, n_before=0, n_after=0)
        spectrum.update(Firings.of(dense, torch.arange(N_ROWS), N_POS))
        places = spectrum.samples.place[:N_RANGES]
        kept[places[places >= 0].long()] += 1
    expected = n_draws * 16 / N_ROWS
    # Hypergeometric: the spread of a place's count is about the root of its mean.
    assert ((kept - expected).square() / expected).mean() == pytest.approx(1.0, abs=0.3)
