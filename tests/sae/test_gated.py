"""The gated SAE by its formulas, with what they hold constant."""

import pytest
import torch
from torch.testing import assert_close

from sae_kit.sae import Moment, active
from sae_kit.sae.gated import GatedConfig

END = Moment(10, 10)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(**fields):
    config = GatedConfig(d_sae=12, **fields)
    sae = config.build(5, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        for i, parameter in enumerate(sae.parameters()):
            parameter.add_(draw(*parameter.shape, seed=i), alpha=0.3)
    return sae


@pytest.fixture(params=[0.0, 1.0], ids=["matrix", "list"])
def dense_from(request, monkeypatch):
    monkeypatch.setattr(active, "DENSE_FROM", request.param)


@pytest.mark.usefixtures("dense_from")
def test_loss_and_gradients_equal_the_papers_formulas():
    sae, x, target = build(l1_coefficient=0.7, l1_warmup=0.0), draw(30, 5), draw(30, 5, seed=1)
    out = sae.forward_train(x, END)
    losses = sae.losses(x, target, out, at=END, dead=torch.zeros(12, dtype=torch.bool))
    losses.total.backward()
    ours = {name: parameter.grad.clone() for name, parameter in sae.named_parameters()}
    sae.zero_grad()

    raw = (x - sae.b_dec) @ sae.W_enc
    gate = raw + sae.b_enc
    code = (gate > 0) * (raw * sae.r_mag.exp() + sae.b_mag).relu()
    mse = (code @ sae.W_dec + sae.b_dec - target).square().sum() / 30
    l1 = 0.7 * gate.relu().sum() / 30
    frozen = (gate.relu() @ sae.W_dec.detach() + sae.b_dec.detach() - target).square().sum() / 30
    (mse + l1 + frozen).backward()
    assert losses.terms.keys() == {"mse", "l1", "gate"}
    for term, value in {"mse": mse, "l1": l1, "gate": frozen}.items():
        assert_close(losses.terms[term], value.detach())
    for name, parameter in sae.named_parameters():
        assert_close(ours[name], parameter.grad, msg=lambda text, name=name: f"{name}: {text}")
    assert_close(sae.encode(x), code)


def test_the_penalty_does_not_shrink_the_code():
    """Scaling the gate's inputs up costs the penalty; the magnitudes are free to undo it."""
    sae, x = build(), draw(50, 5)
    before = sae.encode(x)
    with torch.no_grad():
        sae.encoder_rows *= 0.5
        sae.b_enc *= 0.5
        sae.r_mag += torch.tensor(2.0).log()
    assert_close(sae.encode(x), before)


def test_magnitudes_start_equal_to_the_gates():
    sae = GatedConfig(d_sae=64).build(5, generator=torch.Generator().manual_seed(0))
    x = draw(200, 5).float()
    sae.init_from(x, x)
    gate = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).relu()
    assert_close(sae.encode(x), gate)
    assert gate.any()
