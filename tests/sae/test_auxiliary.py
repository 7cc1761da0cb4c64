"""AuxK, through the TopK SAE, whose dense algebra is easily written down."""

import pytest
import torch
from torch.testing import assert_close

from sae_kit.sae import Moment, auxiliary
from sae_kit.sae.topk import TopKConfig

START = Moment(0, 1)


def build(d_in=8, *, dtype=torch.float64, seed=0, **fields):
    config = TopKConfig(**{"d_sae": 24, "k": 3, **fields})
    return config.build(d_in, generator=torch.Generator().manual_seed(seed)).to(dtype)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def losses(sae, x, dead, target=None):
    target = x if target is None else target
    return sae.losses(x, target, sae.forward_train(x, START), at=START, dead=dead)


def mask(sae, *latents):
    dead = torch.zeros(sae.d_sae, dtype=torch.bool)
    dead[list(latents)] = True
    return dead


def reference_aux(sae, x, target, dead, k_aux):
    """The auxiliary loss by plain dense algebra."""
    with torch.no_grad():
        residual = target - sae(x)
        centred = x - sae.b_dec
    pre = centred @ sae.W_enc[:, dead] + sae.b_enc[dead]
    values, indices = pre.topk(k_aux)
    code = torch.zeros_like(pre).scatter(-1, indices, values).relu()
    error = (code @ sae.W_dec[dead] - residual).square().sum()
    share = error / (residual - residual.mean(0)).square().sum()
    return share * (target - target.mean(0)).square().sum() / len(target) / 32


@pytest.mark.parametrize("dense_up_to", [16, 0], ids=["dense", "sparse"])
@pytest.mark.parametrize(("dead", "k_aux"), [([1, 5, 7, 20], 2), ([3], 1), (range(24), 4)])
def test_aux_and_its_gradients_equal_dense_algebra(dead, k_aux, dense_up_to, monkeypatch):
    monkeypatch.setattr(auxiliary, "DENSE_UP_TO", dense_up_to)
    sae, x, target = build(k_aux=k_aux), draw(30, 8, seed=4), draw(30, 8, seed=5)
    dead = mask(sae, *dead)

    out = losses(sae, x, dead, target)
    expected = reference_aux(sae, x, target, dead, k_aux)
    assert_close(out.terms["aux"], expected.detach())

    (out.total - losses(sae, x, mask(sae), target).total).backward()  # the auxiliary part alone
    ours = {name: parameter.grad.clone() for name, parameter in sae.named_parameters()}
    sae.zero_grad()
    expected.backward()
    for name, parameter in sae.named_parameters():
        wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert_close(ours[name], wanted, msg=lambda text, name=name: f"{name}: {text}")


def test_aux_reaches_dead_latents_only():
    sae, x = build(), draw(30, 8, seed=4)
    dead = mask(sae, 2, 9)
    auxiliary = losses(sae, x, dead).total - losses(sae, x, mask(sae)).total
    auxiliary.backward()
    assert not sae.W_dec.grad[~dead].any()
    assert not sae.encoder_rows.grad[~dead].any()
    assert sae.W_dec.grad[dead].any(-1).all()


def test_k_aux_is_half_the_width_unless_given_and_capped_by_the_dead():
    x = draw(200, 8, seed=1)

    def aux(sae, dead):
        return losses(sae, x, dead).terms["aux"]

    everyone = torch.ones(24, dtype=torch.bool)
    assert_close(aux(build(), everyone), aux(build(k_aux=4), everyone))
    assert not torch.isclose(aux(build(), everyone), aux(build(k_aux=3), everyone))
    two = mask(build(), 0, 1)
    assert_close(aux(build(k_aux=24), two), aux(build(k_aux=2), two))


def test_no_aux_when_nothing_is_dead_or_it_is_off(monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("the auxiliary path ran")

    monkeypatch.setattr(auxiliary, "auxiliary_loss", forbidden)
    x = draw(4, 8)
    assert losses(build(), x, mask(build())).terms.keys() == {"mse"}
    off = build(aux_coefficient=0.0)
    assert losses(off, x, torch.ones(24, dtype=torch.bool)).terms.keys() == {"mse"}


def test_aux_of_one_row_is_zero_not_nan():
    sae = build()
    out = losses(sae, draw(1, 8), torch.ones(24, dtype=torch.bool))
    assert out.terms["aux"] == 0
    out.total.backward()
    assert all(p.grad.isfinite().all() for p in sae.parameters())


def test_aux_does_not_depend_on_the_units_of_the_input():
    """Scaling inputs by s scales the main loss by s^2; aux keeps its share of it."""
    dead = mask(build(), *range(12))
    x = draw(40, 8)
    small, large = (losses(build(), s * x, dead).terms for s in (1.0, 100.0))
    assert_close(large["aux"] / large["mse"], small["aux"] / small["mse"])


@pytest.mark.slow
def test_aux_revives_dead_latents():
    """Latents that are hardly ever among the k largest come back with aux, not without it."""

    def share_alive(aux_coefficient):
        sae = build(16, d_sae=64, k=4, aux_coefficient=aux_coefficient, dtype=torch.float32)
        x = draw(512, 16, seed=1, dtype=torch.float32)
        with torch.no_grad():
            sae.b_enc[32:] = -2.0
        optimiser = torch.optim.Adam(sae.parameters(), lr=1e-2)
        for _ in range(150):
            optimiser.zero_grad()
            out = sae.forward_train(x, START)
            dead = ~out.code.fired()
            sae.losses(x, x, out, at=START, dead=dead).total.backward()
            sae.after_backward()
            optimiser.step()
            sae.after_step()
        return sae.encode_sparse(x).fired()[32:].double().mean()

    assert share_alive(0.0) < 0.2
    assert share_alive(1 / 32) > 0.9
