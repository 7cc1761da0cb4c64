"""latent_ablation: exact effects through a linear layer, and through none."""

import copy
import dataclasses

import pytest
import torch
import toy_subject
from torch.testing import assert_close

from sae_kit.evals.evolution.latent_ablation import Ablation, Change
from sae_kit.sae.relu import ReLUConfig

UP, DOWN = "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"


def relu_saes(seed: int = 0, sites: tuple[str, str] = (UP, DOWN), **of_the_first):
    """ReLU SAEs all of whose latents are active nearly everywhere: no latent crosses zero."""
    saes = {}
    for i, site in enumerate(sites):
        generator = torch.Generator().manual_seed(seed + i)
        width = toy_subject.model().width(site)
        more = of_the_first if i == 0 else {}
        config = ReLUConfig(d_sae=40, apply_b_dec_to_input="d_out" not in more)
        sae = config.build(width, generator=generator, **more)
        weights = sae.weights()
        weights["b_enc"] = torch.full((40,), 30.0)
        sae.load_weights(weights)
        saes[site] = sae
    return saes


def linear_block(subject):
    """The subject with a block 1 that adds nothing: what it passes on is what it got."""
    model = copy.deepcopy(subject.model)
    block = model.blocks[1]
    with torch.no_grad():
        for tensor in (*block.attn.parameters(), *block.mlp.parameters()):
            tensor.zero_()
    lm = dataclasses.replace(subject.language_model, model=model)
    return dataclasses.replace(subject, language_model=lm)


def everywhere(tokens: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(tokens, dtype=torch.bool)


def test_through_a_linear_layer_the_change_is_the_product_of_the_weights(tmp_path):
    """Delta = -f_i W_dec[i] J W_enc[:, j], with J the identity of a block that adds nothing."""
    subject = linear_block(toy_subject.subject(tmp_path, relu_saes()))
    tokens = subject.contexts(2 * toy_subject.CONTEXT)
    change = Ablation(subject, UP, DOWN).change(3, tokens, everywhere(tokens))
    up, down = subject.saes[UP], subject.saes[DOWN]
    rows = subject.model.run(tokens, capture=[UP], stop=UP).acts[UP].flatten(0, 1)
    value = up.encode(rows)[:, 3]
    assert (value > 0).all()
    assert (change.after > 0).all()
    expected = -value[:, None] * (up.W_dec[3] @ down.W_enc)
    assert_close(change.after - change.before, expected.detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("reads", ["hook_mlp_out", "attn.hook_z", "hook_resid_mid"])
def test_what_an_sae_off_the_stream_or_a_transcoder_writes_is_taken_out_there(tmp_path, reads):
    """From the end of block 0 on: MLP output, heads, and a transcoder of the MLP."""
    up, down, written = f"blocks.0.{reads}", "blocks.0.hook_resid_post", "blocks.0.hook_mlp_out"
    if reads == "hook_resid_mid":
        saes = relu_saes(0, (up, down), d_out=toy_subject.model().width(written))
        saes[up].metadata["hook_name_out"] = written
    else:
        saes = relu_saes(0, (up, down))
        written = up
    subject = toy_subject.subject(tmp_path, saes)
    model, (sae, reader) = subject.model, saes.values()
    tokens = subject.contexts(toy_subject.CONTEXT)
    change = Ablation(subject, up, down).change(3, tokens, everywhere(tokens))
    acts = model.run(tokens, capture=[up], stop=up).acts[up].flatten(2)
    part = sae.encode(acts)[..., 3, None] * sae.W_dec[3]
    edit = {written: lambda x: (x.flatten(2) - part).view_as(x)}
    after = model.run(tokens, edit=edit, capture=[down], stop=down).acts[down]
    assert_close(change.after, reader.encode(after.flatten(0, 1)).detach())
    assert (change.after - change.before).abs().max() > 1e-3


def test_a_latent_that_nothing_reads_has_no_effect(tmp_path):
    """Its decoder row is 0."""
    saes = relu_saes()
    weights = saes[UP].weights()
    weights["W_dec"][5] = 0
    saes[UP].load_weights(weights)
    subject = toy_subject.subject(tmp_path, saes)
    tokens = subject.contexts(toy_subject.CONTEXT)
    change = Ablation(subject, UP, DOWN).change(5, tokens, everywhere(tokens))
    assert_close(change.after, change.before)


def test_only_where_it_fires_and_counts_is_it_taken_out(tmp_path):
    subject = toy_subject.subject(tmp_path, relu_saes())
    tokens = subject.contexts(toy_subject.CONTEXT)
    counting = torch.zeros_like(tokens, dtype=torch.bool)
    counting[0, 7] = True
    change = Ablation(subject, UP, DOWN).change(3, tokens, counting)
    assert change.before.shape == (1, 40)


def test_effects_of_known_changes():
    before = torch.tensor([[4.0, 0.0], [6.0, 0.0], [0.0, 2.0]])
    after = torch.tensor([[1.0, 0.0], [4.0, 1.0], [1.0, 2.0]])
    effect = Change(before, after).effect(0, largest=10.0)
    assert (effect.n_positions, effect.n_active) == (3, 2)
    assert effect.mean_change == pytest.approx(-4 / 3)
    assert effect.mean_square == pytest.approx((9 + 4 + 1) / 3)
    assert effect.share_lost == pytest.approx(0.5)


def test_a_latent_that_never_was_active_has_lost_nothing():
    zeros = torch.zeros(3, 1)
    assert Change(zeros, zeros + 1).effect(0, largest=1.0).share_lost == 0


def test_a_latent_that_is_not_there_or_does_not_fire_is_refused(tmp_path):
    subject = toy_subject.subject(tmp_path, relu_saes())
    tokens = subject.contexts(toy_subject.CONTEXT)
    ablation = Ablation(subject, UP, DOWN)
    with pytest.raises(ValueError, match="latent: 40 is none of the 40"):
        ablation.change(40, tokens, everywhere(tokens))
    with pytest.raises(ValueError, match=r"latent: 0 .* fires in none"):
        ablation.change(0, tokens, ~everywhere(tokens))
