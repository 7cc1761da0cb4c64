"""What each ablation leaves, and what it is deterministic in."""

import pytest
import torch
from torch import Tensor

from sae_kit.evals.shared.ablations import ABLATIONS, NOISE, check_ablation

N = 50


def draw(seed: int) -> Tensor:
    return torch.randn(N, 4, 6, generator=torch.Generator().manual_seed(seed))


CLEAN, CORRUPT = draw(0), draw(1) + 3.0


def ablate(word: str, *, what: str = "here", seed: int = 0) -> Tensor:
    return ABLATIONS[word](N, seed=seed).of(what, CLEAN, CORRUPT)


def test_what_each_puts_in_its_place() -> None:
    assert torch.equal(ablate("corrupt"), CORRUPT)
    assert torch.equal(ablate("zero"), torch.zeros_like(CLEAN))
    mean = ablate("mean")
    assert mean.shape == CLEAN.shape
    torch.testing.assert_close(mean[3], CORRUPT.mean(0))


def test_resampled_is_another_pairs_and_the_same_everywhere() -> None:
    found = ablate("resample")
    same = (found[:, None] == CLEAN[None]).flatten(2).all(-1)  # [gets, from]
    assert torch.equal(same.sum(0), torch.ones(N, dtype=torch.long))
    assert torch.equal(same.sum(1), torch.ones(N, dtype=torch.long))
    assert not same.diagonal().any()
    assert torch.equal(found, ablate("resample", what="there"))
    assert not torch.equal(found, ablate("resample", seed=1))


def test_noise_has_the_size_of_the_spread_and_is_new_for_each_site() -> None:
    noise = ablate("gaussian") - CLEAN
    ratio = noise.std() / (NOISE * CLEAN.std(0)).square().mean().sqrt()
    assert ratio == pytest.approx(1.0, abs=0.1)
    assert torch.equal(ablate("gaussian"), ablate("gaussian"))
    assert not torch.equal(ablate("gaussian"), ablate("gaussian", what="there"))
    alike = ABLATIONS["gaussian"](N, seed=0).of("here", CLEAN[:1].expand_as(CLEAN), CORRUPT)
    assert torch.equal(alike[5], CLEAN[0])


def test_one_pair_has_no_others() -> None:
    for word in ("resample", "gaussian"):
        with pytest.raises(ValueError, match=r"n_pairs: 1, and .* give 2 or more"):
            ABLATIONS[word](1, seed=0)
    assert torch.equal(ABLATIONS["mean"](1, seed=0).of("x", CLEAN[:1], CORRUPT[:1]), CORRUPT[:1])


def test_words_are_checked() -> None:
    check_ablation("mean")
    with pytest.raises(ValueError, match="'resampled' is unknown; give resample"):
        check_ablation("resampled")
