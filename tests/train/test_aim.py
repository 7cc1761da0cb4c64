"""Where transcoders start: a known answer, what stays as it was, and that all architectures may."""

import pytest
import torch
from torch.testing import assert_close

from sae_kit.config import from_node
from sae_kit.maths import fvu
from sae_kit.sae.base import SAE, Moment, SAEConfig
from sae_kit.sae.topk import TopKConfig
from sae_kit.train import aim as aim_module
from sae_kit.train.aim import aim

D_IN, D_OUT, D_SAE = 12, 7, 40
ARCHS = list(SAEConfig.variants())


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Targets that a linear map makes of the inputs, and an offset on both."""
    x = randn(3000, D_IN)
    return x + 2, x @ randn(D_IN, D_OUT, seed=1) - 3


def build(config: SAEConfig) -> SAE:
    return config.build(D_IN, D_OUT, generator=torch.Generator().manual_seed(0))


def arch(word: str) -> SAEConfig:
    fields = {"arch": word, "d_sae": D_SAE, "apply_b_dec_to_input": False}
    if "k" in SAEConfig.variants()[word].__dataclass_fields__:
        fields["k"] = 4
    return from_node(SAEConfig, fields)


def test_a_latent_for_each_half_axis_is_pointed_where_that_half_axis_leads():
    """Inputs on the axes alone, one at a time; the target is a linear map of the input."""
    sae = TopKConfig(d_sae=2 * D_IN, k=1, apply_b_dec_to_input=False).build(
        D_IN, D_OUT, generator=torch.Generator().manual_seed(0)
    )
    both = torch.cat([torch.eye(D_IN), -torch.eye(D_IN)])
    with torch.no_grad():
        sae.encoder_rows.copy_(both)
    matrix = randn(D_IN, D_OUT, seed=1)
    matrix = matrix / matrix.norm(dim=1, keepdim=True)
    x = 3 * both.repeat(5, 1)
    aim(sae, x, 2 * x @ matrix)
    assert_close(sae.W_dec.detach(), torch.cat([matrix, -matrix]))
    assert_close(sae.encoder_rows.detach(), 2 * both)
    assert_close(sae(x), 2 * x @ matrix)


@pytest.mark.parametrize("word", ARCHS)
def test_every_architecture_starts_with_less_error(word):
    x, target = data()
    drawn, aimed = build(arch(word)), build(arch(word))
    drawn.init_from(x, target)
    aim(aimed, x, target)
    errors = []
    for sae in (drawn, aimed):
        with torch.no_grad():
            errors.append(float(fvu(target, sae.forward_train(x, Moment(0, 1)).recon)))
    assert errors[1] < 0.9 * min(errors[0], 1.0)


@pytest.mark.parametrize("word", ARCHS)
def test_lengths_of_decoder_rows_and_all_that_is_learned_by_counting_stay(word):
    sae, drawn = build(arch(word)), build(arch(word))
    drawn.init_from(*data())
    aim(sae, *data())
    assert_close(sae.W_dec.detach().norm(dim=1), drawn.W_dec.detach().norm(dim=1))
    assert_close(sae.b_dec, drawn.b_dec)
    for (name, buffer), before in zip(sae.named_buffers(), drawn.buffers(), strict=True):
        assert torch.equal(buffer, before), name
    assert all(p.grad is None for p in sae.parameters())


def test_the_encoder_stays_centred():
    sae = build(TopKConfig(d_sae=D_SAE, k=3, apply_b_dec_to_input=False))
    aim(sae, *data())
    centre = sae.encoder_rows.detach() @ torch.full((D_IN,), 2.0) + sae.b_enc.detach()
    assert centre.abs().max() < 0.05 * sae.b_enc.detach().abs().max()


def test_latents_that_nothing_activates_stay_as_they_are():
    """Those of an encoder that says nothing."""
    sae = build(TopKConfig(d_sae=D_SAE, k=3, apply_b_dec_to_input=False))
    with torch.no_grad():
        sae.encoder_rows[3] = 0
    before = sae.W_dec.detach().clone()
    aim(sae, *data())
    assert torch.equal(sae.W_dec[3], before[3])
    assert not torch.isclose(sae.W_dec[4], before[4]).all()
    with torch.no_grad():
        sae.encoder_rows.zero_()
    still = sae.W_dec.detach().clone()
    aim(sae, *data())
    assert torch.equal(sae.W_dec, still)
    assert all(tensor.isfinite().all() for tensor in sae.weights().values())


def test_rows_may_be_taken_in_any_portions(monkeypatch):
    config = TopKConfig(d_sae=D_SAE, k=3, apply_b_dec_to_input=False)
    whole, parts = build(config), build(config)
    aim(whole, *data())
    monkeypatch.setattr(aim_module, "ROWS", 700)
    aim(parts, *data())
    for name, tensor in whole.weights().items():
        assert_close(tensor, parts.weights()[name], rtol=1e-4, atol=1e-5)
