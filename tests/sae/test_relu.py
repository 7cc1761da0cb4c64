import pytest
import torch
from torch.testing import assert_close

from sae_kit.sae import Moment
from sae_kit.sae.relu import ReLUConfig


def identity_sae(**fields):
    """Two latents that read and write the two axes."""
    config = ReLUConfig(d_sae=2, l1_warmup=0.0, **fields)
    sae = config.build(2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        sae.encoder_rows.copy_(torch.eye(2))
        sae.W_dec.copy_(torch.eye(2))
    return sae


def losses(sae, x, target, *, step=0, n_steps=100):
    dead = torch.zeros(sae.d_sae, dtype=torch.bool)
    at = Moment(step, n_steps)
    return sae.losses(x, target, sae.forward_train(x, at), at=at, dead=dead)


def test_loss_by_hand():
    sae = identity_sae(l1_coefficient=0.5)
    x = torch.tensor([[3.0, -1.0], [0.0, 2.0]])  # codes (3, 0) and (0, 2)
    target = torch.tensor([[3.0, 1.0], [2.0, 2.0]])  # errors (0, -1) and (-2, 0)
    out = losses(sae, x, target)
    assert out.terms["mse"] == (1 + 4) / 2
    assert out.terms["l1"] == 0.5 * (3 + 2) / 2
    assert out.total == 2.5 + 1.25


def test_coefficient_warms_up_linearly():
    config = ReLUConfig(d_sae=2, l1_coefficient=3.0, l1_warmup=0.1)
    sae = config.build(2, generator=torch.Generator().manual_seed(0))
    x = torch.tensor([[1.0, 2.0]])
    full = losses(sae, x, x, step=10).terms["l1"]
    assert full > 0
    for step, share in [(0, 0.0), (5, 0.5), (9, 0.9), (10_000, 1.0)]:
        assert_close(losses(sae, x, x, step=step).terms["l1"], share * full)


def test_penalty_shrinks_activations_by_half_the_coefficient():
    """With an orthonormal dictionary the best activation is max(f - l1_coefficient / 2, 0)."""
    sae = identity_sae(l1_coefficient=1.0)
    x = torch.tensor([[3.0, 0.4]])
    sae.W_dec.requires_grad_(False)
    sae.b_dec.requires_grad_(False)
    optimiser = torch.optim.SGD([sae.b_enc], lr=0.1)
    for _ in range(200):
        optimiser.zero_grad()
        losses(sae, x, x).total.backward()
        optimiser.step()
    assert_close(sae.encode(x).detach(), torch.tensor([[2.5, 0.0]]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("field", "value"), [("l1_coefficient", -1.0), ("l1_warmup", -0.5), ("d_sae", 0)]
)
def test_bad_fields_are_named(field, value):
    with pytest.raises(ValueError, match=f"^{field}: {value}"):
        ReLUConfig(**{field: value})


def planted(n_rows, d_in, n_features, n_active, *, seed):
    """Rows of `n_active` features (unit directions), scaled to a mean norm of sqrt(d_in)."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.nn.functional.normalize(torch.randn(n_features, d_in, generator=generator))
    chosen = torch.rand(n_rows, n_features, generator=generator).topk(n_active).indices
    strengths = 0.5 + torch.rand(n_rows, n_active, generator=generator)
    x = torch.zeros(n_rows, n_features).scatter(-1, chosen, strengths) @ features
    return x * d_in**0.5 / x.norm(dim=-1).mean(), features


@pytest.mark.slow
def test_default_coefficient_recovers_planted_features():
    x, features = planted(2048, 32, 48, 3, seed=0)
    config = ReLUConfig(d_sae=64, l1_warmup=1 / 6)
    sae = config.build(32, generator=torch.Generator().manual_seed(1))
    sae.init_from(x, x)
    optimiser = torch.optim.Adam(sae.parameters(), lr=3e-3)
    for step in range(600):
        optimiser.zero_grad()
        losses(sae, x, x, step=step, n_steps=600).total.backward()
        sae.after_backward()
        optimiser.step()
        sae.after_step()
    l0 = sae.encode_sparse(x).l0().double().mean()
    assert 1 < l0 < 9  # 3 are active; 64 latents could be
    best = (features @ sae.W_dec.detach().T).max(-1).values
    assert (best > 0.9).double().mean() > 0.8
