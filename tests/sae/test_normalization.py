import math

import pytest
import torch
from torch.testing import assert_close

from sae_kit.sae.normalization import NORMALIZATIONS, denormalise, normalise
from sae_kit.sae.relu import ReLUConfig
from sae_kit.sae.topk import TopKConfig


def rows(n=9, d=6, seed=0):
    return 3 + 5 * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_layer_norm_divides_by_the_unbiased_deviation_and_its_eps():
    """The convention of OpenAI's code and of SAELens; the biased one is off by sqrt(3 / 2) here."""
    x = torch.tensor([[1.0, 2.0, 6.0]])  # mean 3, squares 4 + 1 + 9 over 2
    std = math.sqrt(7)
    assert_close(normalise("layer_norm", x), torch.tensor([[-2.0, -1.0, 3.0]]) / (std + 1e-5))
    # Back without the eps.
    assert_close(denormalise("layer_norm", torch.ones(1, 3), x), torch.full((1, 3), 3 + std))


def test_constant_norm_makes_every_norm_the_root_of_the_width():
    x = rows()
    norms = normalise("constant_norm_rescale", x).norm(dim=-1)
    assert_close(norms, torch.full((9,), math.sqrt(6)))


@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_what_is_normalised_comes_back(kind):
    x = rows().double()
    assert_close(denormalise(kind, normalise(kind, x), x), x, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_constant_rows_stay_finite(kind):
    x = torch.zeros(2, 4)
    assert torch.equal(normalise(kind, x), x)
    assert torch.equal(denormalise(kind, x, x), x)


@pytest.mark.parametrize("kind", ["layer_norm", "constant_norm_rescale"])
def test_an_sae_normalises_before_it_reads_and_undoes_it_on_what_it_writes(kind):
    sae = TopKConfig(d_sae=12, k=3).build(6, generator=torch.Generator().manual_seed(0))
    x = rows()
    plain, plain_out = sae.encode(normalise(kind, x)), sae(normalise(kind, x))
    sae.normalization = kind
    assert torch.equal(sae.encode(x), plain)
    assert torch.equal(sae.encode_sparse(x).dense(), plain)
    assert_close(sae(x), denormalise(kind, plain_out, x))
    assert_close(sae.reconstruct(x, sae.encode(x)), sae(x))
    # A code does not change when the row is scaled, the output is scaled with it.
    assert_close(sae.encode(2 * x), plain, rtol=1e-4, atol=1e-4)
    assert_close(sae(2 * x), 2 * sae(x), rtol=1e-4, atol=1e-4)


def test_no_scale_can_be_folded_into_what_normalises_anyway():
    sae = ReLUConfig(d_sae=12).build(6, generator=torch.Generator().manual_seed(0))
    sae.normalization = "layer_norm"
    with pytest.raises(ValueError, match=r"normalised \(layer_norm\), so no scale"):
        sae.fold_scales(2.0, 2.0)
