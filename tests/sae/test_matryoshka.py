import pytest
import torch
from torch.testing import assert_close

from sae_kit.sae import Moment
from sae_kit.sae.batch_topk import BatchTopKConfig
from sae_kit.sae.matryoshka import MatryoshkaConfig

END = Moment(1, 1)
D_IN, D_SAE = 8, 64
NOBODY = torch.zeros(D_SAE, dtype=torch.bool)


def build(d_out=None, *, config=MatryoshkaConfig, **fields):
    fields = {"d_sae": D_SAE, "k": 3, "apply_b_dec_to_input": d_out is None, **fields}
    sae = config(**fields).build(D_IN, d_out, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        for i, parameter in enumerate(sae.parameters()):
            parameter.add_(draw(*parameter.shape, seed=i), alpha=0.1)
    return sae


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def losses(sae, x, target, dead=NOBODY):
    return sae.losses(x, target, sae.forward_train(x, END), at=END, dead=dead)


@pytest.mark.parametrize("fields", [{}, {"d_out": 5}, {"d_out": 5, "skip": True}])
def test_loss_and_gradients_are_those_of_every_prefix_by_itself(fields):
    """Against dense matrices, prefix by prefix; in every parameter and the input."""
    sae, x = build(**fields), draw(50, D_IN, seed=40).requires_grad_()
    target = draw(50, sae.d_out, seed=41)
    inputs = (x, *sae.parameters())

    pre = ((x - sae.b_dec if sae.d_out == D_IN else x) @ sae.W_enc + sae.b_enc).relu()
    code = torch.where(pre >= pre.flatten().topk(150).values.min(), pre, 0.0)
    base = sae.b_dec + (x @ sae.W_skip.T if sae.config.skip else 0)
    recons = {m: code[:, :m] @ sae.W_dec[:m] + base for m in (2, 6, 14, 30, 64)}
    errors = {m: (recon - target).square().sum() / 50 for m, recon in recons.items()}
    expected = torch.autograd.grad(sum(errors.values()), inputs)

    own = losses(sae, x, target)
    assert_close(own.mse, errors[64])
    assert_close(own.penalties["nested"], errors[2] + errors[6] + errors[14] + errors[30])
    assert_close(sae.forward_train(x, END).recon, recons[64])
    for mine, theirs in zip(torch.autograd.grad(own.total, inputs), expected, strict=True):
        assert_close(mine, theirs)


def test_with_one_group_it_is_batch_topk():
    fields = {"group_fractions": (1.0,)}
    own, other, x = build(**fields), build(config=BatchTopKConfig), draw(50, D_IN, seed=40)
    dead = torch.arange(D_SAE) % 3 == 0
    ours, theirs = losses(own, x, x, dead), losses(other, x, x, dead)
    assert_close(ours.penalties.pop("nested").item(), 0.0)
    assert_close(ours.terms, theirs.terms)


@pytest.mark.slow
def test_the_first_group_learns_what_is_common_to_many_rows():
    """Two big directions among small ones: the prefix of two latents writes along these."""
    generator = torch.Generator().manual_seed(0)
    sae = MatryoshkaConfig(d_sae=16, k=3, group_fractions=(0.125, 0.875)).build(
        D_IN, generator=generator
    )
    optimiser = torch.optim.Adam(sae.parameters(), lr=1e-2)
    scale = torch.tensor([4.0, 4.0] + [1.0] * (D_IN - 2))
    for step in range(400):
        present = torch.rand(256, D_IN, generator=generator) < 0.4
        x = present * torch.rand(256, D_IN, generator=generator) * scale
        at = Moment(step, 400)
        out = sae.forward_train(x, at)
        loss = sae.losses(x, x, out, at=at, dead=torch.zeros(16, dtype=torch.bool))
        optimiser.zero_grad()
        loss.total.backward()
        sae.after_backward()
        optimiser.step()
        sae.after_step()
    on_big = sae.W_dec[:2, :2].norm(dim=-1)
    assert (on_big > 0.95).all()


@pytest.mark.parametrize(
    ("d_sae", "fractions", "prefixes"),
    [
        (64, (0.03125, 0.0625, 0.125, 0.25, 0.53125), (2, 6, 14, 30, 64)),
        (65536, (0.03125, 0.0625, 0.125, 0.25, 0.53125), (2048, 6144, 14336, 30720, 65536)),
        (10, (0.3, 0.3, 0.4), (3, 6, 10)),
        (4, (0.03125, 0.0625, 0.125, 0.25, 0.53125), (1, 2, 4)),
        (7, (1.0,), (7,)),
    ],
)
def test_prefixes(d_sae, fractions, prefixes):
    assert MatryoshkaConfig(d_sae=d_sae, k=1, group_fractions=fractions).prefixes == prefixes


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ((), "add up to 0"),
        ((0.5, 0.4), "add up to 0.9; give shares that make 1"),
        ((1.5, -0.5), "has a group without latents"),
        ((0.0, 1.0), "has a group without latents"),
        ((float("nan"), 1.0), "has a group without latents"),
    ],
)
def test_bad_groups_are_named(fractions, message):
    with pytest.raises(ValueError, match=f"^group_fractions: .*{message}"):
        MatryoshkaConfig(d_sae=D_SAE, k=3, group_fractions=fractions)
