import torch
from torch.testing import assert_close

from sae_kit.sae import Moment
from sae_kit.sae.relu_weighted import WeightedReLUConfig

END = Moment(10, 10)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(**fields):
    config = WeightedReLUConfig(d_sae=12, **fields)
    return config.build(5, generator=torch.Generator().manual_seed(0)).double()


def losses(sae, x):
    dead = torch.zeros(12, dtype=torch.bool)
    return sae.losses(x, x, sae.forward_train(x, END), at=END, dead=dead)


def test_the_penalty_is_weighted_by_the_decoder_norms():
    sae, x = build(l1_coefficient=0.5, l1_warmup=0.0), draw(30, 5)
    with torch.no_grad():
        sae.W_dec.mul_(torch.arange(1.0, 13.0)[:, None])
    code = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).relu()
    expected = 0.5 * (code * sae.W_dec.norm(dim=1)).sum() / 30
    assert_close(losses(sae, x).terms["l1"], expected.detach())


def test_shrinking_the_code_and_growing_the_decoder_gains_nothing():
    sae, x = build(), draw(30, 5)
    before = losses(sae, x).total.detach()
    with torch.no_grad():
        sae.encoder_rows.mul_(0.1)
        sae.b_enc.mul_(0.1)
        sae.W_dec.mul_(10.0)
    assert_close(losses(sae, x).total.detach(), before)


def test_steps_leave_the_decoder_free():
    sae, x = build(), draw(30, 5)
    with torch.no_grad():
        sae.W_dec.mul_(3.0)
    losses(sae, x).total.backward()
    gradient = sae.W_dec.grad.clone()
    sae.after_backward()
    sae.after_step()
    assert torch.equal(sae.W_dec.grad, gradient)
    assert_close(sae.W_dec.norm(dim=1), torch.full((12,), 3.0, dtype=torch.float64))
