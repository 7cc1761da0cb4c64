import pytest
import torch
from torch.testing import assert_close

from sae_kit.sae import Moment, SparseCode
from sae_kit.sae.batch_topk import BatchTopKConfig

END = Moment(1, 1)


def build(d_in=8, d_out=None, *, seed=0, **fields):
    config = BatchTopKConfig(
        **{"d_sae": 48, "k": 3, "apply_b_dec_to_input": d_out is None, **fields}
    )
    sae = config.build(d_in, d_out, generator=torch.Generator().manual_seed(seed)).double()
    with torch.no_grad():
        for i, parameter in enumerate(sae.parameters()):
            parameter.add_(draw(*parameter.shape, seed=i), alpha=0.1)
    return sae


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("fields", [{}, {"d_out": 5}, {"d_out": 5, "skip": True}])
def test_training_pass_and_gradients_are_those_of_dense_matrices(fields):
    """Code, reconstruction, loss, and its gradients in every parameter and the input."""
    sae, x = build(**fields), draw(50, 8, seed=40).requires_grad_()
    target = draw(50, sae.d_out, seed=41)
    inputs = (x, *sae.parameters())

    pre = ((x - sae.b_dec if sae.d_out == 8 else x) @ sae.W_enc + sae.b_enc).relu()
    code = torch.where(pre >= pre.flatten().topk(150).values.min(), pre, 0.0)
    recon = code @ sae.W_dec + sae.b_dec + (x @ sae.W_skip.T if sae.config.skip else 0)
    loss = (recon - target).square().sum() / 50
    expected = torch.autograd.grad(loss, inputs)

    out = sae.forward_train(x, END)
    assert isinstance(out.code, SparseCode)
    assert_close(out.code.dense(), code)
    assert_close(out.recon, recon)
    losses = sae.losses(x, target, out, at=END, dead=torch.zeros(48, dtype=torch.bool))
    assert_close(losses.total, loss)
    for own, theirs in zip(torch.autograd.grad(losses.total, inputs), expected, strict=True):
        assert_close(own, theirs)


def test_a_row_may_take_what_others_leave():
    sae, x = build(d_sae=96), draw(50, 8)
    x[0] *= 3
    code = sae.forward_train(x, END).code
    assert isinstance(code, SparseCode)
    assert code.l0().sum() == 150
    assert code.l0()[0] > 6


def test_with_the_whole_dictionary_it_is_a_relu_sae():
    sae, x = build(k=48), draw(50, 8)
    sae.b_enc.data.fill_(-0.5)
    code = sae.forward_train(x, END).code
    dense = code.dense() if isinstance(code, SparseCode) else code
    assert_close(dense, ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).relu())
    assert_close(sae.encode(x), dense)
