"""The list of firings, held against the dense code."""

import pytest
import torch
from torch.testing import assert_close

from sae_kit.evals.latents.firings import Firings
from sae_kit.sae.code import SparseCode

N_POS = 8


def code(n_rows=24, d_sae=10, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand(n_rows, d_sae, generator=generator)
    return dense.where(torch.rand(n_rows, d_sae, generator=generator) < 0.4, 0.0)


PLACES = torch.arange(24)


@pytest.mark.parametrize("sparse", [False, True])
def test_every_activation_is_listed_once_by_latent_then_place(sparse):
    dense = code()
    firings = Firings.of(SparseCode.from_dense(dense) if sparse else dense, PLACES, N_POS)
    back = torch.zeros_like(dense)
    back[firings.place, firings.latent] = firings.value
    assert torch.equal(back, dense)
    keys = firings.latent * 100 + firings.place
    assert (keys.diff() > 0).all()
    assert len(keys) == (dense > 0).sum()


def test_rows_belong_to_the_places_given():
    dense, places = code(n_rows=3), torch.tensor([5, 9, 100])
    firings = Firings.of(dense, places, N_POS)
    assert set(firings.place.tolist()) == {5, 9, 100}
    assert_close(firings.value[firings.place == 9].sum(), dense[1].sum())


def test_parts_join_to_the_list_of_the_whole():
    dense = code()
    whole = Firings.of(dense, PLACES, N_POS)
    parts = [
        Firings.of(x, at, N_POS) for x, at in zip(dense.split(7), PLACES.split(7), strict=True)
    ]
    joined = Firings.joined(parts)
    for name in ("latent", "place", "value"):
        assert torch.equal(getattr(joined, name), getattr(whole, name))


def test_peaks_are_the_maxima_of_contexts():
    dense = code()
    firings = Firings.of(dense, PLACES, N_POS)
    peaks = firings.peaks()
    found = torch.zeros(3, 10)
    found[firings.place[peaks] // N_POS, firings.latent[peaks]] = firings.value[peaks]
    assert torch.equal(found, dense.view(3, N_POS, 10).amax(1))


def test_of_equal_peaks_the_first_counts():
    dense = torch.tensor([[0.0], [2.0], [1.0], [2.0]])
    firings = Firings.of(dense, torch.arange(4), 4)
    assert firings.place[firings.peaks()].tolist() == [1]


def test_around_an_entry_is_its_latent_in_its_context():
    dense = code()
    firings = Firings.of(dense, PLACES, N_POS)
    entries = torch.arange(len(firings.latent))
    window = firings.around(entries, n_before=3, n_after=2)
    for entry, row in zip(entries.tolist(), window, strict=True):
        place, latent = int(firings.place[entry]), int(firings.latent[entry])
        start = place // N_POS * N_POS
        expected = [
            dense[at, latent] if start <= at < start + N_POS else torch.tensor(0.0)
            for at in range(place - 3, place + 3)
        ]
        assert torch.equal(row, torch.stack(expected))


def test_nothing_fires_nowhere():
    firings = Firings.of(torch.zeros(8, 4), torch.arange(8), N_POS)
    assert len(firings.latent) == len(firings.peaks()) == 0
    assert firings.around(firings.peaks(), n_before=1, n_after=1).shape == (0, 3)
