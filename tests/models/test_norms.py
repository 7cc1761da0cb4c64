"""The two kinds of norm by themselves; tests/models/test_gpt2.py has LayerNorm in its place."""

import pytest
import torch
from conftest import SMALL, random_gpt2

from sae_kit.models.gpt2 import GPT2Config
from sae_kit.models.hooks import Tape
from sae_kit.models.norms import NORMS, LinearNorm

SITES = ("ln.hook_scale", "ln.hook_normalized")


@pytest.fixture(params=list(NORMS))
def norm(request):
    norm = NORMS[request.param]("ln", 6, 1e-5).double().requires_grad_(False)
    norm.w.copy_(torch.arange(1.0, 7.0))
    norm.b.copy_(torch.arange(6.0).flip(0))
    return norm


@pytest.fixture
def x():
    return torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_constant_added_to_every_channel_changes_nothing(norm, x):
    torch.testing.assert_close(norm(x + 7.0, Tape((), {}, None)), norm(x, Tape((), {}, None)))


@pytest.mark.parametrize("site", SITES)
def test_looking_changes_nothing(norm, x, site):
    torch.testing.assert_close(norm(x, Tape([site], {}, None)), norm(x, Tape((), {}, None)))


def test_sites_multiply_to_the_centred_input(norm, x):
    tape = Tape(SITES, {}, None)
    norm(x, tape)
    scale, normalized = (tape.acts[site] for site in SITES)
    torch.testing.assert_close(scale * normalized, x - x.mean(-1, keepdim=True))


def test_an_edited_scale_divides(norm, x):
    edit = {"ln.hook_scale": lambda own: torch.full_like(own, 4.0)}
    expected = (x - x.mean(-1, keepdim=True)) / 4.0 * norm.w + norm.b
    torch.testing.assert_close(norm(x, Tape((), edit, None)), expected)


def test_a_linear_norm_is_affine(x):
    norm = LinearNorm("ln", 6, 1e-5).double().requires_grad_(False)
    norm.b.copy_(torch.arange(6.0))
    tape = Tape((), {}, None)
    y = x.flip(0)
    torch.testing.assert_close(
        norm(0.3 * x + 0.7 * y, tape), 0.3 * norm(x, tape) + 0.7 * norm(y, tape)
    )


def test_a_model_has_the_norms_its_config_says():
    model = random_gpt2(GPT2Config(**{**vars(SMALL), "norm": "linear"}))
    assert type(model.blocks[0].ln1) is type(model.ln_final) is LinearNorm
    with pytest.raises(ValueError, match="norm: 'rms' is unknown; use layer or linear"):
        GPT2Config(norm="rms")
