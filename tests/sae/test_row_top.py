"""What the architectures with a budget for every row have in common."""

import pytest
import torch

from sae_kit.sae.base import Moment
from sae_kit.sae.groupmax import GroupMaxConfig
from sae_kit.sae.topk import TopKConfig

CONFIGS = [TopKConfig(d_sae=24, k=4), GroupMaxConfig(d_sae=24, k=4)]
NOBODY = torch.zeros(24, dtype=torch.bool)


@pytest.fixture(params=CONFIGS, ids=lambda config: type(config).__name__)
def sae(request):
    return request.param.build(6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def x():
    return torch.randn(10, 6, generator=torch.Generator().manual_seed(1))


def test_no_row_has_more_than_its_budget(sae, x):
    assert (sae.forward_train(x, Moment(0, 10)).code.l0() <= 4).all()


def test_a_training_step_decodes_what_the_sae_encodes(sae, x):
    out = sae.forward_train(x, Moment(0, 10))
    torch.testing.assert_close(out.recon, sae(x))


def test_the_loss_is_the_squared_error_and_nothing_else_while_all_are_alive(sae, x):
    at = Moment(0, 10)
    out = sae.forward_train(x, at)
    target = torch.zeros_like(x)
    losses = sae.losses(x, target, out, at=at, dead=NOBODY)
    torch.testing.assert_close(losses.total, out.recon.square().sum(-1).mean())


def test_dead_latents_bring_the_auxiliary_loss(sae, x):
    at = Moment(0, 10)
    out = sae.forward_train(x, at)
    losses = sae.losses(x, x, out, at=at, dead=~NOBODY)
    assert set(losses.penalties) == {"aux"}
    assert losses.total >= losses.mse
