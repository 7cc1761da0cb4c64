"""JumpReLU: the formulas of the straight-through estimators, and that L0 reaches its target."""

import pytest
import torch
from torch.testing import assert_close

from sae_kit.sae import Moment, active
from sae_kit.sae.jumprelu import LIFT, JumpReLUConfig

END = Moment(10, 10)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def build(d_in=5, d_sae=12, dtype=torch.float64, **fields):
    config = JumpReLUConfig(d_sae=d_sae, **fields)
    sae = config.build(d_in, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.no_grad():
        sae.threshold.copy_(0.3 + 0.2 * draw(d_sae, seed=1).abs())
        sae.b_enc.copy_(0.1 * draw(d_sae, seed=2))
    return sae


def losses(sae, x, target, dead=None):
    dead = torch.zeros(sae.d_sae, dtype=torch.bool) if dead is None else dead
    return sae.losses(x, target, sae.forward_train(x, END), at=END, dead=dead)


def test_code_is_the_pre_activation_above_the_threshold():
    sae, x = build(), draw(40, 5)
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    assert_close(sae.encode(x), pre * (pre > sae.threshold))
    assert sae.encode(x).any()


@pytest.mark.parametrize("dense_from", [0.0, 1.0], ids=["matrix", "list"])
@pytest.mark.parametrize("width", [0.25, 2.0], ids=["narrow", "reaching below zero"])
def test_gradients_equal_the_papers_formulas(monkeypatch, dense_from, width):
    monkeypatch.setattr(active, "DENSE_FROM", dense_from)
    sae = build(bandwidth=width, target_l0=2.0, l0_coefficient=0.5)
    x, target = draw(40, 5), draw(40, 5, seed=1)
    losses(sae, x, target).total.backward()

    pre = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).detach()
    t = sae.threshold.detach()
    above, near = (pre > t).double(), ((pre - t).abs() < width / 2).double() / width
    near *= pre > 0  # as if the rectangle ended at 0
    recon = (pre * above) @ sae.W_dec + sae.b_dec
    to_code = 2 * (recon - target) @ sae.W_dec.T / 40
    l0 = above.sum() / 40
    to_active = 0.5 * 5 * 2 * (l0 / 2.0 - 1) / 2.0 / 40
    assert near.any()
    assert_close(sae.threshold.grad, -(near * (t * to_code + to_active)).sum(0).detach())
    to_pre = (to_code * above).detach()
    assert_close(sae.encoder_rows.grad, to_pre.T @ (x - sae.b_dec.detach()))
    assert_close(sae.b_enc.grad, to_pre.sum(0))


def test_the_penalty_by_hand():
    sae, x = build(target_l0=3.0, l0_coefficient=0.1), draw(40, 5)
    l0 = (sae.encode(x) != 0).double().sum() / 40
    expected = 0.1 * 5 * (l0 / 3.0 - 1) ** 2
    assert_close(losses(sae, x, x).terms["l0"], expected)


def test_dead_latents_are_lifted_by_their_biases_alone():
    sae, x, dead = build(), draw(40, 5), torch.arange(12) < 3
    with torch.no_grad():
        sae.b_enc[dead] = -100.0  # out of reach of every other gradient
    losses(sae, x, x, dead).total.backward()
    assert_close(sae.b_enc.grad[dead], torch.full((3,), -LIFT, dtype=torch.float64))
    assert not sae.encoder_rows.grad[dead].any()
    assert not sae.threshold.grad[dead].any()
    with_dead = sae.b_enc.grad.clone()
    sae.zero_grad()
    losses(sae, x, x).total.backward()
    assert_close(sae.b_enc.grad[~dead], with_dead[~dead])
    assert not sae.b_enc.grad[dead].any()


def test_without_the_auxiliary_loss_nothing_is_lifted():
    sae, x = build(aux_coefficient=0.0), draw(40, 5)
    assert losses(sae, x, x, torch.ones(12, dtype=torch.bool)).terms.keys() == {"mse", "l0"}


@pytest.mark.slow
def test_training_reaches_the_target_from_either_side():
    features = torch.nn.functional.normalize(draw(48, 32, dtype=torch.float32))
    chosen = torch.rand(2048, 48, generator=torch.Generator().manual_seed(1)).topk(4).indices
    x = torch.zeros(2048, 48).scatter(1, chosen, 1.0) @ features
    x = x * 32**0.5 / x.norm(dim=-1).mean()
    for target in (4.0, 8.0):
        config = JumpReLUConfig(d_sae=64, target_l0=target, l0_coefficient=2.0)
        sae = config.build(32, generator=torch.Generator().manual_seed(1))
        sae.init_from(x, x)
        optimiser = torch.optim.Adam(sae.parameters(), lr=5e-3)
        for _ in range(400):
            optimiser.zero_grad()
            losses(sae, x, x).total.backward()
            sae.after_backward()
            optimiser.step()
            sae.after_step()
        l0 = float(sae.encode_sparse(x).l0().double().mean())
        assert l0 == pytest.approx(target, rel=0.25)


def test_a_negative_threshold_counts_as_zero():
    sae, x = build(), draw(40, 5)
    with torch.no_grad():
        sae.threshold.fill_(-1.0)
    assert (sae.encode(x) >= 0).all()
    assert (sae.inference().weights["threshold"] == 0).all()


@pytest.mark.parametrize(
    ("field", "value"), [("target_l0", 0.0), ("l0_coefficient", -1.0), ("bandwidth", 0.0)]
)
def test_bad_fields_are_named(field, value):
    with pytest.raises(ValueError, match=f"^{field}: {value}"):
        JumpReLUConfig(**{field: value})
