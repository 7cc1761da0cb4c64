"""Silence and frequency of latents, counted by hand; sparse and dense codes count alike."""

import pytest
import torch
from torch.testing import assert_close

from sae_kit.sae.code import SparseCode
from sae_kit.train.firing import Firing

CODES = [
    torch.tensor([[1.0, 0.0, 0.0, 2.0], [1.0, 0.0, 0.0, 0.0]]),
    torch.tensor([[0.0, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0]]),
]


@pytest.fixture(params=["dense", "sparse"])
def codes(request):
    return CODES if request.param == "dense" else [SparseCode.from_dense(c) for c in CODES]


def noted(codes, counts=(True, True)) -> Firing:
    firing = Firing(4, torch.device("cpu"))
    for code, count in zip(codes, counts, strict=True):
        firing.note(code, count=count)
    return firing


def test_silence_is_counted_in_rows(codes):
    """Latent 3 fired in the first batch of 2 rows, then not for 3 rows; latent 2 never."""
    firing = noted(codes)
    assert firing.n_since.tolist() == [0, 0, 5, 3]
    assert firing.dead(4).tolist() == [False, False, True, False]
    assert firing.dead(3).tolist() == [False, False, True, True]
    assert firing.dead(6).tolist() == [False] * 4


def test_frequency_is_a_share_of_the_counted_rows(codes):
    assert_close(noted(codes).frequency(), torch.tensor([3, 1, 0, 1]) / 5)
    assert_close(noted(codes, (False, True)).frequency(), torch.tensor([1, 1, 0, 0]) / 3)
    assert noted(codes, (False, False)).frequency().tolist() == [0.0] * 4


def test_the_state_goes_on(codes):
    whole = noted(codes)
    half = noted(codes[:1], (True,))
    other = Firing(4, torch.device("cpu"))
    other.load_state_dict(half.state_dict())
    other.note(codes[1], count=True)
    assert torch.equal(other.n_since, whole.n_since)
    assert torch.equal(other.frequency(), whole.frequency())


def test_a_loaded_state_is_a_copy(codes):
    one, other = noted(codes), Firing(4, torch.device("cpu"))
    other.load_state_dict(one.state_dict())
    other.note(codes[0], count=True)
    assert one.n_since.tolist() == [0, 0, 5, 3]
