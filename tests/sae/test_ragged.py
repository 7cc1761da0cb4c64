import pytest
import torch
from torch.testing import assert_close

from sae_kit.sae import SparseCode, ragged
from sae_kit.sae.ragged import Pairs

ROWS, D_IN, D_SAE = 6, 5, 30


def draw(*shape, seed=0):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).requires_grad_()


def mask(share=0.15):
    """Rows of very different numbers of pairs: the second has none, the third all but one latent
    in four.
    """
    chosen = draw(ROWS, D_SAE, seed=1).sigmoid() < share + 0.2
    chosen[1] = False
    chosen[2] = torch.arange(D_SAE) % 4 > 2
    return chosen


def test_pairs_are_the_places_of_the_mask():
    chosen = mask()
    pairs = Pairs.of(chosen)
    assert chosen[pairs.rows, pairs.latents].all()
    assert len(pairs.rows) == chosen.sum()
    assert torch.equal(pairs.first.diff(), chosen.sum(-1))
    order, first = pairs.by_latent
    assert torch.equal(first.diff(), chosen.sum(0))
    assert torch.equal(pairs.latents[order], pairs.latents.sort().values)
    some = torch.tensor([0, 3, 7])
    assert torch.equal(pairs.take(some).latents, pairs.latents[some])


@pytest.mark.parametrize("chosen", [mask(), torch.zeros(ROWS, D_SAE, dtype=torch.bool)])
def test_values_and_gradients_are_those_of_the_dense_algebra(chosen):
    """Encoding and decoding, in every input, against autograd over matrices."""
    x, encoder_rows, b_enc = draw(ROWS, D_IN), draw(D_SAE, D_IN, seed=2), draw(D_SAE, seed=3)
    W_dec, weight = draw(D_SAE, 4, seed=4), draw(ROWS, 4, seed=5).detach()
    inputs = (x, encoder_rows, b_enc, W_dec)

    dense = torch.where(chosen, x @ encoder_rows.T + b_enc, 0.0)
    recon = dense @ W_dec
    expected = torch.autograd.grad((recon * weight).sum(), inputs)

    pairs = Pairs.of(chosen)
    known = ragged.scores(x, encoder_rows, b_enc, pairs)
    assert_close(known, dense.detach()[pairs.rows, pairs.latents])
    values = ragged.pre_activations(x, encoder_rows, b_enc, pairs, known)
    again = ragged.decode(values, pairs, W_dec)
    assert_close(again, recon)
    grads = torch.autograd.grad((again * weight).sum(), inputs)
    for own, theirs in zip(grads, expected, strict=True):
        assert_close(own, theirs)


def test_no_gradient_is_computed_that_nobody_wants():
    chosen, W_dec = Pairs.of(mask()), draw(D_SAE, 4)
    values = torch.ones(len(chosen.rows), dtype=torch.float64)
    ragged.decode(values, chosen, W_dec).sum().backward()
    assert values.grad is None
    assert W_dec.grad is not None


@pytest.mark.parametrize("fullest", [1, 9, 10, 11, D_SAE])
def test_code_is_padded_or_a_matrix_whichever_is_smaller(fullest):
    chosen = torch.zeros(3, D_SAE, dtype=torch.bool)
    chosen[0, 1] = True
    chosen[2, D_SAE - fullest :] = True
    pairs = Pairs.of(chosen)
    values = torch.arange(1.0, len(pairs.rows) + 1, requires_grad=True)
    code = ragged.as_code(values, pairs)
    if fullest <= D_SAE // 3:
        assert isinstance(code, SparseCode)
        assert code.values.shape == (3, fullest)
        assert torch.equal(code.l0(), chosen.sum(-1))
        code = code.dense()
    expected = torch.zeros(3, D_SAE)
    expected[chosen] = values.detach()
    assert torch.equal(code, expected)
    (code * torch.arange(float(D_SAE))).sum().backward()
    assert torch.equal(values.grad, pairs.latents.float())


def test_padding_hides_no_latent():
    """Places not in use name latent 0, which the row has active as well."""
    chosen = torch.zeros(2, D_SAE, dtype=torch.bool)
    chosen[0, 0], chosen[1, 4:8] = True, True
    code = ragged.as_code(torch.full((5,), 2.0), Pairs.of(chosen))
    assert torch.equal(code.dense(), torch.where(chosen, 2.0, 0.0))
    assert torch.equal(code.select(torch.tensor([0, 5])), torch.tensor([[2.0, 0.0], [0.0, 2.0]]))


def test_code_of_no_rows():
    code = ragged.as_code(torch.zeros(0), Pairs.of(torch.zeros(0, D_SAE, dtype=torch.bool)))
    assert code.dense().shape == (0, D_SAE)
