import pytest
import torch
from torch.testing import assert_close

from sae_kit.sae import Moment
from sae_kit.sae.p_anneal import FLOOR, PAnnealConfig
from sae_kit.sae.relu import ReLUConfig


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(config, seed=0):
    return config.build(5, generator=torch.Generator().manual_seed(seed)).double()


def losses(sae, x, at):
    dead = torch.zeros(sae.d_sae, dtype=torch.bool)
    return sae.losses(x, x, sae.forward_train(x, at), at=at, dead=dead)


@pytest.mark.parametrize(("step", "p"), [(0, 1.0), (30, 1.0), (65, 0.6), (100, 0.2), (200, 0.2)])
def test_the_exponent_falls_linearly_after_its_start(step, p):
    config = PAnnealConfig(p_start=0.3, p_end=0.2)
    assert config.exponent(Moment(step, 100)) == pytest.approx(p)


def test_before_it_falls_the_sae_is_a_relu_sae():
    fields = {"d_sae": 12, "l1_coefficient": 0.7, "l1_warmup": 0.0}
    x, at = draw(30, 5), Moment(0, 100)
    ours, relu = build(PAnnealConfig(**fields)), build(ReLUConfig(**fields))
    for sae in (ours, relu):
        losses(sae, x, at).total.backward()
    for (name, one), (_, other) in zip(
        ours.named_parameters(), relu.named_parameters(), strict=True
    ):
        assert_close(one.grad, other.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_its_strength_is_l1s_and_its_slope_that_of_the_power():
    """Value: l1_coefficient * mean L1. Gradient in an activation f: proportional to f^(p - 1)."""
    config = PAnnealConfig(d_sae=5, l1_coefficient=2.0, l1_warmup=0.0, p_end=0.5, p_start=0.0)
    sae, end = build(config), Moment(100, 100)
    with torch.no_grad():
        sae.encoder_rows.copy_(torch.eye(5))
        sae.b_dec.zero_()
    x = torch.tensor([[1.0, 4.0, 9.0, -1.0, 0.5 * FLOOR]], dtype=torch.float64)
    out = sae.forward_train(x, end)
    penalty = sae.losses(x, x, out, at=end, dead=torch.zeros(5, dtype=torch.bool)).penalties["lp"]
    assert_close(penalty.detach(), torch.tensor(2 * (14 + 0.5 * FLOOR), dtype=torch.float64))
    (slope,) = torch.autograd.grad(penalty, sae.b_enc)
    assert_close(slope[:3] / slope[0], torch.tensor([1.0, 1 / 2, 1 / 3], dtype=torch.float64))
    assert slope[3] == 0
    assert slope[4] == 0  # below the floor


def test_a_batch_without_activity_has_no_penalty():
    sae = build(PAnnealConfig(d_sae=12))
    with torch.no_grad():
        sae.b_enc.fill_(-100.0)
    out = losses(sae, draw(4, 5), Moment(90, 100))
    assert out.terms["lp"] == 0
    out.total.backward()
    assert all(parameter.grad.isfinite().all() for parameter in sae.parameters())


@pytest.mark.parametrize(("field", "value"), [("p_end", 0.0), ("p_end", 1.5), ("p_start", 1.0)])
def test_bad_fields_are_named(field, value):
    with pytest.raises(ValueError, match=f"^{field}: {value}"):
        PAnnealConfig(**{field: value})
