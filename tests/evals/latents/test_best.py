"""What is kept of a stream is what sorting the whole of it would keep."""

import pytest
import torch

from sae_kit.evals.latents.best import MAX_KEPT, Best
from sae_kit.evals.latents.firings import Firings

N_POS = 8


def code(n_rows=64, d_sae=6):
    generator = torch.Generator().manual_seed(3)
    # Rounded, so that there are equal values.
    dense = (torch.rand(n_rows, d_sae, generator=generator) * 8).round() / 8
    return dense.where(torch.rand(n_rows, d_sae, generator=generator) < 0.5, 0.0)


def streamed(dense, batch_rows, *, m=3):
    best = Best(dense.shape[1], m, n_before=2, n_after=1)
    places = torch.arange(len(dense))
    for x, at in zip(dense.split(batch_rows), places.split(batch_rows), strict=True):
        firings = Firings.of(x, at, N_POS)
        best.update(firings.latent, firings.value, torch.arange(len(firings.latent)), firings)
    return best


@pytest.mark.parametrize("batch_rows", [8, 16, 64])
def test_the_best_of_a_stream_are_the_best_of_all(batch_rows):
    dense = code()
    best = streamed(dense, batch_rows)
    for latent in range(dense.shape[1]):
        ranked = sorted(range(len(dense)), key=lambda at: (-dense[at, latent].item(), at))[:3]
        assert best.place[latent].tolist() == ranked
        assert torch.equal(best.score[latent], dense[ranked, latent])
        assert torch.equal(best.acts[latent, :, 2].float(), dense[ranked, latent])


def test_activations_around_come_along():
    dense = code()
    best = streamed(dense, 16)
    for latent in range(dense.shape[1]):
        for place, acts in zip(best.place[latent].tolist(), best.acts[latent], strict=True):
            start = place // N_POS * N_POS
            expected = [
                dense[at, latent].item() if start <= at < start + N_POS else 0.0
                for at in range(place - 2, place + 2)
            ]
            assert acts.tolist() == expected


def test_places_not_in_use_are_marked():
    dense = torch.zeros(8, 2)
    dense[5, 1] = 1.0
    best = streamed(dense, 8)
    assert best.place.tolist() == [[-1, -1, -1], [5, -1, -1]]
    assert best.score[1].tolist() == [1.0, -torch.inf, -torch.inf]


def test_what_half_precision_cannot_hold_is_kept_as_its_largest_number():
    dense = torch.full((1, 1), 1e6)
    best = streamed(dense, 1)
    assert best.acts[0, 0, 2] == MAX_KEPT
    assert best.score[0, 0] == 1e6


def test_pairs_of_groups_merge_into_the_best_of_both():
    dense = code(d_sae=8)
    apart, best = streamed(dense, 64), streamed(dense, 64)
    best.merge_pairs(torch.tensor([1]), 4)  # latents 4 to 7: 4 and 5 into 4, 6 and 7 into 5
    assert torch.equal(best.place[:4], apart.place[:4])
    for into, pair in ((4, (4, 5)), (5, (6, 7))):
        together = torch.cat([apart.score[one] for one in pair]).sort(descending=True).values[:3]
        assert torch.equal(best.score[into], together)
        assert set(best.place[into].tolist()) <= {
            place for one in pair for place in apart.place[one].tolist()
        }
    assert (best.place[6:] == -1).all()
    assert not best.acts[6:].any()
